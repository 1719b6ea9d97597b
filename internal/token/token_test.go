package token

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// kinds makes good tokens of every kind.
var kinds = map[string]func(claims string) string{"enc": enc, "sig": sig, "ed": ed, "es": es}

func TestATokenOfEachKindOpens(t *testing.T) {
	k := load(t, allKeys)
	for name, mint := range kinds {
		t.Run(name, func(t *testing.T) { opens(t, k, mint(good), "127.0.0.1:4000") })
	}
}

func TestATokenOfGoJoseOpens(t *testing.T) {
	k := load(t, allKeys)
	claims := jwt.Claims{Subject: "[::1]:80", Expiry: jwt.NewNumericDate(clock.Add(time.Minute)),
		ID: "7", Issuer: "i", IssuedAt: jwt.NewNumericDate(clock), Audience: jwt.Audience{"a", "b"}}
	for _, tt := range []struct {
		alg jose.SignatureAlgorithm
		key any
		kid string
	}{{jose.HS256, sigSecret, "sig"}, {jose.EdDSA, edPrivate, "ed"}, {jose.ES256, esPrivate, "es"}} {
		opts := new(jose.SignerOptions).WithType("JWT").WithHeader("kid", tt.kid)
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: tt.alg, Key: tt.key}, opts)
		if err != nil {
			t.Fatal(err)
		}
		token, err := jwt.Signed(signer).Claims(claims).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		opens(t, k, token, "[::1]:80")
	}
}

// refusals are tokens that all have a good key behind them, and one fault.
var refusals = []struct {
	name, token string
	reason      Error
}{
	{"nothing", "", ErrMalformed},
	{"dots", "....", ErrMalformed},
	{"JSON serialisation", `{"protected":"e30","payload":"e30","signature":"AA"}`, ErrMalformed},
	{"one part", b64([]byte(sigHeader)), ErrMalformed},
	{"two parts", cutAt(sig(good), ".", 2), ErrMalformed},
	{"four parts", sig(good) + ".AA", ErrMalformed},
	{"four parts of five", cutAt(enc(good), ".", 4), ErrMalformed},
	{"six parts", enc(good) + ".", ErrMalformed},
	{"three parts for five", jws(encHeader, good, withHMAC(encSecret)), ErrMalformed},
	{"five parts for three", jwe(sigHeader, good, sigSecret), ErrMalformed},
	{"an encrypted token that ends early", b64([]byte(encHeader)) + ".." + b64(make([]byte, 12)), ErrMalformed},
	{"a signed token that goes on", sig(good) + ".AA." + b64(make([]byte, 16)), ErrMalformed},
	{"no header", "." + b64([]byte(good)) + "." + b64(sigSecret), ErrMalformed},
	{"no claims", jws(sigHeader, "", withHMAC(sigSecret)), ErrMalformed},
	{"no encrypted claims", enc(""), ErrMalformed},
	{"no signature", jws(sigHeader, good, func([]byte) []byte { return nil }), ErrMalformed},
	{"short signature", jws(sigHeader, good, func(b []byte) []byte { return withHMAC(sigSecret)(b)[:31] }), ErrMalformed},
	{"long signature", jws(edHeader, good, func(b []byte) []byte { return append(withEd(b), 0) }), ErrMalformed},
	{"DER signature", jws(esHeader, good, func(b []byte) []byte { return append([]byte{0x30, 70}, withES(b)...) }), ErrMalformed},
	{"an encrypted key beside dir", replacePart(enc(good), 1, "AAAA"), ErrMalformed},
	{"no IV", replacePart(enc(good), 2, ""), ErrMalformed},
	{"an IV of 16 bytes", replacePart(enc(good), 2, b64(make([]byte, 16))), ErrMalformed},
	{"no tag", replacePart(enc(good), 4, ""), ErrMalformed},
	{"a tag of 12 bytes", replacePart(enc(good), 4, b64(make([]byte, 12))), ErrMalformed},
	{"padding", sig(good) + "=", ErrMalformed},
	{"a space", sig(good) + " ", ErrMalformed},
	{"a newline inside", strings.Replace(sig(good), ".", "\n.", 1), ErrMalformed},
	{"a carriage return inside", strings.Replace(enc(good), ".", "\r.", 1), ErrMalformed},
	{"standard base64", replacePart(sig(good), 2, strings.Repeat("+/", 21)+"A"), ErrMalformed},
	{"header is no JSON", jws(`{"alg":"HS256",}`, good, withHMAC(sigSecret)), ErrMalformed},
	{"header is an array", jws(`["HS256"]`, good, withHMAC(sigSecret)), ErrMalformed},
	{"header is a string", jws(`"HS256"`, good, withHMAC(sigSecret)), ErrMalformed},
	{"header with a tail", jws(sigHeader+`{}`, good, withHMAC(sigSecret)), ErrMalformed},
	{"two algs", jws(`{"alg":"HS256","kid":"sig","alg":"none"}`, good, withHMAC(sigSecret)), ErrMalformed},
	{"two algs, one in disguise", jws(`{"alg":"HS256","kid":"sig","\u0061lg":"none"}`, good, withHMAC(sigSecret)), ErrMalformed},
	{"two kids", jws(`{"alg":"HS256","kid":"sig","kid":"ed"}`, good, withHMAC(sigSecret)), ErrMalformed},
	{"two encs", jwe(`{"alg":"dir","enc":"A256GCM","enc":"A128GCM","kid":"enc"}`, good, encSecret), ErrMalformed},
	{"kid is a number", jws(`{"alg":"HS256","kid":1}`, good, withHMAC(sigSecret)), ErrMalformed},
	{"kid is null", jws(`{"alg":"HS256","kid":null}`, good, withHMAC(sigSecret)), ErrMalformed},
	{"alg is an array", jws(`{"alg":["HS256"],"kid":"sig"}`, good, withHMAC(sigSecret)), ErrMalformed},
	{"a long header", jws(`{"alg":"HS256","kid":"sig","x":"`+strings.Repeat("x", maxHeader)+`"}`, good, withHMAC(sigSecret)), ErrMalformed},

	{"null for a header", jws(`null`, good, withHMAC(sigSecret)), ErrAlgorithm},
	{"no alg", jws(`{"kid":"sig"}`, good, withHMAC(sigSecret)), ErrAlgorithm},
	{"ALG", jws(`{"ALG":"HS256","kid":"sig"}`, good, withHMAC(sigSecret)), ErrAlgorithm},
	{"none", jws(`{"alg":"none"}`, good, func([]byte) []byte { return nil }), ErrAlgorithm},
	{"none with a signature", jws(`{"alg":"none","kid":"sig"}`, good, withHMAC(sigSecret)), ErrAlgorithm},
	{"nOnE", jws(`{"alg":"nOnE","kid":"sig"}`, good, withHMAC(sigSecret)), ErrAlgorithm},
	{"hs256", jws(`{"alg":"hs256","kid":"sig"}`, good, withHMAC(sigSecret)), ErrAlgorithm},
	{"HS512", jws(`{"alg":"HS512","kid":"sig"}`, good, withHMAC(sigSecret)), ErrAlgorithm},
	{"RS256", jws(`{"alg":"RS256","kid":"sig"}`, good, withHMAC(sigSecret)), ErrAlgorithm},
	{"ES384", jws(`{"alg":"ES384","kid":"es"}`, good, withES), ErrAlgorithm},
	{"PBES2", jwe(`{"alg":"PBES2-HS256+A128KW","enc":"A256GCM","p2c":1000000,"p2s":"AAAA","kid":"enc"}`, good, encSecret), ErrAlgorithm},
	{"A256KW", jwe(`{"alg":"A256KW","enc":"A256GCM","kid":"enc"}`, good, encSecret), ErrAlgorithm},
	{"A128GCM", jwe(`{"alg":"dir","enc":"A128GCM","kid":"enc"}`, good, encSecret), ErrAlgorithm},
	{"A128CBC-HS256", jwe(`{"alg":"dir","enc":"A128CBC-HS256","kid":"enc"}`, good, encSecret), ErrAlgorithm},
	{"no enc", jwe(`{"alg":"dir","kid":"enc"}`, good, encSecret), ErrAlgorithm},
	{"enc beside HS256", jws(`{"alg":"HS256","enc":"A256GCM","kid":"sig"}`, good, withHMAC(sigSecret)), ErrAlgorithm},

	{"HS256 with an enc key", jws(`{"alg":"HS256","kid":"enc"}`, good, withHMAC(encSecret)), ErrAlgorithm},
	{"dir with a sig key", jwe(`{"alg":"dir","enc":"A256GCM","kid":"sig"}`, good, sigSecret), ErrAlgorithm},
	{"EdDSA with an EC key", jws(`{"alg":"EdDSA","kid":"es"}`, good, withEd), ErrAlgorithm},
	{"ES256 with an OKP key", jws(`{"alg":"ES256","kid":"ed"}`, good, withES), ErrAlgorithm},

	{"unknown kid", jws(`{"alg":"HS256","kid":"gone"}`, good, withHMAC(sigSecret)), ErrKey},
	{"empty kid", jws(`{"alg":"HS256","kid":""}`, good, withHMAC(sigSecret)), ErrKey},
	{"kid in capitals", jws(`{"alg":"HS256","kid":"SIG"}`, good, withHMAC(sigSecret)), ErrKey},

	{"crit", jws(`{"alg":"HS256","kid":"sig","crit":["exp"],"exp":1}`, good, withHMAC(sigSecret)), ErrExtension},
	{"empty crit", jws(`{"alg":"HS256","kid":"sig","crit":[]}`, good, withHMAC(sigSecret)), ErrExtension},
	{"crit is null", jws(`{"alg":"HS256","kid":"sig","crit":null}`, good, withHMAC(sigSecret)), ErrExtension},
	{"crit in an encrypted token", jwe(`{"alg":"dir","enc":"A256GCM","kid":"enc","crit":["x"]}`, good, encSecret), ErrExtension},
	{"b64", jws(`{"alg":"HS256","kid":"sig","b64":true}`, good, withHMAC(sigSecret)), ErrExtension},
	{"b64 and crit", jws(`{"alg":"HS256","kid":"sig","b64":false,"crit":["b64"]}`, good, withHMAC(sigSecret)), ErrExtension},
	{"zip", jwe(`{"alg":"dir","enc":"A256GCM","kid":"enc","zip":"DEF"}`, good, encSecret), ErrCompressed},
	{"empty zip", jwe(`{"alg":"dir","enc":"A256GCM","kid":"enc","zip":""}`, good, encSecret), ErrCompressed},
	{"jwk", jws(`{"alg":"EdDSA","kid":"ed","jwk":`+edJWK("")+`}`, good, withEd), ErrEmbeddedKey},
	{"jku", jws(`{"alg":"EdDSA","kid":"ed","jku":"https://a/b"}`, good, withEd), ErrEmbeddedKey},
	{"x5c", jws(`{"alg":"EdDSA","kid":"ed","x5c":[]}`, good, withEd), ErrEmbeddedKey},
	{"x5u", jws(`{"alg":"EdDSA","kid":"ed","x5u":"https://a/b"}`, good, withEd), ErrEmbeddedKey},

	{"another enc key", jwe(encHeader, good, sigSecret), ErrForged},
	{"another sig key", jws(sigHeader, good, withHMAC(encSecret)), ErrForged},
	{"EdDSA by nobody", jws(edHeader, good, func([]byte) []byte { return make([]byte, 64) }), ErrForged},
	{"ES256 by nobody", jws(esHeader, good, func([]byte) []byte { return make([]byte, 64) }), ErrForged},
	{"ES256 with the order for R and S", jws(esHeader, good, func([]byte) []byte {
		n := elliptic.P256().Params().N.Bytes()
		return append(n, n...)
	}), ErrForged},
	{"ES256 with R beyond the order", jws(esHeader, good, func(input []byte) []byte {
		return append(bytes.Repeat([]byte{0xff}, 32), withES(input)[32:]...)
	}), ErrForged},
	{"EdDSA with S beyond the order", jws(edHeader, good, func(input []byte) []byte { return addOrder(withEd(input)) }), ErrForged},
	{"an empty HMAC key", jws(sigHeader, good, withHMAC(nil)), ErrForged},
	{"another's IV", replacePart(enc(good), 2, b64(make([]byte, 12))), ErrForged},
	{"another's claims", replacePart(sig(good), 1, b64([]byte(`{"sub":"10.0.0.1:22","exp":1700000600}`))), ErrForged},
	{"another's header", replacePart(sig(good), 0, b64([]byte(`{"kid":"sig","alg":"HS256"}`))), ErrForged},
}

// addOrder adds the order of Ed25519's group to S (RFC 8032 section 5.1.7 wants S
// below it, or each signature would have a second spelling).
func addOrder(sig []byte) []byte {
	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	s := slices.Clone(sig[32:])
	slices.Reverse(s)
	sum := new(big.Int).Add(new(big.Int).SetBytes(s), order).FillBytes(make([]byte, 32))
	slices.Reverse(sum)
	return append(slices.Clone(sig[:32]), sum...)
}

// cutAt returns the first n parts of a token.
func cutAt(token, sep string, n int) string {
	return strings.Join(strings.Split(token, sep)[:n], sep)
}

func replacePart(token string, i int, part string) string {
	parts := strings.Split(token, ".")
	parts[i] = part
	return strings.Join(parts, ".")
}

func TestTokensWithAFaultAreRefused(t *testing.T) {
	k := load(t, allKeys)
	for _, tt := range refusals {
		t.Run(tt.name, func(t *testing.T) { refuses(t, k, tt.token, tt.reason) })
	}
}

// The classic: who knows the public key signs with it as if it were a secret.
func TestAnHMACKeyedWithAPublicKeyIsRefused(t *testing.T) {
	esDER, err := x509.MarshalPKIXPublicKey(&esPrivate.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	edDER, err := x509.MarshalPKIXPublicKey(edPublic)
	if err != nil {
		t.Fatal(err)
	}
	pemOf := func(der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	}
	public := set(edJWK(`,"kid":"ed"`), esJWK(`,"kid":"es"`))
	for name, secret := range map[string][]byte{
		"Ed25519": edPublic, "Ed25519 JWK": []byte(edJWK(`,"kid":"ed"`)), "Ed25519 DER": edDER, "Ed25519 PEM": pemOf(edDER),
		"P-256": esPoint(), "P-256 x": esPoint()[1:33], "P-256 DER": esDER, "P-256 PEM": pemOf(esDER),
	} {
		t.Run(name, func(t *testing.T) {
			for header, reason := range map[string]Error{
				`{"alg":"HS256","kid":"ed"}`: ErrAlgorithm,
				`{"alg":"HS256","kid":"es"}`: ErrAlgorithm,
				`{"alg":"HS256"}`:            ErrKey,
			} {
				refuses(t, load(t, public), jws(header, good, withHMAC(secret)), reason)
			}
			// Nor does a secret in the set help.
			refuses(t, load(t, allKeys), jws(`{"alg":"HS256"}`, good, withHMAC(secret)), ErrForged)
		})
	}
}

func TestWithoutKidExactlyOneKeyMustFit(t *testing.T) {
	bare := map[string]string{
		"enc": jwe(`{"alg":"dir","enc":"A256GCM"}`, good, encSecret),
		"sig": jws(`{"alg":"HS256"}`, good, withHMAC(sigSecret)),
		"ed":  jws(`{"alg":"EdDSA"}`, good, withEd),
		"es":  jws(`{"alg":"ES256"}`, good, withES),
	}
	second := map[string]string{
		"enc": octJWK(sigSecret, `"use":"enc","kid":"2"`),
		"sig": octJWK(encSecret, `"use":"sig","kid":"2"`),
		"ed":  edJWK(`,"kid":"2"`),
		"es":  esJWK(`,"kid":"2"`),
	}
	for name, token := range bare {
		t.Run(name, func(t *testing.T) {
			opens(t, load(t, allKeys), token, "127.0.0.1:4000")
			opens(t, load(t, strings.NewReplacer(`,"kid":"`+name+`"`, "").Replace(allKeys)), token, "127.0.0.1:4000")
			refuses(t, load(t, strings.Replace(allKeys, "[", "["+second[name]+",", 1)), token, ErrKey)
			for other, jwk := range second {
				if other != name {
					refuses(t, load(t, set(jwk)), token, ErrKey)
				}
			}
		})
	}
}

func TestUnknownHeaderMembersAreIgnored(t *testing.T) {
	k := load(t, allKeys)
	opens(t, k, jws(`{"typ":"JWT","cty":"x","alg":"HS256","kid":"sig","x":{"y":[1]},"KID":"no","ZIP":"DEF"}`, good, withHMAC(sigSecret)), "127.0.0.1:4000")
	opens(t, k, jwe(`{"enc":"A256GCM","typ":"JWT","alg":"dir","kid":"\u0065nc"}`, good, encSecret), "127.0.0.1:4000")
}

func TestAHeaderWithTheLongestKidFits(t *testing.T) {
	kid := strings.Repeat("k", maxKid)
	k := load(t, set(encJWK(`,"kid":"`+kid+`"`)))
	token, err := k.Seal("a:1", time.Minute, clock)
	if err != nil {
		t.Fatal(err)
	}
	opens(t, k, token, "a:1")
	opens(t, k, jwe(`{"typ":"JWT","alg":"dir","enc":"A256GCM","kid":"`+kid+`"}`, good, encSecret), "127.0.0.1:4000")
}

func TestEveryBitOfATokenCounts(t *testing.T) {
	k := load(t, allKeys)
	for name, mint := range kinds {
		t.Run(name, func(t *testing.T) {
			token := []byte(mint(good))
			for i := range token {
				for bit := range 8 {
					token[i] ^= 1 << bit
					if subject, err := k.Open(token, clock); err == nil {
						t.Errorf("bit %d of character %d flipped: %s opens to %q", bit, i, token, subject)
					}
					token[i] ^= 1 << bit
				}
			}
			opens(t, k, string(token), "127.0.0.1:4000")
		})
	}
}

// The unused bits of each part's last character count too.
func TestATokenHasOneSpelling(t *testing.T) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	k := load(t, allKeys)
	for name, mint := range kinds {
		t.Run(name, func(t *testing.T) {
			parts := strings.Split(mint(good), ".")
			for i, part := range parts {
				if part == "" {
					continue
				}
				for _, c := range alphabet {
					token := replacePart(strings.Join(parts, "."), i, part[:len(part)-1]+string(c))
					if _, err := k.Open([]byte(token), clock); err == nil && token != strings.Join(parts, ".") {
						t.Errorf("%s opens too", token)
					}
				}
			}
		})
	}
}

func TestOpenLeavesTheTokenAlone(t *testing.T) {
	k := load(t, allKeys)
	for _, mint := range kinds {
		token := mint(good)
		given := []byte(token + "rest")
		if _, err := k.Open(given[:len(token)], clock); err != nil || string(given) != token+"rest" {
			t.Errorf("Open changed what it was given: %s, %v", given, err)
		}
	}
}

func TestOnlyTokensLookLikeTokens(t *testing.T) {
	for in, want := range map[string]bool{
		enc(good): true, sig(good): true, "eyJ": true,
		"": false, "ey": false, "EYJ": false, " eyJ": false, `{"a":1}`: false,
		"U2FsdGVkX19KIJ9OQJKT/yHGMrS+5SsBAAjetomptQ0=": false,
	} {
		if Looks([]byte(in)) != want {
			t.Errorf("Looks(%q) = %v", in, !want)
		}
	}
}

// Bad tokens that are refused without cryptography must not be dear.
func TestABadHeaderIsRefusedWithFewAllocations(t *testing.T) {
	k := load(t, allKeys)
	for _, tt := range refusals {
		if tt.reason == ErrForged {
			continue
		}
		token := []byte(tt.token)
		if n := testing.AllocsPerRun(10, func() { k.Open(token, clock) }); n > 40 {
			t.Errorf("%s: %v allocations", tt.name, n)
		}
	}
}

func FuzzNothingOpensButWhatTheKeysHaveMade(f *testing.F) {
	k := load(f, allKeys)
	// An ECDSA signature has many values, the rest of a token has one.
	signed := func(token []byte) string { return string(token[:bytes.LastIndexByte(token, '.')+1]) }
	made := make(map[string]bool)
	for _, mint := range kinds {
		token := []byte(mint(good))
		made[signed(token)] = true
		f.Add(token)
	}
	for _, tt := range refusals {
		f.Add([]byte(tt.token))
	}
	f.Fuzz(func(t *testing.T, token []byte) {
		before := bytes.Clone(token)
		subject, err := k.Open(token, clock)
		if !bytes.Equal(before, token) {
			t.Fatalf("Open changed %q to %q", before, token)
		}
		var reason Error
		switch {
		case err == nil && !made[signed(token)]:
			t.Fatalf("%q opens to %q", token, subject)
		case err != nil && (!errors.As(err, &reason) || subject != ""):
			t.Fatalf("Open(%q) = %q, %v", token, subject, err)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	k := load(b, allKeys)
	bench := func(name, token string, want error) {
		b.Run(name, func(b *testing.B) {
			in := []byte(token)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.Open(in, clock); err != want {
					b.Fatal(err)
				}
			}
		})
	}
	for name, mint := range kinds {
		bench("good/"+name, mint(good), nil)
		bench("expired/"+name, mint(`{"sub":"127.0.0.1:4000","exp":1}`), ErrExpired)
		token := mint(good)
		if strings.HasSuffix(token, "A") {
			token = token[:len(token)-1] + "Q"
		} else {
			token = token[:len(token)-1] + "A"
		}
		bench("forged/"+name, token, ErrForged)
	}
	bench("unknown kid", jws(`{"alg":"HS256","kid":"gone"}`, good, withHMAC(sigSecret)), ErrKey)
	bench("none", jws(`{"alg":"none"}`, good, withHMAC(sigSecret)), ErrAlgorithm)
	bench("dots", strings.Repeat(".", 2048), ErrMalformed)
	bench("long header", strings.Repeat("eyJ9", 512)+"..", ErrMalformed)
	bench("long claims", jws(sigHeader, strings.Repeat("x", 1400), withHMAC(encSecret)), ErrForged)
	for name, filler := range map[string]string{
		"members": strings.Repeat(`"%":0,`, 20),
		"array":   `"x":[` + strings.Repeat("0,", 70) + `0],`,
		"nesting": `"x":` + strings.Repeat("[", 70) + strings.Repeat("]", 70) + `,`,
	} {
		for i := 0; strings.Contains(filler, "%"); i++ { // each member has another name
			filler = strings.Replace(filler, "%", string(rune('À'+i)), 1)
		}
		header := strings.Replace(sigHeader, "{", "{"+filler, 1)
		bench("crowded header/"+name, jws(header, good, withHMAC(encSecret)), ErrForged)
	}
}
