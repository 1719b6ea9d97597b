package main

import (
	"context"
	"errors"
	"net"
	"time"

	"gateway/internal/address"
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
		return g.loops.serve(tcp, forward, g.stopping)
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
		g.warnCannotAccept(err, delay)
		select {
		case <-time.After(delay):
		case <-g.stopping:
		}
	}
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
	// "At once" has to end even under a storm of connects: no more than a queue
	// holds (net.core.somaxconn, 4096 by default).
	for range 4096 {
		if !sockopt.Readable(raw) {
			return
		}
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		g.accepted(conn, forward)
	}
}

// Own tells the gateway of an address that belongs to it, besides those that it
// serves: no client gets there.
func (g *Gateway) Own(a net.Addr) {
	if ap := addrPort(a); ap.IsValid() {
		g.policy.Own(ap)
	}
}

// accepted starts the life of a connection.
func (g *Gateway) accepted(conn net.Conn, forward *address.Route) {
	g.serving.Add(1)
	g.track(conn)
	s := g.arrival(addrPort(conn.RemoteAddr()), forward)
	if _, s.kcp = conn.(kcpClient); s.kcp {
		s.proxied = false // there is no PROXY protocol for streams of datagrams
	}
	go g.serveConn(conn, &s, nil)
}

// Shutdown stops listening at once and returns when all connections have ended
// by themselves, or with ctx's error when ctx ends first; then Close cuts what
// is left.
func (g *Gateway) Shutdown(ctx context.Context) error {
	g.stop()
	g.web.Shutdown()
	idle := make(chan struct{})
	go func() {
		g.serving.Wait()
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
	g.mu.Lock()
	for c := range g.clients {
		abort(c)
	}
	g.mu.Unlock()
	g.relay.close()
	g.web.Close()
	g.serving.Wait()
	g.resolver.Close()
	return nil
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

// track remembers a client that Close would have to cut.
func (g *Gateway) track(c net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clients[c] = struct{}{}
}

func (g *Gateway) untrack(c net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.clients, c)
}

// backoff paces a loop that fails: 5 ms, doubled up to 1 s.
type backoff struct{ delay time.Duration }

func (b *backoff) reset() { b.delay = 0 }

func (b *backoff) next() time.Duration {
	b.delay = min(max(2*b.delay, 5*time.Millisecond), time.Second)
	return b.delay
}
