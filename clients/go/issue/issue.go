// Package issue makes what login servers hand out to clients: sealed lines and tokens,
// each of which stands for the address of a game server.
//
//	line, err := issue.Line(secret, "10.0.0.7:4000")
//
//	keys, err := issue.ReadKey("keys.json") // of gateway -keygen
//	token, err := keys.Token("10.0.0.7:4000", 10*time.Minute)
//
// Who knows the secret or the key can make both: never give them to a client.
package issue

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// checkAddress refuses what gateways refuse without fail; they check the rest.
func checkAddress(address string) error {
	if address == "" || len(address) > 700 {
		return errors.New("issue: an address has from 1 to 700 bytes")
	}
	for _, c := range []byte(address) {
		if c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return fmt.Errorf("issue: address %q: only printable ASCII, without spaces and quotes", address)
		}
	}
	return nil
}

// Line seals an address, host:port, with the secret of the gateways, as
// `openssl enc -aes-256-cbc -a -A -salt` of OpenSSL 1.1 and later does. It is good as
// long as the gateways know the secret.
func Line(secret, address string) (string, error) {
	if secret == "" {
		return "", errors.New("issue: no secret")
	}
	if err := checkAddress(address); err != nil {
		return "", err
	}
	salt := make([]byte, 8)
	rand.Read(salt) // never fails
	salted := append([]byte(secret), salt...)
	key := sha256.Sum256(salted)
	iv := sha256.Sum256(append(key[:], salted...))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return "", err
	}
	n := aes.BlockSize - len(address)%aes.BlockSize // PKCS#7
	text := append([]byte(address), bytes.Repeat([]byte{byte(n)}, n)...)
	cipher.NewCBCEncrypter(block, iv[:aes.BlockSize]).CryptBlocks(text, text)
	return base64.StdEncoding.EncodeToString(slices.Concat([]byte("Salted__"), salt, text)), nil
}

// Key makes tokens. It may be used by several goroutines.
type Key struct {
	kid string
	gcm cipher.AEAD
}

// ReadKey reads a JWK Set of a file, as gateway -keygen prints it, and returns its
// first key that encrypts.
func ReadKey(file string) (*Key, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	k, err := ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return k, nil
}

// ParseKey is ReadKey for the text of a JWK Set.
func ParseKey(set []byte) (*Key, error) {
	var s struct {
		Keys []struct{ Kty, Use, Kid, K string }
	}
	if err := json.Unmarshal(set, &s); err != nil {
		return nil, errors.New("issue: no JWK Set") // not err: it could quote a key
	}
	for _, k := range s.Keys {
		if k.Kty == "oct" && k.Use == "enc" {
			return NewKey(k.Kid, k.K)
		}
	}
	return nil, errors.New(`issue: no key with "kty":"oct" and "use":"enc" in the set`)
}

// NewKey returns the key whose kid and k are those of a JWK.
func NewKey(kid, k string) (*Key, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(k)
	if err != nil || len(raw) != 32 {
		return nil, errors.New("issue: k is 32 bytes in base64url, without padding")
	}
	if len(kid) > 100 {
		return nil, errors.New("issue: a kid has at most 100 bytes")
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	return &Key{kid, gcm}, err
}

// Token makes a token for an address, host:port, that is good for ttl from now on, at
// least a second. audience is what the gateways have as -token-audience, if anything.
func (k *Key) Token(address string, ttl time.Duration, audience ...string) (string, error) {
	if err := checkAddress(address); err != nil {
		return "", err
	}
	if ttl < time.Second {
		return "", fmt.Errorf("issue: a token of %v would not live", ttl)
	}
	header, err := json.Marshal(struct {
		Alg string `json:"alg"`
		Enc string `json:"enc"`
		Kid string `json:"kid,omitempty"`
	}{"dir", "A256GCM", k.kid})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(struct {
		Sub string   `json:"sub"`
		Exp int64    `json:"exp"`
		Aud []string `json:"aud,omitempty"`
	}{address, time.Now().Add(ttl).Unix(), audience})
	if err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding.EncodeToString
	iv := make([]byte, k.gcm.NonceSize())
	rand.Read(iv) // never fails
	protected := b64(header)
	sealed := k.gcm.Seal(nil, iv, claims, []byte(protected))
	text, tag := sealed[:len(claims)], sealed[len(claims):]
	return protected + ".." + b64(iv) + "." + b64(text) + "." + b64(tag), nil
}
