package process

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
)

// What the end of a tunnel says, and the end of a log.

func TestTheEndOfATunnelSaysHowLongItWasIdleAndWhy(t *testing.T) {
	t.Parallel()
	harness.BothWays(t, func(t *testing.T, way string) {
		dead := harness.ClosedPort(t)
		p := harness.Start(t, "-idle-timeout=800ms", "-half-close-timeout=400ms", "-drain=0", way)
		backend := harness.StartEcho(t)

		idle := harness.Connect(t, p.Addr)
		harness.Send(t, idle, harness.Line(dead+","+backend)+"hello")
		harness.Expect(t, idle, "200hello")
		harness.ExpectCut(t, idle)
		line := p.Log.WaitLine(t, "tunnel", 1)
		for key, want := range map[string]any{"limit": "idle", "ended_by": "gateway", "how": "timeout", "attempts": 2., "failed": dead, "backend": backend} {
			if line[key] != want {
				t.Errorf("%s=%v, want %v", key, line[key], want)
			}
		}
		num := func(line map[string]any, key string) float64 {
			n, ok := line[key].(float64)
			if !ok {
				t.Errorf("no %s in %v", key, line)
			}
			return n
		}
		if ms := num(line, "idle_ms"); ms < 450 || ms > num(line, "duration_ms")+20 {
			t.Errorf("idle for %v ms: %v", ms, line)
		}
		if ms := num(line, "first_byte_ms"); ms > num(line, "duration_ms") {
			t.Errorf("the first byte came after %v ms: %v", ms, line)
		}
		num(line, "dial_ms")

		over := make(chan struct{})
		patient := harness.StartBackend(t, func(c *net.TCPConn) {
			io.Copy(io.Discard, c)
			<-over
		})
		t.Cleanup(func() { close(over) }) // before the backend's
		half := harness.OpenTunnel(t, p.Addr, patient)
		half.CloseWrite()
		harness.ExpectCut(t, half)
		if line := p.Log.WaitLine(t, "tunnel", 2); line["limit"] != "half_close" || line["failed"] != nil {
			t.Errorf("logged: %v", line)
		}

		// A client that leaves comes to no limit.
		harness.Finish(t, harness.OpenTunnel(t, p.Addr, backend))
		if line := p.Log.WaitLine(t, "tunnel", 3); line["limit"] != nil {
			t.Errorf("logged: %v", line)
		}
		c := harness.OpenTunnel(t, p.Addr, backend)
		harness.Echo(t, c, "hello")
		p.Signal(t, syscall.SIGTERM)
		if line := p.Log.WaitLine(t, "tunnel", 4); line["limit"] != "drain" || line["how"] != "shutdown" {
			t.Errorf("logged: %v", line)
		}
	})
}

// A tunnel with nothing timed about it does not go by a clock that stands still.
func TestWhatHasJustMovedIsNotIdle(t *testing.T) {
	t.Parallel()
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-keepalive=0", way)
		c := harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))
		for range 10 {
			harness.Echo(t, c, "hello")
			time.Sleep(100 * time.Millisecond) // it is about time
		}
		moved := time.Now()
		harness.Echo(t, c, "hello")
		harness.Finish(t, c)
		line := p.Log.WaitLine(t, "tunnel", 1)
		if ms := line["idle_ms"].(float64); ms > float64(time.Since(moved).Milliseconds()+400) {
			t.Errorf("idle for %v ms: %v", ms, line)
		}
	})
}

// Where goroutines relay, a tunnel that ends between two sweeps was idle as long as it was.
func TestGoroutinesKnowHowLongATunnelWasIdle(t *testing.T) {
	t.Parallel()
	p := harness.Start(t, "-loops=-1")
	c := harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))
	harness.Echo(t, c, "hello")
	const rest = 1400 * time.Millisecond // one sweep, and not two
	time.Sleep(rest)                     // what is measured
	harness.Finish(t, c)
	if line := p.Log.WaitLine(t, "tunnel", 1); line["idle_ms"].(float64) < float64(rest.Milliseconds()-20) {
		t.Errorf("logged: %v", line)
	}
}

func TestCheckLooksAtTheLogFile(t *testing.T) {
	t.Parallel()
	_, stderr, code := harness.Run(t, nil, "-check", "-secret="+harness.Secret, "-pidfile=", "-log-file=none/gateway.log")
	if code != harness.ExitUsage || !strings.HasPrefix(stderr, "gateway: -log-file: ") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

// Whoever has only the file is to see why the gateway ended.
func TestTheLogFileSaysWhyTheGatewayEnded(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "gateway.log")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, stderr, code := harness.Run(t, nil, "-secret="+harness.Secret, "-pidfile=", "-log-file="+name, "-addr="+taken.Addr().String())
	if code != harness.ExitFailure || !strings.Contains(stderr, "address already in use") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	if text := readLog(t, name); !strings.Contains(text, "level=ERROR") || !strings.Contains(text, "address already in use") {
		t.Errorf("the log has %q", text)
	}
}

// A file that may not grow is no reason to end, or to lose lines without a word.
func TestALogFileThatMayNotGrowIsToldOf(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "gateway.log")
	addr := harness.ClosedPort(t)
	cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-addr="+addr, "-pidfile=", "-log-format=json", "-log-file="+name)
	cmd.Args = append([]string{"sh", "-c", `ulimit -f 8; exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	p := launchAt(t, cmd, addr)
	const all = 200
	refuse(t, p.Addr, all)
	p.Signal(t, syscall.SIGTERM)
	if code := p.Wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	said := p.Log.String()
	lost := 0
	_, last, _ := strings.Cut(said, "gateway: the last ")
	if n, _ := fmt.Sscanf(last, "%d lines of the log could not be written", &lost); n != 1 {
		t.Fatalf("standard error has %q", said)
	}
	// Besides those of clients: listening, settings, draining, stopped.
	if n := strings.Count(readLog(t, name), "\n"); n == 0 || n+lost != all+4 {
		t.Errorf("%d lines are there and %d are said to be lost, of %d", n, lost, all+4)
	}
}

// launchAt starts a gateway and waits until it listens.
func launchAt(t *testing.T, cmd *exec.Cmd, addr string) *harness.Process {
	t.Helper()
	p := harness.Launch(t, cmd)
	p.Addr = addr
	harness.Eventually(t, "the gateway listens", func() bool {
		if !p.Runs() {
			t.Fatalf("the gateway ended: %s", p.Log.String())
		}
		return harness.IsListening(addr)
	})
	return p
}

func TestAKilledGatewaysHalfALineIsNotGluedToTheNext(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "gateway.log")
	if err := os.WriteFile(name, []byte(`{"time":"2026-`), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startWithLog(t, name)
	p.End(t)
	_, rest, _ := strings.Cut(readLog(t, name), "\n")
	if lines := wholeLines(t, rest); len(lines) == 0 || lines[0]["msg"] != "listening" {
		t.Errorf("the log has %q", readLog(t, name))
	}
}

func TestATunnelKeepsItsNameInAnUpgrade(t *testing.T) {
	t.Parallel()
	a := harness.NewAdmin(t)
	u := harness.StartUpgradable(t, a.Flag, "-log-level=debug")
	dead, backend := harness.ClosedPort(t), harness.StartEcho(t)
	var clients []net.Conn
	opened := make(map[any]map[string]any) // by id
	for i := range 3 {
		c := harness.Connect(t, u.Addr)
		harness.Send(t, c, harness.Line(dead+","+backend)+"hello")
		harness.Expect(t, c, "200hello")
		line := u.Log.WaitLine(t, "connected", i+1)
		clients, opened[line["id"]] = append(clients, c), line
	}
	old := u.Main
	u.Upgrade(t)
	harness.WaitGone(t, old)

	type page struct {
		Tunnels []struct{ ID, Client string }
		Next    string
	}
	// The list has the same names, and goes on behind each.
	seen := 0
	for after := ""; ; seen++ {
		var p page
		a.JSON(t, "GET", "/api/tunnels?limit=1&after="+after, "", &p)
		if len(p.Tunnels) != 1 || opened[p.Tunnels[0].ID]["client"] != p.Tunnels[0].Client {
			t.Fatalf("behind %q: %+v, of %v", after, p, opened)
		}
		if after = p.Next; after == "" {
			break
		}
	}
	if seen != len(clients)-1 {
		t.Errorf("%d pages go on, of %d", seen, len(clients))
	}
	// By its name a tunnel is found, and cut.
	first := u.Log.Lines("connected")[0]
	var p page
	a.JSON(t, "GET", "/api/tunnels?id="+first["id"].(string), "", &p)
	if len(p.Tunnels) != 1 || p.Tunnels[0].Client != first["client"] {
		t.Errorf("%v is %+v", first["id"], p)
	}
	var cut struct{ Cut int }
	a.JSON(t, "POST", "/api/tunnels/cut", fmt.Sprintf(`{"id": %q}`, first["id"]), &cut)
	harness.ExpectCut(t, clients[0])
	for _, c := range clients[1:] {
		harness.Echo(t, c, "again")
		c.Close()
	}
	u.Log.WaitLine(t, "tunnel", len(clients))
	for _, line := range u.Log.Lines("tunnel") {
		was := opened[line["id"]]
		for _, key := range []string{"listener", "client", "backend", "dial_ms", "attempts", "failed"} {
			if line[key] != was[key] {
				t.Errorf("%s=%v in %v, and %v when it opened", key, line[key], line, was[key])
			}
		}
		if line["first_byte_ms"] == nil || line["id"] == first["id"] && line["failed"] != dead {
			t.Errorf("logged: %v", line)
		}
	}
	u.EndMain(t)
}
