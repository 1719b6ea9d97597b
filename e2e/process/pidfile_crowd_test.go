package process

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gateway/internal/filelock"
	"gateway/internal/harness"
)

// Gateways that change one pid file at a time, in crowds, and other processes that
// hold its locks.

// watchPIDFile reads a pid file all the time until the returned function is
// called. What it reads must be whole, and hold the gateway that runs
// throughout.
func watchPIDFile(t testing.TB, dir string, throughout *harness.Process) (stop func()) {
	stopping := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			select {
			case <-stopping:
				return
			default:
			}
			text, err := os.ReadFile(filepath.Join(dir, "gateway.pid"))
			if err != nil {
				t.Errorf("while gateways come and go: %v", err)
				return
			}
			seen := make(map[string]bool)
			for line := range strings.Lines(string(text)) {
				pid, err := strconv.Atoi(strings.TrimSuffix(line, "\n"))
				if err != nil || pid <= 0 || !strings.HasSuffix(line, "\n") || seen[line] {
					t.Errorf("while gateways come and go: %q", text)
					return
				}
				seen[line] = true
			}
			if !seen[fmt.Sprintln(throughout.PID())] {
				t.Errorf("while gateways come and go, %d is not in %q", throughout.PID(), text)
				return
			}
			runtime.Gosched()
		}
	})
	return func() {
		close(stopping)
		watching.Wait()
	}
}

func TestManyGatewaysMayComeAndGoAtOnce(t *testing.T) {
	harness.Long(t)
	harness.NeedSignals(t)
	dir := t.TempDir()
	throughout := startIn(t, dir)
	stop := watchPIDFile(t, dir, throughout)
	defer func() { stop() }()

	var leaving []*harness.Process
	for range 2 {
		coming := make([]*harness.Process, 8)
		for i := range coming {
			coming[i] = harness.Launch(t, commandIn(t, dir))
		}
		// While these come, those of the last round go.
		for _, p := range leaving {
			p.Signal(t, syscall.SIGTERM)
		}
		for _, p := range coming {
			p.Log.WaitLine(t, "listening", 1)
		}
		for _, p := range leaving {
			if code := p.Wait(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
		}
		text, err := os.ReadFile(filepath.Join(dir, "gateway.pid"))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(string(text))
		if len(lines) != 1+len(coming) || lines[0] != fmt.Sprint(throughout.PID()) {
			t.Errorf("%q does not have %d first and %d more", text, throughout.PID(), len(coming))
		}
		for _, p := range coming {
			if !slices.Contains(lines, fmt.Sprint(p.PID())) {
				t.Errorf("%d is not in %q", p.PID(), text)
			}
		}
		leaving = coming
	}
	for _, p := range leaving {
		p.Signal(t, syscall.SIGTERM)
	}
	for _, p := range leaving {
		p.Wait(t)
	}
	wantLines(t, dir, throughout)
	stop()
	stop = func() {}
	throughout.End(t)
	wantFiles(t, dir)
}

// The last gateway deletes the files while another starts.
func TestTheLastMayGoWhileTheFirstComes(t *testing.T) {
	harness.NeedSignals(t)
	dir := t.TempDir()
	last := startIn(t, dir)
	for range 5 {
		addr := harness.ClosedPort(t)
		next := harness.Launch(t, commandIn(t, dir, "-addr="+addr))
		harness.Eventually(t, "the next gateway listens, and is about to write its pid", func() bool {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
		last.End(t)
		next.Log.WaitLine(t, "listening", 1)
		wantLines(t, dir, next)
		last = next
	}
	last.End(t)
	wantFiles(t, dir)
}

// holdLock locks a byte of a file, for this process, until the returned function is
// called.
func holdLock(t testing.TB, name string, offset int64) (release func()) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() { f.Close() })
	t.Cleanup(release)
	if ok, err := filelock.TryLock(f, offset); !ok {
		t.Fatal(err)
	}
	return release
}

// Containers that share a folder may have gateways of one pid.
func TestAGatewayWhoseTwinHoldsItsPIDIsRefused(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "gateway.pid")
	cmd := commandIn(t, dir)
	// A shell that waits for a line becomes the gateway, and keeps its pid.
	cmd.Args = append([]string{"sh", "-c", `read go; exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
	var err error
	if cmd.Path, err = exec.LookPath("sh"); err != nil {
		t.Fatal(err)
	}
	shell, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := harness.Launch(t, cmd)
	mine := fmt.Sprintln(p.PID())
	harness.WriteFile(t, file, mine)
	holdLock(t, file+".lock", int64(p.PID()))
	io.WriteString(shell, "go\n")
	if code := p.Wait(t); code != harness.ExitFailure || !strings.Contains(p.Log.String(), "-pidfile") {
		t.Errorf("exit code %d: %s", code, p.Log.Tail())
	}
	if text, _ := os.ReadFile(file); string(text) != mine {
		t.Errorf("now holds %q", text)
	}
}

func TestThePIDFileIsChangedByOneAtATime(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "gateway.pid")
	release := holdLock(t, file+".lock", 0)
	addr := harness.ClosedPort(t)
	p := harness.Launch(t, commandIn(t, dir, "-addr="+addr))
	harness.Eventually(t, "the gateway listens, and is about to write its pid", func() bool { return harness.IsListening(addr) })
	time.Sleep(50 * time.Millisecond) // in which it would have
	wantFiles(t, dir, "gateway.pid.lock")
	release()
	p.Log.WaitLine(t, "listening", 1)
	wantLines(t, dir, p)
	p.End(t)
	wantFiles(t, dir)
}
