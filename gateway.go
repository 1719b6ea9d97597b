package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gateway/internal/address"
	"gateway/internal/admin"
	"gateway/internal/ask"
	"gateway/internal/balance"
	"gateway/internal/descriptors"
	"gateway/internal/handshake"
	"gateway/internal/layer"
	"gateway/internal/limit"
	"gateway/internal/listen"
	"gateway/internal/pending"
	"gateway/internal/relay"
	"gateway/internal/resolve"
	"gateway/internal/resume/owner"
	"gateway/internal/sockopt"
	"gateway/internal/tlslayer"
	"gateway/internal/tlsrecord"
)

// Gateway lets clients through to the backends whose sealed addresses they
// bring. Serve, Shutdown and Close are those of net/http.Server. Its methods may
// be called from any goroutine.
type Gateway struct {
	rules    atomic.Pointer[rules] // for connections to come
	ledger   *ledger
	dialer   *dialer
	resolver *resolve.Resolver
	relay    *relay.Relay
	engine   engine
	http     atomic.Pointer[httpFront] // for connections to come
	owner    *owner.Owner              // of resumable tunnels; nil: there are none
	clients  connections               // in serveConn, until another owns them
	pending  *pending.Budget           // of those that have proven nothing
	tries    *limit.Tries              // of tickets
	metrics  *admin.Metrics            // nil: nobody looks

	reloads, secretReloads reloadCount // of all settings, and of secrets alone

	baseCtx   context.Context // ends at Close
	cancel    context.CancelCauseFunc
	accepting sync.WaitGroup // accept loops
	adopting  sync.WaitGroup // TakeOver

	mu        sync.Mutex
	closed    bool                            // by Shutdown or Close
	listeners map[net.Listener]chan struct{}  // closed when they are to end
	limited   map[net.Listener]listen.Address // see limits
	cfg       *Config                         // of rules and http
	own       []netip.AddrPort                // see Own
	fronts    []*httpFront                    // all that serve, the last for connections to come
	stopPeer  func()                          // ends ServePeer; nil: there is none
	taking    *taking                         // nil: no TakeOver so far
	arrived   func()                          // tells the owner that all tunnels have, see Expect
}

// taking is what goes on in TakeOver.
type taking struct {
	conn *net.UnixConn
	idle atomic.Bool // the other process has no more for now
	over atomic.Bool
}

// NewGateway returns a gateway for a configuration that was loaded. It must be
// closed.
func NewGateway(cfg *Config, log *slog.Logger) (*Gateway, error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	g := &Gateway{
		ledger:    newLedger(log),
		dialer:    newDialer(cfg),
		resolver:  resolve.New(resolve.Options{Server: cfg.Resolver, Timeout: cfg.ResolverTimeout, Log: log}),
		baseCtx:   ctx,
		cancel:    cancel,
		listeners: make(map[net.Listener]chan struct{}),
		cfg:       cfg,
		limited:   make(map[net.Listener]listen.Address),
		arrived:   func() {},
		clients:   connections{all: make(map[net.Conn]struct{})},
		pending:   pending.NewBudget(cfg.maxPending(), cfg.pendingShare(1)),
	}
	g.dialer.resolver, g.dialer.ledger = hostLookup{g.resolver}, g.ledger
	g.tries = limit.NewTries(mustRate(ticketTries))
	if cfg.Resume {
		g.owner = newOwner(cfg, log)
	}
	g.rules.Store(g.newRules(cfg, balance.NewDirectory(g.resolver.Services, targetOf)))
	o := relay.Options{Pump: newPump(cfg.Buffer).run, Bounds: cfg.bounds(), Log: log}
	if cfg.Admin != "" {
		g.metrics = admin.NewMetrics()
		g.ledger.watched(g.metrics)
		if cfg.asks != nil {
			cfg.asks.Observe(g.metrics.Ask.Observe)
		}
		o.FirstByte = g.metrics.FirstByte.Observe
	}
	g.relay = relay.New(o)
	g.ledger.hold(cfg, descriptors.Conns())
	g.ledger.unproven = g.pending
	if err := g.startEngine(cfg); err != nil {
		return nil, err
	}
	g.openFront(cfg) // which has WebSockets for the loops
	return g, nil
}

// Reload has connections to come follow another configuration, which was loaded.
// Those that there are keep what they began with. What only a new process can take
// up is left as it is; see Config.reload.
func (g *Gateway) Reload(cfg *Config) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.rules.Load()
	if cfg.asks != nil {
		cfg.asks.Succeed(g.cfg.asks)
		if g.metrics != nil {
			cfg.asks.Observe(g.metrics.Ask.Observe)
		}
	}
	r := g.newRules(cfg, old.services)
	if cfg.Balance == g.cfg.Balance {
		r.routes = old.routes // whose turn it is, and who has failed
	}
	for _, ap := range g.own {
		r.policy.Own(ap)
	}
	g.rules.Store(r)
	g.ledger.hold(cfg, descriptors.Conns())
	g.ledger.holdAll(cfg)
	g.engine.retime(cfg)
	if !sameFront(cfg, g.cfg) {
		g.openFront(cfg)
	}
	g.cfg = cfg
}

// newRules returns rules that ask as this gateway.
func (g *Gateway) newRules(cfg *Config, services *balance.Directory[resolve.Service]) *rules {
	r := newRules(cfg, services)
	r.asks.gateway, r.asks.tries, r.owner = g.ledger.idPrefix, g.tries, g.owner
	return r
}

// reloadCount counts how often files that had changed were taken up, or could not be.
type reloadCount struct{ ok, failed atomic.Int64 }

func (c *reloadCount) add(err error) {
	if err != nil {
		c.failed.Add(1)
	} else {
		c.ok.Add(1)
	}
}

// current returns the rules for a connection that begins now.
func (g *Gateway) current() *rules {
	r := g.rules.Load()
	if r.secrets.Changed() {
		g.reloadSecrets()
		r = g.rules.Load()
	}
	return r
}

// reloadSecrets takes up secrets of files that have changed.
func (g *Gateway) reloadSecrets() {
	g.mu.Lock()
	defer g.mu.Unlock()
	cfg := *g.cfg
	cfg.Secrets, cfg.SecretSources = nil, nil
	err := cfg.loadSecrets()
	g.secretReloads.add(err)
	if err != nil {
		g.ledger.log.Error("cannot read the changed secrets, the old ones stay", "err", err)
		return
	}
	r := *g.rules.Load()
	r.opener.keys = newKeyring(cfg.Secrets, cfg.KDFs)
	g.rules.Store(&r)
	g.cfg = &cfg
	g.ledger.log.Info("secrets changed", "secrets", len(cfg.Secrets), "from", strings.Join(cfg.SecretSources, ","))
}

// startEngine starts the event loops, where there are to be and can be some.
func (g *Gateway) startEngine(cfg *Config) error {
	g.engine = idle{}
	if cfg.loopCount() == 0 {
		return nil
	}
	err := errors.New("not supported by this operating system")
	if newEngine != nil {
		var e engine
		if e, err = newEngine(cfg, g.ledger, g.serveDescriptor); err == nil {
			g.engine = e
			return nil
		}
	}
	if cfg.Loops > 0 { // asked for
		return fmt.Errorf("-loops: %w (-loops=-1 does without)", err)
	}
	g.ledger.log.Warn("no event loops here, goroutines serve instead", "err", err)
	return nil
}

// openFront has HTTP clients to come served by a front of this configuration.
func (g *Gateway) openFront(cfg *Config) {
	front := newHTTPFront(cfg, g.ledger, g.dialer, g.relay, g.engine)
	front.resumable = g.resumable()
	g.fronts = append(g.fronts, front)
	g.http.Store(front)
}

// serveConn is the life of a connection: request, open, dial, answer, relay,
// account. Each step either hands its result to the next or refuses the
// client, and says so in the log. received is what has been read already.
//
// On Linux the loops take most connections the same way with fewer system
// calls, by the same functions (handshake_linux.go).
func (g *Gateway) serveConn(c *connection, received []byte) {
	defer g.survive(c)
	req, err := g.readRequest(c, received)
	switch {
	case err != nil:
		g.refuse(c, err)
	case c.session.form == handshake.TLS:
		// Where little rests on a stack, the collector takes back what the handshake
		// has made it grow (shrinkstack in the runtime: less than a quarter is used).
		g.afresh(c, func() { g.serveTLS(c, req.early) })
	case c.session.form == handshake.HTTP:
		g.afresh(c, func() { g.serveHTTP(c, req.early) })
	case req.again != nil:
		g.resume(c, req)
	case req.begin != nil:
		g.serveResumable(c, req)
	default:
		g.serveTunnel(c, req)
	}
}

// serveTLS speaks TLS with a client that has begun to, and serves what is inside.
func (g *Gateway) serveTLS(c *connection, hello []byte) {
	c.records = tlsrecord.NewGate(c.socket, bytes.Clone(hello))
	conn := tlslayer.Server(c.records, c.rules.tls)
	c.SetDeadline(c.session.accepted.Add(c.rules.handshakeTimeout)) // Close closes the socket
	err := conn.Handshake()
	g.ledger.handshaken(conn.Conn, err)
	if err != nil {
		g.refuse(c, g.whyNot(c, &refusal{reason: "tls_failed", cause: fmt.Errorf("tls_failed: %w", err)}))
		return
	}
	c.SetDeadline(time.Time{})
	c.records.HandshakeDone()
	c.Conn = conn
	s := &c.session
	s.secure, s.form, s.header, s.proxied = true, handshake.Unknown, 0, false
	g.afresh(c, func() { g.serveConn(c, nil) })
}

// afresh goes on with a client in a new goroutine, since the stack of this one has
// grown, and the client may rest for long.
func (g *Gateway) afresh(c *connection, serve func()) {
	go func() {
		defer g.survive(c)
		serve()
	}()
}

// whyNot returns why a client was cut off that has not said all: err, unless the
// gateway itself had a reason.
func (g *Gateway) whyNot(c *connection, err error) error {
	switch {
	case g.baseCtx.Err() != nil:
		return errShutdown
	case c.ticket.GaveWay():
		return errGaveWay
	}
	return err
}

// serveTunnel dials, answers and relays.
func (g *Gateway) serveTunnel(c *connection, req request) {
	c.provenBy(req.route)
	g.ledger.asked(&c.session)
	backend, err := g.dial(c, req.route)
	if err != nil {
		g.refuse(c, err)
		return
	}
	early := g.ledger.announce(c.rules.sendProxy, &c.session, &c.upstream, layer.AddrPort(c.LocalAddr()), req.early)
	g.answer(c, backend, early)
}

// answer says 200 and relays.
func (g *Gateway) answer(c *connection, backend net.Conn, early []byte) {
	if reply := c.session.form.Reply(handshake.OK); len(reply) > 0 {
		if _, err := c.Write(reply); err != nil {
			layer.ResetOnClose(backend) // as if the client had reset it
			backend.Close()
			g.refuse(c, errClientGone)
			return
		}
	}
	g.ledger.opened(&c.session, &c.upstream)
	g.clients.remove(c.socket)
	g.afresh(c, func() { g.runTunnel(c, backend, early) })
}

// runTunnel relays until the tunnel ends, or until a loop has taken it.
func (g *Gateway) runTunnel(c *connection, backend net.Conn, early []byte) {
	s, u := &c.session, &c.upstream
	if c.giveTo(g.engine, s, u, backend, beginning{early: early}) {
		return
	}
	g.ledger.ended(s, u, g.relay.RunAs(joined{s, u}, c.Conn, backend, early))
}

// serveResumable is serveTunnel for a tunnel that may be resumed.
func (g *Gateway) serveResumable(c *connection, req request) {
	c.provenBy(req.route)
	t, hello, err := g.resumable().open(req.begin)
	if err != nil {
		g.refuse(c, err)
		return
	}
	backend, err := g.dial(c, req.route)
	if err != nil {
		t.Abandon()
		g.refuse(c, err)
		return
	}
	if _, err := c.Write(append(c.session.form.Reply(handshake.OK), hello...)); err != nil {
		t.Abandon()
		layer.ResetOnClose(backend)
		backend.Close()
		g.refuse(c, errClientGone)
		return
	}
	g.clients.remove(c.socket)
	header := g.ledger.announce(c.rules.sendProxy, &c.session, &c.upstream, layer.AddrPort(c.LocalAddr()), nil)
	g.ledger.opened(&c.session, &c.upstream)
	carry := g.resumable().run(t, c.session, c.upstream, c.Conn, func() { layer.Abort(c.Conn) }, backend, header, req.early)
	c.session.done = true // by that
	if carry != nil {
		g.afresh(c, carry)
	}
}

// resume has a client go on with its tunnel.
func (g *Gateway) resume(c *connection, req request) {
	peer, err := g.resumable().elsewhere(g.baseCtx, c.rules, &c.session, &c.upstream, layer.AddrPort(c.LocalAddr()), req.again)
	switch {
	case err != nil:
		g.refuse(c, err)
		return
	case peer != nil:
		c.proven()
		g.answer(c, peer, req.early)
		return
	}
	id, how, carry, err := g.resumable().again(req.again, c.Conn, func() { layer.Abort(c.Conn) }, c.session.client,
		c.session.form.Reply(handshake.OK), req.early)
	if err != nil {
		g.refuse(c, err)
		return
	}
	c.proven()
	g.clients.remove(c.socket)
	g.ledger.resumed(&c.session, id, how)
	if carry != nil {
		g.afresh(c, carry)
	}
}

func (g *Gateway) resumable() resumables {
	return resumables{g.ledger, g.relay, g.owner, g.dialer, g.engine, g.baseCtx}
}

// serveHTTP serves a client that speaks HTTP.
func (g *Gateway) serveHTTP(c *connection, early []byte) {
	defer g.ledger.done(&c.session, &c.upstream)
	defer func() { g.ledger.became(&c.session, c.answered) }()
	defer c.ticket.Release()
	g.clients.remove(c.socket) // Close ends it by the front's own Close
	g.http.Load().serve(g.baseCtx, c, early)
}

// serveDescriptor serves a connection that a loop has accepted but cannot
// serve without waiting.
func (g *Gateway) serveDescriptor(fd int, r *rules, s session, received []byte) {
	f := os.NewFile(uintptr(fd), "")
	conn, err := net.FileConn(f) // a dup
	f.Close()
	c := &connection{Conn: conn, socket: conn, rules: r, session: s}
	if err != nil {
		g.ledger.refused(&c.session, &c.upstream, "", &refusal{reason: "no_descriptors", cause: err})
		g.ledger.done(&c.session, &c.upstream)
		return
	}
	g.setKeepalive(conn.(*net.TCPConn))
	g.admit(c)
	g.serveConn(c, received)
}

// admit takes a client in that has proven nothing yet.
func (g *Gateway) admit(c *connection) {
	g.clients.add(c.socket)
	c.ticket = g.pending.Admit(c.session.shares(), func() { layer.Abort(c.socket) })
}

// setKeepalive undoes what net.FileConn does on its own: its own keepalive.
func (g *Gateway) setKeepalive(client *net.TCPConn) {
	if g.dialer.base.KeepAlive < 0 {
		client.SetKeepAlive(false)
	} else {
		client.SetKeepAliveConfig(g.dialer.base.KeepAliveConfig)
	}
}

// firstRead is how much of a request is read at first, in bytes: most sealed
// lines and tokens fit in.
const firstRead = 512

// readRequest reads until there is a request. It gives up at the end of
// handshakeTimeout.
func (g *Gateway) readRequest(c *connection, received []byte) (request, error) {
	deadline := c.session.accepted.Add(c.rules.handshakeTimeout)
	ctx, cancel := context.WithDeadline(g.baseCtx, deadline)
	defer cancel()
	c.SetReadDeadline(deadline)
	defer c.SetReadDeadline(time.Time{})

	buf := received
	for {
		req, err := c.rules.request(ctx, &c.session, buf)
		if err != handshake.ErrIncomplete {
			return req, err
		}
		if c.session.header > 0 {
			c.ticket.Of(c.session.shares()) // which its proxy has told by now
		}
		// Close ends baseCtx first and closes clients then: one of the two
		// ends this read, whenever it begins.
		if g.baseCtx.Err() != nil {
			return request{}, errShutdown
		}
		// As long as the request is incomplete, there is room for more of it.
		if len(buf) == cap(buf) {
			size := min(max(firstRead, 2*cap(buf)), c.rules.requestMax())
			buf = append(make([]byte, 0, size), buf...)
		}
		n, err := c.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if n == 0 && err != nil {
			return request{}, g.whyNot(c, c.session.cutShort(buf, err))
		}
	}
}

// dial connects the backend for a client that waits. A client that breaks the
// connection ends the dial; one that only finishes sending does not: it still
// wants the answer.
func (g *Gateway) dial(c *connection, route address.Route) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(g.baseCtx)
	defer cancel(nil)

	if raw := layer.RawConn(c.socket); raw != nil {
		var watching sync.WaitGroup
		watching.Go(func() {
			if sockopt.AwaitReset(raw) {
				cancel(errClientGone)
			}
		})
		defer func() {
			c.socket.SetReadDeadline(time.Unix(1, 0)) // call the watcher back
			watching.Wait()
			c.socket.SetReadDeadline(time.Time{})
		}()
	}
	if !route.IsAsked() {
		return g.dialer.connect(ctx, c.rules, &c.session, &c.upstream, route)
	}
	answer, err := c.ask(ctx, route, takesBytes, ask.Question{Form: c.session.form.String()})
	if err != nil {
		return nil, g.whyNot(c, err)
	}
	backend, err := g.dialer.connect(ctx, c.rules, &c.session, &c.upstream, answer.Backend)
	return backend, blameAnswer(err)
}

// refuse answers with the status of an error, accounts for it and closes the
// client.
//
// Closing a socket that has unread input resets it, and the client might never
// see the status. So the client is told that nothing more comes, and what it
// has under way is read before the close (RFC 9112 section 9.6 has HTTP
// servers do the same).
func (g *Gateway) refuse(c *connection, err error) {
	defer g.dismiss(c)
	if limitOf(err) != limit.None {
		g.ledger.turnedAway(&c.session, err)
		layer.ResetOnClose(c.socket)
		layer.Abort(c.socket)
		return
	}
	status := statusOf(err)
	g.ledger.refused(&c.session, &c.upstream, status, err)
	reply := c.session.form.Reply(status)
	if len(reply) == 0 {
		return
	}
	c.SetDeadline(time.Now().Add(lingerTime))
	if _, err := c.Write(reply); err != nil {
		return
	}
	layer.CloseWrite(c.Conn)
	io.CopyN(io.Discard, c.Conn, lingerBytes)
}

// dismiss closes a client that is accounted for and never had a tunnel.
func (g *Gateway) dismiss(c *connection) {
	c.socket.Close()
	c.ticket.Release()
	g.clients.remove(c.socket)
	g.ledger.done(&c.session, &c.upstream)
}

// survive keeps a bug met by one connection from ending all the others.
func (g *Gateway) survive(c *connection) {
	if v := recover(); v != nil {
		g.ledger.panicked(v, &c.session)
		g.dismiss(c)
	}
}

// relaying says by what tunnels are relayed.
func (g *Gateway) relaying() string {
	if g.engine.kind() == "" {
		return "goroutines"
	}
	return g.engine.kind()
}
