package main

import (
	"errors"
	"net"
	"os/exec"
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

// start is startProcess for gateways that a test lets end.
func start(t testing.TB, args ...string) *process {
	t.Helper()
	return startCommand(t, gatewayCommand(t, []string{quickExit},
		append([]string{"-secret=" + testSecret, "-addr=127.0.0.1:0", "-pidfile=", "-log-format=json"}, args...)...))
}

// launch starts a gateway and does not wait until it listens. The process is
// killed at the end of the test if it still runs.
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
			t.Logf("log of gateway %d:\n%s", cmd.Process.Pid, p.log.String())
		}
	})
	return p
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
	eventually(t, "connects to "+addr+" are refused", func() bool {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

// finish ends a tunnel as a client does that has no more to say.
func finish(t testing.TB, c *net.TCPConn) {
	t.Helper()
	c.CloseWrite()
	expectAll(t, c, "")
	c.Close()
}

func echo(t testing.TB, c net.Conn, text string) {
	t.Helper()
	send(t, c, text)
	expect(t, c, text)
}
