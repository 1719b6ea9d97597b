package flagvalue

import "testing"

func TestAMistypedNameHasANearestOne(t *testing.T) {
	names := []string{"addr", "allow", "secret", "secret-file", "ttl", "drain"}
	for mistyped, want := range map[string]string{
		"adr": "addr", "adddr": "addr", "secert": "secret", "secret_file": "secret-file", "alow": "allow",
		"tt": "ttl", "x": "", "": "", "port": "", "drian": "drain", "secret-files": "secret-file", "bind": "",
	} {
		if got := Nearest(mistyped, names); got != want {
			t.Errorf("%q: %q, want %q", mistyped, got, want)
		}
	}
}
