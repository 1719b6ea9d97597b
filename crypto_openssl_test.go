package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// OpenSSL opens what is sealed here, and the other way round.

// openssl runs `openssl enc` and returns what it writes.
func openssl(t testing.TB, input string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("openssl", append([]string{"enc", "-aes-256-cbc", "-a", "-A"}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("openssl %q: %w: %s", cmd.Args, err, stderr.String())
	}
	return string(out), nil
}

func needOpenSSL(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("CI needs the openssl binary: what opens there must open here")
	}
	t.Skip("no openssl binary: install it to compare with the original of the format")
}

// opensslDigest is how openssl names a derivation.
var opensslDigest = map[kdf][]string{
	kdfMD5:    {"-md", "md5"},
	kdfSHA256: {"-md", "sha256"},
	kdfPBKDF2: {"-pbkdf2", "-md", "sha256"},
}

func TestOpenSSLOpensWhatIsSealedHere(t *testing.T) {
	needOpenSSL(t)
	for _, k := range allKDFs {
		for i, addr := range variedAddresses() {
			secret := awkwardSecrets[i%len(awkwardSecrets)]
			line := keysOf([]kdf{k}, secret).seal(parseAddr(t, addr))
			got, err := openssl(t, line, append(opensslDigest[k], "-d", "-k", secret)...)
			if got != addr || err != nil {
				t.Errorf("%s: openssl opens %q as %q, want %q (%v)", k, line, got, addr, err)
			}
		}
	}
}

func TestWhatOpenSSLSealsOpensHere(t *testing.T) {
	needOpenSSL(t)
	for _, tt := range []struct {
		name string
		args []string
		kdfs []kdf
	}{
		{"its default digest", nil, []kdf{kdfMD5, kdfSHA256}},
		{"-md md5", opensslDigest[kdfMD5], []kdf{kdfMD5, kdfSHA256}},
		{"-md sha256", opensslDigest[kdfSHA256], []kdf{kdfMD5, kdfSHA256}},
		{"-pbkdf2", []string{"-pbkdf2"}, allKDFs},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for i, addr := range variedAddresses() {
				secret := awkwardSecrets[i%len(awkwardSecrets)]
				line, err := openssl(t, addr, append(tt.args, "-salt", "-k", secret)...)
				if err != nil {
					t.Fatal(err)
				}
				mustOpen(t, keysOf(tt.kdfs, secret), line, addr)
			}
		})
	}
}
