package kcp

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
	"gateway/internal/kcp"
)

// KCP as an operator sees it: flags, ports, signals; and what strangers can do.

func TestWrongKCPFlagsAreRefusedByName(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ args, names string }{
		{"-kcp=8000", "-kcp"},
		{"-kcp=127.0.0.1:65536", "-kcp"},
		{"-kcp-mode=fast4", "-kcp-mode"},
		{"-kcp-sndwnd=0", "-kcp-sndwnd"},
		{"-kcp-rcvwnd=32769", "-kcp-rcvwnd"},
		{"-kcp-mtu=1501", "-kcp-mtu"},
		{"-kcp-mtu=100", "-kcp-mtu"},
		{"-kcp-datashard=-1", "-kcp-datashard"},
		{"-kcp-datashard=10", "-kcp-parityshard"},
		{"-kcp-parityshard=3", "-kcp-parityshard"},
		{"-kcp-parityshard=129", "-kcp-parityshard"},
		{"-kcp-crypt=xor", "-kcp-crypt"},
		{"-kcp-crypt=aes", "-kcp-key"},
		{"-kcp-key=of-nothing", "-kcp-key"},
		{"-kcp-idle-timeout=0", "-kcp-idle-timeout"},
		{"-kcp-idle-timeout=-1s", "-kcp-idle-timeout"},
	} {
		for _, more := range []string{"-kcp=127.0.0.1:0", "-check"} {
			args := []string{"-secret=" + harness.Secret, "-addr=127.0.0.1:0", "-pidfile=", more, test.args}
			_, stderr, code := harness.Run(t, nil, args...)
			if code != harness.ExitUsage || !strings.Contains(stderr, test.names) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("%s %s: exit code %d, want 2 and a line about %s, got %q", more, test.args, code, test.names, stderr)
			}
			if strings.Contains(stderr, "of-nothing") {
				t.Error("the error repeats the key")
			}
		}
	}
}

func TestATakenUDPPortIsNamed(t *testing.T) {
	t.Parallel()
	taken := deafPort(t)
	_, stderr, code := harness.Run(t, nil, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-pidfile=", "-kcp="+taken)
	if code != harness.ExitFailure || !strings.Contains(stderr, "-kcp: ") || !strings.Contains(stderr, taken) {
		t.Errorf("exit code %d, want 1 and a line about -kcp and %s, got %q", code, taken, stderr)
	}
}

func TestKCPAndTCPShareAPortNumber(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	addr := harness.ClosedPort(t)
	p := harness.Start(t, "-addr="+addr, "-kcp="+addr)
	if at := kcpAddr(t, p); at != addr || p.Addr != addr {
		t.Errorf("listens on %s and %s, want %s", p.Addr, at, addr)
	}
	harness.Echo(t, harness.OpenTunnel(t, addr, backend), "by TCP")
	harness.Echo(t, openKCP(t, addr, backend), "by KCP")
}

func TestTheLogTellsWhichPortIsOfKCP(t *testing.T) {
	t.Parallel()
	p := startKCP(t)
	lines := p.Log.Lines("listening")
	if len(lines) != 2 || lines[0]["protocol"] != nil || lines[1]["protocol"] != "kcp" || lines[1]["secrets"] != 1.0 {
		t.Errorf("logged as %v", lines)
	}
}

func TestForwardingGoesOnBesideKCP(t *testing.T) {
	t.Parallel()
	forwarded, backend := harness.StartEcho(t), harness.StartEcho(t)
	p := startKCP(t, "-forward="+forwarded, "-listen=127.0.0.1:0=sealed")
	harness.Echo(t, harness.Connect(t, p.Addr), "a forwarded client has nothing to say first")
	harness.Echo(t, harness.OpenTunnel(t, p.Log.WaitLine(t, "listening", 2)["addr"].(string), backend), "sealed")
	harness.Echo(t, openKCP(t, p.kcp, backend), "by KCP")
	// A port of KCP takes lines, so that it needs a secret.
	_, stderr, code := harness.Run(t, nil, "-addr=127.0.0.1:0", "-forward="+forwarded, "-pidfile=", "-kcp=127.0.0.1:0")
	if code != harness.ExitUsage || !strings.Contains(stderr, "secret") {
		t.Errorf("without a secret: exit code %d, %q", code, stderr)
	}
}

func TestSIGTERMLetsKCPSessionsFinish(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	backend := harness.StartBackend(t, func(c *net.TCPConn) { // echoes until it is told to stop
		for b := make([]byte, 100); ; {
			n, err := c.Read(b)
			c.Write(b[:n])
			if err != nil || string(b[:n]) == "stop" {
				return
			}
		}
	})
	p := startKCP(t, "-drain=1h")
	s := openKCP(t, p.kcp, backend)
	p.Signal(t, syscall.SIGTERM)
	p.Log.WaitLine(t, "draining", 1)
	harness.WaitRefused(t, p.Addr)
	late := dialKCP(t, p.kcp, kcpCode{})
	harness.Send(t, late, harness.Line(backend))
	late.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if n, _ := late.Read(make([]byte, 3)); n > 0 {
		t.Error("a new session began while the gateway drains")
	}
	harness.Echo(t, s, "still here")
	began := time.Now()
	harness.Echo(t, s, "stop")
	if code := p.Wait(t); code != harness.ExitOK {
		t.Errorf("exit code %d", code)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v to end without a session", took)
	}
	if line := p.Log.WaitLine(t, "tunnel", 1); line["ended_by"] != "backend" || line["how"] != "fin" {
		t.Errorf("logged as %v", line)
	}
}

// No session may linger, whatever it still has to deliver.
func TestASecondSIGTERMCutsKCPSessionsAtOnce(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	const each = 10
	finish := make(chan struct{})
	open := harness.StartBackendProcess(t, "echo")
	finishing := harness.StartBackend(t, func(c *net.TCPConn) {
		<-finish
		c.Write(harness.Noise(1, 64<<10))
	})
	p := startKCP(t, "-drain=1h")
	for range each {
		harness.Echo(t, openKCP(t, p.kcp, open), "a session at rest")
		gone := openKCP(t, p.kcp, finishing)
		gone.Close() // so that what its backend sends is never acknowledged
	}
	close(finish)
	stranger, err := net.Dial("udp", p.kcp)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	stranger.Write(segment(1, 0, "nonsense\n")) // a status that is never acknowledged
	p.Log.WaitLine(t, "refused", 1)
	p.Signal(t, syscall.SIGTERM)
	p.Log.WaitLine(t, "draining", 1)
	p.SignalAgain(t, syscall.SIGTERM)
	began := time.Now()
	if code := p.Wait(t); code != harness.ExitOK {
		t.Errorf("exit code %d", code)
	}
	if took := time.Since(began); took > kcp.Linger-time.Second {
		t.Errorf("it took %v", took)
	}
	cut := p.Log.Lines("tunnel")
	if len(cut) != 2*each {
		t.Errorf("%d tunnels are accounted for", len(cut))
	}
	for _, line := range cut {
		if by := line["ended_by"]; by != "gateway" && by != "backend" {
			t.Errorf("logged as %v", line)
		}
	}
}

// segment is a datagram of KCP with data, the sn-th of its conversation.
func segment(conv, sn uint32, text string) []byte {
	d := make([]byte, 24, 24+len(text))
	binary.LittleEndian.PutUint32(d, conv)
	d[4], d[6] = 81, 128 // IKCP_CMD_PUSH, a window of 128
	binary.LittleEndian.PutUint32(d[12:], sn)
	binary.LittleEndian.PutUint32(d[20:], uint32(len(text)))
	return append(d, text...)
}

func TestAFloodOfStrangersByKCPIsBounded(t *testing.T) {
	harness.Long(t)
	const datagrams, places = 9000, 2048
	backend := harness.StartEcho(t)
	g := startKCP(t, "-handshake-timeout=1h")
	s := openKCP(t, g.kcp, backend)
	harness.Echo(t, s, "before")
	line := harness.Line(backend)
	rng := rand.New(rand.NewPCG(1, 2))
	garbage := make([]byte, 1400)
	most := 0
	for i := range datagrams {
		c, err := net.Dial("udp", g.kcp) // a port of its own
		if err != nil {
			t.Fatal(err)
		}
		switch i % 3 {
		case 0:
			c.Write(segment(rng.Uint32()|1, 0, line[:20]))
		case 1:
			c.Write(segment(rng.Uint32()|1, 7, line)) // in the middle of a conversation
		case 2:
			c.Write(garbage[:rng.IntN(len(garbage))])
		}
		c.Close()
		if i%500 == 0 {
			harness.Echo(t, s, "a player feels nothing")
			most = max(most, g.Goroutines(t)-g.new.Goroutines)
		}
	}
	if most > 2*places+places/4 { // kcp-go's and the gateway's own, and those that are just ending
		t.Errorf("%d goroutines", most)
	}
	// A client need not wait until the strangers are given up, which takes as
	// long as -handshake-timeout.
	harness.Echo(t, openKCP(t, g.kcp, backend), "after")
	if dialed := len(g.Log.Lines("tunnel")); dialed != 0 {
		t.Errorf("%d tunnels came of it", dialed)
	}
}

// A forged address must not be sent much more than was sent in its name.
func TestAClientThatAcknowledgesNothingIsSentLittle(t *testing.T) {
	t.Parallel()
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		c.Write(harness.Noise(1, 100_000))
		io.Copy(io.Discard, c)
	})
	g := startKCP(t, "-handshake-timeout=1s", "-kcp-idle-timeout=2s")
	for name, text := range map[string]string{
		"a datagram without a request": "x",
		"a line that does not open":    harness.BadlyPadded() + "\n",
		"a line that opens":            harness.Line(backend),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := net.Dial("udp", g.kcp)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write(segment(1, 0, text))
			sent, came := len(segment(1, 0, text)), 0
			buf := make([]byte, 2048)
			for c.SetReadDeadline(time.Now().Add(3 * time.Second)); ; {
				n, err := c.Read(buf)
				if err != nil {
					break
				}
				came += n
			}
			if came < 24+27 || came > 3*sent { // an acknowledgement and a status
				t.Errorf("%d bytes came for %d", came, sent)
			}
			t.Logf("%.1f times", float64(came)/float64(sent))
		})
	}
}

// What no session takes costs nothing at all.
func TestDatagramsThatBeginNothingCostNoGoroutine(t *testing.T) {
	backend := harness.StartEcho(t)
	g := startKCP(t)
	s := openKCP(t, g.kcp, backend)
	harness.Echo(t, s, "hello")
	before := g.Rest(t)
	line := harness.Line("127.0.0.1:1")
	for i := range 3000 {
		c, err := net.Dial("udp", g.kcp)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([][]byte{segment(0, 2, line), segment(1, 1, line), segment(1, 0, line)[:23], []byte("GET / HTTP/1.1\r\n\r\n"), nil}[i%5])
		c.Close()
		if i%100 == 99 {
			harness.Echo(t, s, "what came before this has been read")
		}
	}
	if now := g.Rest(t); now.Goroutines > before.Goroutines {
		t.Errorf("%d goroutines in place of %d", now.Goroutines, before.Goroutines)
	}
}

// What limits turn away says nothing: KCP has no reset.
func TestKCPClientsHaveTheSameLimits(t *testing.T) {
	backend := harness.StartEcho(t)
	silent := func(t *testing.T, p *kcpGateway) {
		t.Helper()
		s := dialKCP(t, p.kcp, kcpCode{})
		harness.Send(t, s, harness.Line(backend))
		s.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		if n, err := s.Read(make([]byte, 3)); n > 0 {
			t.Errorf("%d bytes, %v; want nothing", n, err)
		}
	}
	for _, c := range []struct{ flag, reason string }{
		{"-deny-clients=127.0.0.1", "client_denied"}, {"-max-conns-per-ip=1", "conns_per_ip"}, {"-rate-per-ip=1/h", "rate_per_ip"},
	} {
		t.Run(c.flag, func(t *testing.T) {
			p := startKCP(t, c.flag)
			if c.reason != "client_denied" {
				openKCP(t, p.kcp, backend)
			}
			silent(t, p)
			if line := p.Log.WaitLine(t, "clients were turned away", 1); line[c.reason] == nil {
				t.Errorf("the log says %v", line)
			}
			if lines := p.Log.Lines("refused"); len(lines) > 0 {
				t.Errorf("the log has %v", lines)
			}
		})
	}
	t.Run("-max-conns", func(t *testing.T) {
		p := startKCP(t, "-max-conns=1")
		tunnel := harness.OpenTunnel(t, p.Addr, backend)
		s := dialKCP(t, p.kcp, kcpCode{})
		harness.Send(t, s, harness.Line(backend))
		harness.Eventually(t, "it waits", func() bool { return len(p.Log.Lines("cannot accept, trying again")) > 0 })
		tunnel.Close()
		harness.Expect(t, s, "200")
	})
	t.Run("-kcp-max-sessions", func(t *testing.T) {
		p := startKCP(t, "-kcp-max-sessions=1")
		openKCP(t, p.kcp, backend)
		silent(t, p)
	})
}

// Datagrams bear whatever source their sender likes, so what is held against an address
// has to come from who gets what is sent there.
func TestForgedDatagramsAreHeldAgainstNobody(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	for _, flag := range []string{"-ban=3/1m:10m", "-max-conns-per-ip=4", "-rate-per-ip=4/h"} {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			p := startKCP(t, flag)
			for conv := range uint32(20) {
				forged, err := net.Dial("udp", p.kcp) // whose sender would see no answer
				if err != nil {
					t.Fatal(err)
				}
				defer forged.Close()
				forged.Write(segment(conv, 0, "nonsense\n"))
			}
			// They have come before this one, by the same socket.
			harness.Echo(t, openKCP(t, p.kcp, backend), "by KCP")
			harness.Echo(t, harness.OpenTunnel(t, p.Addr, backend), "by TCP")
			if lines := append(p.Log.Lines("client banned"), p.Log.Lines("refused")...); len(lines) > 0 {
				t.Errorf("the log has %v", lines)
			}
		})
	}
	// Who is there has to answer for what comes.
	t.Run("who answers", func(t *testing.T) {
		t.Parallel()
		p := startKCP(t, "-ban=3/1m:10m")
		for range 3 {
			s := dialKCP(t, p.kcp, kcpCode{})
			harness.Send(t, s, "nonsense\n")
			harness.Expect(t, s, "401")
		}
		p.Log.WaitLine(t, "client banned", 1)
	})
}
