package process

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
)

// What the gateway tells systemd, and takes from it: the protocols of sd_notify(3) and
// sd_listen_fds(3), with a test in systemd's place. The real one is in deploy.

// manager stands for systemd: it collects what it is told.
type manager struct {
	socket string
	mu     sync.Mutex
	told   []map[string]string // by message
}

func startManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{socket: filepath.Join(t.TempDir(), "notify")}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 8192)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			message := make(map[string]string)
			for line := range strings.SplitSeq(string(b[:n]), "\n") {
				name, value, _ := strings.Cut(line, "=")
				message[name] = value
			}
			m.mu.Lock()
			m.told = append(m.told, message)
			m.mu.Unlock()
		}
	}()
	return m
}

// messages returns those that have a line of that name.
func (m *manager) messages(name string) (found []map[string]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, message := range m.told {
		if _, ok := message[name]; ok {
			found = append(found, message)
		}
	}
	return found
}

// wait waits for n messages with a line of that name and returns the nth.
func (m *manager) wait(t *testing.T, name string, n int) (found map[string]string) {
	t.Helper()
	harness.Eventually(t, fmt.Sprintf("%d messages with %s", n, name), func() bool {
		all := m.messages(name)
		if len(all) < n {
			return false
		}
		found = all[n-1]
		return true
	})
	return found
}

// names returns the first line of each message, but for the watchdog's.
func (m *manager) names() (list []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, message := range m.told {
		for _, name := range []string{"READY", "RELOADING", "STOPPING"} {
			if message[name] == "1" {
				list = append(list, name)
			}
		}
	}
	return list
}

func monotonicMicroseconds(t *testing.T) int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return now.Nano() / 1000
}

func startManaged(t *testing.T, m *manager, env []string, args ...string) *harness.Process {
	t.Helper()
	cmd := harness.Command(t, append([]string{"NOTIFY_SOCKET=" + m.socket}, env...), append([]string{"-secret=" + harness.Secret,
		"-addr=127.0.0.1:0", "-log-format=json", "-timeout=" + harness.Patience.String()}, args...)...)
	return harness.StartCommand(t, cmd)
}

func TestSystemdIsToldHowItGoes(t *testing.T) {
	t.Parallel()
	m := startManager(t)
	config := filepath.Join(t.TempDir(), "config")
	harness.WriteFile(t, config, "")
	p := startManaged(t, m, nil, "-config="+config, "-drain=1h")
	if ready := m.wait(t, "READY", 1); ready["READY"] != "1" || ready["MAINPID"] != strconv.Itoa(p.PID()) || ready["STATUS"] == "" {
		t.Errorf("told: %v", ready)
	}
	before := monotonicMicroseconds(t)
	p.Signal(t, syscall.SIGHUP)
	reloading := m.wait(t, "RELOADING", 1)
	m.wait(t, "READY", 2)
	if at, err := strconv.ParseInt(reloading["MONOTONIC_USEC"], 10, 64); err != nil || at < before || at > monotonicMicroseconds(t) {
		t.Errorf("told: %v", reloading)
	}
	// A reload that fails has to end too, or systemctl would wait.
	harness.WriteFile(t, config, "retry=0")
	p.Signal(t, syscall.SIGHUP)
	m.wait(t, "RELOADING", 2)
	if ready := m.wait(t, "READY", 3); !strings.Contains(ready["STATUS"], "failed") {
		t.Errorf("told: %v", ready)
	}

	backend := harness.StartEcho(t)
	one, two := harness.OpenTunnel(t, p.Addr, backend), harness.OpenTunnel(t, p.Addr, backend)
	p.Signal(t, syscall.SIGTERM)
	if stopping := m.wait(t, "STOPPING", 1); stopping["STATUS"] != "2 tunnels, draining" {
		t.Errorf("told: %v", stopping)
	}
	for n := range 2 {
		extend := m.wait(t, "EXTEND_TIMEOUT_USEC", n+1)
		if by, err := strconv.Atoi(extend["EXTEND_TIMEOUT_USEC"]); err != nil || by < 5_000_000 {
			t.Errorf("told: %v", extend)
		}
	}
	harness.Finish(t, one)
	harness.Eventually(t, "the status counts one tunnel", func() bool {
		all := m.messages("STATUS")
		return all[len(all)-1]["STATUS"] == "1 tunnels, draining"
	})
	harness.Finish(t, two)
	p.Wait(t)
	if got := strings.Join(m.names(), " "); got != "READY RELOADING READY RELOADING READY STOPPING" {
		t.Errorf("told: %s", got)
	}
}

func TestTheWatchdogIsFed(t *testing.T) {
	t.Parallel()
	m := startManager(t)
	p := startManaged(t, m, []string{"WATCHDOG_USEC=300000", "WATCHDOG_PID=1"})
	m.wait(t, "READY", 1)
	p.End(t)
	if n := len(m.messages("WATCHDOG")); n > 0 {
		t.Errorf("%d beats for the watchdog of another process", n)
	}
	start := time.Now()
	p = startManaged(t, m, []string{"WATCHDOG_USEC=300000"})
	m.wait(t, "WATCHDOG", 10)
	if d := time.Since(start); d < 500*time.Millisecond {
		t.Errorf("10 beats in %v", d)
	}
	p.End(t)
}

func TestAnUpgradeTellsSystemdOfTheNewProcess(t *testing.T) {
	t.Parallel()
	m := startManager(t)
	u := harness.Adopt(t, startManaged(t, m, []string{"WATCHDOG_USEC=300000"}))
	old := u.Main
	c := harness.OpenTunnel(t, u.Addr, harness.StartEcho(t))
	u.Upgrade(t)
	m.wait(t, "READY", 2)
	main := strconv.Itoa(u.Main)
	for _, message := range m.messages("MAINPID")[1:] {
		if message["MAINPID"] != main {
			t.Errorf("told: %v, want %s", message, main)
		}
	}
	if n := len(m.messages("RELOADING")); n != 1 {
		t.Errorf("told %d times of an upgrade", n)
	}
	beats := len(m.messages("WATCHDOG"))
	syscall.Kill(old, syscall.SIGSTOP)
	m.wait(t, "WATCHDOG", beats+5) // by the new one
	syscall.Kill(old, syscall.SIGCONT)
	harness.Finish(t, c)
	harness.WaitGone(t, old)
	u.EndMain(t)
}

// givenSockets starts the gateway with these sockets, under these names, as systemd
// does.
func givenSockets(t *testing.T, names string, sockets []interface{ File() (*os.File, error) }, args ...string) *harness.Process {
	t.Helper()
	return harness.StartCommand(t, commandGiven(t, names, sockets, args...))
}

func commandGiven(t *testing.T, names string, sockets []interface{ File() (*os.File, error) }, args ...string) *exec.Cmd {
	t.Helper()
	gateway := harness.Command(t, nil, args...)
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh")
	cmd.Args = append(cmd.Args, gateway.Args...)
	cmd.Env = append(gateway.Env, "LISTEN_FDS="+strconv.Itoa(len(sockets)), "LISTEN_FDNAMES="+names)
	cmd.Dir = gateway.Dir
	for _, s := range sockets {
		f, err := s.File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	return cmd
}

func TestSocketsOfSystemdReplaceTheAddressesToListenOn(t *testing.T) {
	t.Parallel()
	listen := func() *net.TCPListener {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln.(*net.TCPListener)
	}
	a, b, forward, pprof := listen(), listen(), listen(), listen()
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	backend := harness.StartEcho(t)
	taken := listen() // nothing is to be opened here
	u := harness.Adopt(t, givenSockets(t, "gateway.socket:gateway.socket:forward:pprof:gateway.socket",
		[]interface{ File() (*os.File, error) }{a, b, forward, pprof, udp},
		"-secret="+harness.Secret, "-log-format=json", "-addr="+taken.Addr().String(),
		"-listen="+forward.Addr().String()+"=forward:"+backend, "-timeout="+harness.Patience.String()))
	got := make(map[string]bool)
	for _, line := range u.Listeners(t, 4) {
		got[fmt.Sprintf("%v %v %v", line["addr"], line["protocol"], line["forward"])] = true
	}
	for _, want := range []string{
		fmt.Sprintf("%v <nil> <nil>", a.Addr()), fmt.Sprintf("%v <nil> <nil>", b.Addr()),
		fmt.Sprintf("%v <nil> %v", forward.Addr(), backend), fmt.Sprintf("%v kcp <nil>", udp.LocalAddr()),
	} {
		if !got[want] {
			t.Errorf("%s is not among %v", want, got)
		}
	}
	talk := func() {
		t.Helper()
		for _, ln := range []*net.TCPListener{a, b} {
			c := harness.OpenTunnel(t, ln.Addr().String(), backend)
			harness.Echo(t, c, "hello")
			harness.Finish(t, c)
		}
		c := harness.Connect(t, forward.Addr().String())
		harness.Echo(t, c, "hello")
		harness.Finish(t, c)
	}
	talk()
	u.Upgrade(t)
	talk()
	u.SignalMain(t, syscall.SIGTERM)
	harness.WaitGone(t, u.Main)
}

func TestSocketsOfSystemdThatCannotServeAreRefusedAndNamed(t *testing.T) {
	t.Parallel()
	tcp := func() *net.TCPListener {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln.(*net.TCPListener)
	}
	unix := func() *net.UnixListener {
		ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln.(*net.UnixListener)
	}
	type socket = interface{ File() (*os.File, error) }
	for _, tt := range []struct {
		name, count, names string
		sockets            []socket
		says               string
	}{
		{"a connection", "1", "game", []socket{harness.Connect(t, tcp().Addr().String())}, `socket "game" of systemd: it does not listen`},
		{"a Unix socket for clients", "1", "game", []socket{unix()}, `socket "game" of systemd is for unix`},
		{"two for one purpose", "3", "game:admin:admin", []socket{tcp(), unix(), unix()}, `two sockets of the name "admin"`},
		{"more than there are", "100", "game", []socket{tcp()}, `LISTEN_FDS is "100", but descriptor 4 is no socket`},
		{"more than there can be", "100000000", "game", []socket{tcp()}, `LISTEN_FDS is "100000000"`},
		{"less than none", "-1", "game", []socket{tcp()}, `LISTEN_FDS is "-1"`},
		{"no number", "one", "game", []socket{tcp()}, `LISTEN_FDS is "one"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cmd := commandGiven(t, tt.names, tt.sockets, "-secret="+harness.Secret, "-addr=127.0.0.1:0")
			cmd.Env = append(cmd.Env, "LISTEN_FDS="+tt.count)
			p := harness.Launch(t, cmd)
			if code := p.Wait(t); code != harness.ExitFailure {
				t.Errorf("exit code %d", code)
			}
			if text := p.Log.String(); !strings.Contains(text, tt.says) || strings.Count(text, "\n") != 1 {
				t.Errorf("it says %q, want %q", text, tt.says)
			}
		})
	}
}

// systemd goes on listening while the service restarts.
func TestTheFileOfASocketOfSystemdStays(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "admin")
	ln, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	u := harness.Adopt(t, givenSockets(t, "admin", []interface{ File() (*os.File, error) }{ln.(*net.UnixListener)},
		"-secret="+harness.Secret, "-log-format=json", "-addr=127.0.0.1:0"))
	u.Upgrade(t)
	u.EndMain(t)
	if _, err := os.Stat(name); err != nil {
		t.Error(err)
	}
}
