package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"gateway/internal/address"
)

// What the tests share: the gateway as a process and in this process,
// backends, and clients.

// patience is how long a test waits for what must come. It is long because
// machines can be slow, and costs nothing where all is well.
const patience = 20 * time.Second

const testSecret = "a secret of the tests only"

// beGateway in the environment makes the test binary the real gateway, so that
// tests run the very code, with the race detector, as an operator does.
const beGateway = "BE_GATEWAY"

// beBackend makes the test binary a backend with descriptors of its own: echo,
// or flood, which writes without end.
const beBackend = "BE_BACKEND"

func runBackend(role string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(ln.Addr())
	for {
		c, err := ln.Accept()
		if err != nil {
			os.Exit(1)
		}
		go func() {
			defer c.Close()
			if role == "flood" {
				for buf := make([]byte, 64<<10); ; {
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			}
			buf := make([]byte, 4096)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				c.Write(buf[:n])
			}
		}()
	}
}

// startBackendProcess runs a backend as a process until the test ends, and
// returns its address.
func startBackendProcess(t testing.TB, role string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{beBackend + "=" + role}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(addr)
}

func TestMain(m *testing.M) {
	if os.Getenv(beGateway) != "" {
		main()
	}
	if role := os.Getenv(beBackend); role != "" {
		runBackend(role)
	}
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "GATEWAY_") || name == "CREDENTIALS_DIRECTORY" {
			os.Unsetenv(name)
		}
	}
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors()
	code := m.Run()
	// go test -fuzz leaves a goroutine and pipes of its own.
	if fuzzing := flag.Lookup("test.fuzz").Value.String() != ""; code == 0 && !fuzzing {
		code = checkLeaks(goroutines, descriptors)
	}
	os.Exit(code)
}

// checkLeaks waits until there are no more goroutines and descriptors than
// before the tests, and reports those that stay.
func checkLeaks(goroutines, descriptors int) int {
	var g, d int
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		runtime.GC() // closes forgotten files, whose leak is not the subject here
		g, d = runtime.NumGoroutine(), openDescriptors()
		// The first network use makes the runtime's epoll descriptors.
		if g <= goroutines && d <= descriptors+3 {
			return 0
		}
	}
	buf := make([]byte, 1<<20)
	fmt.Fprintf(os.Stderr, "leaked: %d goroutines (%d at first), %d descriptors (%d at first)\n%s\n",
		g, goroutines, d, descriptors, buf[:runtime.Stack(buf, true)])
	return 1
}

// openDescriptors counts this process's descriptors, or returns 0 where it
// cannot.
func openDescriptors() int { return descriptorsOf(os.Getpid()) }

func descriptorsOf(pid int) int {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0
	}
	return len(entries)
}

// eventually waits until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after %v: %s", patience, what)
		}
	}
}

// logBuffer collects a log and can be searched while it grows.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// lines returns the JSON lines of the log with the given message.
func (b *logBuffer) lines(msg string) []map[string]any {
	var found []map[string]any
	for line := range strings.Lines(b.String()) {
		var m map[string]any
		if strings.HasSuffix(line, "\n") && json.Unmarshal([]byte(line), &m) == nil && m["msg"] == msg {
			found = append(found, m)
		}
	}
	return found
}

// waitLine waits for n lines with a message and returns the last.
func (b *logBuffer) waitLine(t testing.TB, msg string, n int) map[string]any {
	t.Helper()
	var found []map[string]any
	eventually(t, fmt.Sprintf("%d log lines %q", n, msg), func() bool {
		found = b.lines(msg)
		return len(found) >= n
	})
	return found[n-1]
}

// process is a gateway that runs as a process of its own.
type process struct {
	cmd    *exec.Cmd
	log    logBuffer // standard error, JSON lines
	stdout logBuffer
	addr   string // where it listens
	exited chan struct{}
}

// gatewayCommand returns a command that runs the gateway with a clean
// environment but for env ("NAME=value").
func gatewayCommand(t testing.TB, env []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append([]string{beGateway + "=1", "PATH=" + os.Getenv("PATH"), quickExit}, env...)
	cmd.Dir = t.TempDir()
	return cmd
}

// runGateway runs the gateway to its end and returns what it printed.
func runGateway(t testing.TB, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := gatewayCommand(t, env, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer timer.Stop()
	cmd.Wait()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// startProcess starts a gateway with testSecret on a free port of 127.0.0.1,
// without a pid file, and waits until it listens. args come last and win.
func startProcess(t testing.TB, args ...string) *process {
	t.Helper()
	return startCommand(t, gatewayCommand(t, nil,
		append([]string{"-secret=" + testSecret, "-addr=127.0.0.1:0", "-pidfile=", "-log-format=json"}, args...)...))
}

// startCommand starts a gateway that logs JSON, waits until it listens, and
// kills it at the end of the test if it still runs.
func startCommand(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := launch(t, cmd)
	eventually(t, "the gateway listens", func() bool {
		if !p.runs() {
			t.Fatalf("the gateway ended with code %d: %s", cmd.ProcessState.ExitCode(), p.log.String())
		}
		found := p.log.lines("listening")
		if len(found) > 0 {
			p.addr = found[0]["addr"].(string)
		}
		return len(found) > 0
	})
	return p
}

// signal sends a signal to the process.
func (p *process) signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// wait waits for the process to end and returns its exit code.
func (p *process) wait(t testing.TB) int {
	t.Helper()
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatalf("the gateway still runs after %v", patience)
		return -1
	}
}

// testGateway is a gateway inside the test process.
type testGateway struct {
	*Gateway
	addr string
	log  logBuffer // JSON lines from debug level on
}

// startGateway serves on a free port of 127.0.0.1 with testSecret until the
// test ends. tweak, if not nil, changes the gateway before it serves.
func startGateway(t testing.TB, tweak func(*Gateway)) *testGateway {
	t.Helper()
	return startConfigured(t, nil, tweak)
}

// startConfigured is startGateway with another configuration.
func startConfigured(t testing.TB, configure func(*Config), tweak func(*Gateway)) *testGateway {
	t.Helper()
	tg := &testGateway{}
	log := slog.New(slog.NewJSONHandler(&tg.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg := defaultConfig()
	cfg.Secrets = [][]byte{[]byte(testSecret)}
	if configure != nil {
		configure(cfg)
	}
	err := cfg.load(log)
	if err != nil {
		t.Fatal(err)
	}
	if tg.Gateway, err = NewGateway(cfg, log); err != nil {
		t.Fatal(err)
	}
	if tweak != nil {
		tweak(tg.Gateway)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tg.addr = ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- tg.Serve(ln) }()
	t.Cleanup(func() {
		tg.Close()
		if err := <-served; err != ErrGatewayClosed {
			t.Errorf("Serve returned %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", tg.log.String())
		}
	})
	return tg
}

// sealed returns the request line for a backend, newline included, sealed with
// testSecret.
func sealed(t testing.TB, backend string) string {
	t.Helper()
	addr, err := address.Parse(backend)
	if err != nil {
		t.Fatalf("%q: %v", backend, err)
	}
	return newKeyring([][]byte{[]byte(testSecret)}, []kdf{kdfSHA256}).seal(addr) + "\n"
}

// startBackend listens on a free port of 127.0.0.1, runs serve for each
// connection and closes it afterwards. It returns the address.
func startBackend(t testing.TB, serve func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(2 * patience)) // ends what a failed test left
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	return ln.Addr().String()
}

// startEcho starts a backend that sends back what it gets, until FIN.
func startEcho(t testing.TB) string {
	return startBackend(t, func(c *net.TCPConn) {
		io.Copy(c, struct{ io.Reader }{c})
		c.CloseWrite()
	})
}

// closedPort returns an address of 127.0.0.1 where nobody listens.
func closedPort(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// connect dials addr; the connection is closed at the end of the test, and no
// read or write on it hangs for ever.
func connect(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// send writes text to a connection.
func send(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// expect reads exactly the wanted bytes.
func expect(t testing.TB, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	if string(got[:n]) != want {
		t.Fatalf("read %.100q, %v; want %.100q", got[:n], err, want)
	}
}

// expectAll reads until the end of the stream, which must be a FIN.
func expectAll(t testing.TB, c net.Conn, want string) {
	t.Helper()
	got, err := io.ReadAll(c)
	if string(got) != want || err != nil {
		t.Fatalf("read %d bytes %.100q, %v; want %d bytes %.100q", len(got), got, err, len(want), want)
	}
}

// openTunnel connects through a gateway to a backend and reads the 200.
func openTunnel(t testing.TB, gateway, backend string) *net.TCPConn {
	t.Helper()
	c := connect(t, gateway)
	send(t, c, sealed(t, backend))
	expect(t, c, "200")
	return c
}
