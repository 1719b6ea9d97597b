package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/relay"
)

// The loops from within: what cannot be seen, or not be brought about, from
// the two ends of a tunnel.

// inLoop runs f in a loop's thread: nobody else may touch what is a loop's.
func inLoop(t testing.TB, l *loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.reactor.Post(func() { defer close(done); f() }) {
		t.Fatal("the loop has ended")
	}
	inTime(t, done, "the loop does not answer")
}

// inTime waits until a channel is closed, and fails the test if that takes too
// long.
func inTime(t testing.TB, done <-chan struct{}, otherwise string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal(otherwise)
	}
}

// startLoops starts a gateway with n loops.
func startLoops(t testing.TB, n int, configure func(*Config)) *testGateway {
	t.Helper()
	return startConfigured(t, func(cfg *Config) {
		cfg.Loops = n
		if configure != nil {
			configure(cfg)
		}
	}, nil)
}

// look waits until a client's connection is in a loop and runs f for it there.
func look(t testing.TB, g *testGateway, client net.Conn, f func(*loop, *tunnel)) {
	t.Helper()
	eventually(t, "the connection is in a loop", func() (found bool) {
		for _, l := range g.engine.(*loops).all {
			inLoop(t, l, func() {
				for _, s := range l.slots {
					if s.state != stateFree && s.session.client == addrOf(client) {
						found = true
						f(l, s)
					}
				}
			})
		}
		return found
	})
}

func addrOf(c net.Conn) netip.AddrPort { return netip.MustParseAddrPort(c.LocalAddr().String()) }

// reaches waits until a client's connection is in a state.
func reaches(t testing.TB, g *testGateway, client net.Conn, state tunnelState) {
	t.Helper()
	eventually(t, fmt.Sprint("the connection is in state ", state), func() (is bool) {
		look(t, g, client, func(_ *loop, s *tunnel) { is = s.state == state })
		return is
	})
}

// hold keeps a loop from doing anything until the returned function is called.
func hold(t testing.TB, l *loop) (release func()) {
	t.Helper()
	held, gate := make(chan struct{}), make(chan struct{})
	l.reactor.Post(func() { close(held); <-gate })
	<-held
	return func() { close(gate) }
}

// wantAtRest waits until the loops of a gateway have no connection left,
// checks that they are as good as new, and returns how many pipes they keep.
func wantAtRest(t testing.TB, g *testGateway) (pipes int) {
	t.Helper()
	for i, l := range g.engine.(*loops).all {
		eventually(t, "the loop has no connection", func() (rests bool) {
			inLoop(t, l, func() { rests = len(l.free) == len(l.slots) && l.load.Load() == 0 && len(l.todo) == 0 })
			return rests
		})
		inLoop(t, l, func() {
			free := make(map[uint32]bool)
			for _, slot := range l.free {
				if free[slot] {
					t.Errorf("loop %d: slot %d is free twice", i, slot)
				}
				free[slot] = true
			}
			for _, s := range l.slots {
				if s.state != stateFree || s.flows[0].pipe != nil || s.flows[1].pipe != nil {
					t.Errorf("loop %d: slot %d is free, but %+v", i, s.slot, s)
				}
			}
			if l.sweepable != 0 || l.pausedListeners != 0 {
				t.Errorf("loop %d: %d tunnels to sweep, %d paused listeners", i, l.sweepable, l.pausedListeners)
			}
			if n := l.pipes.Idle(); n > maxIdlePipes {
				t.Errorf("loop %d keeps %d pipes", i, n)
			}
			pipes += l.pipes.Idle()
		})
	}
	if made := g.engine.(*loops).pipes.Made(); made != pipes {
		t.Errorf("%d pipes, of which %d are idle", made, pipes)
	}
	return pipes
}

func TestAnEventOfASlotsFormerOwnerIsIgnored(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, func(cfg *Config) { cfg.Timeout = time.Hour })
	c := connect(t, g.addr)
	send(t, c, sealed(t, blackhole(t, "127.0.0.1", 0).String()))
	reaches(t, g, c, stateDial)
	look(t, g, c, func(l *loop, s *tunnel) {
		// To a backend that is dialed it would read "connected".
		stale := unix.EpollEvent{Events: unix.EPOLLOUT, Fd: int32(s.slot<<1) | backendSide, Pad: int32(s.generation) - 1}
		l.dispatch(&stale)
		if s.state != stateDial || s.sockets[backendSide].writable {
			t.Errorf("it was taken for its own: %+v", s)
		}
	})
	c.SetLinger(0)
	c.Close()
	wantAtRest(t, g)
	inLoop(t, g.engine.(*loops).all[0], func() {
		l := g.engine.(*loops).all[0]
		for _, s := range l.slots { // slots that are nobody's
			for side := range int32(2) {
				l.dispatch(&unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLHUP, Fd: int32(s.slot<<1) | side, Pad: int32(s.generation)})
			}
		}
	})
	wantAtRest(t, g)
	if got := g.log.lines("panic"); len(got) > 0 {
		t.Error(got)
	}
}

// onEveryWay runs a test on one loop, with an io_uring and without, on three and
// on goroutines, all at once.
func onEveryWay(t *testing.T, configure func(*Config), test func(t *testing.T, g *testGateway)) {
	for _, n := range []int{1, 3, -1} {
		t.Run(fmt.Sprintf("-loops=%d", n), func(t *testing.T) {
			t.Parallel()
			test(t, startLoops(t, n, configure))
		})
	}
	t.Run("-io-uring=0", func(t *testing.T) {
		t.Parallel()
		test(t, startLoops(t, 1, func(cfg *Config) {
			if configure != nil {
				configure(cfg)
			}
			cfg.IOUring = false
		}))
	})
}

func TestRequestsOfAnySizeFitBuffersOfAnySize(t *testing.T) {
	t.Parallel()
	for _, buffer := range []int{1, 100, 1025, 1026, 1027, 16384} {
		for _, splice := range []bool{true, false} {
			onEveryWay(t, func(cfg *Config) { cfg.Buffer, cfg.Splice = buffer, splice }, func(t *testing.T, g *testGateway) {
				backend := startEcho(t)
				line := sealed(t, backend)
				for _, n := range []int{0, 1, buffer - 1, buffer, buffer + 1,
					1026 - len(line) - 1, 1026 - len(line), 1026 - len(line) + 1, 16384 - len(line), 64 << 10} {
					early := string(noise(uint64(n), n))
					c := connect(t, g.addr)
					send(t, c, line+early)
					c.CloseWrite()
					expectAll(t, c, "200"+early)
					c.Close()
				}
				for _, tt := range []struct{ request, want string }{
					{strings.Repeat("A", 1024) + "\n", "401"},
					{strings.Repeat("A", 1024) + "\r\n", "401"},
					{strings.Repeat("A", 1025) + "\n", "400"},
					{strings.Repeat("A", 1026), "400"},
					{strings.Repeat("A", 64<<10), "400"},
				} {
					c := connect(t, g.addr)
					send(t, c, tt.request)
					expectAll(t, c, tt.want)
					c.Close()
				}
			})
		}
	}
}

// A list of tunnels is put together in portions, between which a loop goes on with its
// work: what is posted meanwhile waits for one portion at most.
func TestALoopGoesOnWhileItsTunnelsAreListed(t *testing.T) {
	t.Parallel()
	g := startConfigured(t, func(cfg *Config) { cfg.Loops = 1 }, nil)
	l := g.engine.(*loops).all[0]
	const many = 10_000
	inLoop(t, l, func() {
		for i := range many { // without sockets
			tun := l.alloc()
			tun.state = stateOpen
			tun.session = session{number: uint64(i + 1), counted: true, done: true}
			l.load.Add(1)
		}
	})
	var looked, atOnce, most int // the loop's
	ended := make(chan struct{})
	turns := 0
	var inBetween func()
	inBetween = func() {
		select {
		case <-ended:
			return
		default:
		}
		turns++
		most, atOnce = max(most, atOnce), 0
		l.reactor.Post(inBetween)
	}
	l.reactor.Post(inBetween)
	err := g.engine.visit(t.Context(), func(*session, *upstream, relay.Pulse) bool {
		looked++
		atOnce++
		return false
	}, func() {})
	close(ended)
	if err != nil || looked != many {
		t.Fatalf("%d tunnels of %d were visited, %v", looked, many, err)
	}
	inLoop(t, l, func() {
		if most == 0 || most > 1000 || turns < 10 {
			t.Errorf("up to %d tunnels were looked at in one go, want at most 1000; %d turns in between", most, turns)
		}
	})
	cut := 0
	if err := g.engine.visit(t.Context(), func(s *session, _ *upstream, _ relay.Pulse) bool {
		cut++
		return s.number%2 == 0
	}, func() {}); err != nil || cut != many {
		t.Errorf("%d were visited, %v", cut, err)
	}
	inLoop(t, l, func() {
		left := 0
		for _, tun := range l.slots {
			if tun.state == stateOpen {
				left++
				if tun.session.number%2 == 0 {
					t.Errorf("tunnel %d was not cut", tun.session.number)
				}
			}
		}
		if left != many/2 {
			t.Errorf("%d tunnels are left, want %d", left, many/2)
		}
	})
}

func TestALoopThatIsGoneHasNothingToList(t *testing.T) {
	t.Parallel()
	g := startConfigured(t, func(cfg *Config) { cfg.Loops = 2 }, nil)
	g.Close()
	eventually(t, "the loops are gone", func() bool { return loopsGone(g) })
	if err := g.engine.visit(t.Context(), func(*session, *upstream, relay.Pulse) bool { return false }, func() {}); err != nil {
		t.Error(err)
	}
	if err := g.engine.answer(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestALoopThatHangsIsTold(t *testing.T) {
	t.Parallel()
	g := startConfigured(t, func(cfg *Config) { cfg.Loops = 2 }, nil)
	goOn := make(chan struct{})
	defer close(goOn)
	g.engine.(*loops).all[1].reactor.Post(func() { <-goOn })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := g.engine.answer(ctx); err == nil || err.Error() != "loop 1 does not answer" {
		t.Errorf("%v", err)
	}
	if err := g.engine.visit(ctx, func(*session, *upstream, relay.Pulse) bool { return false }, func() {}); err != context.DeadlineExceeded {
		t.Errorf("%v", err)
	}
}
