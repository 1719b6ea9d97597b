package protocols

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

// What an operator has to do with tokens: -keygen, -seal, -open, -legacy=0,
// and what is said where that is done wrongly.

func TestKeygenPrintsAFreshKeySet(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for range 3 {
		var set struct {
			Keys []map[string]string
		}
		text := generateKeys(t)
		if err := json.Unmarshal([]byte(text), &set); err != nil || len(set.Keys) != 1 {
			t.Fatalf("%s: %v", text, err)
		}
		key := set.Keys[0]
		secret, err := base64.RawURLEncoding.Strict().DecodeString(key["k"])
		if err != nil || len(secret) != 32 || key["kty"] != "oct" || key["use"] != "enc" {
			t.Errorf("%v: %v; want an oct key of 32 bytes for enc", key, err)
		}
		if alg := key["alg"]; alg != "A256GCM" && alg != "dir" && alg != "" {
			t.Errorf("alg is %q", alg)
		}
		if key["kid"] == "" || seen[key["kid"]] || seen[key["k"]] {
			t.Errorf("%v: want another kid and another k each time", key)
		}
		seen[key["kid"]], seen[key["k"]] = true, true
		if !strings.HasSuffix(text, "\n") {
			t.Error("the last line has no end")
		}
	}
}

func TestKeygenNeedsNothing(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-keygen"}, {"-keygen=true"}, {"-token-keys=/no/such/file", "-keygen"}, {"-legacy=0", "-keygen"}} {
		if out, stderr, code := harness.Run(t, []string{"GATEWAY_TOKEN_KEYS=/no/such/file"}, args...); code != 0 || !strings.Contains(out, `"keys"`) {
			t.Errorf("%q: code %d, %s%s", args, code, out, stderr)
		}
	}
}

func TestATokenOfSealExpiresAfterItsTTL(t *testing.T) {
	t.Parallel()
	keys := writeKeys(t, newMint(1).set())
	for ttl, want := range map[string]time.Duration{"10m": 10 * time.Minute, "90": 90 * time.Second, "1.5": time.Second, "720h": 720 * time.Hour} {
		before := time.Now()
		token := sealToken(t, "game-7.internal:4000", "-ttl="+ttl, "-token-keys="+keys)
		var claims struct{ Exp int64 }
		if err := json.Unmarshal(openMinted(t, newMint(1), token), &claims); err != nil {
			t.Fatal(err)
		}
		// In whole seconds, whichever way a fraction goes.
		if low, high := before.Add(want).Unix(), time.Now().Add(want+2*time.Second).Unix(); claims.Exp < low || claims.Exp > high {
			t.Errorf("-ttl=%s: exp is %d, want %d to %d", ttl, claims.Exp, low, high)
		}
	}
}

func TestOpenPrintsTheAddressInAToken(t *testing.T) {
	t.Parallel()
	m := newMint(1)
	keys := writeKeys(t, m.set())
	with := []string{"-token-keys=" + keys}
	for _, addr := range []string{"127.0.0.1:4000", "[2001:db8::1]:65535", "game-7.internal:1", "http://game.test:80", "tcp://10.0.0.7:4000"} {
		token := sealToken(t, addr, append(with, "-ttl=10m")...)
		if strings.Contains(token, base64.RawURLEncoding.EncodeToString([]byte(addr))[:8]) {
			t.Errorf("%s can be read in %s", addr, token)
		}
		for _, text := range []string{token, token + "\n", token + "\r\n"} {
			if out, stderr, code := harness.Run(t, nil, append(with, "-open="+text)...); out != addr+"\n" || code != 0 {
				t.Errorf("-open of a token for %s: code %d, %q, %s", addr, code, out, stderr)
			}
		}
	}
	for name, token := range map[string]string{
		"token_expired":   m.enc(claimsFor("127.0.0.1:4000", -time.Hour)),
		"token_algorithm": m.jws(`{"alg":"none"}`, claimsFor("127.0.0.1:4000", time.Hour), nil),
		"token_forged":    newMint(9).enc(claimsFor("127.0.0.1:4000", time.Hour)),
		"bad_address":     m.enc(claimsFor("127.1:4000", time.Hour)),
	} {
		stdout, stderr, code := harness.Run(t, nil, append(with, "-open="+token)...)
		if code != 1 || stdout != "" || !strings.Contains(stderr, name) {
			t.Errorf("%s: code %d, %q, %s", name, code, stdout, stderr)
		}
		if strings.Contains(stderr, token[len(token)-16:]) || strings.Contains(stderr, "127.1") {
			t.Errorf("%s: %s repeats the token", name, stderr)
		}
	}
}

// -seal makes sealed lines as before where there is no -ttl, and -open takes
// both.
func TestTokenKeysLeaveSealedLinesAsTheyAre(t *testing.T) {
	t.Parallel()
	with := []string{"-token-keys=" + writeKeys(t, newMint(1).set()), "-secret=" + harness.Secret}
	for _, args := range [][]string{with, append(with, "-ttl=0")} {
		line, stderr, code := harness.Run(t, nil, append(args, "-seal=127.0.0.1:4000")...)
		if code != 0 || !strings.HasPrefix(line, "U2FsdGVkX1") {
			t.Fatalf("code %d, %q, %s", code, line, stderr)
		}
		if out, stderr, code := harness.Run(t, nil, append(with, "-open="+line)...); out != "127.0.0.1:4000\n" || code != 0 {
			t.Errorf("code %d, %q, %s", code, out, stderr)
		}
	}
}

func TestAPublicKeyIsEnoughToServeAndNotToSeal(t *testing.T) {
	t.Parallel()
	m := newMint(1)
	public := fmt.Sprintf(`{"keys":[{"kty":"OKP","kid":"ed","crv":"Ed25519","use":"sig","alg":"EdDSA","x":"%s"}]}`, base64url(m.edPublic()))
	keys := writeKeys(t, public)
	p := harness.Start(t, "-token-keys="+keys)
	if got := bring(t, p.Addr, m.ed(claimsFor(harness.StartEcho(t), time.Minute))); got != "200" {
		t.Errorf("a token got %s", got)
	}
	stdout, stderr, code := harness.Run(t, nil, "-token-keys="+keys, "-seal=127.0.0.1:80", "-ttl=10m")
	if code != 2 || stdout != "" || !strings.Contains(stderr, "-seal") || !strings.Contains(stderr, "public") {
		t.Errorf("code %d, %q, %s", code, stdout, stderr)
	}
}

func TestWithoutSealedLinesNoSecretIsNeeded(t *testing.T) {
	t.Parallel()
	m := newMint(1)
	keys, backend := writeKeys(t, m.set()), harness.StartEcho(t)
	for _, tt := range []struct {
		name      string
		env, args []string
	}{
		{"flags", nil, []string{"-token-keys=" + keys, "-legacy=0"}},
		{"environment", []string{"GATEWAY_TOKEN_KEYS=" + keys, "GATEWAY_LEGACY=0"}, nil},
		{"with a secret", nil, []string{"-token-keys=" + keys, "-legacy=0", "-secret=" + harness.Secret}},
		{"goroutines", nil, []string{"-token-keys=" + keys, "-legacy=0", "-loops=-1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := harness.StartCommand(t, harness.Command(t, tt.env, append(tt.args, "-addr=127.0.0.1:0", "-pidfile=", "-log-format=json")...))
			if got := bring(t, p.Addr, m.enc(claimsFor(backend, time.Minute))); got != "200" {
				t.Errorf("a token got %s", got)
			}
			lines := []string{harness.Sealed(backend), "nonsense", ""}
			for _, line := range lines {
				if got := bring(t, p.Addr, line); got != "401" {
					t.Errorf("%q got %s, want 401", line, got)
				}
			}
			p.Log.WaitLine(t, "refused", len(lines))
			for _, line := range p.Log.Lines("refused") {
				if line["reason"] != "not_token" {
					t.Errorf("logged %v", line)
				}
			}
		})
	}
	args := []string{"-token-keys=" + keys, "-legacy=0"}
	if out, stderr, code := harness.Run(t, nil, append(args, "-check")...); code != 0 {
		t.Errorf("-check: code %d, %s%s", code, out, stderr)
	}
	if token := sealToken(t, "127.0.0.1:80", append(args, "-ttl=1m")...); token == "" {
		t.Error("no token")
	}
	line := harness.Sealed(backend)
	if _, stderr, code := harness.Run(t, nil, append(args, "-secret="+harness.Secret, "-open="+line)...); code != 1 || !strings.Contains(stderr, "not_token") {
		t.Errorf("-open of a sealed line: code %d, %s", code, stderr)
	}
}

func TestWrongUseOfTokensIsToldInOneLine(t *testing.T) {
	t.Parallel()
	m := newMint(1)
	dir := t.TempDir()
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	good := file("good", m.set())
	missing := filepath.Join(dir, "missing")
	private := fmt.Sprintf(`{"kty":"OKP","kid":"ed","crv":"Ed25519","x":"%s","d":"%s"}`, base64url(m.edPublic()), base64url(m.edKey.Seed()))
	oct := func(size int, more string) string {
		return `{"kty":"oct",` + more + `"k":"` + base64url(make([]byte, size)) + `"}`
	}
	set := func(jwks ...string) string { return `{"keys":[` + strings.Join(jwks, ",") + `]}` }
	const secret = "-secret=" + harness.Secret

	type use struct {
		name string
		env  []string
		args []string
		says []string
	}
	uses := []use{
		{"-ttl without -token-keys", nil, []string{secret, "-seal=127.0.0.1:80", "-ttl=10m"}, []string{"-ttl", "-token-keys"}},
		{"-legacy=0 without -token-keys", nil, []string{"-legacy=0"}, []string{"-legacy=0", "-token-keys"}},
		{"-legacy=0 without -token-keys, with a secret", nil, []string{secret, "-legacy=0"}, []string{"-legacy=0", "-token-keys"}},
		{"GATEWAY_LEGACY=0 without -token-keys", []string{"GATEWAY_LEGACY=0"}, nil, []string{"GATEWAY_LEGACY=0", "-token-keys"}},
		{"-token-audience without -token-keys", nil, []string{secret, "-token-audience=game"}, []string{"-token-audience", "-token-keys"}},
		{"-seal without -ttl", nil, []string{"-token-keys=" + good, "-legacy=0", "-seal=127.0.0.1:80"}, []string{"-seal", "-ttl"}},
		{"-seal without -ttl or a secret", nil, []string{"-token-keys=" + good, "-seal=127.0.0.1:80"}, []string{"-seal", "-ttl", "secret"}},
		{"-ttl of no time", nil, []string{"-token-keys=" + good, "-seal=127.0.0.1:80", "-ttl=soon"}, []string{"-ttl"}},
		{"-ttl below zero", nil, []string{"-token-keys=" + good, "-seal=127.0.0.1:80", "-ttl=-5m"}, []string{"-ttl"}},
		{"-ttl below a second", nil, []string{"-token-keys=" + good, "-seal=127.0.0.1:80", "-ttl=999ms"}, []string{"-seal", "a second"}},
		{"-seal of no address", nil, []string{"-token-keys=" + good, "-seal=127.1:80", "-ttl=10m"}, []string{"-seal"}},
		{"no secret for sealed lines", nil, []string{"-token-keys=" + good}, []string{"-secret-file", "-legacy=0"}},
		{"-legacy of no switch", nil, []string{secret, "-token-keys=" + good, "-legacy=maybe"}, []string{"-legacy"}},
		{"missing file", nil, []string{secret, "-token-keys=" + missing}, []string{"-token-keys", missing}},
		{"missing file, from the environment", []string{"GATEWAY_TOKEN_KEYS=" + missing}, []string{secret}, []string{"GATEWAY_TOKEN_KEYS", missing}},
		{"folder", nil, []string{secret, "-token-keys=" + dir}, []string{"-token-keys", dir}},
	}
	for name, tt := range map[string]struct{ text, says string }{
		"empty file":            {"", "JWK Set"},
		"no JSON":               {"\n\nunrecognized", "line 3"},
		"an array":              {"[" + oct(32, `"use":"enc",`) + "]", "JWK Set"},
		"no keys":               {`{"keys":[]}`, "no keys"},
		"a key without its set": {oct(32, `"use":"enc",`), "single key"},
		"private OKP key":       {set(private), "private"},
		"private key behind":    {set(oct(32, `"use":"enc","kid":"a",`), private), "key 2 of 2"},
		"short enc key":         {set(oct(16, `"use":"enc",`)), "16 bytes"},
		"long enc key":          {set(oct(64, `"use":"enc",`)), "64 bytes"},
		"short sig key":         {set(oct(31, `"use":"sig",`)), "31 bytes"},
		"without use":           {set(oct(32, "")), "use"},
		"wrong alg of enc":      {set(oct(32, `"use":"enc","alg":"HS256",`)), "alg"},
		"wrong alg of sig":      {set(oct(32, `"use":"sig","alg":"HS512",`)), "alg"},
		"RSA":                   {set(`{"kty":"RSA","n":"AQAB","e":"AQAB"}`), "kty"},
		"another curve":         {set(`{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}`), "P-256"},
		"a point off the curve": {set(`{"kty":"EC","crv":"P-256","x":"` + base64url(make([]byte, 32)) + `","y":"` + base64url(make([]byte, 32)) + `"}`), "key 1 of 1"},
		"the same kid twice":    {set(oct(32, `"use":"enc","kid":"a",`), oct(32, `"use":"sig","kid":"a",`)), `kid "a"`},
	} {
		bad := file(regexp.MustCompile(`\W`).ReplaceAllString(name, "-"), tt.text)
		uses = append(uses, use{name, nil, []string{secret, "-token-keys=" + bad}, []string{"-token-keys", bad, tt.says}})
	}
	for _, u := range uses {
		t.Run(u.name, func(t *testing.T) {
			stdout, stderr, code := harness.Run(t, u.env, append(u.args, "-addr=127.0.0.1:0", "-pidfile=")...)
			if code != 2 || stdout != "" {
				t.Errorf("exit code %d, want 2; standard output %q", code, stdout)
			}
			if !strings.HasPrefix(stderr, "gateway: ") || strings.Index(stderr, "\n") != len(stderr)-1 {
				t.Errorf("not one line: %q", stderr)
			}
			for _, want := range u.says {
				if !strings.Contains(stderr, want) {
					t.Errorf("%q does not say %q", stderr, want)
				}
			}
			for _, s := range []string{harness.Secret, "unrecognized", base64url(m.edKey.Seed())[:12], base64url(m.edPublic())[:12], "AAAAAAAAAAAA"} {
				if strings.Contains(stderr, s) {
					t.Errorf("%q holds %q", stderr, s)
				}
			}
		})
	}
}

func TestAForwardNeedsNoTokensEither(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"-legacy=0", "-forward=127.0.0.1:9"},
		{"-legacy=0", "-listen=127.0.0.1:0=forward:127.0.0.1:9"},
	} {
		if _, stderr, code := harness.Run(t, nil, append(args, "-check")...); code != harness.ExitOK {
			t.Errorf("%q: exit code %d, %s", args, code, stderr)
		}
	}
	if _, _, code := harness.Run(t, nil, "-legacy=0", "-check"); code != harness.ExitUsage {
		t.Errorf("a listener that opens nothing: exit code %d", code)
	}
}
