package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"time"

	"gateway/internal/address"
	"gateway/internal/balance"
	"gateway/internal/layer"
	"gateway/internal/sockopt"
)

// ErrGatewayClosed is what Serve returns after Shutdown or Close.
var ErrGatewayClosed = errors.New("gateway closed")

// Serve accepts connections from ln, which it owns from here on, until
// Shutdown or Close is called; then it returns ErrGatewayClosed. No failure to
// accept ends it: it backs off and tries again.
func (g *Gateway) Serve(ln net.Listener) error { return g.serve(ln, nil) }

// ServeForward is Serve for a listener whose clients all go to one backend,
// without a handshake.
func (g *Gateway) ServeForward(ln net.Listener, to address.Route) error {
	return g.serve(ln, &to)
}

func (g *Gateway) serve(ln net.Listener, forward *address.Route) error {
	defer ln.Close()
	g.Own(ln.Addr())
	by := g.ledger.entrance(ln, forward)
	g.mu.Lock()
	if own := g.ownLimits[ln]; own != nil {
		g.ledger.holdApart(by, own)
	}
	g.mu.Unlock()
	stopping := g.startAccepting(ln)
	if stopping == nil {
		return ErrGatewayClosed
	}
	defer g.stopAccepting(ln)
	if tcp, ok := ln.(*net.TCPListener); ok && g.loops != nil {
		if err := g.loops.serve(tcp, by, stopping, g.current); err != nil {
			return err
		}
		return ErrGatewayClosed
	}

	var pace backoff
	for {
		conn, err := ln.Accept()
		if err == nil {
			pace.reset()
			g.awaitRoom(by, stopping)
			g.accepted(conn, by)
			continue
		}
		select {
		case <-stopping:
			g.acceptQueued(ln, by, stopping)
			return ErrGatewayClosed
		default:
		}
		// Out of descriptors most of the time: connections that end free some.
		delay := pace.next()
		g.ledger.warnCannotAccept(err, delay)
		select {
		case <-time.After(delay):
		case <-stopping:
		}
	}
}

// ServePeer is Serve for other gateways, whose clients resume tunnels of this one. It
// goes on after Shutdown, as long as there are tunnels, until Close; or until Withdraw,
// since another process that has the same socket has other tunnels.
func (g *Gateway) ServePeer(ln net.Listener) error {
	ctx, cancel := context.WithCancel(g.baseCtx)
	defer cancel()
	g.mu.Lock()
	g.stopPeer = cancel
	g.mu.Unlock()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	var pace backoff
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			pace.reset()
			g.acceptedPeer(conn)
		case ctx.Err() != nil:
			return ErrGatewayClosed
		default:
			delay := pace.next()
			g.ledger.warnCannotAccept(err, delay)
			time.Sleep(delay)
		}
	}
}

func (g *Gateway) acceptedPeer(conn net.Conn) {
	r := g.current()
	s, ok := r.peerArrival(layer.AddrPort(conn.RemoteAddr()))
	if !ok {
		conn.Close()
		g.ledger.log.Debug("no peer", "addr", conn.RemoteAddr().String())
		return
	}
	// The tunnel has an account, which this connection is part of.
	s.done, s.counted = true, true
	c := &connection{Conn: conn, socket: conn, rules: r, session: s}
	g.admit(c)
	go g.serveConn(c, nil)
}

// acceptQueued accepts what stands in the queue of a listener that is about to
// close, since closing resets what waits there.
func (g *Gateway) acceptQueued(ln net.Listener, by *entrance, stopping <-chan struct{}) {
	l, ok := ln.(*net.TCPListener)
	if !ok {
		return
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return
	}
	acceptQueue(func() bool {
		if !sockopt.Readable(raw) {
			return false
		}
		// Instead of the one that woke us; short, since another process that has the
		// same socket may be quicker.
		l.SetDeadline(time.Now().Add(100 * time.Millisecond))
		conn, err := ln.Accept()
		if err == nil {
			g.awaitRoom(by, stopping)
			g.accepted(conn, by)
		}
		return err == nil
	})
}

// limits has clients of a listener held to limits of their own; nil: to those of all.
// It is called before Serve.
func (g *Gateway) limits(ln net.Listener, own *clientLimits) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ownLimits[ln] = own
}

// Own tells the gateway of an address that belongs to it, besides those that it
// serves: no client gets there.
func (g *Gateway) Own(a net.Addr) {
	ap := layer.AddrPort(a)
	if !ap.IsValid() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rules.Load().policy.Own(ap)
	if !slices.Contains(g.own, ap) {
		g.own = append(g.own, ap)
	}
}

// awaitRoom waits until there may be another connection, and counts it; or until no
// more are to come, and counts it then. In the meantime the others stand in the
// listener's queue.
func (g *Gateway) awaitRoom(by *entrance, stopping <-chan struct{}) {
	var pace backoff
	for {
		err := g.ledger.reserve(by)
		if err == nil {
			return
		}
		delay := pace.next()
		g.ledger.warnCannotAccept(err, delay)
		for end := time.Now().Add(delay); g.ledger.fullAt(by) && time.Now().Before(end); {
			select {
			case <-time.After(5 * time.Millisecond):
			case <-stopping:
				g.ledger.reserveBeyond(by)
				return
			}
		}
	}
}

// accepted starts the life of a connection, which has been reserved.
func (g *Gateway) accepted(conn net.Conn, by *entrance) {
	g.ledger.begin()
	r := g.current()
	c := &connection{Conn: conn, socket: conn, rules: r}
	if tcp, ok := conn.(*net.TCPConn); ok {
		g.setKeepalive(tcp) // a listener that was made elsewhere has others
	}
	g.admit(c)
	c.session = r.arrival(layer.AddrPort(conn.RemoteAddr()), by.forward)
	g.ledger.arrived(&c.session, by)
	if _, c.session.kcp = conn.(kcpClient); c.session.kcp {
		c.session.proxied, c.session.anonymous = false, false // there is no PROXY protocol for streams of datagrams
	}
	g.admit(c)
	if err := g.ledger.admit(&c.session); err != nil {
		g.refuse(c, err)
		return
	}
	go g.serveConn(c, nil)
}

// isStopping tells whether Shutdown or Close was called.
func (g *Gateway) isStopping() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

// Withdraw ends all calls of Serve, which return ErrGatewayClosed, and lets
// connections be, but for HTTP clients' that rest. It closes the listeners: what stands
// in their queues is accepted before, unless another process has the same sockets
// and is quicker. Serve may be called again after Return.
func (g *Gateway) Withdraw() {
	g.mu.Lock()
	if g.stopPeer != nil {
		g.stopPeer()
	}
	g.mu.Unlock()
	g.stop(false)
	g.drainFronts()
}

// Return undoes what Withdraw has done to HTTP clients.
func (g *Gateway) Return() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.openFront(g.cfg)
}

// drainFronts has HTTP connections end with the exchange that they are in.
func (g *Gateway) drainFronts() {
	g.mu.Lock()
	fronts := slices.Clone(g.fronts)
	g.mu.Unlock()
	for _, f := range fronts {
		f.server.Shutdown()
	}
}

// HandOver gives tunnels to another process that calls TakeOver at the stream's other
// end: those that event loops relay, and those that will come to that while ctx lives.
// Others stay. It owns the stream, and returns when ctx or the other process ends.
// told is called once, when those are gone that there were at first.
func (g *Gateway) HandOver(ctx context.Context, conn *net.UnixConn, told func(tunnels int, took time.Duration)) error {
	return g.loops.handOver(ctx, conn, g.bequest(), told)
}

// TakeOver adopts tunnels of another process that calls HandOver, until that has no
// more or this gateway is shut down, and returns how many. It owns the stream. It is
// called once.
func (g *Gateway) TakeOver(conn *net.UnixConn) (tunnels int, err error) {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		conn.Close()
		return 0, nil
	}
	g.adopting.Add(1)
	t := &taking{conn: conn}
	t.idle.Store(true) // it may never have any
	g.taking = t
	g.mu.Unlock()
	defer g.adopting.Done()
	defer t.over.Store(true)
	return g.loops.takeOver(conn, g.current, g.inherit, t.idle.Store)
}

// The names of what goes to another process besides tunnels.
const balanceState = "balance"

// bequest is what another process should know that takes this one's place, in JSON.
func (g *Gateway) bequest() map[string][]byte {
	text, err := json.Marshal(g.rules.Load().routes.Snapshot(balanceClock()))
	if err != nil {
		g.ledger.log.Warn("the new process does not know which backends fail", "err", err)
		return nil
	}
	return map[string][]byte{balanceState: text}
}

// inherit takes up a part of another process's bequest. It leaves out what it does
// not know.
func (g *Gateway) inherit(name string, text []byte) {
	if name != balanceState {
		return
	}
	var s balance.State
	if err := json.Unmarshal(text, &s); err != nil {
		g.ledger.log.Warn("the old process does not tell which backends fail", "err", err)
		return
	}
	g.rules.Load().routes.Restore(s, balanceClock())
}

// RefuseTunnels has another process that calls HandOver keep its tunnels, and says why.
// It owns the stream.
func (g *Gateway) RefuseTunnels(conn *net.UnixConn, why string) { g.loops.refuse(conn, why) }

// isTaking tells whether TakeOver is likely to bring more tunnels at once.
func (g *Gateway) isTaking() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.taking != nil && !g.taking.over.Load() && !g.taking.idle.Load()
}

// Shutdown stops listening at once and returns when all connections have ended
// by themselves, or with ctx's error when ctx ends first; then Close cuts what
// is left.
func (g *Gateway) Shutdown(ctx context.Context) error {
	g.stop(true)
	g.drainFronts()
	idle := make(chan struct{})
	go func() {
		g.ledger.wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close stops listening, cuts all connections and returns when they are
// accounted for. It always returns nil.
func (g *Gateway) Close() error {
	g.stop(true)
	g.cancel(errShutdown)
	g.clients.abort()
	g.relay.Close()
	g.loops.close()
	g.mu.Lock()
	fronts := slices.Clone(g.fronts)
	g.mu.Unlock()
	for _, f := range fronts {
		f.server.Close()
	}
	g.ledger.wait()
	if g.owner != nil {
		g.owner.Close() // lets the clients of resumable tunnels know
	}
	g.resolver.Close()
	return nil
}

// logTotals logs what came of all connections.
func (g *Gateway) logTotals() {
	spliced, copied := g.loops.moved()
	up, down := g.relay.Copied()
	g.ledger.away.Flush()
	g.ledger.log.Info("stopped", "cut", g.ledger.cut.Load(), "denied", g.ledger.denied.Load(),
		"spliced", spliced, "copied", copied+up+down)
}

// stop ends the accept loops and waits for them, so that no connection begins
// after it; for good or not. A deadline wakes an accept loop and leaves the listener
// open for what is queued; a listener without deadlines is closed.
func (g *Gateway) stop(forGood bool) {
	g.mu.Lock()
	g.closed = g.closed || forGood
	for ln, stopping := range g.listeners {
		select {
		case <-stopping:
			continue
		default:
			close(stopping)
		}
		if l, ok := ln.(interface{ SetDeadline(time.Time) error }); ok {
			l.SetDeadline(time.Unix(1, 0))
		} else if l, ok := ln.(interface{ Detach() error }); ok && !forGood {
			if err := l.Detach(); err != nil {
				g.ledger.log.Warn("KCP sessions do not all outlast the upgrade", "err", err)
			}
		} else {
			ln.Close()
		}
	}
	if forGood && g.taking != nil {
		g.taking.conn.SetReadDeadline(time.Unix(1, 0))
	}
	g.mu.Unlock()
	g.accepting.Wait()
	if forGood {
		g.adopting.Wait()
	}
}

// startAccepting returns what is closed when the accept loop of ln is to end; nil
// if it is not to begin.
func (g *Gateway) startAccepting(ln net.Listener) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.accepting.Add(1)
	stopping := make(chan struct{})
	g.listeners[ln] = stopping
	return stopping
}

func (g *Gateway) stopAccepting(ln net.Listener) {
	g.mu.Lock()
	delete(g.listeners, ln)
	delete(g.ownLimits, ln)
	g.mu.Unlock()
	g.accepting.Done()
}
