package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gateway/internal/harness"
)

// SIGHUP: the gateway reads its settings and files again.

// reloadable is a gateway that was started with files that can change.
type reloadable struct {
	*harness.Process
	dir string
}

// startReloadable starts a gateway with -config=config and -secret-file=secret in a
// folder with these files. args may have DIR in them for that folder.
func startReloadable(t *testing.T, files map[string]string, args ...string) *reloadable {
	t.Helper()
	harness.NeedSignals(t)
	r := &reloadable{dir: t.TempDir()}
	r.write(t, "config", "")
	r.write(t, "secret", harness.Secret+"\n")
	for name, text := range files {
		r.write(t, name, text)
	}
	all := []string{"-config=" + r.path("config"), "-secret-file=" + r.path("secret"), "-log-format=json", "-addr=127.0.0.1:0"}
	for _, arg := range args {
		all = append(all, strings.ReplaceAll(arg, "DIR", r.dir))
	}
	r.Process = harness.StartCommand(t, harness.Command(t, nil, all...))
	return r
}

func (r *reloadable) path(name string) string { return filepath.Join(r.dir, name) }

// write replaces a file in one step.
func (r *reloadable) write(t *testing.T, name, text string) {
	t.Helper()
	harness.WriteFile(t, r.path(name+".new"), text)
	if err := os.Rename(r.path(name+".new"), r.path(name)); err != nil {
		t.Fatal(err)
	}
}

// reload sends SIGHUP and returns the nth line that says it has worked.
func (r *reloadable) reload(t *testing.T, n int) map[string]any {
	t.Helper()
	r.Signal(t, syscall.SIGHUP)
	return r.Log.WaitLine(t, "reloaded", n)
}

// asks sends a line and returns the status.
func (r *reloadable) asks(t *testing.T, line string) string {
	t.Helper()
	c := harness.Connect(t, r.Addr)
	defer c.Close()
	harness.Send(t, c, line+"\n")
	status := make([]byte, 3)
	if _, err := c.Read(status); err != nil {
		t.Fatal(err)
	}
	return string(status)
}

const otherSecret = "another secret, which is long enough"

func TestAReloadTakesUpWhatHasChangedAndTunnelsGoOn(t *testing.T) {
	t.Parallel()
	harness.BothWays(t, func(t *testing.T, way string) {
		backend := harness.StartEcho(t)
		r := startReloadable(t, map[string]string{"config": "log-level=info\n# a remark\n\n"}, way)
		c := harness.OpenTunnel(t, r.Addr, backend)
		harness.Echo(t, c, "before")

		r.write(t, "secret", otherSecret+"\n")
		r.write(t, "config", "GATEWAY_DENY=127.0.0.2/32\nlog-level = debug\nretry=2\n")
		line := r.reload(t, 1)
		if line["changed"] != "retry,deny,log-level" {
			t.Errorf("changed: %v", line["changed"])
		}
		if line["secrets"] != 1.0 || line["from"] != "-secret-file" {
			t.Errorf("logged: %v", line)
		}
		other := func(to string) string { return harness.Seal("sha256", otherSecret, to) }
		if got := r.asks(t, harness.Sealed(backend)); got != "401" {
			t.Errorf("the old secret: %s", got)
		}
		if got := r.asks(t, other(backend)); got != "200" {
			t.Errorf("the new secret: %s", got)
		}
		if got := r.asks(t, other("127.0.0.2:"+harness.PortOf(backend))); got != "502" {
			t.Errorf("a backend that is denied now: %s", got)
		}
		if got := r.asks(t, other(r.Addr)); got != "502" {
			t.Errorf("the gateway itself: %s", got)
		}
		r.Log.WaitLine(t, "refused", 3)
		harness.Connect(t, r.Addr).Close()
		r.Log.WaitLine(t, "no request", 1) // at debug level
		harness.Echo(t, c, "after")
		harness.Finish(t, c)
		r.End(t)
	})
}

func TestAReloadKeepsThePIDFileAndItsProcess(t *testing.T) {
	t.Parallel()
	r := startReloadable(t, nil)
	file := filepath.Join(r.Cmd.Dir, "gateway.pid")
	for n := range 3 {
		r.reload(t, n+1)
		if text, err := os.ReadFile(file); err != nil || string(text) != fmt.Sprintln(r.PID()) {
			t.Errorf("%s: %q, %v", file, text, err)
		}
	}
	r.End(t)
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", file, err)
	}
}

func TestAReloadNamesWhatNeedsARestart(t *testing.T) {
	t.Parallel()
	r := startReloadable(t, map[string]string{"config": "drain=1\nloops=1\n"})
	r.write(t, "config", "drain=2\nbuffer=1000\nlog-format=text\nlisten=127.0.0.1:1=forward:127.0.0.1:2\n")
	r.reload(t, 1)
	line := r.Log.WaitLine(t, "needs a restart or an upgrade (SIGUSR2), and stays as it was", 1)
	if line["settings"] != "listen,buffer,loops" { // -log-format is a flag, and wins
		t.Errorf("logged: %v", line)
	}
	r.Signal(t, syscall.SIGTERM)
	if code := r.Wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if line := r.Log.WaitLine(t, "draining", 1); line["drain"] != "2s" {
		t.Errorf("logged: %v", line)
	}
}

// All that one reload could take up stays as it was if one file is bad.
func TestABadFileKeepsAllAsItWasAndIsNamed(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	keys, _, _ := harness.Run(t, nil, "-keygen")
	cert, key, _ := harness.TLSFiles(t)
	good := map[string]string{"keys": keys, "cert": read(t, cert), "key": read(t, key), "secret": harness.Secret + "\n", "config": "retry=1\n"}
	r := startReloadable(t, good, "-token-keys=DIR/keys", "-tls-cert=DIR/cert", "-tls-key=DIR/key")
	for n, bad := range []struct{ file, text, says string }{
		{"secret", "", ""},
		{"secret", "# nothing\n", ""},
		{"secret", "a\x00b", ""},
		{"keys", "", ""},
		{"keys", "{}", ""},
		{"cert", "", ""},
		{"cert", "-----BEGIN CERTIFICATE-----\n", ""},
		{"key", "", ""},
		{"config", "", "no setting"},
		{"config", "# nothing\n", "no setting"},
		{"config", "retry\n", "line 1"},
		{"config", "\nretry=0\n", "line 2"},
		{"config", "retyr=2\n", "retry"},
		{"config", "nothing-like-it=2\n", "line 1"},
		{"config", "retry=2\nretry=3\n", "twice"},
		{"config", "check=1\n", "line 1"},
		{"config", "allow=10.0.0.1/8\n", "10.0.0.1/8"},
		{"config", "\xff\xfer\x00e\x00\n\x00", "UTF-8"},
	} {
		t.Run(fmt.Sprintf("%s %q", bad.file, bad.text), func(t *testing.T) {
			// What is good must not be taken up either.
			r.write(t, "config", "deny=127.0.0.0/8\n")
			r.write(t, "secret", otherSecret+"\n")
			r.write(t, bad.file, bad.text)
			r.Signal(t, syscall.SIGHUP)
			line := r.Log.WaitLine(t, "cannot reload, everything stays as it was", n+1)
			if why, _ := line["err"].(string); !strings.Contains(why, r.path(bad.file)) || !strings.Contains(why, bad.says) {
				t.Errorf("logged: %v", line)
			}
			for name, text := range good {
				r.write(t, name, text)
			}
			if got := r.asks(t, harness.Sealed(backend)); got != "200" {
				t.Errorf("what opened before: %s", got)
			}
		})
	}
	if err := os.Remove(r.path("config")); err != nil {
		t.Fatal(err)
	}
	r.Signal(t, syscall.SIGHUP)
	harness.Eventually(t, "the missing file is named", func() bool {
		lines := r.Log.Lines("cannot reload, everything stays as it was")
		return strings.Contains(fmt.Sprint(lines[len(lines)-1]), "config: no such file")
	})
	if strings.Contains(r.Log.String(), otherSecret) {
		t.Error("a secret is in the log")
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestSecretsAreReadAgainWhenTheirFileChanges(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	r := startReloadable(t, nil)
	other := harness.Seal("sha256", otherSecret, backend)
	opens := func(line, status string) func() bool { return func() bool { return r.asks(t, line) == status } }
	c := harness.OpenTunnel(t, r.Addr, backend)
	if !opens(other, "401")() {
		t.Error("a secret that nobody has given opens")
	}
	r.write(t, "secret", harness.Secret+"\n"+otherSecret+"\n")
	harness.Eventually(t, "the second secret opens", opens(other, "200"))
	r.write(t, "secret", "")
	const kept = "cannot read the changed secrets, the old ones stay"
	harness.Eventually(t, "the empty file is told of", func() bool { return opens(other, "200")() && len(r.Log.Lines(kept)) > 0 })
	line := r.Log.Lines(kept)[0]
	if why, _ := line["err"].(string); !strings.Contains(why, r.path("secret")) {
		t.Errorf("logged: %v", line)
	}
	if !opens(other, "200")() || !opens(harness.Sealed(backend), "200")() {
		t.Error("what opened before does no longer")
	}
	r.write(t, "secret", otherSecret+"\n")
	harness.Eventually(t, "the first secret no longer opens", opens(harness.Sealed(backend), "401"))
	r.Log.WaitLine(t, "secrets changed", 2)
	harness.Echo(t, c, "still here")
}
