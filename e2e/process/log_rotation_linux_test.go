package process

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"gateway/internal/harness"
)

// The file in deploy/ has logrotate move the log away while clients come, and no line is
// lost.
func TestLogrotateRotatesTheLogByTheFileInDeploy(t *testing.T) {
	t.Parallel()
	logrotate := harness.LookPath(t, "logrotate")
	dir := t.TempDir()
	name, pid := filepath.Join(dir, "gateway.log"), filepath.Join(dir, "gateway.pid")
	text, err := os.ReadFile("../../deploy/gateway.logrotate")
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "conf")
	config := strings.NewReplacer("/var/log/gateway", dir, "/run/gateway/gateway.pid", pid).Replace(string(text))
	if err := os.WriteFile(conf, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	addr := harness.ClosedPort(t)
	cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-addr="+addr, "-pidfile="+pid, "-log-format=json", "-log-file="+name)
	p := launchAt(t, cmd, addr)
	harness.Eventually(t, "the gateway has its pid file", func() bool { return readLog(t, pid) != "" })

	const all = 300
	var refusing sync.WaitGroup
	refusing.Go(func() { refuse(t, p.Addr, all) })
	for range 2 {
		harness.Eventually(t, "there is something to rotate", func() bool { return strings.Contains(readLog(t, name), "{") })
		// -f: whether it is time or not.
		if out, err := exec.Command(logrotate, "-f", "-s", filepath.Join(dir, "state"), conf).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		harness.Eventually(t, "the log goes on in another file", func() bool { return strings.Contains(readLog(t, name), "the log file was opened again") })
	}
	refusing.Wait()
	p.End(t)

	// The older of the two is compressed, the newer one not yet.
	older, err := exec.Command("gzip", "-dc", name+".2.gz").Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := wholeLines(t, string(older)+readLog(t, name+".1")+readLog(t, name))
	if n := countOf(t, lines, "refused"); n != all {
		t.Errorf("%d lines, want %d", n, all)
	}
}
