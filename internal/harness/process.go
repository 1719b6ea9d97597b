package harness

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Process is a gateway, or another server, that runs as a process of its own.
type Process struct {
	Cmd    *exec.Cmd
	Log    Log // standard error; a gateway's JSON lines
	Stdout Log
	Addr   string // where a gateway listens, the first address of several

	exited chan struct{}
	pprof  http.Client // keeps its one connection
}

// The exit codes of the gateway.
const (
	ExitOK      = 0
	ExitFailure = 1 // failed while running
	ExitUsage   = 2 // wrong flags, environment or files that they name
)

// quickExit spares a clean exit the second that the race detector gives other
// goroutines to show their races.
const quickExit = "GORACE=atexit_sleep_ms=0"

// Command returns a command that runs the gateway in a directory of its own, with
// a clean environment but for env ("NAME=value").
func Command(t testing.TB, env []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(Binary(t), args...)
	// A line for each refusal, since tests count them.
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), quickExit, "GATEWAY_LOG_REFUSED_RATE=0"}, env...)
	if !IOUring() {
		cmd.Env = append(cmd.Env, "GATEWAY_IO_URING=0")
	}
	cmd.Dir = t.TempDir()
	return cmd
}

// Run runs the gateway to its end and returns what it printed.
func Run(t testing.TB, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := Command(t, env, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(Patience, func() { cmd.Process.Kill() })
	defer timer.Stop()
	cmd.Wait()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// Start starts a gateway with Secret on a free port of 127.0.0.1, without a pid
// file, and waits until it listens. args come last and win.
func Start(t testing.TB, args ...string) *Process {
	t.Helper()
	return StartCommand(t, Command(t, nil,
		append([]string{"-secret=" + Secret, "-addr=127.0.0.1:0", "-pidfile=", "-log-format=json",
			"-timeout=" + Patience.String()}, args...)...)) // a busy machine is no backend that is gone
}

// StartBare starts a gateway with these variables and flags, no secret and no pid
// file.
func StartBare(t testing.TB, env []string, args ...string) *Process {
	t.Helper()
	return StartCommand(t, Command(t, env, append([]string{"-pidfile=", "-log-format=json"}, args...)...))
}

// StartCommand starts a gateway that logs JSON, waits until it listens, and
// kills it at the end of the test if it still runs.
func StartCommand(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p := Launch(t, cmd)
	Eventually(t, "the gateway listens", func() bool {
		if !p.Runs() {
			t.Fatalf("the gateway ended with code %d: %s", cmd.ProcessState.ExitCode(), p.Log.Tail())
		}
		found := p.Log.Lines("listening")
		if len(found) > 0 {
			p.Addr = found[0]["addr"].(string)
		}
		return len(found) > 0
	})
	return p
}

// Launch starts a gateway, or another server, and does not wait until it
// listens. What the command says goes to Log and Stdout, unless it has files for it. The process is killed at the end of the test if it still runs. The test
// fails if the process has reported a data race, or logged a field that has another type
// elsewhere.
func Launch(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, exited: make(chan struct{})}
	p.pprof = http.Client{Timeout: Patience, Transport: &http.Transport{MaxConnsPerHost: 1}}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.Stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.Log
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.pprof.CloseIdleConnections()
		p.Kill()
		if _, race, found := strings.Cut(p.Log.String(), "WARNING: DATA RACE"); found {
			t.Errorf("a data race in process %d:%.4000s", p.PID(), race)
		}
		for _, conflict := range allFields.add(&p.Log) {
			t.Errorf("a field of the log has two types: %s", conflict)
		}
		if t.Failed() {
			t.Logf("%s, process %d, says:\n%s%s", filepath.Base(cmd.Path), p.PID(), p.Stdout.Tail(), p.Log.Tail())
		}
	})
	return p
}

// PID returns the process id.
func (p *Process) PID() int { return p.Cmd.Process.Pid }

// Runs reports whether the process has not ended.
func (p *Process) Runs() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the process.
func (p *Process) Signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := p.Cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// SignalAgain sends a signal once that cannot be a former one delivered twice: that is
// what it is taken for within a second.
func (p *Process) SignalAgain(t testing.TB, sig os.Signal) {
	t.Helper()
	began := time.Now()
	Eventually(t, "a second has passed", func() bool { return time.Since(began) > 1100*time.Millisecond })
	p.Signal(t, sig)
}

// Wait waits for the process to end and returns its exit code.
func (p *Process) Wait(t testing.TB) int {
	t.Helper()
	select {
	case <-p.exited:
		return p.Cmd.ProcessState.ExitCode()
	case <-time.After(Patience):
		t.Fatalf("the process still runs after %v", Patience)
		return -1
	}
}

// End ends a gateway by a signal.
func (p *Process) End(t testing.TB) {
	t.Helper()
	p.Signal(t, syscall.SIGTERM)
	if code := p.Wait(t); code != 0 {
		t.Errorf("exit code %d: %s", code, p.Log.Tail())
	}
}

// Kill ends a process without giving it a chance to clean up.
func (p *Process) Kill() {
	p.Cmd.Process.Kill()
	<-p.exited
}

// Listeners returns the lines of the log that say where a gateway listens, of which
// there must be n.
func (p *Process) Listeners(t testing.TB, n int) []map[string]any {
	t.Helper()
	p.Log.WaitLine(t, "listening", n)
	found := p.Log.Lines("listening")
	if len(found) != n {
		t.Fatalf("%d listeners, want %d: %v", len(found), n, found)
	}
	return found
}

// WaitRefused waits until nobody listens on addr any more.
func WaitRefused(t testing.TB, addr string) {
	t.Helper()
	Eventually(t, fmt.Sprintf("connects to %s are refused", addr), func() bool { return !IsListening(addr) })
}

// IsListening tells whether connects to addr are taken.
func IsListening(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err == nil {
		c.Close()
	}
	return !IsRefused(err)
}
