package protocols

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"
)

// mint makes tokens byte by byte, so that they can be wrong in every way, and
// so that the gateway is not checked against itself.
type mint struct {
	encKey, sigKey []byte
	edKey          ed25519.PrivateKey
	es             *ecdsa.PrivateKey
}

// newMint returns a mint whose keys depend on the seed.
func newMint(seed byte) *mint {
	key := func(which byte) []byte { return bytes.Repeat([]byte{seed, which}, 16) }
	es, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), key(4))
	if err != nil {
		panic(err)
	}
	return &mint{key(1), key(2), ed25519.NewKeyFromSeed(key(3)), es}
}

func (m *mint) edPublic() []byte { return m.edKey.Public().(ed25519.PublicKey) }

// set is the gateway's key set, with a key of each kind.
func (m *mint) set() string {
	point, err := m.es.PublicKey.Bytes()
	if err != nil {
		panic(err)
	}
	return `{"keys":[` + strings.Join([]string{
		m.jwk("enc"),
		fmt.Sprintf(`{"kty":"oct","kid":"sig","use":"sig","k":"%s"}`, base64url(m.sigKey)),
		fmt.Sprintf(`{"kty":"OKP","kid":"ed","crv":"Ed25519","x":"%s"}`, base64url(m.edPublic())),
		fmt.Sprintf(`{"kty":"EC","kid":"es","crv":"P-256","x":"%s","y":"%s"}`, base64url(point[1:33]), base64url(point[33:])),
	}, ",") + `]}`
}

// jwk is the encrypting key by any name.
func (m *mint) jwk(kid string) string {
	return fmt.Sprintf(`{"kty":"oct","kid":%q,"use":"enc","k":"%s"}`, kid, base64url(m.encKey))
}

// kinds returns what makes a token for each key of the set, by its kid.
func (m *mint) kinds() map[string]func(claims string) string {
	return map[string]func(string) string{"enc": m.enc, "sig": m.sig, "ed": m.ed, "es": m.signES}
}

func (m *mint) enc(claims string) string {
	return m.jwe(`{"alg":"dir","enc":"A256GCM","kid":"enc"}`, claims, m.encKey)
}

func (m *mint) sig(claims string) string {
	return m.jws(`{"alg":"HS256","kid":"sig"}`, claims, hmacWith(m.sigKey))
}

func (m *mint) ed(claims string) string {
	return m.jws(`{"alg":"EdDSA","kid":"ed"}`, claims, func(input []byte) []byte { return ed25519.Sign(m.edKey, input) })
}

func (m *mint) signES(claims string) string {
	return m.jws(`{"alg":"ES256","kid":"es"}`, claims, func(input []byte) []byte {
		digest := sha256.Sum256(input)
		r, s, err := ecdsa.Sign(rand.Reader, m.es, digest[:])
		if err != nil {
			panic(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	})
}

// jwe makes an encrypted token (RFC 7516 section 7.1).
func (m *mint) jwe(header, claims string, key []byte) string {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	iv := make([]byte, gcm.NonceSize())
	rand.Read(iv)
	head := base64url([]byte(header))
	sealed := gcm.Seal(nil, iv, []byte(claims), []byte(head))
	n := len(sealed) - gcm.Overhead()
	return strings.Join([]string{head, "", base64url(iv), base64url(sealed[:n]), base64url(sealed[n:])}, ".")
}

// jws makes a signed token (RFC 7515 section 7.1); sign may be nil.
func (m *mint) jws(header, claims string, sign func(input []byte) []byte) string {
	input := base64url([]byte(header)) + "." + base64url([]byte(claims))
	if sign == nil {
		return input + "."
	}
	return input + "." + base64url(sign([]byte(input)))
}

// ofSize makes a good token of exactly size bytes.
func (m *mint) ofSize(t testing.TB, size int, backend string) string {
	t.Helper()
	claims := claimsFor(backend, time.Minute)
	// Base64 has no text of every length, so the header has to give way too.
	for pad := range 4 {
		header := fmt.Sprintf(`{"alg":"dir","enc":"A256GCM","kid":"enc","x":"%s"}`, strings.Repeat("x", pad))
		missing := size - len(m.jwe(header, claims, m.encKey))
		for more := missing*3/4 - 4; more <= missing*3/4+4; more++ {
			token := m.jwe(header, claims+strings.Repeat(" ", more), m.encKey)
			if len(token) == size {
				return token
			}
		}
	}
	t.Fatalf("no token has %d bytes", size)
	return ""
}

func hmacWith(key []byte) func(input []byte) []byte {
	return func(input []byte) []byte {
		mac := hmac.New(sha256.New, key)
		mac.Write(input)
		return mac.Sum(nil)
	}
}

// claimsFor are good claims, if ttl is.
func claimsFor(sub string, ttl time.Duration) string {
	return fmt.Sprintf(`{"sub":%q,"exp":%d}`, sub, time.Now().Add(ttl).Unix())
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// openMinted returns the claims in a token of the mint's encrypting key.
func openMinted(t testing.TB, m *mint, token string) []byte {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 5 {
		t.Fatalf("%s has %d parts, want 5", token, len(parts))
	}
	var decoded [5][]byte
	for i, part := range parts {
		var err error
		if decoded[i], err = base64.RawURLEncoding.DecodeString(part); err != nil {
			t.Fatal(err)
		}
	}
	block, err := aes.NewCipher(m.encKey)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := gcm.Open(nil, decoded[2], append(decoded[3], decoded[4]...), []byte(parts[0]))
	if err != nil {
		t.Fatal(err)
	}
	return claims
}
