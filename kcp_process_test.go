package main

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// KCP as an operator sees it: flags, ports, signals; and what strangers can do.

// startKCPProcess starts a gateway with a free port for KCP too.
func startKCPProcess(t testing.TB, args ...string) (p *process, kcp string) {
	t.Helper()
	p = startProcess(t, append([]string{"-kcp=127.0.0.1:0"}, args...)...)
	return p, kcpAddr(t, p)
}

// kcpAddr is where a gateway listens for KCP, as it logs.
func kcpAddr(t testing.TB, p *process) (addr string) {
	t.Helper()
	eventually(t, "a line of the log with protocol=kcp", func() bool {
		for _, line := range p.log.lines("listening") {
			if line["protocol"] == "kcp" {
				addr = line["addr"].(string)
			}
		}
		return addr != ""
	})
	return addr
}

func TestWrongKCPFlagsAreRefusedByName(t *testing.T) {
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
			args := []string{"-secret=" + testSecret, "-addr=127.0.0.1:0", "-pidfile=", more, test.args}
			_, stderr, code := runGateway(t, nil, args...)
			if code != exitUsage || !strings.Contains(stderr, test.names) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("%s %s: exit code %d, want 2 and a line about %s, got %q", more, test.args, code, test.names, stderr)
			}
			if strings.Contains(stderr, "of-nothing") {
				t.Error("the error repeats the key")
			}
		}
	}
}

func TestATakenUDPPortIsNamed(t *testing.T) {
	taken := deafPort(t)
	_, stderr, code := runGateway(t, nil, "-secret="+testSecret, "-addr=127.0.0.1:0", "-pidfile=", "-kcp="+taken)
	if code != exitFailure || !strings.Contains(stderr, "-kcp: ") || !strings.Contains(stderr, taken) {
		t.Errorf("exit code %d, want 1 and a line about -kcp and %s, got %q", code, taken, stderr)
	}
}

// sharedPort returns an address of 127.0.0.1 whose port is free in TCP and UDP.
func sharedPort(t testing.TB) string {
	t.Helper()
	for range 100 {
		addr := closedPort(t)
		if c, err := net.ListenPacket("udp", addr); err == nil {
			c.Close()
			return addr
		}
	}
	t.Fatal("no port is free for both")
	return ""
}

func TestKCPAndTCPShareAPortNumber(t *testing.T) {
	backend := startEcho(t)
	addr := sharedPort(t)
	p := startProcess(t, "-addr="+addr, "-kcp="+addr)
	if kcp := kcpAddr(t, p); kcp != addr || p.addr != addr {
		t.Errorf("listens on %s and %s, want %s", p.addr, kcp, addr)
	}
	echo(t, openTunnel(t, addr, backend), "by TCP")
	echo(t, openKCP(t, addr, backend), "by KCP")
}

func TestTheLogTellsWhichPortIsOfKCP(t *testing.T) {
	p, _ := startKCPProcess(t)
	lines := p.log.lines("listening")
	if len(lines) != 2 || lines[0]["protocol"] != nil || lines[1]["protocol"] != "kcp" || lines[1]["secrets"] != 1.0 {
		t.Errorf("logged as %v", lines)
	}
}

func TestForwardingGoesOnBesideKCP(t *testing.T) {
	forwarded, backend := startEcho(t), startEcho(t)
	p, kcp := startKCPProcess(t, "-forward="+forwarded, "-listen=127.0.0.1:0=sealed")
	echo(t, connect(t, p.addr), "a forwarded client has nothing to say first")
	echo(t, openTunnel(t, p.log.waitLine(t, "listening", 2)["addr"].(string), backend), "sealed")
	echo(t, openKCP(t, kcp, backend), "by KCP")
	// A port of KCP takes lines, so that it needs a secret.
	_, stderr, code := runGateway(t, nil, "-addr=127.0.0.1:0", "-forward="+forwarded, "-pidfile=", "-kcp=127.0.0.1:0")
	if code != exitUsage || !strings.Contains(stderr, "secret") {
		t.Errorf("without a secret: exit code %d, %q", code, stderr)
	}
}

func TestSIGTERMLetsKCPSessionsFinish(t *testing.T) {
	needSignals(t)
	backend := startBackend(t, func(c *net.TCPConn) { // echoes until it is told to stop
		for b := make([]byte, 100); ; {
			n, err := c.Read(b)
			c.Write(b[:n])
			if err != nil || string(b[:n]) == "stop" {
				return
			}
		}
	})
	p, kcp := startKCPProcess(t, "-drain=1h")
	s := openKCP(t, kcp, backend)
	p.signal(t, syscall.SIGTERM)
	p.log.waitLine(t, "draining", 1)
	waitRefused(t, p.addr)
	late := dialKCP(t, kcp, kcpCode{})
	send(t, late, sealed(t, backend))
	late.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if n, _ := late.Read(make([]byte, 3)); n > 0 {
		t.Error("a new session began while the gateway drains")
	}
	echo(t, s, "still here")
	began := time.Now()
	echo(t, s, "stop")
	if code := p.wait(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v to end without a session", took)
	}
	if line := p.log.waitLine(t, "tunnel", 1); line["ended_by"] != "backend" || line["how"] != "fin" {
		t.Errorf("logged as %v", line)
	}
}

// No session may linger, whatever it still has to deliver.
func TestASecondSIGTERMCutsKCPSessionsAtOnce(t *testing.T) {
	needSignals(t)
	const each = 10
	finish := make(chan struct{})
	open := startBackendProcess(t, "echo")
	finishing := startBackend(t, func(c *net.TCPConn) {
		<-finish
		c.Write(noise(1, 64<<10))
	})
	p, kcp := startKCPProcess(t, "-drain=1h")
	for range each {
		echo(t, openKCP(t, kcp, open), "a session at rest")
		gone := openKCP(t, kcp, finishing)
		gone.Close() // so that what its backend sends is never acknowledged
	}
	close(finish)
	stranger, err := net.Dial("udp", kcp)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	stranger.Write(segment(1, 0, "nonsense\n")) // a status that is never acknowledged
	p.log.waitLine(t, "refused", 1)
	p.signal(t, syscall.SIGTERM)
	p.log.waitLine(t, "draining", 1)
	began := time.Now()
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	cut := p.log.lines("tunnel")
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
	const datagrams, places = 9000, 2048
	backend := startEcho(t)
	g := startKCP(t, nil)
	s := openKCP(t, g.kcp, backend)
	echo(t, s, "before")
	line := sealed(t, backend)
	rng := rand.New(rand.NewPCG(1, 2))
	garbage := make([]byte, 1400)
	goroutines, most := runtime.NumGoroutine(), 0
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
			echo(t, s, "a player feels nothing")
			most = max(most, runtime.NumGoroutine()-goroutines)
		}
	}
	if n := g.Stats().Sessions; n > places+1 {
		t.Errorf("%d sessions", n)
	}
	if most > 2*places+places/4 { // kcp-go's and the gateway's own, and those that are just ending
		t.Errorf("%d goroutines", most)
	}
	if g.Stats().Dropped < datagrams/3 {
		t.Errorf("%d datagrams were dropped", g.Stats().Dropped)
	}
	// A client need not wait until the strangers are given up, which takes as
	// long as -handshake-timeout.
	began := time.Now()
	echo(t, openKCP(t, g.kcp, backend), "after")
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("a client got in after %v", took)
	}
	if dialed := len(g.log.lines("tunnel")); dialed != 0 {
		t.Errorf("%d tunnels came of it", dialed)
	}
}

// A forged address must not be sent much more than was sent in its name.
func TestAClientThatAcknowledgesNothingIsSentLittle(t *testing.T) {
	t.Parallel()
	backend := startBackend(t, func(c *net.TCPConn) {
		c.Write(noise(1, 100_000))
		io.Copy(io.Discard, c)
	})
	g := startKCP(t, func(cfg *Config) { cfg.HandshakeTimeout, cfg.KCPIdleTimeout = time.Second, 2*time.Second })
	for name, text := range map[string]string{
		"a datagram without a request": "x",
		"a line that does not open":    badlyPadded(t) + "\n",
		"a line that opens":            sealed(t, backend),
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
	g := startKCP(t, nil)
	goroutines := runtime.NumGoroutine()
	line := sealed(t, "127.0.0.1:1")
	for i := range 3000 {
		c, err := net.Dial("udp", g.kcp)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([][]byte{segment(0, 0, line), segment(1, 1, line), segment(1, 0, line)[:23], []byte("GET / HTTP/1.1\r\n\r\n"), nil}[i%5])
		c.Close()
	}
	eventually(t, "the gateway has seen many of them", func() bool { return g.Stats().Dropped > 1000 })
	if n := runtime.NumGoroutine(); n > goroutines || g.Stats().Sessions != 0 {
		t.Errorf("%d goroutines in place of %d, %d sessions", n, goroutines, g.Stats().Sessions)
	}
}
