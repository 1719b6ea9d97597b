package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"

	"gateway/internal/token"
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
	l := g.loops.all[0]
	release := hold(t, l)
	done := make(chan int, 10)
	for i := range 10 {
		l.reactor.post(func() {
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
		for _, l := range g.loops.all {
			holds = append(holds, hold(t, l))
		}
		g.rules.Load().tokens = new(token.Keys) // which panics; no loop runs
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
		for _, l := range g.loops.all {
			holds = append(holds, hold(t, l))
		}
		g.rules.Load().tokens = nil
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
	l := g.loops.all[0]
	const n = 5
	release := hold(t, l)
	for range n {
		l.reactor.post(func() { panic("a bug") })
	}
	ran := make(chan struct{})
	l.reactor.post(func() { close(ran) })
	release()
	inTime(t, ran, "what stood behind the bugs was lost")
	g.log.waitLine(t, "panic", n)
}
