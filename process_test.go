package main

import (
	"errors"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// Gateways as processes that a test lets end, and what their clients do most.

// needSignals skips a test where processes cannot send each other signals.
func needSignals(t testing.TB) {
	if runtime.GOOS == "windows" {
		t.Skip("no signals on windows")
	}
}

// quickExit spares a clean exit the second that the race detector gives other
// goroutines to show their races.
const quickExit = "GORACE=atexit_sleep_ms=0"

// launch starts a gateway, or another server, and does not wait until it
// listens. The process is killed at the end of the test if it still runs.
func launch(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.stdout, &p.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-p.exited
		if t.Failed() {
			t.Logf("%s, process %d, says:\n%s%s", filepath.Base(cmd.Path), cmd.Process.Pid, p.stdout.String(), p.log.String())
		}
	})
	return p
}

// findServer returns where a server is that not all machines have. Where it must
// be there, a test that has to do without it fails.
func findServer(t testing.TB, name string, must bool, target string) string {
	t.Helper()
	for _, file := range []string{name, "/usr/sbin/" + name} { // not in everybody's PATH
		if path, err := exec.LookPath(file); err == nil {
			return path
		}
	}
	if must {
		t.Fatalf("no %s", name)
	}
	t.Skipf("no %s (make %s installs it)", name, target)
	return ""
}

// bothWays runs a test on the event loops, and on the goroutines that are the
// only way on systems other than Linux.
func bothWays(t *testing.T, test func(t *testing.T, way string)) {
	for _, way := range []string{"-loops=0", "-loops=-1"} {
		t.Run(way, func(t *testing.T) { test(t, way) })
	}
}

// runs reports whether the process has not ended.
func (p *process) runs() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// end ends a gateway by a signal.
func (p *process) end(t testing.TB) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d: %s", code, p.log.String())
	}
}

// kill ends a gateway without giving it a chance to clean up.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.exited
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// waitRefused waits until nobody listens on addr any more.
func waitRefused(t testing.TB, addr string) {
	t.Helper()
	eventually(t, "connects to "+addr+" are refused", func() bool { return !isListening(addr) })
}

// isListening tells whether connects to addr are taken.
func isListening(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err == nil {
		c.Close()
	}
	return !errors.Is(err, syscall.ECONNREFUSED)
}

// finish ends a tunnel as a client does that has no more to say.
func finish(t testing.TB, c *net.TCPConn) {
	t.Helper()
	c.CloseWrite()
	expectAll(t, c, "")
	c.Close()
}

// expectCut reads the end of a connection that the gateway closes without a
// word. There may be a reset behind it.
func expectCut(t testing.TB, c net.Conn) {
	t.Helper()
	if got, err := io.ReadAll(c); len(got) > 0 || err != nil && !isReset(err) {
		t.Errorf("read %q, %v; want the end", got, err)
	}
}

func echo(t testing.TB, c net.Conn, text string) {
	t.Helper()
	send(t, c, text)
	expect(t, c, text)
}
