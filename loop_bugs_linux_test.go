package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
	"gateway/internal/layer"
	"gateway/internal/sys"
	"gateway/internal/token"
	"gateway/internal/websocket"
)

// A bug is to cost one connection, not the others of its loop.

// accountBug is a log that fails at the account of a tunnel while it is on.
type accountBug struct {
	slog.Handler
	on atomic.Bool
}

func (b *accountBug) into(g *Gateway) {
	b.Handler = g.ledger.log.Handler()
	g.ledger.log = slog.New(b)
}

func (b *accountBug) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "tunnel" && b.on.Load() {
		panic("a bug")
	}
	return b.Handler.Handle(ctx, r)
}

func TestABugInAnAccountEndsOnlyThatTunnel(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		var bug accountBug
		g := startConfigured(t, func(cfg *Config) { cfg.Loops = n }, bug.into)
		backend := startEcho(t)
		stays, ends := openTunnel(t, g.addr, backend), openTunnel(t, g.addr, backend)
		bug.on.Store(true)
		ends.CloseWrite()
		expectAll(t, ends, "")
		g.log.waitLine(t, "panic", 1)
		bug.on.Store(false)
		send(t, stays, "hello")
		expect(t, stays, "hello")
		finish(t, stays)
		wantAtRest(t, g)
		closed := make(chan struct{})
		go func() { defer close(closed); g.Close() }()
		inTime(t, closed, "Close waits for the tunnel that had no account")
	}
}

func TestABugInWhatALoopIsSentLosesNothingElse(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, nil)
	l := g.engine.(*loops).all[0]
	release := hold(t, l)
	done := make(chan int, 10)
	for i := range 10 {
		l.reactor.Post(func() {
			if i%3 == 0 {
				panic("a bug")
			}
			done <- i
		})
	}
	release()
	eventually(t, "the others have run", func() bool { return len(done) == 6 })
	g.log.waitLine(t, "panic", 4)
}

func TestABugInAHandshakeEndsOnlyThatConnection(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		g := startLoops(t, n, nil)
		backend := startEcho(t)
		stays := openTunnel(t, g.addr, backend)
		var holds []func()
		for _, l := range g.engine.(*loops).all {
			holds = append(holds, hold(t, l))
		}
		g.rules.Load().opener.tokens = new(token.Keys) // which panics; no loop runs
		for _, release := range holds {
			release()
		}
		for i := range 20 {
			c := connect(t, g.addr)
			send(t, c, anyToken)
			expectCut(t, c)
			g.log.waitLine(t, "panic", i+1)
		}
		holds = nil
		for _, l := range g.engine.(*loops).all {
			holds = append(holds, hold(t, l))
		}
		g.rules.Load().opener.tokens = nil
		for _, release := range holds {
			release()
		}
		send(t, stays, "hello")
		expect(t, stays, "hello")
		finish(t, stays)
		finish(t, openTunnel(t, g.addr, backend))
		wantAtRest(t, g)
	}
}

// A panic once lost the rest of the inbox, and Close waited for it for ever.
func TestABugInOneOfManyHandedConnectionsLosesNoOther(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, nil)
	l := g.engine.(*loops).all[0]
	const n = 5
	release := hold(t, l)
	for range n {
		l.reactor.Post(func() { panic("a bug") })
	}
	ran := make(chan struct{})
	l.reactor.Post(func() { close(ran) })
	release()
	inTime(t, ran, "what stood behind the bugs was lost")
	g.log.waitLine(t, "panic", n)
}

// Two tunnels end in the middle of a batch, and their accounts fail.
func TestABugInABatchEndsOnlyThatTunnel(t *testing.T) {
	var bug accountBug
	var log logBuffer
	bug.Handler = slog.NewJSONHandler(&log, nil)
	d := drive(t, true, &bug)
	const n = 5
	var clients, backends [n]int
	for i := range n {
		clients[i], backends[i] = d.tunnelOf(t)
	}
	for _, fd := range backends {
		sys.Send(int32(fd), []byte("bye"))
	}
	d.poll()
	for _, i := range []int{1, 3} { // behind the back of the events, which seem plain
		sys.ResetOnClose(int32(clients[i]))
		unix.Dup3(d.listener, clients[i], unix.O_CLOEXEC) // closes it; the test closes the number
	}
	bug.on.Store(true)
	if taken := d.deal(); taken != n {
		t.Errorf("%d are taken, want %d", taken, n)
	}
	bug.on.Store(false)
	if got := len(log.lines("panic")); got != 2 {
		t.Errorf("%d accounts fail, want 2", got)
	}
	for _, i := range []int{0, 2, 4} {
		buf := make([]byte, 10)
		if got, err := sys.Recv(int32(clients[i]), buf); err != nil || string(buf[:got]) != "bye" {
			t.Errorf("the client of tunnel %d reads %q, %v", i, buf[:got], err)
		}
	}
	d.says(t, map[[2]int]string{{clients[0], backends[0]}: "still here", {clients[4], backends[4]}: "so am I"})
}

// A panic between the two calls leaves tunnels of which nobody knows what was
// received. They are cut; the others, and the loop, go on without a ring.
func TestABugInAnExchangeEndsOnlyTheTunnelsOfThatBatch(t *testing.T) {
	var log logBuffer
	d := drive(t, true, slog.NewJSONHandler(&log, nil))
	c1, b1 := d.tunnelOf(t)
	c2, b2 := d.tunnelOf(t)
	c3, b3 := d.tunnelOf(t)
	sys.Send(int32(c1), []byte("hello"))
	sys.Send(int32(c2), []byte("hello"))
	d.batch.ring.Close() // so that the next use panics
	d.poll()
	d.deal()
	for _, fd := range []int{c1, b1, c2, b2} {
		buf := make([]byte, 10)
		if n, err := sys.Recv(int32(fd), buf); err != unix.ECONNRESET {
			t.Errorf("an end of a tunnel of the batch reads %d bytes, %v", n, err)
		}
	}
	c4, b4 := d.tunnelOf(t)
	if taken := d.says(t, map[[2]int]string{{c3, b3}: "still here", {c4, b4}: "new", {b3, c3}: "yes"}); taken != 0 {
		t.Errorf("%d are taken without a ring", taken)
	}
	if n := len(log.lines("panic")); n != 1 {
		t.Errorf("%d panics", n)
	}
	log.waitLine(t, "io_uring fails: messages cost more from now on", 1)
}

// faultyLayer is a layer with a bug in all that it does for a client.
type faultyLayer struct{ layer.Transform }

func (f *faultyLayer) In(b []byte) ([]byte, layer.State) { panic("a bug") }
func (f *faultyLayer) Leave()                            { panic("a bug, again") }

// Layers work between the two calls of a batch. One that panics costs neither the others'
// tunnels nor the ring; and it is not asked for last words.
func TestABugInALayerEndsOnlyItsTunnel(t *testing.T) {
	var log logBuffer
	d := drive(t, true, slog.NewJSONHandler(&log, nil))
	c1, b1 := d.tunnelOf(t)
	c2, b2 := d.layeredTunnelOf(t, &faultyLayer{websocket.New(1 << 20)})
	c3, b3 := d.layeredTunnelOf(t, websocket.New(1<<20))
	for _, fd := range []int{c2, b2, c3, b3} {
		defer unix.Close(fd)
	}
	d.poll()
	d.deal()
	for _, alone := range []bool{true, false} {
		sys.Send(int32(c1), []byte("hello"))
		sys.Send(int32(c2), []byte("what it cannot deal with"))
		sys.Send(int32(b2), []byte("in the same batch"))
		sys.Send(int32(c3), []byte(harness.Masked(harness.BinaryFrame, "world")))
		d.poll()
		if taken, want := d.deal(), map[bool]int{true: 4, false: 2}[alone]; taken != want {
			t.Errorf("%d are taken, want %d", taken, want)
		}
		for fd, want := range map[int]string{b1: "hello", b3: "world"} {
			d.hears(t, fd, want)
		}
	}
	for _, fd := range []int{c2, b2} {
		eventually(t, "its tunnel ends", func() bool {
			n, err := sys.Recv(int32(fd), make([]byte, 10))
			if n > 0 {
				t.Errorf("an end of its tunnel reads %d bytes", n)
			}
			return err != unix.EAGAIN
		})
	}
	if n := len(log.lines("panic")); n != 1 {
		t.Errorf("%d panics", n)
	}
	if n := len(log.lines("io_uring fails: messages cost more from now on")); n > 0 {
		t.Error("the ring is given up")
	}
}
