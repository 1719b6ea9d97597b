package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"time"

	"gateway/internal/address"
	"gateway/internal/balance"
	"gateway/internal/handover"
	"gateway/internal/kcp"
	"gateway/internal/layer"
	"gateway/internal/limit"
	"gateway/internal/listen"
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
	l := g.limited[ln]
	own := g.cfg.limitsAt(l)
	g.mu.Unlock()
	if by.at = l.Addr; own != nil {
		g.ledger.holdApart(by, own)
	}
	if k, ok := ln.(kcpListener); ok {
		// Else whoever forges a player's address has it limited, and banned.
		k.ProveFirst(func() bool { return by.limiter.Load().Counts() || g.rules.Load().opener.tickets })
	}
	stopping := g.startAccepting(ln)
	if stopping == nil {
		return ErrGatewayClosed
	}
	defer g.stopAccepting(ln)
	if tcp, ok := ln.(*net.TCPListener); ok && g.engine.kind() != "" {
		if err := g.engine.serve(tcp, by, stopping, g.current); err != nil {
			return err
		}
		return ErrGatewayClosed
	}

	var pace listen.Backoff
	for {
		conn, err := ln.Accept()
		if err == nil {
			pace.Reset()
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
		delay := pace.Next()
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
	var pace listen.Backoff
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			pace.Reset()
			g.acceptedPeer(conn)
		case ctx.Err() != nil:
			return ErrGatewayClosed
		default:
			delay := pace.Next()
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
	listen.DrainQueue(func() bool {
		if !sockopt.Readable(raw) {
			return false
		}
		// Instead of the one that woke us; short, since another process that has the
		// same socket may be quicker.
		l.SetDeadline(time.Now().Add(100 * time.Millisecond))
		conn, err := ln.Accept()
		if err == nil {
			g.ledger.reserveBeyond(by)
			g.accepted(conn, by)
		}
		return err == nil
	})
}

// limits has clients of a listener held to limits of their own, if it has any. It is
// called before Serve.
func (g *Gateway) limits(ln net.Listener, l listen.Address) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limited[ln] = l
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
	var pace listen.Backoff
	for {
		err := g.ledger.reserve(by)
		if err == nil {
			return
		}
		g.ledger.makeRoom(nil)
		delay := pace.Next()
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
	if g.owner != nil {
		g.owner.Leave(true)
	}
	g.stop(false)
	g.drainFronts()
}

// Return undoes what Withdraw has done to HTTP clients.
func (g *Gateway) Return() {
	if g.owner != nil {
		g.owner.Leave(false)
	}
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
// The other process has the time first for its first answer; the error is
// [handover.ErrSilent] if there is none. told is called once, when those are gone that there
// were at first.
func (g *Gateway) HandOver(ctx context.Context, conn *net.UnixConn, first time.Duration, told func(tunnels int, took time.Duration)) error {
	return g.engine.handOver(ctx, conn, first, g.bequest(), told)
}

// Expect says, before there are clients, that TakeOver or RefuseTunnels will be called:
// whose tunnel is not here may have to wait for that.
func (g *Gateway) Expect() {
	if g.owner != nil {
		g.arrived = g.owner.Expect()
	}
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
	defer g.arrived()
	defer t.over.Store(true)
	return g.engine.takeOver(conn, g.current, g.inherit, func(idle bool) {
		if t.idle.Store(idle); idle {
			g.arrived()
		}
	})
}

// The names of what goes to another process besides tunnels.
const (
	balanceState = "balance" // backends that fail
	limitState   = "limits"  // bans, and clients that come too fast
	resumeState  = "resume"  // whose tickets are good
)

// bequest is what another process should know that takes this one's place, in JSON.
func (g *Gateway) bequest() map[string][]byte {
	var limits limit.State
	g.ledger.limiter.Snapshot(&limits, time.Now())
	g.ledger.bans.Snapshot(&limits, time.Now())
	states := map[string]any{
		balanceState: g.rules.Load().routes.Snapshot(balanceClock()),
		limitState:   limits,
	}
	if g.owner != nil {
		states[resumeState] = g.owner.Boots()
	}
	all := make(map[string][]byte)
	for name, state := range states {
		text, err := json.Marshal(state)
		if err != nil { // only for a bug
			g.ledger.log.Error("the new process has to do without what this one knows", "of", name, "err", err)
			continue
		}
		all[name] = text
	}
	return all
}

// inherit takes up a part of another process's bequest. It leaves out what it does
// not know.
func (g *Gateway) inherit(name string, text []byte) {
	var err error
	switch name {
	case balanceState:
		var s balance.State
		if err = json.Unmarshal(text, &s); err == nil {
			g.rules.Load().routes.Restore(s, balanceClock())
		}
	case limitState:
		var s limit.State
		if err = json.Unmarshal(text, &s); err == nil {
			g.ledger.limiter.Restore(s, time.Now())
			g.ledger.bans.Restore(s, time.Now())
		}
	case resumeState:
		var boots [][8]byte
		if err = json.Unmarshal(text, &boots); err == nil && g.owner != nil {
			g.owner.Inherit(boots)
		}
	}
	if err != nil {
		g.ledger.log.Warn("what the old process knows is of no use", "of", name, "err", err)
	}
}

// RefuseTunnels has another process that calls HandOver keep its tunnels, and says why. It
// owns the stream. Who comes back for one of them need not wait for that.
func (g *Gateway) RefuseTunnels(conn *net.UnixConn, why string) {
	g.arrived()
	handover.Refuse(conn, why)
}

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
	// Before the clients: a tunnel that begins meanwhile is cut, and not broken by its client.
	g.relay.Close()
	g.clients.abort()
	g.engine.close()
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
	spliced, copied := g.engine.movedFrom()
	up, down := g.relay.Copied()
	g.ledger.away.Flush()
	g.ledger.quiet.Flush()
	g.ledger.log.Info("stopped", "cut", g.ledger.cut.Load(), "denied", g.ledger.denied.Load(),
		"spliced", spliced[0]+spliced[1], "copied", copied[0]+copied[1]+up+down)
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
	delete(g.limited, ln)
	g.mu.Unlock()
	g.accepting.Done()
}

// howToListen returns how sockets for clients are opened.
func howToListen(cfg *Config) listen.Options {
	o := listen.Options{Reuse: cfg.Reuse, MPTCP: cfg.MPTCP, Liveness: cfg.liveness()}
	o.KeepAlive, o.KeepAlives = cfg.keepalive()
	o.KCP = func(socket *net.UDPConn) (net.Listener, error) {
		ln, err := cfg.kcp.Serve(socket)
		if err != nil {
			return nil, err
		}
		return kcpListener{ln}, nil
	}
	return o
}

// kcpListener is a net.Listener of KCP clients. internal/kcp makes streams of
// datagrams; here they are made to look like connections that can finish.
type kcpListener struct{ *kcp.Listener }

func (l kcpListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return kcpClient{c}, nil
}

// kcpClient is a client that comes by KCP. KCP has no FIN, so the end of what
// the backend sends is the end of the session, once everything has arrived.
type kcpClient struct{ *kcp.Conn }

func (c kcpClient) CloseWrite() error { return c.Close() }

func (c kcpClient) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, net.ErrClosed) {
		err = io.EOF
	}
	return n, err
}
