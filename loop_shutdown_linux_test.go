package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// Shutdown and Close find connections in every state.

// states brings one connection into each state that one can be in.
type states struct {
	silent, pieces        *net.TCPConn // waiting for a request: in a loop, in a goroutine
	dialing, looking      *net.TCPConn // for a backend: in a loop, in a goroutine
	refused               *net.TCPConn // has its status, and does not close
	open, whole, halfOpen *net.TCPConn // tunnels
	rest                  string       // of pieces' request
}

func (s *states) all() []*net.TCPConn {
	return []*net.TCPConn{s.silent, s.pieces, s.dialing, s.looking, s.refused, s.open, s.whole, s.halfOpen}
}

func bringAbout(t testing.TB, g *testGateway, started chan context.Context) *states {
	t.Helper()
	echo := startEcho(t)
	s := &states{
		silent: connect(t, g.addr), pieces: connect(t, g.addr),
		dialing: connect(t, g.addr), looking: connect(t, g.addr),
		refused: connect(t, g.addr),
		open:    openTunnel(t, g.addr, echo), whole: openTunnel(t, g.addr, echo), halfOpen: openTunnel(t, g.addr, echo),
	}
	line := sealed(t, echo)
	send(t, s.pieces, line[:10])
	s.rest = line[10:]
	send(t, s.dialing, sealed(t, blackhole(t, "127.0.0.1", 0).String()))
	send(t, s.looking, sealed(t, "game.test:80"))
	<-started
	send(t, s.refused, "nonsense\n")
	expectAll(t, s.refused, "401")
	s.halfOpen.CloseWrite()
	expectAll(t, s.halfOpen, "")
	g.log.waitLine(t, "tunnel", 1) // or it would be cut in its last moment
	s.halfOpen = openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
		b.CloseWrite()
		io.Copy(io.Discard, b)
	}))
	expectAll(t, s.halfOpen, "")
	if g.engine.kind() != "" {
		reaches(t, g, s.silent, stateRequest)
		reaches(t, g, s.pieces, stateRequest)
		reaches(t, g, s.dialing, stateDial)
	}
	eventually(t, "the goroutines have theirs", func() bool { return g.goroutinesServe() >= 1 })
	return s
}

func TestShutdownWaitsForConnectionsInEveryState(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3, -1} {
		t.Run(fmt.Sprintf("-loops=%d", n), func(t *testing.T) {
			t.Parallel()
			r, started, release := stuckLookup()
			defer release()
			g := startConfigured(t, func(cfg *Config) { cfg.Loops, cfg.Timeout = n, 2*time.Second }, func(g *Gateway) { g.dialer.resolver = r })
			s := bringAbout(t, g, started)
			done := make(chan error, 1)
			go func() { done <- g.Shutdown(context.Background()) }()
			waitRefused(t, g.addr)
			for _, c := range []*net.TCPConn{s.open, s.whole} {
				send(t, c, "still here")
				expect(t, c, "still here")
			}
			line := sealed(t, startEcho(t))
			send(t, s.silent, line)
			expect(t, s.silent, "200")
			finish(t, s.silent)
			send(t, s.pieces, s.rest)
			expect(t, s.pieces, "200")
			finish(t, s.pieces)
			release()
			expectAll(t, s.looking, "502")
			expectAll(t, s.dialing, "504")
			send(t, s.halfOpen, "the end")
			s.halfOpen.CloseWrite()
			finish(t, s.open)
			s.refused.Close()
			select {
			case err := <-done:
				t.Fatalf("Shutdown returned %v before the last tunnel ended", err)
			default:
			}
			finish(t, s.whole)
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Fatal("Shutdown does not return")
			}
			if g.engine.kind() != "" {
				wantAtRest(t, g)
			}
		})
	}
}

func TestCloseCutsConnectionsInEveryState(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3, -1} {
		t.Run(fmt.Sprintf("-loops=%d", n), func(t *testing.T) {
			t.Parallel()
			r, started, release := stuckLookup()
			defer release()
			g := startConfigured(t, func(cfg *Config) {
				cfg.Loops, cfg.Timeout, cfg.HandshakeTimeout = n, time.Hour, time.Hour
			}, func(g *Gateway) { g.dialer.resolver = r })
			s := bringAbout(t, g, started)
			closed := make(chan struct{})
			go func() { defer close(closed); g.Close() }()
			inTime(t, closed, "Close does not return")
			for _, c := range s.all() {
				expectCut(t, c)
			}
			connections := 9 // two for halfOpen
			if lines := len(g.log.lines("tunnel")) + len(g.log.lines("refused")) + len(g.log.lines("no request")); lines != connections {
				t.Errorf("%d accounts for %d connections", lines, connections)
			}
			if g.ledger.cut.Load() != 3 {
				t.Errorf("%d tunnels were cut, want 3", g.ledger.cut.Load())
			}
			if g.engine.kind() != "" {
				eventually(t, "the loops have ended", func() bool { return g.engine.(*loops).pipes.Made() == 0 && loopsGone(g) })
			}
		})
	}
}

func loopsGone(g *testGateway) bool {
	for _, l := range g.engine.(*loops).all {
		if l.reactor.Post(func() {}) {
			return false
		}
	}
	return true
}

// A loop leaves some requests to a goroutine. It may get
// there when Close has been through the list of clients.
func TestCloseDoesNotWaitForARequestThatIsChangingHands(t *testing.T) {
	t.Parallel()
	g := startConfigured(t, func(cfg *Config) { cfg.Loops, cfg.HandshakeTimeout = 1, time.Hour }, nil)
	_, fd := accepted(t)
	g.ledger.begin()
	closed := make(chan struct{})
	go func() { defer close(closed); g.Close() }()
	eventually(t, "only the request is left", func() bool { return loopsGone(g) })
	go g.serveDescriptor(fd, g.rules.Load(), session{accepted: time.Now()}, []byte("half a li"))
	inTime(t, closed, "Close waits for the rest of the request")
}

func TestNoRingOutlivesItsLoop(t *testing.T) {
	needRing(t)
	atRest := func() bool { return ringsOf(t, os.Getpid()) == 0 }
	eventually(t, "no ring of the tests before is left", atRest)
	for range 3 {
		g := startLoops(t, 3, nil)
		if n := ringsOf(t, os.Getpid()); n != 3 {
			t.Errorf("%d rings of 3 loops", n)
		}
		manyTalk(t, g.addr)
		g.Close()
		eventually(t, "the rings are closed and unmapped", atRest)
	}
}

// ringsOf counts the rings of a process by their descriptors, and fails if there
// are mappings of others.
func ringsOf(t testing.TB, pid int) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	fds, err := os.ReadDir(dir + "fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if name, _ := os.Readlink(dir + "fd/" + fd.Name()); strings.Contains(name, "io_uring") {
			n++
		}
	}
	maps, err := os.ReadFile(dir + "maps")
	if err != nil {
		t.Fatal(err)
	}
	if mapped := strings.Count(string(maps), "io_uring"); mapped != 2*n {
		t.Logf("%d mappings of %d rings", mapped, n)
		return -1 // one is being opened or closed
	}
	return n
}
