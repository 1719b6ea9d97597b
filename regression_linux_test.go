package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/address"
)

// Bugs that the loops once had.

// inside runs f in a loop's thread and waits for it.
func inside(t testing.TB, l *loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.send(func() { defer close(done); f() }) {
		t.Fatal("the loop has ended")
	}
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the loop does not answer")
	}
}

// busy keeps a loop from its events until the returned function is called.
func busy(t testing.TB, l *loop) (release func()) {
	t.Helper()
	begun, end := make(chan struct{}), make(chan struct{})
	l.send(func() { close(begun); <-end })
	<-begun
	return func() { close(end) }
}

func oneLoop(cfg *Config) { cfg.Loops = 1 }

// isListening tells whether connects to addr are taken.
func isListening(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err == nil {
		c.Close()
	}
	return !errors.Is(err, syscall.ECONNREFUSED)
}

// The pause was left on, and its end registered a descriptor that by then
// belonged to a tunnel.
func TestAListenerThatPausesAtShutdownServesItsQueueAndIsForgotten(t *testing.T) {
	g := startConfigured(t, oneLoop, nil)
	backend := startEcho(t)
	open := openTunnel(t, g.addr, backend)
	l := g.loops.all[0]
	inside(t, l, func() {
		l.tick()
		l.pause(l.listeners[0], unix.EMFILE)
	})
	queued := connect(t, g.addr)
	send(t, queued, sealed(t, backend))
	go g.Shutdown(context.Background())
	expect(t, queued, "200")
	eventually(t, "it listens no more", func() bool { return !isListening(g.addr) })
	inside(t, l, func() {
		if l.pausedListeners != 0 || l.listeners[0].paused {
			t.Error("it will be tried again")
		}
	})
	for _, c := range []*net.TCPConn{open, queued} {
		send(t, c, "still here")
		expect(t, c, "still here")
		c.Close()
	}
}

// The event of a listener that was given up in the same batch made it pause.
func TestAnEventOfAFormerListenerIsIgnored(t *testing.T) {
	g := startConfigured(t, oneLoop, nil)
	l := g.loops.all[0]
	openTunnel(t, g.addr, startEcho(t)).Close() // it accepts
	release := busy(t, l)
	c := connect(t, g.addr) // the listener's event
	go g.Shutdown(context.Background())
	eventually(t, "the loop is told to stop accepting", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.inbox) > 0
	})
	release()
	eventually(t, "it listens no more", func() bool { return !isListening(g.addr) })
	c.Close()
	inside(t, l, func() {
		if l.pausedListeners != 0 {
			t.Error("it will be tried again")
		}
	})
	if lines := g.log.lines("cannot accept, trying again"); len(lines) > 0 {
		t.Error(lines)
	}
}

// A panic lost the rest of the inbox, and Close waited for it for ever.
func TestABugInOneOfManyHandedConnectionsLosesNoOther(t *testing.T) {
	g := startConfigured(t, oneLoop, func(g *Gateway) { g.keys = nil })
	l := g.loops.all[0]
	const n = 5
	release := busy(t, l)
	for range n {
		l.send(func() { panic("a bug") })
	}
	ran := make(chan struct{})
	l.send(func() { close(ran) })
	release()
	select {
	case <-ran:
	case <-time.After(patience):
		t.Fatal("what stood behind the bugs was lost")
	}
	g.log.waitLine(t, "panic", n)
}

// A reset that was found while connecting was forgotten again, and the tunnel
// waited for -half-close-timeout.
func TestABackendThatResetsAtOnceLeavesNoTunnelBehind(t *testing.T) {
	g := startConfigured(t, func(cfg *Config) { cfg.Loops = 1; cfg.HalfCloseTimeout = 3 * time.Second }, nil)
	backend := startBackend(t, func(b *net.TCPConn) { b.SetLinger(0) })
	const n = 50
	for range n {
		// The client stays open: the gateway is to end the tunnel by itself.
		expectAll(t, openTunnelOr502(t, g.addr, backend), "")
	}
	eventually(t, "all are accounted for", func() bool {
		return len(g.log.lines("tunnel"))+len(g.log.lines("refused")) == n
	})
	for _, line := range g.log.lines("tunnel") {
		if line["ended_by"] != "backend" {
			t.Errorf("account: %v", line)
		}
	}
}

// openTunnelOr502 opens a tunnel to a backend that may be gone already.
func openTunnelOr502(t testing.TB, gateway, backend string) *net.TCPConn {
	t.Helper()
	c := connect(t, gateway)
	send(t, c, sealed(t, backend))
	status := make([]byte, 3)
	if _, err := io.ReadFull(c, status); err != nil || string(status) != "200" && string(status) != "502" {
		t.Fatalf("read %q, %v", status, err)
	}
	return c
}

// The same for a reset behind the backend's FIN.
func TestABackendsResetAfterItsFINEndsTheTunnel(t *testing.T) {
	g := startConfigured(t, func(cfg *Config) { cfg.Loops = 1; cfg.HalfCloseTimeout = time.Hour }, nil)
	seen := make(chan struct{})
	c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
		b.CloseWrite()
		<-seen
		b.SetLinger(0)
	}))
	expectAll(t, c, "")
	close(seen)
	if line := g.log.waitLine(t, "tunnel", 1); line["ended_by"] != "backend" || line["how"] != "reset" {
		t.Errorf("account: %v", line)
	}
}

// The client's reset overtook what it had sent before.
func TestWhatAClientSentBeforeItsResetIsDelivered(t *testing.T) {
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		got := make(chan string, 1)
		backend := startBackend(t, func(b *net.TCPConn) {
			all, _ := io.ReadAll(b)
			got <- string(all)
		})
		for range 50 {
			c := openTunnel(t, g.addr, backend)
			send(t, c, "logout\n")
			c.SetLinger(0)
			c.Close()
			if text := <-got; text != "logout\n" {
				t.Fatalf("the backend got %q", text)
			}
		}
	})
}

// A read stops at urgent data, and what stood behind it was taken for nothing.
func TestBytesBehindUrgentDataAreNotLeftBehind(t *testing.T) {
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		c := openTunnel(t, g.addr, startEcho(t))
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var releases []func()
		if g.loops != nil {
			for _, l := range g.loops.all {
				releases = append(releases, busy(t, l))
			}
		}
		send(t, c, "before")
		raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) })
		if err != nil {
			t.Fatal(err)
		}
		send(t, c, "behind")
		delivered(t, c)
		for _, release := range releases {
			release()
		}
		expect(t, c, "beforebehind") // the urgent byte itself is not relayed
	})
}

// options returns what a test looks at of a tunnel's two sockets.
func options(t testing.TB, l *loop) (found [][4]int) {
	t.Helper()
	inside(t, l, func() {
		for _, tn := range l.table {
			if tn.state != stateOpen {
				continue
			}
			for _, s := range tn.sockets {
				get := func(level, name int) int {
					v, err := unix.GetsockoptInt(int(s.fd), level, name)
					if err != nil {
						t.Error(err)
					}
					return v
				}
				found = append(found, [4]int{
					get(unix.IPPROTO_TCP, unix.TCP_NODELAY), get(unix.SOL_SOCKET, unix.SO_KEEPALIVE),
					get(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE), get(unix.IPPROTO_TCP, unix.TCP_KEEPCNT)})
			}
		}
	})
	return found
}

// The slow way had net's own keepalive, and clients that connected before Serve
// had none.
func TestBothLegsHaveTheConfiguredKeepaliveOnEveryWay(t *testing.T) {
	for _, tt := range []struct {
		name      string
		keepalive time.Duration
		slow      bool
		want      func(o [4]int) bool
	}{
		{"the short way", 77 * time.Second, false, func(o [4]int) bool { return o == [4]int{1, 1, 77, 3} }},
		{"the slow way", 77 * time.Second, true, func(o [4]int) bool { return o == [4]int{1, 1, 77, 3} }},
		{"the short way, none", 0, false, func(o [4]int) bool { return o[0] == 1 && o[1] == 0 }},
		{"the slow way, none", 0, true, func(o [4]int) bool { return o[0] == 1 && o[1] == 0 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := defaultConfig()
			cfg.Keepalive = tt.keepalive
			ln, err := listen(cfg, listening{addr: "127.0.0.1:0"})
			if err != nil {
				t.Fatal(err)
			}
			line := sealed(t, startEcho(t))
			c := connect(t, ln.Addr().String()) // nobody serves yet
			g := startConfigured(t, func(cfg *Config) {
				cfg.Loops, cfg.Keepalive, cfg.HalfCloseTimeout = 1, tt.keepalive, 100*time.Millisecond
				if tt.slow {
					theSlowWay(cfg)
				}
			}, nil)
			served := make(chan error, 1)
			go func() { served <- g.Serve(ln) }()
			defer func() { g.Close(); <-served }()
			if tt.slow {
				send(t, c, line[:10])
				eventually(t, "a goroutine has it", func() bool {
					g.mu.Lock()
					defer g.mu.Unlock()
					return len(g.clients) == 1
				})
				line = line[10:]
			}
			send(t, c, line)
			expect(t, c, "200")
			var got [][4]int
			defer func() {
				if t.Failed() {
					t.Logf("options %v", got)
				}
			}()
			eventually(t, "both legs have their options", func() bool {
				got = options(t, g.loops.all[0])
				return len(got) == 2 && tt.want(got[0]) && tt.want(got[1])
			})
		})
	}
}

// The kernel reads 0.0.0.0 as this host, whose own address then differs.
func TestASelfConnectIsSeenInEverySpelling(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := sa.(*unix.SockaddrInet4).Port
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err) // with nobody else there, it connects to itself
	}
	l := &loop{group: &loops{firstLocalPort: 1}}
	for _, host := range []string{"127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1"} {
		tn := &tunnel{}
		tn.sockets[backendSide].fd = int32(fd)
		tn.session.backend = address.Address{Host: host, IP: netip.MustParseAddr(host), Port: uint16(port)}
		if !l.isSelfConnect(tn) {
			t.Errorf("not seen when dialed as %s", host)
		}
	}
}
