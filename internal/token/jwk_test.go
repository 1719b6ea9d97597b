package token

import (
	"bytes"
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestKeysThatAreGood(t *testing.T) {
	long := bytes.Repeat([]byte("long"), 50)
	for name, tt := range map[string]struct{ jwk, token string }{
		"enc":             {encJWK(`,"kid":"enc"`), enc(good)},
		"enc, dir":        {encJWK(`,"kid":"enc","alg":"dir"`), enc(good)},
		"enc, A256GCM":    {encJWK(`,"kid":"enc","alg":"A256GCM"`), enc(good)},
		"sig":             {sigJWK(`,"kid":"sig"`), sig(good)},
		"sig, HS256":      {sigJWK(`,"kid":"sig","alg":"HS256"`), sig(good)},
		"sig, long":       {octJWK(long, `"use":"sig","kid":"sig"`), jws(sigHeader, good, withHMAC(long))},
		"OKP":             {edJWK(`,"kid":"ed"`), ed(good)},
		"OKP, sig, EdDSA": {edJWK(`,"kid":"ed","use":"sig","alg":"EdDSA"`), ed(good)},
		"EC":              {esJWK(`,"kid":"es"`), es(good)},
		"EC, sig, ES256":  {esJWK(`,"kid":"es","use":"sig","alg":"ES256"`), es(good)},
		"unknown members": {encJWK(`,"kid":"enc","ext":true,"key_ops":["decrypt"],"iat":1,"a":{"b":[]}`), enc(good)},
		"enc, key_ops":    {encJWK(`,"kid":"enc","key_ops":["encrypt","decrypt"]`), enc(good)},
		"sig, key_ops":    {sigJWK(`,"kid":"sig","key_ops":["sign","v\u0065rify","x"]`), sig(good)},
		"OKP, key_ops":    {edJWK(`,"kid":"ed","key_ops":["verify"]`), ed(good)},
		"EC, key_ops":     {esJWK(`,"kid":"es","use":"sig","key_ops":["verify"]`), es(good)},
		"KEY_OPS":         {esJWK(`,"kid":"es","KEY_OPS":[]`), es(good)},
		"an odd kid": {encJWK(`,"kid":"a\"\u00e9 b"`),
			jwe(`{"alg":"dir","enc":"A256GCM","kid":"a\"é b"}`, good, encSecret)},
	} {
		t.Run(name, func(t *testing.T) {
			k := load(t, set(tt.jwk))
			opens(t, k, tt.token, "127.0.0.1:4000")
			if k.Len() != 1 {
				t.Errorf("Len() = %d, want 1", k.Len())
			}
		})
	}
}

func TestKeysThatAreNotGood(t *testing.T) {
	long := strings.Repeat("k", maxKid+1)
	rsa := `{"kty":"RSA","n":"` + b64(make([]byte, 256)) + `","e":"AQAB"}`
	for _, tt := range []struct{ name, set, says string }{
		{"nothing", ``, "line 1 is not JSON"},
		{"text", "\n\nsecret", "line 3 is not JSON"},
		{"cut short", `{"keys":[` + encJWK(""), "not JSON"},
		{"an array", `[` + encJWK("") + `]`, "is no JWK Set"},
		{"keys twice", `{"keys":[],"keys":[` + encJWK("") + `]}`, "is no JWK Set"},
		{"a single key", encJWK(""), `{"keys":[...]}`},
		{"no keys", `{}`, "holds no keys"},
		{"Keys", `{"Keys":[` + encJWK("") + `]}`, "holds no keys"},
		{"null", `null`, "holds no keys"},
		{"an empty set", set(), "holds no keys"},

		{"a number", set(encJWK(""), `1`), "key 2 of 2: want a JSON object"},
		{"null for a key", set(`null`), "key 1 of 1: kty is missing"},
		{"a member twice", set(encJWK(`,"use":"sig"`)), "no member twice"},
		{"kid is a number", set(encJWK(`,"kid":1`)), "strings for kty"},
		{"use is null", set(`{"kty":"oct","use":null,"k":"AA"}`), "strings for kty"},
		{"no kty", set(`{"use":"enc"}`), "kty is missing"},
		{"RSA", set(rsa), "kty must be oct, OKP (Ed25519) or EC (P-256)"},
		{"OCT", set(`{"kty":"OCT","use":"enc","k":"AA"}`), "kty must be"},
		{"no use", set(octJWK(encSecret, `"kid":"a"`)), `key 1 of 1 (kid "a"): use is missing: say enc`},
		{"no use, but alg", set(octJWK(encSecret, `"alg":"HS256"`)), "use is missing"},
		{"USE", set(octJWK(encSecret, `"USE":"enc"`)), "use is missing"},
		{"another use", set(octJWK(encSecret, `"use":"verify"`)), "use must be enc or sig"},
		{"OKP with use enc", set(edJWK(`,"use":"enc"`)), "use of an OKP key must be sig"},
		{"EC with use enc", set(esJWK(`,"use":"enc"`)), "use of an EC key must be sig"},
		{"enc with HS256", set(encJWK(`,"alg":"HS256"`)), "alg is not dir with A256GCM"},
		{"enc with A256KW", set(encJWK(`,"alg":"A256KW"`)), "alg is not dir with A256GCM"},
		{"enc with A128GCM", set(encJWK(`,"alg":"A128GCM"`)), "alg is not dir with A256GCM"},
		{"enc with empty alg", set(encJWK(`,"alg":""`)), "alg is not dir with A256GCM"},
		{"sig with dir", set(sigJWK(`,"alg":"dir"`)), "alg is not HS256"},
		{"sig with HS512", set(sigJWK(`,"alg":"HS512"`)), "alg is not HS256"},
		{"OKP with ES256", set(edJWK(`,"alg":"ES256"`)), "alg is not EdDSA"},
		{"EC with HS256", set(esJWK(`,"alg":"HS256"`)), "alg is not ES256"},
		{"enc that may encrypt alone", set(encJWK(`,"kid":"a","key_ops":["encrypt"]`)), `key 1 of 1 (kid "a"): key_ops must hold "decrypt"`},
		{"enc that may do what sig does", set(encJWK(`,"key_ops":["sign","verify"]`)), `key_ops must hold "decrypt"`},
		{"enc that may unwrap", set(encJWK(`,"key_ops":["wrapKey","unwrapKey"]`)), `key_ops must hold "decrypt"`},
		{"sig that may sign alone", set(encJWK(""), sigJWK(`,"key_ops":["sign"]`)), `key 2 of 2: key_ops must hold "verify"`},
		{"sig that may do nothing", set(sigJWK(`,"key_ops":[]`)), `key_ops must hold "verify"`},
		{"sig that may VERIFY", set(sigJWK(`,"key_ops":["VERIFY","verify "]`)), `key_ops must hold "verify"`},
		{"OKP that may sign", set(edJWK(`,"key_ops":["sign"]`)), `key_ops must hold "verify"`},
		{"EC that may derive keys", set(esJWK(`,"key_ops":["deriveKey","deriveBits"]`)), `key_ops must hold "verify"`},
		{"key_ops is a string", set(sigJWK(`,"key_ops":"verify"`)), "a list of different strings for key_ops"},
		{"key_ops is null", set(sigJWK(`,"key_ops":null`)), "a list of different strings for key_ops"},
		{"key_ops holds null", set(sigJWK(`,"key_ops":["verify",null]`)), "a list of different strings for key_ops"},
		{"key_ops holds one twice", set(sigJWK(`,"key_ops":["verify","verify"]`)), "a list of different strings for key_ops"},
		{"key_ops twice", set(sigJWK(`,"key_ops":["sign"],"key_ops":["verify"]`)), "no member twice"},
		{"X25519", set(`{"kty":"OKP","crv":"X25519","x":"` + b64(edPublic) + `"}`), "crv of an OKP key must be Ed25519"},
		{"P-384", set(`{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}`), "crv of an EC key must be P-256"},
		{"no crv", set(`{"kty":"EC","x":"AA","y":"AA"}`), "crv of an EC key must be P-256"},
		{"a private OKP key", set(edJWK(`,"d":"` + b64(edPrivate.Seed()) + `"`)), "it is a private key: remove d"},
		{"a private EC key", set(esJWK(`,"d":"` + b64(make([]byte, 32)) + `"`)), "it is a private key: remove d"},
		{"a private key in bad form", set(edJWK(`,"d":null`)), "it is a private key: remove d"},

		{"enc of 31 bytes", set(octJWK(encSecret[1:], `"use":"enc"`)), "k has 31 bytes: an enc key has 32"},
		{"enc of 33 bytes", set(octJWK(append(encSecret, 1), `"use":"enc"`)), "k has 33 bytes: an enc key has 32"},
		{"enc of 16 bytes", set(octJWK(encSecret[16:], `"use":"enc"`)), "k has 16 bytes: an enc key has 32"},
		{"sig of 31 bytes", set(octJWK(sigSecret[1:], `"use":"sig"`)), "k has 31 bytes: a sig key has at least 32"},
		{"no k", set(`{"kty":"oct","use":"enc"}`), "the key is damaged"},
		{"empty k", set(`{"kty":"oct","use":"sig","k":""}`), "k has 0 bytes"},
		{"k is a number", set(`{"kty":"oct","use":"sig","k":1234567890}`), "the key is damaged"},
		{"k is padded", set(`{"kty":"oct","use":"enc","k":"` + b64(encSecret) + `="}`), "the key is damaged"},
		{"no x", set(`{"kty":"OKP","crv":"Ed25519"}`), "the key is damaged"},
		{"a short x", set(`{"kty":"OKP","crv":"Ed25519","x":"` + b64(edPublic[1:]) + `"}`), "the key is damaged"},
		{"no y", set(`{"kty":"EC","crv":"P-256","x":"` + b64(esPoint()[1:33]) + `"}`), "the key is damaged"},
		{"off the curve", set(`{"kty":"EC","crv":"P-256","x":"` + b64(encSecret) + `","y":"` + b64(encSecret) + `"}`), "the key is damaged"},

		{"empty kid", set(encJWK(`,"kid":""`)), "kid must have 1 to 100 bytes"},
		{"a long kid", set(encJWK(`,"kid":"` + long + `"`)), "key 1 of 1: kid must have 1 to 100 bytes"},
		{"a kid twice", set(encJWK(`,"kid":"a"`), edJWK(`,"kid":"b"`), sigJWK(`,"kid":"a"`)), `key 3 of 3 (kid "a"): another key has the same kid`},
		{"a bad key behind good ones", set(encJWK(""), sigJWK(""), rsa), "key 3 of 3: kty must be"},
		{"too much", set(encJWK("")) + strings.Repeat(" ", maxFile), "larger than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := fileOf(t, tt.set)
			k, err := Load(file, "", nil)
			if err == nil {
				t.Fatalf("Load takes %s: %v", tt.set, k)
			}
			if !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), file) {
				t.Errorf("Load: %v; want the file and %q", err, tt.says)
			}
			for _, secret := range []string{b64(encSecret)[:8], b64(sigSecret)[:8], b64(edPrivate.Seed())[:8], "secret", "1234567890"} {
				if strings.Contains(strings.ReplaceAll(err.Error(), file, ""), secret) {
					t.Errorf("Load: %v, which holds a secret", err)
				}
			}
		})
	}
}

func TestAFileThatIsNotThereIsNamed(t *testing.T) {
	file := t.TempDir() + "/none.json"
	if _, err := Load(file, "", nil); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("Load: %v", err)
	}
}

func TestAByteOrderMarkIsSkipped(t *testing.T) {
	opens(t, load(t, "\ufeff"+allKeys), enc(good), "127.0.0.1:4000")
}

func TestAGeneratedSetSealsAndOpens(t *testing.T) {
	one, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	two, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Keys []map[string]string }
	if err := json.Unmarshal(one, &file); err != nil || len(file.Keys) != 1 {
		t.Fatalf("Generate = %s, %v", one, err)
	}
	jwk := file.Keys[0]
	if jwk["kty"] != "oct" || jwk["use"] != "enc" || jwk["alg"] != "A256GCM" || jwk["kid"] == "" || len(jwk) != 5 {
		t.Errorf("Generate = %s", one)
	}
	if !bytes.HasSuffix(one, []byte("}\n")) || !bytes.Contains(one, []byte("\n  ")) {
		t.Errorf("Generate = %q, want indented lines", one)
	}
	k, other := load(t, string(one)), load(t, string(two))
	token, err := k.Seal("127.0.0.1:4000", time.Minute, clock)
	if err != nil {
		t.Fatal(err)
	}
	opens(t, k, token, "127.0.0.1:4000")
	refuses(t, other, token, ErrKey)
	refuses(t, load(t, strings.ReplaceAll(string(two), kidOf(t, two), jwk["kid"])), token, ErrForged)
}

func kidOf(t *testing.T, set []byte) string {
	t.Helper()
	s, err := parseSet(set)
	if err != nil {
		t.Fatal(err)
	}
	return s.keys[0].kid
}

func FuzzASetHoldsOnlyGoodKeys(f *testing.F) {
	for _, s := range []string{allKeys, goldenSet, set(), set(encJWK(""), encJWK("")), set(edJWK(`,"d":"AA"`)), `{"kty":"oct"}`, `[`, "\ufeff{}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseSet(data)
		if err != nil {
			return
		}
		for _, k := range s.keys {
			good := false
			switch k.kind {
			case dirA256GCM:
				good = len(k.secret) == 32 && k.aead != nil && k.ed == nil && k.es == nil
			case hs256:
				good = len(k.secret) >= 32 && k.aead == nil && k.ed == nil && k.es == nil
			case edDSA:
				good = len(k.ed) == ed25519.PublicKeySize && k.secret == nil && k.es == nil
			case es256:
				good = k.es != nil && k.es.Curve == elliptic.P256() && k.secret == nil && k.ed == nil
			}
			picked, err := s.pick(&header{
				Alg: text{k.alg, true}, Enc: text{k.enc, k.enc != ""}, Kid: text{k.kid, k.kid != ""},
			})
			if !good || s.reachable(k) != (picked == k) {
				t.Fatalf("%q holds %+v; picked %v, %v", data, k, picked, err)
			}
		}
	})
}
