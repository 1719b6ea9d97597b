package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gateway/internal/address"
	"gateway/internal/flagvalue"
	"gateway/internal/policy"
)

// Plain forwarding: a listener whose clients all go to one backend.

// alsoServe has a gateway serve another listener until the test ends, and
// returns where: for sealed lines, or a plain forward to target if there is
// one.
func alsoServe(t testing.TB, g *testGateway, addr, target string) string {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("cannot listen on %s: %v", addr, err)
	}
	served := make(chan error, 1)
	var to address.Route
	if target != "" {
		to = parseRoute(t, target)
	}
	go func() {
		if target == "" {
			served <- g.Serve(ln)
		} else {
			served <- g.ServeForward(ln, to)
		}
	}()
	t.Cleanup(func() {
		g.Close()
		if err := <-served; err != ErrGatewayClosed {
			t.Errorf("serving %s ended with %v", addr, err)
		}
	})
	return ln.Addr().String()
}

// forwardTo has a gateway forward to a backend, and returns where.
func forwardTo(t testing.TB, g *testGateway, backend string) string {
	t.Helper()
	return alsoServe(t, g, "127.0.0.1:0", backend)
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// byName returns an address of this host in the form of a name.
func byName(addr string) string { return "localhost:" + portOf(addr) }

func TestAForwardAddsNoByteEitherWay(t *testing.T) {
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		got := make(chan string, 1)
		backend := startBackend(t, func(b *net.TCPConn) {
			all, _ := io.ReadAll(b)
			got <- string(all)
			io.WriteString(b, "an answer")
		})
		// What looks like a sealed line is nothing special.
		question := sealed(t, "127.0.0.1:1") + "200\x00\r\n"
		for _, to := range []string{backend, byName(backend)} {
			c := connect(t, forwardTo(t, g, to))
			send(t, c, question)
			c.CloseWrite()
			expectAll(t, c, "an answer")
			if got := <-got; got != question {
				t.Errorf("the backend of %s read %q", to, got)
			}
		}
	})
}

func TestABackendMayGreetAForwardedClientThatIsSilent(t *testing.T) {
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		backend := startBackend(t, func(b *net.TCPConn) {
			io.WriteString(b, "220 ready\r\n")
			io.Copy(io.Discard, b)
			io.WriteString(b, "221 bye\r\n")
		})
		for _, to := range []string{backend, byName(backend)} {
			c := connect(t, forwardTo(t, g, to))
			expect(t, c, "220 ready\r\n")
			c.CloseWrite()
			expectAll(t, c, "221 bye\r\n")
		}
	})
}

func TestAForwardedTunnelIsHalfClosedEitherWay(t *testing.T) {
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		upload := string(noise(1, 1<<20))
		got := make(chan string, 1)
		backend := startBackend(t, func(b *net.TCPConn) {
			io.WriteString(b, "I am done")
			b.CloseWrite()
			all, _ := io.ReadAll(b)
			got <- string(all)
		})
		c := connect(t, forwardTo(t, g, backend))
		expectAll(t, c, "I am done")
		send(t, c, upload)
		c.CloseWrite()
		if <-got != upload {
			t.Error("the backend got something else than the client sent")
		}
		line := g.log.waitLine(t, "tunnel", 1)
		if line["up"] != float64(len(upload)) || line["down"] != float64(len("I am done")) ||
			line["ended_by"] != "backend" || line["how"] != "fin" {
			t.Errorf("account: %v", line)
		}
	})
}

func TestAForwardPassesAMegabyteWhole(t *testing.T) {
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		want := noise(2, 1<<20)
		backend := startEcho(t)
		for _, to := range []string{backend, byName(backend)} {
			c := connect(t, forwardTo(t, g, to))
			go func() {
				c.Write(want)
				c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(want) {
				t.Errorf("%s: %d of %d bytes came back, not the same (%v)", to, len(got), len(want), err)
			}
		}
	})
}

func TestAForwardedTunnelIsLoggedAsOthersAre(t *testing.T) {
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		backend := startEcho(t)
		for i, to := range []string{backend, byName(backend)} {
			c := connect(t, forwardTo(t, g, to))
			echo(t, c, "hello")
			client := c.LocalAddr().String()
			finish(t, c)
			line := g.log.waitLine(t, "tunnel", i+1)
			want := map[string]any{"client": client, "backend": to, "up": 5.0, "down": 5.0, "ended_by": "client", "how": "fin"}
			if to != backend {
				want["backend_ip"] = backend
			}
			for key, value := range want {
				if line[key] != value {
					t.Errorf("%s: %s=%v, want %v", to, key, line[key], value)
				}
			}
			if line["backend_ip"] != want["backend_ip"] || line["id"] != nil {
				t.Errorf("%s: %v", to, line)
			}
		}
	})
}

// A client that cannot get to the backend is closed without a byte: nobody
// told it that there is a gateway.
func TestAForwardWithoutItsBackendClosesWithoutAByte(t *testing.T) {
	for _, tt := range []struct {
		name, deny, status, reason string
		target                     func(t testing.TB) string
	}{
		{"down", "", "502", "refused", closedPort},
		{"down, by name", "", "502", "refused", func(t testing.TB) string { return byName(closedPort(t)) }},
		{"denied", "127.0.0.0/8,[::1]", "502", "denied", func(t testing.TB) string { return startEcho(t) }},
		{"denied, by name", "127.0.0.0/8,[::1]", "502", "denied", func(t testing.TB) string { return byName(startEcho(t)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onEveryRelayWith(t, func(cfg *Config) {
				if err := flagvalue.Sum(&cfg.Deny, policy.ParseRule, "").Set(tt.deny); err != nil {
					t.Fatal(err)
				}
			}, func(t *testing.T, g *testGateway) {
				target := tt.target(t)
				silent := connect(t, forwardTo(t, g, target))
				expectAll(t, silent, "")
				speaks := connect(t, forwardTo(t, g, target))
				io.WriteString(speaks, "hello")
				expectCut(t, speaks)
				line := g.log.waitLine(t, "refused", 2)
				if line["status"] != tt.status || line["reason"] != tt.reason || line["backend"] != target ||
					line["client"] != speaks.LocalAddr().String() {
					t.Errorf("logged: %v", line)
				}
			})
		})
	}
}

// startBare starts a gateway with these flags and variables and no secret.
func startBare(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	return startCommand(t, gatewayCommand(t, env, append([]string{"-pidfile=", "-log-format=json"}, args...)...))
}

// listeners returns the lines of the log that say where a process listens.
func (p *process) listeners(t testing.TB, n int) []map[string]any {
	t.Helper()
	p.log.waitLine(t, "listening", n)
	found := p.log.lines("listening")
	if len(found) != n {
		t.Fatalf("%d listeners, want %d: %v", len(found), n, found)
	}
	return found
}

func TestAForwardNeedsNoSecret(t *testing.T) {
	needSignals(t)
	backend := startEcho(t)
	bothWays(t, func(t *testing.T, way string) {
		for name, start := range map[string]func() *process{
			"-forward": func() *process {
				return startBare(t, nil, way, "-addr=127.0.0.1:0", "-forward="+backend)
			},
			"-listen": func() *process {
				return startBare(t, nil, way, "-listen=127.0.0.1:0=forward:"+backend)
			},
			"environment": func() *process {
				return startBare(t, []string{"GATEWAY_ADDR=127.0.0.1:0", "GATEWAY_FORWARD=" + byName(backend)}, way)
			},
		} {
			p := start()
			line := p.listeners(t, 1)[0]
			if portOf(fmt.Sprint(line["forward"])) != portOf(backend) || line["secrets"] != nil {
				t.Errorf("%s: %v", name, line)
			}
			c := connect(t, p.addr)
			echo(t, c, "hello")
			finish(t, c)
			p.log.waitLine(t, "tunnel", 1)
			p.end(t)
		}
	})
}

func TestOneProcessServesSealedAndPlainPorts(t *testing.T) {
	needSignals(t)
	first, second, third := startGreeter(t, "first"), startGreeter(t, "second"), startGreeter(t, "third")
	bothWays(t, func(t *testing.T, way string) {
		p := startProcess(t, way, "-listen=127.0.0.1:0=forward:"+first, "-listen=localhost:0=forward:"+byName(second))
		all := p.listeners(t, 3)
		sealedLine, firstLine, secondLine := all[0], all[1], all[2]
		if sealedLine["forward"] != nil || sealedLine["secrets"] != 1.0 ||
			firstLine["forward"] != first || secondLine["forward"] != byName(second) {
			t.Errorf("listening: %v", all)
		}
		c := openTunnel(t, p.addr, third)
		expect(t, c, "third")
		echo(t, c, "hello")
		for addr, greeting := range map[string]string{
			firstLine["addr"].(string): "first", secondLine["addr"].(string): "second"} {
			c := connect(t, addr)
			expect(t, c, greeting)
			echo(t, c, sealed(t, third))
			finish(t, c)
		}
		echo(t, c, "hello again")
		finish(t, c)
		p.log.waitLine(t, "tunnel", 3)
		p.end(t)
	})
}

// Port 0 is another port each time.
func TestPortZeroMayBeGivenTwice(t *testing.T) {
	needSignals(t)
	first, second := startEcho(t), startEcho(t)
	p := startBare(t, nil, "-listen=127.0.0.1:0=forward:"+first, "-listen=127.0.0.1:0=forward:"+second)
	for i, line := range p.listeners(t, 2) {
		if want := []string{first, second}[i]; line["forward"] != want {
			t.Errorf("listener %d: %v, want a forward to %s", i, line, want)
		}
		c := connect(t, line["addr"].(string))
		echo(t, c, "hello")
		finish(t, c)
	}
	p.end(t)

	p = startProcess(t, "-addr=127.0.0.1:0", "-listen=127.0.0.1:0=sealed", "-listen=127.0.0.1:0=sealed")
	for _, line := range p.listeners(t, 3) {
		finish(t, openTunnel(t, line["addr"].(string), first))
	}
	p.end(t)
}

func TestAddressesToListenOnComeFromTheEnvironmentToo(t *testing.T) {
	needSignals(t)
	backend := startEcho(t)
	p := startBare(t, []string{"GATEWAY_LISTEN=127.0.0.1:0=forward:" + backend + " localhost:0=sealed", "GATEWAY_SECRET=" + testSecret})
	all := p.listeners(t, 2)
	c := connect(t, all[0]["addr"].(string))
	echo(t, c, "hello")
	finish(t, c)
	finish(t, openTunnel(t, all[1]["addr"].(string), backend))
	p.end(t)
}

func TestASignalDrainsAllListeners(t *testing.T) {
	needSignals(t)
	backend := startEcho(t)
	bothWays(t, func(t *testing.T, way string) {
		p := startProcess(t, way, "-drain=1h", "-listen=127.0.0.1:0=forward:"+backend, "-listen=localhost:0=sealed")
		all := p.listeners(t, 3)
		addr := func(i int) string { return all[i]["addr"].(string) }
		tunnels := []*net.TCPConn{openTunnel(t, addr(0), backend), connect(t, addr(1)), openTunnel(t, addr(2), backend)}
		for _, c := range tunnels {
			echo(t, c, "before")
		}
		p.signal(t, os.Interrupt)
		for i := range all {
			waitRefused(t, addr(i))
		}
		for _, c := range tunnels {
			if !p.runs() {
				t.Fatal("the process did not wait for its tunnels")
			}
			echo(t, c, "after")
			finish(t, c)
		}
		if code := p.wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if line := p.log.waitLine(t, "stopped", 1); line["cut"] != 0.0 {
			t.Errorf("stopped: %v", line)
		}
	})
}

func TestAForwardToTheGatewayItselfIsRefused(t *testing.T) {
	needSignals(t)
	a, b := closedPort(t), closedPort(t)
	mapped := "[::ffff:127.0.0.1]:" + portOf(a)
	for name, args := range map[string][]string{
		"itself":           {"-addr=" + a, "-forward=" + a},
		"itself, mapped":   {"-addr=" + a, "-forward=" + mapped},
		"itself, by name":  {"-addr=0.0.0.0:" + portOf(a), "-forward=" + byName(a), "-deny=::1"},
		"another listener": {"-addr=" + a, "-forward=" + b, "-listen=" + b + "=forward:" + a},
		"a sealed one":     {"-listen=" + a + "=forward:" + b, "-listen=" + b + "=sealed"},
		"pprof":            {"-addr=" + a, "-forward=" + b, "-pprof=" + b},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, way string) {
				p := startBare(t, []string{"GATEWAY_SECRET=" + testSecret}, append(args, way)...)
				const clients = 3
				for range clients {
					expectAll(t, connect(t, a), "")
				}
				p.log.waitLine(t, "refused", clients)
				for _, line := range p.log.lines("refused") {
					if line["reason"] != "denied" {
						t.Errorf("logged: %v", line)
					}
				}
				p.end(t)
				if line := p.log.waitLine(t, "stopped", 1); line["denied"] != float64(clients) {
					t.Errorf("stopped: %v", line)
				}
			})
		})
	}
}

func TestAForwardingGatewayKeepsAPIDFile(t *testing.T) {
	needSignals(t)
	dir := t.TempDir()
	p := startIn(t, dir, "-forward="+startEcho(t), "-listen=127.0.0.1:0=sealed")
	eventually(t, "the pid file is there", func() bool {
		_, err := os.Stat(filepath.Join(dir, "gateway.pid"))
		return err == nil
	})
	wantLines(t, dir, p)
	p.end(t)
	wantFiles(t, dir)
}

// However many listeners there are, all stand or none does.
func TestATakenPortNamesItsFlagAndLeavesNothing(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken, free := ln.Addr().String(), closedPort(t)
	for name, tt := range map[string]struct {
		flag string
		args []string
	}{
		"-addr":          {"-addr: ", []string{"-addr=" + taken, "-forward=" + free}},
		"-addr of two":   {"-addr: ", []string{"-addr=" + taken, "-listen=" + free + "=sealed"}},
		"-listen":        {"-listen: ", []string{"-listen=" + taken + "=sealed"}},
		"-listen of two": {"-listen: ", []string{"-addr=" + free, "-listen=" + taken + "=forward:127.0.0.1:9"}},
		"the last of three": {"-listen: ",
			[]string{"-addr=127.0.0.1:0", "-listen=" + free + "=forward:127.0.0.1:9", "-listen=" + taken + "=sealed"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cmd := gatewayCommand(t, nil, append([]string{"-secret=" + testSecret}, tt.args...)...)
			cmd.Dir = dir
			p := launch(t, cmd)
			if code := p.wait(t); code != exitFailure {
				t.Errorf("exit code %d, want %d", code, exitFailure)
			}
			says := p.log.String()
			if !strings.HasPrefix(says, "gateway: "+tt.flag) || strings.Count(says, "\n") != 1 || !strings.Contains(says, taken) {
				t.Errorf("it says %q, want one line that begins with %q and has %s", says, "gateway: "+tt.flag, taken)
			}
			wantFiles(t, dir)
		})
	}
}

func TestWrongUseOfListenersAndRulesIsAUsageError(t *testing.T) {
	const withSecret = "-secret=" + testSecret
	for _, tt := range []struct {
		args []string
		says string
	}{
		{[]string{"-listen=127.0.0.1:0=sealed"}, "-secret-file"},
		{[]string{"-listen=127.0.0.1:0=forward:127.0.0.1:9", "-listen=localhost:0=sealed"}, "-secret-file"},
		{[]string{"-addr=127.0.0.1:0", "-listen=localhost:0=forward:127.0.0.1:9"}, "-secret-file"},
		{[]string{withSecret, "-forward=127.0.0.1"}, "-forward"},
		{[]string{withSecret, "-forward=:80"}, "-forward"},
		{[]string{withSecret, "-forward=127.1:80"}, "-forward"},
		{[]string{withSecret, "-forward=backend:http"}, "-forward"},
		{[]string{withSecret, "-forward=[fe80::1%lo]:80"}, "-forward"},
		{[]string{withSecret, "-listen=:8000"}, "-listen"},
		{[]string{withSecret, "-listen=:8000=open"}, "-listen"},
		{[]string{withSecret, "-listen=8000=sealed"}, "-listen"},
		{[]string{withSecret, "-listen=:8000=forward:backend"}, "-listen"},
		{[]string{withSecret, "-listen=:8000=forward:backend:0"}, "-listen"},
		{[]string{withSecret, "-listen=:8000=sealed", "-listen=:8000=forward:backend:1"}, "-listen"},
		{[]string{withSecret, "-addr=:8000", "-listen=:8000=sealed"}, "-listen"},
		{[]string{withSecret, "-allow=backend"}, "-allow"},
		{[]string{withSecret, "-allow=10.0.0.1/8"}, "-allow"},
		{[]string{withSecret, "-allow=10.0.0.0/8:70000"}, "-allow"},
		{[]string{withSecret, "-deny=10.0.0.0/8:2-1"}, "-deny"},
		{[]string{withSecret, "-deny=10.0.0.0/33"}, "-deny"},
		{[]string{withSecret, "-send-proxy=v3"}, "-send-proxy"},
		{[]string{withSecret, "-send-proxy"}, "-send-proxy"},
	} {
		_, stderr, code := runGateway(t, nil, append(tt.args, "-check")...)
		if code != exitUsage || !strings.Contains(stderr, tt.says) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q; want %d and %s", tt.args, code, stderr, exitUsage, tt.says)
		}
	}
}
