package main

import (
	"testing"

	"gateway/internal/token"
)

// A bug is to cost one connection, not the others of its loop.

func TestABugInAnAccountEndsOnlyThatTunnel(t *testing.T) {
	for _, n := range []int{1, 3} {
		g := startLoops(t, n, nil)
		backend := startEcho(t)
		stays, ends := openTunnel(t, g.addr, backend), openTunnel(t, g.addr, backend)
		var account func(*session, tunnelEnd)
		for _, l := range g.loops.all {
			inLoop(t, l, func() {
				account = l.account
				l.account = func(*session, tunnelEnd) { panic("a bug") }
			})
		}
		ends.CloseWrite()
		expectAll(t, ends, "")
		g.log.waitLine(t, "panic", 1)
		for _, l := range g.loops.all {
			inLoop(t, l, func() { l.account = account })
		}
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
	g := startLoops(t, 1, nil)
	l := g.loops.all[0]
	release := hold(t, l)
	done := make(chan int, 10)
	for i := range 10 {
		l.send(func() {
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
	for _, n := range []int{1, 3} {
		g := startLoops(t, n, nil)
		backend := startEcho(t)
		stays := openTunnel(t, g.addr, backend)
		var holds []func()
		for _, l := range g.loops.all {
			holds = append(holds, hold(t, l))
		}
		g.tokens = new(token.Keys) // which panics; no loop runs
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
		g.tokens = nil
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
	g := startLoops(t, 1, nil)
	l := g.loops.all[0]
	const n = 5
	release := hold(t, l)
	for range n {
		l.send(func() { panic("a bug") })
	}
	ran := make(chan struct{})
	l.send(func() { close(ran) })
	release()
	inTime(t, ran, "what stood behind the bugs was lost")
	g.log.waitLine(t, "panic", n)
}
