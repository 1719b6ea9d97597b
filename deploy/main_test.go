// Package deploy_test compares what stands in this folder with what a built gateway
// does, and with itself. Whether Kubernetes and Consul take it is for make
// test-manifests.
package deploy_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// Each page in English, and the same in Chinese.
var (
	kubernetesPages = []string{"kubernetes/README.md", "kubernetes/README.zh-CN.md"}
	consulPages     = []string{"consul/README.md", "consul/README.zh-CN.md"}
)

// readText returns a file of this folder, or of the repository by "../".
func readText(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")))
}

// command is how something here starts the gateway.
type command struct{ env, args []string }

// check has the gateway judge it, which must find nothing to complain of.
func (c command) check(t testing.TB) {
	t.Helper()
	if stdout, stderr, code := harness.Run(t, c.env, append([]string{"-check"}, c.args...)...); code != 0 || stderr != "" {
		t.Errorf("gateway %q with %q: code %d, %s%s", c.args, c.env, code, stdout, stderr)
	}
}

// value returns what a flag gets, or its twin in the environment, and whether either
// is given.
func (c command) value(name string) (value string, given bool) {
	for _, arg := range c.args {
		if v, ok := strings.CutPrefix(arg, "-"+name+"="); ok {
			return v, true
		}
	}
	for _, variable := range c.env {
		if v, ok := strings.CutPrefix(variable, "GATEWAY_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))+"="); ok {
			return v, true
		}
	}
	return "", false
}

// drain returns how long tunnels get to end.
func (c command) drain(t testing.TB) time.Duration {
	t.Helper()
	text, given := c.value("drain")
	if !given {
		help, _, _ := harness.Run(t, nil, "-help")
		m := regexp.MustCompile(`(?m)^  -drain=TIME  \(default (.*)\)$`).FindStringSubmatch(help)
		if m == nil {
			t.Fatalf("-help has no -drain:\n%s", help)
		}
		text = m[1]
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// start starts it on a free port, and returns the names of what it has written into
// its folder.
func (c command) start(t testing.TB) (p *harness.Process, written []string) {
	t.Helper()
	args := append([]string{"-log-format=json"}, c.args...)
	for i, arg := range args {
		if strings.HasPrefix(arg, "-addr=") {
			args[i] = "-addr=127.0.0.1:0"
		}
	}
	p = harness.StartCommand(t, harness.Command(t, c.env, args...))
	entries, err := os.ReadDir(p.Cmd.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		written = append(written, e.Name())
	}
	return p, written
}

// credentials returns a folder such as systemd's LoadCredential leaves, with the
// secret of the tests.
func credentials(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(harness.Secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
