package main

import (
	"context"
	"errors"
	"net"
	"time"

	"gateway/internal/address"
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
	if !g.startAccepting(ln) {
		return ErrGatewayClosed
	}
	defer g.stopAccepting(ln)
	if tcp, ok := ln.(*net.TCPListener); ok && g.loops != nil {
		if err := g.loops.serve(tcp, forward, g.stopping, g.rules.Load); err != nil {
			return err
		}
		return ErrGatewayClosed
	}

	var pace backoff
	for {
		conn, err := ln.Accept()
		if err == nil {
			pace.reset()
			g.accepted(conn, forward)
			continue
		}
		if g.isStopping() {
			g.acceptQueued(ln, forward)
			return ErrGatewayClosed
		}
		// Out of descriptors most of the time: connections that end free some.
		delay := pace.next()
		g.ledger.warnCannotAccept(err, delay)
		select {
		case <-time.After(delay):
		case <-g.stopping:
		}
	}
}

// ServePeer is Serve for other gateways, whose clients resume tunnels of this one. It
// goes on after Shutdown, as long as there are tunnels, until Close.
func (g *Gateway) ServePeer(ln net.Listener) error {
	defer context.AfterFunc(g.baseCtx, func() { ln.Close() })()
	var pace backoff
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			pace.reset()
			g.acceptedPeer(conn)
		case g.baseCtx.Err() != nil:
			return ErrGatewayClosed
		default:
			delay := pace.next()
			g.ledger.warnCannotAccept(err, delay)
			time.Sleep(delay)
		}
	}
}

func (g *Gateway) acceptedPeer(conn net.Conn) {
	r := g.rules.Load()
	s, ok := r.peerArrival(layer.AddrPort(conn.RemoteAddr()))
	if !ok {
		conn.Close()
		g.ledger.log.Debug("no peer", "addr", conn.RemoteAddr().String())
		return
	}
	s.done = true // the tunnel has an account, which this connection is part of
	c := &connection{Conn: conn, socket: conn, rules: r, session: s}
	g.admit(c)
	go g.serveConn(c, nil)
}

// acceptQueued accepts what stands in the queue of a listener that is about to
// close, since closing resets what waits there.
func (g *Gateway) acceptQueued(ln net.Listener, forward *address.Route) {
	l, ok := ln.(*net.TCPListener)
	if !ok {
		return
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return
	}
	l.SetDeadline(time.Time{}) // instead of the one that woke us
	acceptQueue(func() bool {
		if !sockopt.Readable(raw) {
			return false
		}
		conn, err := ln.Accept()
		if err == nil {
			g.accepted(conn, forward)
		}
		return err == nil
	})
}

// Own tells the gateway of an address that belongs to it, besides those that it
// serves: no client gets there.
func (g *Gateway) Own(a net.Addr) {
	if ap := layer.AddrPort(a); ap.IsValid() {
		g.rules.Load().policy.Own(ap)
	}
}

// accepted starts the life of a connection.
func (g *Gateway) accepted(conn net.Conn, forward *address.Route) {
	g.ledger.begin()
	r := g.rules.Load()
	c := &connection{Conn: conn, socket: conn, rules: r}
	g.admit(c)
	c.session = r.arrival(layer.AddrPort(conn.RemoteAddr()), forward)
	if _, c.session.kcp = conn.(kcpClient); c.session.kcp {
		c.session.proxied = false // there is no PROXY protocol for streams of datagrams
	}
	go g.serveConn(c, nil)
}

// Shutdown stops listening at once and returns when all connections have ended
// by themselves, or with ctx's error when ctx ends first; then Close cuts what
// is left.
func (g *Gateway) Shutdown(ctx context.Context) error {
	g.stop()
	g.http.server.Shutdown()
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
	g.stop()
	g.cancel(errShutdown)
	g.clients.abort()
	g.relay.Close()
	g.loops.close()
	g.http.server.Close()
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
	g.ledger.log.Info("stopped", "cut", g.ledger.cut.Load(), "denied", g.ledger.denied.Load(),
		"spliced", spliced, "copied", copied+g.relay.Copied())
}

// stop ends the accept loops and waits for them, so that no connection begins
// after it. A deadline wakes an accept loop and leaves the listener open for
// what is queued; a listener without deadlines is closed.
func (g *Gateway) stop() {
	g.mu.Lock()
	if !g.isStopping() {
		close(g.stopping)
	}
	for ln := range g.listeners {
		if l, ok := ln.(interface{ SetDeadline(time.Time) error }); ok {
			l.SetDeadline(time.Unix(1, 0))
		} else {
			ln.Close()
		}
	}
	g.mu.Unlock()
	g.accepting.Wait()
}

func (g *Gateway) isStopping() bool {
	select {
	case <-g.stopping:
		return true
	default:
		return false
	}
}

func (g *Gateway) startAccepting(ln net.Listener) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isStopping() {
		return false
	}
	g.accepting.Add(1)
	g.listeners[ln] = struct{}{}
	return true
}

func (g *Gateway) stopAccepting(ln net.Listener) {
	g.mu.Lock()
	delete(g.listeners, ln)
	g.mu.Unlock()
	g.accepting.Done()
}
