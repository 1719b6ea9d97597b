package suite

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gateway/internal/harness"
)

func TestWhatThePackageIssuesOpensAtTheGateway(t *testing.T) {
	dir := t.TempDir()
	program, keys := filepath.Join(dir, "issue.exe"), filepath.Join(dir, "keys.json")
	compile(t, abs(t, "go"), "go", "build", "-o", program, abs(t, "suite", "drivers", "issue.go"))
	set, errs, code := harness.Run(t, nil, "-keygen")
	if code != 0 {
		t.Fatal(errs)
	}
	if err := os.WriteFile(keys, []byte(set), 0o600); err != nil {
		t.Fatal(err)
	}
	gateway := harness.Start(t, "-token-keys="+keys, "-token-audience=game").Addr
	for _, line := range strings.Fields(harness.RunProgram(t, nil, program, harness.Secret, keys, harness.StartGreeter(t, "welcome"))) {
		c := harness.Connect(t, gateway)
		c.Write([]byte(line + "\n"))
		got := make([]byte, len("200welcome"))
		n := 0
		for n < len(got) {
			m, err := c.Read(got[n:])
			if n += m; err != nil {
				break
			}
		}
		if string(got[:n]) != "200welcome" {
			t.Errorf("%s is answered by %q", line, got[:n])
		}
	}
}
