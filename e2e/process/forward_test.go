package process

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// Plain forwarding: a listener whose clients all go to one backend.

// startForward starts a gateway that forwards to a backend and has no secret.
func startForward(t testing.TB, relay, to string, more ...string) *harness.Process {
	t.Helper()
	return harness.StartBare(t, nil, append([]string{relay, "-addr=127.0.0.1:0", "-forward=" + to}, more...)...)
}

func TestAForwardAddsNoByteEitherWay(t *testing.T) {
	t.Parallel()
	harness.EachRelay(t, func(t *testing.T, relay string) {
		got := make(chan string, 1)
		backend := harness.StartBackend(t, func(b *net.TCPConn) {
			all, _ := io.ReadAll(b)
			got <- string(all)
			io.WriteString(b, "an answer")
		})
		// What looks like a sealed line is nothing special.
		question := harness.Line("127.0.0.1:1") + "200\x00\r\n"
		for _, to := range []string{backend, harness.ByName(backend)} {
			c := harness.Connect(t, startForward(t, relay, to).Addr)
			harness.Send(t, c, question)
			c.CloseWrite()
			harness.ExpectAll(t, c, "an answer")
			if got := <-got; got != question {
				t.Errorf("the backend of %s read %q", to, got)
			}
		}
	})
}

func TestABackendMayGreetAForwardedClientThatIsSilent(t *testing.T) {
	t.Parallel()
	harness.EachRelay(t, func(t *testing.T, relay string) {
		backend := harness.StartBackend(t, func(b *net.TCPConn) {
			io.WriteString(b, "220 ready\r\n")
			io.Copy(io.Discard, b)
			io.WriteString(b, "221 bye\r\n")
		})
		for _, to := range []string{backend, harness.ByName(backend)} {
			c := harness.Connect(t, startForward(t, relay, to).Addr)
			harness.Expect(t, c, "220 ready\r\n")
			c.CloseWrite()
			harness.ExpectAll(t, c, "221 bye\r\n")
		}
	})
}

func TestAForwardedTunnelIsHalfClosedEitherWay(t *testing.T) {
	t.Parallel()
	harness.EachRelay(t, func(t *testing.T, relay string) {
		upload := string(harness.Noise(1, 1<<20))
		got := make(chan string, 1)
		backend := harness.StartBackend(t, func(b *net.TCPConn) {
			io.WriteString(b, "I am done")
			b.CloseWrite()
			all, _ := io.ReadAll(b)
			got <- string(all)
		})
		g := startForward(t, relay, backend)
		c := harness.Connect(t, g.Addr)
		harness.ExpectAll(t, c, "I am done")
		harness.Send(t, c, upload)
		c.CloseWrite()
		if <-got != upload {
			t.Error("the backend got something else than the client sent")
		}
		line := g.Log.WaitLine(t, "tunnel", 1)
		if line["up"] != float64(len(upload)) || line["down"] != float64(len("I am done")) ||
			line["ended_by"] != "backend" || line["how"] != "fin" {
			t.Errorf("account: %v", line)
		}
	})
}

func TestAForwardPassesAMegabyteWhole(t *testing.T) {
	t.Parallel()
	harness.EachRelay(t, func(t *testing.T, relay string) {
		want := harness.Noise(2, 1<<20)
		backend := harness.StartEcho(t)
		for _, to := range []string{backend, harness.ByName(backend)} {
			c := harness.Connect(t, startForward(t, relay, to).Addr)
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
	t.Parallel()
	harness.EachRelay(t, func(t *testing.T, relay string) {
		backend := harness.StartEcho(t)
		for _, to := range []string{backend, harness.ByName(backend)} {
			g := startForward(t, relay, to)
			c := harness.Connect(t, g.Addr)
			harness.Echo(t, c, "hello")
			client := c.LocalAddr().String()
			harness.Finish(t, c)
			line := g.Log.WaitLine(t, "tunnel", 1)
			want := map[string]any{"client": client, "backend": to, "up": 5.0, "down": 5.0, "ended_by": "client", "how": "fin"}
			if to != backend {
				want["backend_ip"] = backend
			}
			for key, value := range want {
				if line[key] != value {
					t.Errorf("%s: %s=%v, want %v", to, key, line[key], value)
				}
			}
			if line["backend_ip"] != want["backend_ip"] || line["id"] == nil {
				t.Errorf("%s: %v", to, line)
			}
		}
	})
}

// A client that cannot get to the backend is closed without a byte: nobody
// told it that there is a gateway.
func TestAForwardWithoutItsBackendClosesWithoutAByte(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, deny, status, reason string
		target                     func(t testing.TB) string
	}{
		{"down", "", "502", "refused", harness.ClosedPort},
		{"down, by name", "", "502", "refused", func(t testing.TB) string { return harness.ByName(harness.ClosedPort(t)) }},
		{"denied", "127.0.0.0/8,[::1]", "502", "denied", func(t testing.TB) string { return harness.StartEcho(t) }},
		{"denied, by name", "127.0.0.0/8,[::1]", "502", "denied", func(t testing.TB) string { return harness.ByName(harness.StartEcho(t)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			harness.EachRelay(t, func(t *testing.T, relay string) {
				target := tt.target(t)
				g := startForward(t, relay, target, "-deny="+tt.deny)
				silent := harness.Connect(t, g.Addr)
				harness.ExpectAll(t, silent, "")
				speaks := harness.Connect(t, g.Addr)
				io.WriteString(speaks, "hello")
				harness.ExpectCut(t, speaks)
				line := g.Log.WaitLine(t, "refused", 2)
				if harness.Status(line) != tt.status || line["reason"] != tt.reason || line["backend"] != target ||
					line["client"] != speaks.LocalAddr().String() {
					t.Errorf("logged: %v", line)
				}
			})
		})
	}
}

func TestAForwardNeedsNoSecret(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	backend := harness.StartEcho(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		for name, start := range map[string]func() *harness.Process{
			"-forward": func() *harness.Process {
				return harness.StartBare(t, nil, way, "-addr=127.0.0.1:0", "-forward="+backend)
			},
			"-listen": func() *harness.Process {
				return harness.StartBare(t, nil, way, "-listen=127.0.0.1:0=forward:"+backend)
			},
			"environment": func() *harness.Process {
				return harness.StartBare(t, []string{"GATEWAY_ADDR=127.0.0.1:0", "GATEWAY_FORWARD=" + harness.ByName(backend)}, way)
			},
		} {
			p := start()
			line := p.Listeners(t, 1)[0]
			if harness.PortOf(fmt.Sprint(line["forward"])) != harness.PortOf(backend) || line["secrets"] != nil {
				t.Errorf("%s: %v", name, line)
			}
			c := harness.Connect(t, p.Addr)
			harness.Echo(t, c, "hello")
			harness.Finish(t, c)
			p.Log.WaitLine(t, "tunnel", 1)
			p.End(t)
		}
	})
}

func TestOneProcessServesSealedAndPlainPorts(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	first, second, third := harness.StartGreeter(t, "first"), harness.StartGreeter(t, "second"), harness.StartGreeter(t, "third")
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, way, "-listen=127.0.0.1:0=forward:"+first, "-listen=localhost:0=forward:"+harness.ByName(second))
		all := p.Listeners(t, 3)
		sealedLine, firstLine, secondLine := all[0], all[1], all[2]
		if sealedLine["forward"] != nil || sealedLine["secrets"] != 1.0 ||
			firstLine["forward"] != first || secondLine["forward"] != harness.ByName(second) {
			t.Errorf("listening: %v", all)
		}
		c := harness.OpenTunnel(t, p.Addr, third)
		harness.Expect(t, c, "third")
		harness.Echo(t, c, "hello")
		for addr, greeting := range map[string]string{
			firstLine["addr"].(string): "first", secondLine["addr"].(string): "second"} {
			c := harness.Connect(t, addr)
			harness.Expect(t, c, greeting)
			harness.Echo(t, c, harness.Line(third))
			harness.Finish(t, c)
		}
		harness.Echo(t, c, "hello again")
		harness.Finish(t, c)
		p.Log.WaitLine(t, "tunnel", 3)
		p.End(t)
	})
}

// Port 0 is another port each time.
func TestPortZeroMayBeGivenTwice(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	first, second := harness.StartEcho(t), harness.StartEcho(t)
	p := harness.StartBare(t, nil, "-listen=127.0.0.1:0=forward:"+first, "-listen=127.0.0.1:0=forward:"+second)
	for i, line := range p.Listeners(t, 2) {
		if want := []string{first, second}[i]; line["forward"] != want {
			t.Errorf("listener %d: %v, want a forward to %s", i, line, want)
		}
		c := harness.Connect(t, line["addr"].(string))
		harness.Echo(t, c, "hello")
		harness.Finish(t, c)
	}
	p.End(t)

	p = harness.Start(t, "-addr=127.0.0.1:0", "-listen=127.0.0.1:0=sealed", "-listen=127.0.0.1:0=sealed")
	for _, line := range p.Listeners(t, 3) {
		harness.Finish(t, harness.OpenTunnel(t, line["addr"].(string), first))
	}
	p.End(t)
}

func TestAddressesToListenOnComeFromTheEnvironmentToo(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	backend := harness.StartEcho(t)
	p := harness.StartBare(t, []string{"GATEWAY_LISTEN=127.0.0.1:0=forward:" + backend + " localhost:0=sealed", "GATEWAY_SECRET=" + harness.Secret})
	all := p.Listeners(t, 2)
	c := harness.Connect(t, all[0]["addr"].(string))
	harness.Echo(t, c, "hello")
	harness.Finish(t, c)
	harness.Finish(t, harness.OpenTunnel(t, all[1]["addr"].(string), backend))
	p.End(t)
}

func TestASignalDrainsAllListeners(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	backend := harness.StartEcho(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, way, "-drain=1h", "-listen=127.0.0.1:0=forward:"+backend, "-listen=localhost:0=sealed")
		all := p.Listeners(t, 3)
		addr := func(i int) string { return all[i]["addr"].(string) }
		tunnels := []*net.TCPConn{harness.OpenTunnel(t, addr(0), backend), harness.Connect(t, addr(1)), harness.OpenTunnel(t, addr(2), backend)}
		for _, c := range tunnels {
			harness.Echo(t, c, "before")
		}
		p.Signal(t, os.Interrupt)
		for i := range all {
			harness.WaitRefused(t, addr(i))
		}
		for _, c := range tunnels {
			if !p.Runs() {
				t.Fatal("the process did not wait for its tunnels")
			}
			harness.Echo(t, c, "after")
			harness.Finish(t, c)
		}
		if code := p.Wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if line := p.Log.WaitLine(t, "stopped", 1); line["cut"] != 0.0 {
			t.Errorf("stopped: %v", line)
		}
	})
}

func TestAForwardToTheGatewayItselfIsRefused(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	a, b := harness.ClosedPort(t), harness.ClosedPort(t)
	mapped := "[::ffff:127.0.0.1]:" + harness.PortOf(a)
	for name, args := range map[string][]string{
		"itself":           {"-addr=" + a, "-forward=" + a},
		"itself, mapped":   {"-addr=" + a, "-forward=" + mapped},
		"itself, by name":  {"-addr=0.0.0.0:" + harness.PortOf(a), "-forward=" + harness.ByName(a), "-deny=::1"},
		"another listener": {"-addr=" + a, "-forward=" + b, "-listen=" + b + "=forward:" + a},
		"a sealed one":     {"-listen=" + a + "=forward:" + b, "-listen=" + b + "=sealed"},
		"pprof":            {"-addr=" + a, "-forward=" + b, "-pprof=" + b},
	} {
		t.Run(name, func(t *testing.T) {
			harness.BothWays(t, func(t *testing.T, way string) {
				p := harness.StartBare(t, []string{"GATEWAY_SECRET=" + harness.Secret}, append(args, way)...)
				const clients = 3
				for range clients {
					harness.ExpectAll(t, harness.Connect(t, a), "")
				}
				p.Log.WaitLine(t, "refused", clients)
				for _, line := range p.Log.Lines("refused") {
					if line["reason"] != "denied" {
						t.Errorf("logged: %v", line)
					}
				}
				p.End(t)
				if line := p.Log.WaitLine(t, "stopped", 1); line["denied"] != float64(clients) {
					t.Errorf("stopped: %v", line)
				}
			})
		})
	}
}

func TestAForwardingGatewayKeepsAPIDFile(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	dir := t.TempDir()
	p := startIn(t, dir, "-forward="+harness.StartEcho(t), "-listen=127.0.0.1:0=sealed")
	harness.Eventually(t, "the pid file is there", func() bool {
		_, err := os.Stat(filepath.Join(dir, "gateway.pid"))
		return err == nil
	})
	wantLines(t, dir, p)
	p.End(t)
	wantFiles(t, dir)
}

// However many listeners there are, all stand or none does.
func TestATakenPortNamesItsFlagAndLeavesNothing(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken, free := ln.Addr().String(), harness.ClosedPort(t)
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
			cmd := harness.Command(t, nil, append([]string{"-secret=" + harness.Secret}, tt.args...)...)
			cmd.Dir = dir
			p := harness.Launch(t, cmd)
			if code := p.Wait(t); code != harness.ExitFailure {
				t.Errorf("exit code %d, want %d", code, harness.ExitFailure)
			}
			says := p.Log.String()
			if !strings.HasPrefix(says, "gateway: "+tt.flag) || strings.Count(says, "\n") != 1 || !strings.Contains(says, taken) {
				t.Errorf("it says %q, want one line that begins with %q and has %s", says, "gateway: "+tt.flag, taken)
			}
			wantFiles(t, dir)
		})
	}
}

func TestWrongUseOfListenersAndRulesIsAUsageError(t *testing.T) {
	t.Parallel()
	const withSecret = "-secret=" + harness.Secret
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
		_, stderr, code := harness.Run(t, nil, append(tt.args, "-check")...)
		if code != harness.ExitUsage || !strings.Contains(stderr, tt.says) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q; want %d and %s", tt.args, code, stderr, harness.ExitUsage, tt.says)
		}
	}
}
