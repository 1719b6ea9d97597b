package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/address"
	"gateway/internal/balance"
	"gateway/internal/handover"
	"gateway/internal/harness"
)

// Live tunnels that go to another process, and some that stay after all. Whole
// processes and their deaths are in e2e/process.

// All that tunnels promise holds while they are frozen and thawed, and while they move
// to and fro.
func init() {
	disturbances["freezing"] = keepFreezing
	disturbances["moving"] = keepMoving
}

// keepFreezing freezes all tunnels of a gateway again and again, for a moment each.
func keepFreezing(t testing.TB, g *testGateway) {
	stop := make(chan struct{})
	var freezing sync.WaitGroup
	for _, l := range g.engine.(*loops).all {
		freezing.Go(func() {
			for slot, more := 0, false; ; {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(rand.IntN(1000)) * time.Microsecond):
				}
				p := &parcel{}
				l.do(func() { slot, more = l.yield(p, slot) })
				if !more {
					slot = 0
				}
				time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond)
				l.do(func() { l.resume(p) })
			}
		})
	}
	t.Cleanup(func() { close(stop); freezing.Wait() })
}

// streams returns both ends of a stream.
func streams(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// another returns a gateway with the same configuration and log.
func another(t testing.TB, g *testGateway) *Gateway {
	t.Helper()
	b, err := NewGateway(g.cfg, g.ledger.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// pass has a gateway hand over to another until the test ends.
func pass(t testing.TB, from, to *Gateway) {
	t.Helper()
	a, b := streams(t)
	ctx, cancel := context.WithCancel(context.Background())
	var passing sync.WaitGroup
	passing.Go(func() {
		if err := from.HandOver(ctx, a, patience, nil); err != nil && ctx.Err() == nil && !from.isClosed() && !to.isClosed() {
			t.Errorf("hand over: %v", err)
		}
	})
	passing.Go(func() {
		if _, err := to.TakeOver(b); err != nil && ctx.Err() == nil {
			t.Errorf("take over: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); passing.Wait() })
}

func (g *Gateway) isClosed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

// keepMoving has tunnels move to another gateway and back, again and again.
func keepMoving(t testing.TB, g *testGateway) {
	b := another(t, g)
	g.partner = b
	pass(t, g.Gateway, b)
	pass(t, b, g.Gateway)
}

// frozen has a client's tunnel frozen while f runs, and then go on: here, or at
// another gateway, which has it anew.
func frozen(t *testing.T, g *testGateway, to *Gateway, client net.Conn, f func()) {
	t.Helper()
	p := &parcel{}
	var of *loop
	look(t, g, client, func(l *loop, s *tunnel) {
		of = l
		l.yield(p, int(s.slot))
	})
	if len(p.tunnels) != 1 {
		t.Fatalf("%d tunnels are frozen", len(p.tunnels))
	}
	f()
	if to == nil {
		of.do(func() { of.resume(p) })
		return
	}
	a, b := streams(t)
	go to.TakeOver(b)
	s, err := handover.NewSender(t.Context(), a, patience, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Send(p.states); err != nil {
		t.Fatal(err)
	}
	of.do(func() { of.depart(p) })
}

// onBothWays runs a test of what happens to a frozen tunnel: that it goes on here, and
// elsewhere.
func onBothWays(t *testing.T, test func(t *testing.T, g *testGateway, to *Gateway)) {
	for name, moves := range map[string]bool{"stays": false, "moves": true} {
		for _, ring := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, io_uring %v", name, ring), func(t *testing.T) {
				t.Parallel()
				g := startLoops(t, 1, func(cfg *Config) { cfg.IOUring = cfg.IOUring && ring })
				var to *Gateway
				if moves {
					to = another(t, g)
					g.partner = to
				}
				test(t, g, to)
			})
		}
	}
}

func TestNoEdgeIsLostThatComesWhileATunnelIsFrozen(t *testing.T) {
	t.Parallel()
	onBothWays(t, func(t *testing.T, g *testGateway, to *Gateway) {
		ends := make(chan *net.TCPConn, 1)
		closed := make(chan struct{})
		backend := startBackend(t, func(b *net.TCPConn) { ends <- b; <-closed })
		t.Cleanup(func() { close(closed) })
		for what, during := range map[string]struct{ before, while, after func(c, b *net.TCPConn) }{
			"a message of the client's": {
				while: func(c, b *net.TCPConn) { send(t, c, "hello"); harness.Delivered(t, c) },
				after: func(c, b *net.TCPConn) { expect(t, b, "hello") },
			},
			"a message of the backend's": {
				while: func(c, b *net.TCPConn) { send(t, b, "hello"); harness.Delivered(t, b) },
				after: func(c, b *net.TCPConn) { expect(t, c, "hello") },
			},
			"the client's last message": {
				while: func(c, b *net.TCPConn) { send(t, c, "hello"); c.CloseWrite(); harness.Delivered(t, c) },
				after: func(c, b *net.TCPConn) {
					expectAll(t, b, "hello")
					send(t, b, "bye")
					b.CloseWrite()
					expectAll(t, c, "bye")
				},
			},
			"the backend's FIN": {
				while: func(c, b *net.TCPConn) { b.CloseWrite(); harness.Delivered(t, b) },
				after: func(c, b *net.TCPConn) { expectAll(t, c, ""); send(t, c, "bye"); expect(t, b, "bye") },
			},
			"the client's reset": {
				before: func(c, b *net.TCPConn) { send(t, c, "hello"); expect(t, b, "hello") },
				while:  func(c, b *net.TCPConn) { harness.Reset(c) },
				after: func(c, b *net.TCPConn) {
					if _, err := b.Read(make([]byte, 1)); !isReset(err) {
						t.Errorf("the backend reads %v", err)
					}
				},
			},
			"the backend's reset after its last message": {
				while: func(c, b *net.TCPConn) { send(t, b, "hello"); harness.Delivered(t, b); harness.Reset(b) },
				after: func(c, b *net.TCPConn) { expectAll(t, c, "hello") },
			},
			"room for what a stalled client has waited for": {
				before: func(c, b *net.TCPConn) { harness.SmallBuffers(c); harness.Fill(b); b.CloseWrite() },
				while:  func(c, b *net.TCPConn) { io.CopyN(io.Discard, c, 100<<10) },
				after: func(c, b *net.TCPConn) {
					if _, err := io.Copy(io.Discard, c); err != nil {
						t.Error(err)
					}
				},
			},
			"a FIN that was before": {
				before: func(c, b *net.TCPConn) { c.CloseWrite(); expectAll(t, b, "") },
				while:  func(c, b *net.TCPConn) { send(t, b, "hello") },
				after:  func(c, b *net.TCPConn) { b.CloseWrite(); expectAll(t, c, "hello") },
			},
		} {
			lines := len(g.log.lines("tunnel"))
			c := openTunnel(t, g.addr, backend)
			b := <-ends
			if during.before != nil {
				during.before(c, b)
			}
			frozen(t, g, to, c, func() { during.while(c, b) })
			during.after(c, b)
			c.Close()
			b.Close()
			g.log.waitLine(t, "tunnel", lines+1)
			if t.Failed() {
				t.Fatal(what)
			}
		}
		wantAtRest(t, g)
	})
}

func TestAPipeTooManyIsEmptiedIntoMemory(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, nil)
	to := another(t, g)
	g.partner = to
	to.engine.(*loops).pipes.Max = 0
	const size = 16 << 20
	want := noise(1, size)
	backend := startBackend(t, func(b *net.TCPConn) { b.Write(want); b.CloseWrite() })
	c := connect(t, g.addr)
	harness.SmallBuffers(c)
	send(t, c, sealed(t, backend))
	expect(t, c, "200")
	eventually(t, "bytes wait in a pipe", func() (is bool) {
		look(t, g, c, func(_ *loop, s *tunnel) { is = s.flows[backendSide].inPipe > 0 && !s.sockets[clientSide].writable })
		return is
	})
	frozen(t, g, to, c, func() {})
	expectAll(t, c, string(want))
	wantAtRest(t, g)
}

func TestATunnelThatMovesIsAccountedForAsAWhole(t *testing.T) {
	t.Parallel()
	ends := make(chan struct{})
	backend := startBackend(t, func(b *net.TCPConn) { io.CopyN(b, b, 5); <-ends })
	g := startConfigured(t, func(cfg *Config) {
		cfg.Loops, cfg.SendProxy, cfg.Balance = 1, "off", balance.LeastConn
		cfg.IdleTimeout = time.Hour
	}, nil)
	to := another(t, g)
	g.partner = to
	route := backend + ",127.0.0.1:1"
	c := connect(t, g.addr)
	send(t, c, sealed(t, route)+"hello")
	expect(t, c, "200hello")
	var s *session
	look(t, g, c, func(l *loop, tun *tunnel) {
		copied := tun.session
		s = &copied
		tun.session.accepted = tun.session.accepted.Add(-time.Hour)
		tun.rest.Resume(tun.progress(), false, 59*time.Minute, l.reactor.Now)
	})
	frozen(t, g, to, c, func() {})
	eventually(t, "the tunnel is in the other gateway's loop", func() bool { return to.engine.(*loops).all[0].load.Load() == 1 })
	inLoop(t, to.engine.(*loops).all[0], func() {
		l := to.engine.(*loops).all[0]
		tun := l.slots[l.free[len(l.free)-1]]
		for _, s := range l.slots {
			if s.state == stateOpen {
				tun = s
			}
		}
		if tun.session.client != s.client || tun.session.form != s.form || time.Since(tun.session.accepted) < time.Hour ||
			tun.upstream.backend.String() != backend || tun.progress() != 10 {
			t.Errorf("it is %+v, %+v", tun.session, tun.upstream)
		}
		if !tun.sockets[clientSide].writable || !tun.plain(clientSide) {
			t.Error("its messages do not go along with others'")
		}
		if rested := tun.rest.Rested(tun.progress(), false, l.reactor.Now); rested < 59*time.Minute {
			t.Errorf("it has rested for %v", rested)
		}
		if tun.upstream.choice == nil || tun.upstream.choice.group != to.rules.Load().routes.Group(mustRoute(t, route), balanceClock()) {
			t.Error("the backend does not know of its connection")
		}
	})
	if n := g.ledger.open(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
	close(ends)
	c.Close()
	line := g.log.waitLine(t, "tunnel", 1)
	if line["up"] != 5.0 || line["down"] != 5.0 || line["duration_ms"].(float64) < 3600e3 {
		t.Errorf("account: %v", line)
	}
	wantAtRest(t, g)
}

func TestABackendThatFailsIsSkippedByTheNextProcess(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, func(cfg *Config) { cfg.Balance = balance.First })
	to := another(t, g)
	g.partner = to
	backend := startEcho(t)
	route := closedPort(t) + "," + backend
	c := openTunnel(t, g.addr, route) // after a failure
	pass(t, g.Gateway, to)
	eventually(t, "the tunnel is in the other gateway's loop", func() bool { return to.engine.(*loops).all[0].load.Load() == 1 })
	failing := to.rules.Load().routes.Snapshot(balanceClock()).Failing
	if len(failing) != 1 || failing[0].Route != route || failing[0].Skipped <= 0 {
		t.Errorf("known: %+v", failing)
	}
	finish(t, c)
}

func TestTheNextProcessHoldsClientsToTheirLimits(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, func(cfg *Config) {
		cfg.MaxTunnels, cfg.ConnsPerIP = 1, 100
	})
	to := another(t, g)
	g.partner = to
	banned := netip.MustParsePrefix("192.0.2.0/24")
	if err := g.ledger.bans.Add(banned, time.Hour, time.Now()); err != nil {
		t.Fatal(err)
	}
	backend := startEcho(t)
	c := openTunnel(t, g.addr, backend)
	client := addrOf(c).Addr()
	pass(t, g.Gateway, to)
	eventually(t, "the tunnel is in the other gateway's loop", func() bool { return to.engine.(*loops).all[0].load.Load() == 1 })
	eventually(t, "its client is counted there, and only there", func() bool {
		return to.ledger.limiter.Conns(client) == 1 && g.ledger.limiter.Conns(client) == 0
	})
	if !to.ledger.bans.Banned(banned.Addr(), time.Now()) {
		t.Error("a ban is forgotten")
	}
	if live, _ := to.ledger.conns.Count(); live != 1 {
		t.Errorf("%d connections are counted", live)
	}
	addr, err := address.Parse(backend)
	if err != nil {
		t.Fatal(err)
	}
	if to.ledger.seats.Take(addr, 1) {
		t.Error("its backend has room for another")
	}
	finish(t, c)
	eventually(t, "its seat is free", func() bool { return to.ledger.seats.Take(addr, 1) })
	if live, _ := to.ledger.conns.Count(); live != 0 || to.ledger.limiter.Conns(client) != 0 {
		t.Errorf("%d connections are counted, %d of the client", live, to.ledger.limiter.Conns(client))
	}
}

func mustRoute(t testing.TB, text string) address.Route {
	t.Helper()
	r, err := address.ParseRoute(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
