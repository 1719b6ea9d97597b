package secretfile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secrets")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAFileHasASecretALine(t *testing.T) {
	for text, want := range map[string]string{
		"one":                           "[one]",
		"\ufeffone\r\n\n# two\nthree\n": "[one three]",
		" spaces count \n":              "[ spaces count ]",
		"random\r\x80\x01":              "[random\r\x80\x01]",
	} {
		got, err := Lines(write(t, text))
		if err != nil || fmt.Sprintf("%s", got) != want {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
}

func TestErrorsHoldNoSecret(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "holds no secret",
		"# hidden\n":                    "holds no secret",
		"h\x00i\x00":                    "holds a zero byte: save it as UTF-8",
		"hidden\rhidden two\r":          "end in CR alone",
		strings.Repeat("hidden\n", 101): "holds 101 secrets, want at most 100",
	} {
		_, err := Lines(write(t, text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%.20q: %v, want %s", text, err, want)
		}
	}
	for _, text := range []string{"", "hidden", "hidden two words that are long", "hiddenhiddenhidd\u00e9n"} {
		_, err := Word(write(t, text), 16)
		if err == nil || !strings.Contains(err.Error(), "holds no token: want at least 16") || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if got, err := Word(write(t, " 0123456789abcdef\n"), 16); err != nil || got != "0123456789abcdef" {
		t.Errorf("got %q, %v", got, err)
	}
}
