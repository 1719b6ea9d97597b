package token

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
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The tests' tokens are made here by hand, byte by byte, so that they can be
// wrong in every way, and so that nothing is checked against itself.

var (
	encSecret = bytes.Repeat([]byte{1}, 32)
	sigSecret = bytes.Repeat([]byte{2}, 32)

	edPrivate    = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, 32))
	edPublic     = edPrivate.Public().(ed25519.PublicKey)
	esPrivate, _ = ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{4}, 32))
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// esPoint returns the public EC key: 4, x, y.
func esPoint() []byte {
	point, err := esPrivate.PublicKey.Bytes()
	if err != nil {
		panic(err)
	}
	return point
}

// The JWKs of the keys, with room for more members.
func encJWK(more string) string { return octJWK(encSecret, `"use":"enc"`+more) }
func sigJWK(more string) string { return octJWK(sigSecret, `"use":"sig"`+more) }

func octJWK(secret []byte, more string) string {
	return fmt.Sprintf(`{"kty":"oct","k":"%s",%s}`, b64(secret), more)
}

func edJWK(more string) string {
	return fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","x":"%s"%s}`, b64(edPublic), more)
}

func esJWK(more string) string {
	return fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":"%s","y":"%s"%s}`,
		b64(esPoint()[1:33]), b64(esPoint()[33:]), more)
}

func set(jwks ...string) string { return `{"keys":[` + strings.Join(jwks, ",") + `]}` }

// allKeys has a key of each kind, with a kid.
var allKeys = set(encJWK(`,"kid":"enc"`), sigJWK(`,"kid":"sig"`), edJWK(`,"kid":"ed"`), esJWK(`,"kid":"es"`))

// The headers that fit to allKeys.
const (
	encHeader = `{"alg":"dir","enc":"A256GCM","kid":"enc"}`
	sigHeader = `{"alg":"HS256","kid":"sig"}`
	edHeader  = `{"alg":"EdDSA","kid":"ed"}`
	esHeader  = `{"alg":"ES256","kid":"es"}`
)

// clock is the time of all tests, and good claims that are valid then.
var clock = time.Unix(1_700_000_000, 0)

const good = `{"sub":"127.0.0.1:4000","exp":1700000600}`

// jwe makes an encrypted token. Its IV is always the same, so that the
// processes of a fuzz run make the same tokens.
func jwe(header, claims string, secret []byte) string {
	block, err := aes.NewCipher(secret)
	if err != nil {
		panic(err)
	}
	gcm, _ := cipher.NewGCM(block)
	iv := []byte("twelve bytes")
	sealed := gcm.Seal(nil, iv, []byte(claims), []byte(b64([]byte(header))))
	n := len(sealed) - 16
	return strings.Join([]string{b64([]byte(header)), "", b64(iv), b64(sealed[:n]), b64(sealed[n:])}, ".")
}

// jws makes a signed token.
func jws(header, claims string, sign func(input []byte) []byte) string {
	input := b64([]byte(header)) + "." + b64([]byte(claims))
	return input + "." + b64(sign([]byte(input)))
}

func withHMAC(secret []byte) func([]byte) []byte {
	return func(input []byte) []byte {
		mac := hmac.New(sha256.New, secret)
		mac.Write(input)
		return mac.Sum(nil)
	}
}

func withEd(input []byte) []byte { return ed25519.Sign(edPrivate, input) }

func withES(input []byte) []byte {
	digest := sha256.Sum256(input)
	r, s, err := ecdsa.Sign(rand.Reader, esPrivate, digest[:])
	if err != nil {
		panic(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

// enc, sig, ed and es make tokens of each kind for allKeys.
func enc(claims string) string { return jwe(encHeader, claims, encSecret) }
func sig(claims string) string { return jws(sigHeader, claims, withHMAC(sigSecret)) }
func ed(claims string) string  { return jws(edHeader, claims, withEd) }
func es(claims string) string  { return jws(esHeader, claims, withES) }

// load returns the keys of a set for any audience, loadFor for one.
func load(t testing.TB, set string) *Keys { return loadFor(t, "", set) }

func loadFor(t testing.TB, audience, set string) *Keys {
	t.Helper()
	k, err := Load(fileOf(t, set), audience, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func fileOf(t testing.TB, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "keys.json")
	write(t, name, text)
	return name
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func opens(t testing.TB, k *Keys, token, subject string) {
	t.Helper()
	if got, err := k.Open([]byte(token), clock); err != nil || got != subject {
		t.Errorf("Open(%s) = %q, %v; want %q", token, got, err, subject)
	}
}

func refuses(t testing.TB, k *Keys, token string, reason Error) {
	t.Helper()
	got, err := k.Open([]byte(token), clock)
	if !errors.Is(err, reason) || got != "" {
		t.Errorf("Open(%s) = %q, %v; want %v", token, got, err, reason)
	}
}
