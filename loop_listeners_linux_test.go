package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/descriptors"
	"gateway/internal/harness"
	"gateway/internal/sys"
)

// The listeners of the loops: many, paused, given up.

// pauseAll has all loops stop accepting for a while.
func pauseAll(t testing.TB, g *testGateway, delay time.Duration) {
	for _, l := range g.engine.(*loops).all {
		inLoop(t, l, func() {
			l.reactor.Tick()
			sl := l.listeners[0]
			l.pause(sl, unix.EMFILE)
			sl.resumeAt = l.reactor.Now + delay.Nanoseconds()
		})
	}
}

func TestAListenerPausesAndGoesOn(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		g := startLoops(t, n, nil)
		backend := startEcho(t)
		stays := openTunnel(t, g.addr, backend)
		for range 3 {
			pauseAll(t, g, 20*time.Millisecond)
			c := connect(t, g.addr)
			send(t, c, sealed(t, backend))
			send(t, stays, "meanwhile")
			expect(t, stays, "meanwhile")
			expect(t, c, "200")
			finish(t, c)
		}
		if warned := len(g.log.lines("cannot accept, trying again")); warned != 1 {
			t.Errorf("warned %d times", warned)
		}
		finish(t, stays)
		for _, l := range g.engine.(*loops).all { // which may still be pausing
			eventually(t, "no listener is paused", func() (ok bool) {
				inLoop(t, l, func() { ok = l.pausedListeners == 0 })
				return ok
			})
		}
		wantAtRest(t, g)
	}
}

// The descriptor of a listener that is not given up may be that of a client
// the next moment.
func TestAListenerThatIsPausedEndsWithTheServing(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		g := startLoops(t, n, nil)
		backend := startEcho(t)
		stays := openTunnel(t, g.addr, backend)
		pauseAll(t, g, time.Hour)
		queued := connect(t, g.addr)
		send(t, queued, sealed(t, backend))
		done := make(chan error, 1)
		go func() { done <- g.Shutdown(context.Background()) }()
		expect(t, queued, "200") // closing the listener would have reset it
		finish(t, queued)
		waitRefused(t, g.addr)
		eventually(t, "nobody accepts any more", func() bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			return len(g.listeners) == 0
		})
		for _, l := range g.engine.(*loops).all {
			inLoop(t, l, func() {
				for _, sl := range l.listeners {
					if sl.fd >= 0 || sl.paused || l.pausedListeners != 0 {
						t.Errorf("of %d loops one still has %+v", n, sl)
					}
				}
			})
		}
		finish(t, stays)
		if err := <-done; err != nil {
			t.Error(err)
		}
		wantAtRest(t, g)
	}
}

func TestOneGatewayServesManyListeners(t *testing.T) {
	t.Parallel()
	onEveryWay(t, nil, func(t *testing.T, g *testGateway) {
		backend := startEcho(t)
		addrs := []string{g.addr}
		served := make(chan error, 2)
		for range cap(served) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			addrs = append(addrs, ln.Addr().String())
			go func() { served <- g.Serve(ln) }()
		}
		for range 3 {
			for _, addr := range addrs {
				c := openTunnel(t, addr, backend)
				send(t, c, "hello")
				expect(t, c, "hello")
				finish(t, c)
			}
		}
		if err := g.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		for range cap(served) {
			if err := <-served; err != ErrGatewayClosed {
				t.Error(err)
			}
		}
		for _, addr := range addrs {
			waitRefused(t, addr)
		}
	})
}

func TestServeAfterCloseReturnsAtOnce(t *testing.T) {
	t.Parallel()
	onEveryWay(t, nil, func(t *testing.T, g *testGateway) {
		g.Close()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Serve(ln); err != ErrGatewayClosed {
			t.Error(err)
		}
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the listener is open: %v", err)
		}
		g.Close() // again
	})
}

// The pause was once left on, and its end registered a descriptor that by then
// belonged to a tunnel.
func TestAListenerThatPausesAtShutdownServesItsQueueAndIsForgotten(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, nil)
	backend := startEcho(t)
	open := openTunnel(t, g.addr, backend)
	l := g.engine.(*loops).all[0]
	inLoop(t, l, func() {
		l.reactor.Tick()
		l.pause(l.listeners[0], unix.EMFILE)
	})
	queued := connect(t, g.addr)
	send(t, queued, sealed(t, backend))
	go g.Shutdown(context.Background())
	expect(t, queued, "200")
	waitRefused(t, g.addr)
	inLoop(t, l, func() {
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

// The event of a listener that was given up in the same batch once made it
// pause.
func TestAnEventOfAFormerListenerIsIgnored(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, nil)
	l := g.engine.(*loops).all[0]
	openTunnel(t, g.addr, startEcho(t)).Close() // it accepts
	release := hold(t, l)
	c := connect(t, g.addr) // the listener's event
	go g.Shutdown(context.Background())
	eventually(t, "the loop is told to stop accepting", func() bool {
		return l.reactor.Backlog() > 0
	})
	release()
	waitRefused(t, g.addr)
	c.Close()
	inLoop(t, l, func() {
		if l.pausedListeners != 0 {
			t.Error("it will be tried again")
		}
	})
	if lines := g.log.lines("cannot accept, trying again"); len(lines) > 0 {
		t.Error(lines)
	}
}

func TestDescriptorsAreDividedSoThatTheySuffice(t *testing.T) {
	for _, limit := range []uint64{0, 64, 256, 1024, 4096, 20000, 1 << 20, 1 << 30, 1<<64 - 1} {
		conns, pipes := descriptors.Divide(limit)
		if conns < 16 || pipes < 0 || pipes > descriptors.MaxPipes {
			t.Errorf("of %d: %d connections, %d pipes", limit, conns, pipes)
		}
		if need := uint64(2*(int64(conns)+int64(pipes)) + 100); limit >= 256 && need > limit {
			t.Errorf("of %d: %d connections and %d pipes take %d", limit, conns, pipes, need)
		}
	}
}

func TestConnectionsThatGoroutinesServeCountAsWell(t *testing.T) {
	t.Parallel()
	certFile, keyFile, trusting := tlsFiles(t)
	g := startConfigured(t, func(cfg *Config) { cfg.TLSCert, cfg.TLSKey = certFile, keyFile },
		func(g *Gateway) { g.ledger.conns.Bound(2) })

	web := connect(t, g.addr)
	send(t, web, "GET / HTTP/1.1\r\nHost: game.test\r\n\r\n")
	expect(t, web, "HTTP/1.1 400 ")
	inside := tls.Client(connect(t, g.addr), trusting)
	send(t, inside, sealed(t, startEcho(t)))
	expect(t, inside, "200")
	if !g.ledger.full() {
		t.Error("an HTTP client and a tunnel over TLS count for less than two connections")
	}
	for _, c := range []net.Conn{web, inside} {
		c.Close()
	}
	eventually(t, "both are gone", func() bool { n, _ := g.ledger.conns.Count(); return n == 0 })
}

func TestWithoutEPOLLEXCLUSIVEEveryLoopAccepts(t *testing.T) {
	t.Parallel()
	g := startConfigured(t, func(cfg *Config) { cfg.Loops = 3 }, func(g *Gateway) {
		g.engine.(*loops).crew.exclusive |= unix.EPOLLRDHUP // together the kernel refuses them (epoll_ctl(2))
	})
	g.log.waitLine(t, "no EPOLLEXCLUSIVE here: every loop wakes for every connection", 1)
	backend := startEcho(t)
	for range 20 {
		finish(t, openTunnel(t, g.addr, backend))
	}
	if n := len(g.log.lines("cannot accept, trying again")); n > 0 {
		t.Errorf("%d failures to accept", n)
	}
}

func TestAKernelThatRefusesWhatTheLoopsNeedIsFoundOutAtStart(t *testing.T) {
	if err := sys.Probe(); err != nil {
		t.Fatal(err)
	}
	for call, name := range map[uint32]string{unix.SYS_ACCEPT4: "accept4", unix.SYS_RECVFROM: "recvfrom", unix.SYS_SENDTO: "sendto"} {
		refused := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlock: the thread ends with its filter
			if err := refuse(call, unix.EPERM); err != nil {
				refused <- errors.ErrUnsupported
				return
			}
			refused <- sys.Probe()
		}()
		switch err := <-refused; {
		case err == errors.ErrUnsupported:
			t.Skip("no seccomp here")
		case err == nil || !strings.HasPrefix(err.Error(), name+": "):
			t.Errorf("without %s: %v", name, err)
		}
	}
}

func TestALoopThatIsStuckDoesNotAnswer(t *testing.T) {
	t.Parallel()
	g := startConfigured(t, func(cfg *Config) { cfg.Loops = 2 }, nil)
	answer := func(within time.Duration) bool {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		return g.engine.answer(ctx) == nil
	}
	if !answer(patience) {
		t.Fatal("loops with nothing to do do not answer")
	}
	stuck, free := make(chan struct{}), make(chan struct{})
	g.engine.(*loops).all[1].reactor.Post(func() { close(stuck); <-free })
	<-stuck
	if answer(50 * time.Millisecond) {
		t.Error("a loop that is stuck answers")
	}
	close(free)
	if !answer(patience) {
		t.Error("a loop that is stuck no longer does not answer")
	}
}

func TestAClientThatALimitTurnsAwayTakesNoSlotAndWakesNoOtherLoop(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 2, func(cfg *Config) { cfg.ConnsPerIP = 1 })
	first := openTunnel(t, g.addr, startEcho(t))
	for range 50 {
		c, err := net.Dial("tcp", g.addr)
		if err == nil {
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if !errors.Is(err, unix.ECONNRESET) {
			t.Fatalf("%v, want a reset", err)
		}
	}
	used := 0
	for _, l := range g.engine.(*loops).all {
		inLoop(t, l, func() {
			if len(l.slots) > 0 {
				used++
			}
		})
	}
	if used != 1 {
		t.Errorf("%d loops have had one client", used)
	}
	harness.Echo(t, first, "served")
}

// A loop that has much to do may be given more than it accepts by itself.
func TestAConnectionWaitsForItsShareOfATurnWhoeverHasAcceptedIt(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, nil)
	l := g.engine.(*loops).all[0]
	var clients []*net.TCPConn
	inLoop(t, l, func() {
		for range 64 {
			c, fd := accepted(t)
			clients = append(clients, c)
			send(t, c, "no sealed line\n")
			g.ledger.begin()
			l.ledger.reserveBeyond(l.ledger.entranceOf("test"))
			l.admit(fd, g.rules.Load(), addrOf(c), l.ledger.entranceOf("test"))
		}
		if n := len(l.newcomers.events); n != len(clients) {
			t.Errorf("%d of %d wait", n, len(clients))
		}
	})
	for _, c := range clients {
		expectAll(t, c, "401")
	}
}
