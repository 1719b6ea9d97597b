package main

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
)

// Gateways that change one pid file at a time, in crowds, and other processes that
// hold its locks.

// watchPIDFile reads a pid file all the time until the returned function is
// called. What it reads must be whole, and hold the gateway that runs
// throughout.
func watchPIDFile(t testing.TB, dir string, throughout *process) (stop func()) {
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
			if !seen[fmt.Sprintln(throughout.pid())] {
				t.Errorf("while gateways come and go, %d is not in %q", throughout.pid(), text)
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
	needSignals(t)
	dir := t.TempDir()
	throughout := startIn(t, dir)
	stop := watchPIDFile(t, dir, throughout)
	defer func() { stop() }()

	var leaving []*process
	for range 2 {
		coming := make([]*process, 8)
		for i := range coming {
			coming[i] = launch(t, commandIn(t, dir))
		}
		// While these come, those of the last round go.
		for _, p := range leaving {
			p.signal(t, syscall.SIGTERM)
		}
		for _, p := range coming {
			p.log.waitLine(t, "listening", 1)
		}
		for _, p := range leaving {
			if code := p.wait(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
		}
		text, err := os.ReadFile(filepath.Join(dir, "gateway.pid"))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(string(text))
		if len(lines) != 1+len(coming) || lines[0] != fmt.Sprint(throughout.pid()) {
			t.Errorf("%q does not have %d first and %d more", text, throughout.pid(), len(coming))
		}
		for _, p := range coming {
			if !slices.Contains(lines, fmt.Sprint(p.pid())) {
				t.Errorf("%d is not in %q", p.pid(), text)
			}
		}
		leaving = coming
	}
	for _, p := range leaving {
		p.signal(t, syscall.SIGTERM)
	}
	for _, p := range leaving {
		p.wait(t)
	}
	wantLines(t, dir, throughout)
	stop()
	stop = func() {}
	throughout.end(t)
	wantFiles(t, dir)
}

// The last gateway deletes the files while another starts.
func TestTheLastMayGoWhileTheFirstComes(t *testing.T) {
	needSignals(t)
	dir := t.TempDir()
	last := startIn(t, dir)
	for range 5 {
		addr := closedPort(t)
		next := launch(t, commandIn(t, dir, "-addr="+addr))
		eventually(t, "the next gateway listens, and is about to write its pid", func() bool {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
		last.end(t)
		next.log.waitLine(t, "listening", 1)
		wantLines(t, dir, next)
		last = next
	}
	last.end(t)
	wantFiles(t, dir)
}

// helper in the environment makes the test binary one of the processes below,
// which the tests start to have somebody to share a pid file with.
const helper = "PIDFILE_HELPER"

// startHelper runs the test of a helper's name in another process. It ends
// when the returned function is called, which returns what it printed.
func startHelper(t testing.TB, name, args string) (out *logBuffer, wait func() string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^"+name+"$")
	cmd.Env = append(os.Environ(), helper+"="+args, quickExit)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out = &logBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait = sync.OnceValue(func() string {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		return out.String()
	})
	t.Cleanup(func() { wait() })
	return out, wait
}

// helperArgs returns what startHelper was given.
func helperArgs(t *testing.T) string {
	args, ok := os.LookupEnv(helper)
	if !ok {
		t.Skip("other tests start this one")
	}
	return args
}

func TestHelperComesAndGoes(t *testing.T) {
	file := helperArgs(t)
	for range 100 {
		p, err := createPIDFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil || !slices.Contains(strings.Fields(string(text)), fmt.Sprint(os.Getpid())) {
			t.Errorf("%d is not in %q, %v", os.Getpid(), text, err)
		}
		if err := p.remove(); err != nil {
			t.Error(err)
		}
	}
}

// Here the last goes while the first comes many times over.
func TestPIDFilesOfManyThatComeAndGo(t *testing.T) {
	dir := t.TempDir()
	var waits []func() string
	for range 4 {
		_, wait := startHelper(t, "TestHelperComesAndGoes", filepath.Join(dir, "gateway.pid"))
		waits = append(waits, wait)
	}
	for _, wait := range waits {
		wait()
	}
	wantFiles(t, dir)
}

func TestHelperHoldsALock(t *testing.T) {
	var offset int64
	var name string
	fmt.Sscan(helperArgs(t), &offset, &name)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if ok, err := filelock.TryLock(f, offset); !ok {
		t.Fatal(err)
	}
	fmt.Println("held")
	io.Copy(io.Discard, os.Stdin)
}

// holdLock locks a byte of a file in another process until the returned
// function is called.
func holdLock(t testing.TB, name string, offset int64) (release func() string) {
	t.Helper()
	out, release := startHelper(t, "TestHelperHoldsALock", fmt.Sprint(offset, " ", name))
	eventually(t, "the other process holds the lock", func() bool { return strings.Contains(out.String(), "held") })
	return release
}

// Containers that share a folder may have gateways of one pid.
func TestAGatewayWhoseTwinHoldsItsPIDIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gateway.pid")
	writeFile(t, file, fmt.Sprintln(os.Getpid()))
	release := holdLock(t, file+".lock", int64(os.Getpid()))
	if _, err := createPIDFile(file); err == nil || !strings.Contains(err.Error(), "-pidfile") {
		t.Errorf("error: %v", err)
	}
	if text, _ := os.ReadFile(file); string(text) != fmt.Sprintln(os.Getpid()) {
		t.Errorf("now holds %q", text)
	}
	release()
	p, err := createPIDFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.remove(); err != nil {
		t.Error(err)
	}
}

func TestThePIDFileIsChangedByOneAtATime(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "gateway.pid")
	release := holdLock(t, file+".lock", 0)
	created := make(chan *pidFile)
	go func() {
		p, err := createPIDFile(file)
		if err != nil {
			t.Error(err)
		}
		created <- p
	}()
	select {
	case <-created:
		t.Error("did not wait for the lock")
	case <-time.After(50 * time.Millisecond):
		wantFiles(t, dir, "gateway.pid.lock")
		release()
		if p := <-created; p != nil {
			p.remove()
		}
	}
	wantFiles(t, dir)
}
