package harness

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/md5"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"hash"
)

// Secret is the gateway's in tests.
const Secret = "a secret of the tests only"

// GoldenLine is a good line of another secret.
const GoldenLine = "U2FsdGVkX19KIJ9OQJKT/yHGMrS+5SsBAAjetomptQ0="

// Line returns the request for a backend, or for a route: Sealed and a newline.
func Line(backend string) string { return Sealed(backend) + "\n" }

// Sealed seals a text, which is not looked at, with Secret and a salt of its own.
func Sealed(text string) string { return Seal("sha256", Secret, text) }

// Seal encrypts a text as `openssl enc -aes-256-cbc -a -A -salt` does, without a
// newline at the end. kdf is md5, sha256 or pbkdf2, as the gateway's flag has it.
// It is written for the tests, so that the gateway is not checked against itself.
func Seal(kdf, secret, text string) string {
	salt := make([]byte, 8)
	rand.Read(salt)
	return SealWith(kdf, secret, salt, text)
}

// SealWith is Seal with a salt of the caller's choice, eight bytes.
func SealWith(kdf, secret string, salt []byte, text string) string {
	keyIV := deriveKey(kdf, []byte(secret), salt)
	block, err := aes.NewCipher(keyIV[:32])
	if err != nil {
		panic(err)
	}
	n := aes.BlockSize - len(text)%aes.BlockSize // PKCS#7
	b := append([]byte(text), bytes.Repeat([]byte{byte(n)}, n)...)
	cipher.NewCBCEncrypter(block, keyIV[32:48]).CryptBlocks(b, b)
	return base64.StdEncoding.EncodeToString(append(append([]byte("Salted__"), salt...), b...))
}

// deriveKey returns the key and the IV, 48 bytes: OpenSSL's EVP_BytesToKey with
// one round, or what its -pbkdf2 does.
func deriveKey(kdf string, secret, salt []byte) []byte {
	var h hash.Hash
	switch kdf {
	case "md5":
		h = md5.New()
	case "sha256":
		h = sha256.New()
	case "pbkdf2":
		key, err := pbkdf2.Key(sha256.New, string(secret), salt, 10000, 48)
		if err != nil {
			panic(err)
		}
		return key
	default:
		panic("no such key derivation: " + kdf)
	}
	var all, last []byte
	for len(all) < 48 {
		h.Reset()
		h.Write(last)
		h.Write(secret)
		h.Write(salt)
		last = h.Sum(nil)
		all = append(all, last...)
	}
	return all[:48]
}

// BadlyPadded returns a line whose padding is wrong by Secret and every derivation
// that a gateway tries by default. A line of another secret is right in one of 128
// all the same.
func BadlyPadded() string {
	for {
		line := Seal("md5", "the secret of somebody else", "unrecognized:1")
		if !wellPadded("md5", line) && !wellPadded("sha256", line) {
			return line
		}
	}
}

// wellPadded tells whether Secret makes a text with PKCS#7 padding of a line.
func wellPadded(kdf, line string) bool {
	raw, err := base64.StdEncoding.DecodeString(line)
	if err != nil {
		panic(err)
	}
	keyIV, b := deriveKey(kdf, []byte(Secret), raw[8:16]), raw[16:]
	block, err := aes.NewCipher(keyIV[:32])
	if err != nil {
		panic(err)
	}
	cipher.NewCBCDecrypter(block, keyIV[32:48]).CryptBlocks(b, b)
	n := int(b[len(b)-1])
	return n >= 1 && n <= aes.BlockSize && bytes.HasSuffix(b, bytes.Repeat([]byte{byte(n)}, n))
}
