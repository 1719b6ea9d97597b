package issue

import (
	"strings"
	"testing"
	"time"
)

const set = `{"keys": [{"use": "enc", "kty": "oct", "kid": "IQBU5EEH", "alg": "A256GCM", "k": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"}]}`

func TestLinesAndTokensAreOfTheirForm(t *testing.T) {
	line, err := Line("secret", "10.0.0.7:4000")
	if err != nil || len(line) != 44 || !strings.HasPrefix(line, "U2FsdGVkX1") {
		t.Errorf("%q, %v", line, err)
	}
	if again, _ := Line("secret", "10.0.0.7:4000"); again == line {
		t.Error("two lines have the same salt")
	}
	key, err := ParseKey([]byte(set))
	if err != nil {
		t.Fatal(err)
	}
	token, err := key.Token("10.0.0.7:4000", time.Minute)
	if err != nil || !strings.HasPrefix(token, "eyJ") || strings.Count(token, ".") != 4 {
		t.Errorf("%q, %v", token, err)
	}
}

func TestWhatNoGatewayWouldTakeIsRefused(t *testing.T) {
	key, err := ParseKey([]byte(set))
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"", "a b:1", "a:1\n", "é:1", `a":1`, strings.Repeat("a", 701)} {
		if line, err := Line("secret", address); err == nil {
			t.Errorf("%q gives the line %q", address, line)
		}
		if token, err := key.Token(address, time.Minute); err == nil {
			t.Errorf("%q gives the token %q", address, token)
		}
	}
	if _, err := Line("", "10.0.0.7:4000"); err == nil {
		t.Error("there is a line without a secret")
	}
	if _, err := key.Token("10.0.0.7:4000", time.Millisecond); err == nil {
		t.Error("there is a token that does not live")
	}
	for _, bad := range []string{"", "{}", `{"keys":[{"kty":"oct","use":"sig","k":"AAAA"}]}`, strings.Replace(set, `"AAEC`, `"=AEC`, 1)} {
		if _, err := ParseKey([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a key", bad)
		}
	}
}
