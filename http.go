package main

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"gateway/internal/address"
	"gateway/internal/handshake"
	"gateway/internal/layer"
	"gateway/internal/limit"
	"gateway/internal/pending"
	"gateway/internal/relay"
	"gateway/internal/resume"
	"gateway/internal/sockopt"
	"gateway/internal/tlsrecord"
	"gateway/internal/web"
)

// connection is a client that a goroutine serves. It speaks with the client
// through net.Conn: the socket that was accepted, or a layer on top of it.
type connection struct {
	net.Conn
	socket   net.Conn
	rules    *rules          // those that it began with
	ticket   *pending.Ticket // among those that have proven nothing
	records  *tlsrecord.Gate // nil: no TLS
	session  session
	upstream upstream
	answered handshake.Status // the last request of HTTP; empty: none was
}

// proven says that the client has brought an address that opened, or needs none.
// It may be called again.
func (c *connection) proven() {
	c.ticket.Release()
	if c.records != nil {
		c.records.Open()
	}
}

// connections is a set of sockets that can be cut from outside. The zero value
// is not usable. Its methods may be called from any goroutine.
type connections struct {
	mu  sync.Mutex
	all map[net.Conn]struct{}
}

func (cs *connections) add(c net.Conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.all[c] = struct{}{}
}

func (cs *connections) remove(c net.Conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	delete(cs.all, c)
}

// abort ends all that are in the set, and leaves them to be removed.
func (cs *connections) abort() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c := range cs.all {
		layer.Abort(c)
	}
}

// keepAliveTimeout is how long an HTTP client's connection may rest between
// two requests.
const keepAliveTimeout = 75 * time.Second

// httpFront serves HTTP and WebSocket clients. internal/web speaks with them;
// what their addresses are worth and how backends are reached is decided by
// what decides it for every other client. It is a web.Gate.
type httpFront struct {
	server *web.Server
	ledger *ledger
	dialer *dialer
	relay  *relay.Relay

	resumable resumables
}

func newHTTPFront(cfg *Config, l *ledger, d *dialer, r *relay.Relay) *httpFront {
	f := &httpFront{ledger: l, dialer: d, relay: r}
	f.server = web.NewServer(f, web.Options{
		HeaderMax:          cfg.HTTPHeaderMax,
		LineMax:            cfg.HandshakeMax,
		HeaderTimeout:      cfg.HandshakeTimeout,
		KeepAliveTimeout:   keepAliveTimeout,
		BackendIdleTimeout: backendIdle(cfg.HTTPIdleTimeout),
		IdleTimeout:        cfg.IdleTimeout,
		HalfCloseTimeout:   cfg.HalfCloseTimeout,
		PingInterval:       cfg.Keepalive,
		Origins:            cfg.WSOrigins,
		ShareBackends:      cfg.proxyVersion() == 0,
		HealthPath:         cfg.HealthPath,
		Unhealthy:          l.unready,
		Readable:           readable,
		Broken:             layer.Broken,
		Log:                l.log,
	})
	return f
}

// sameFront tells whether two configurations have the same front.
func sameFront(a, b *Config) bool {
	return a.HTTPHeaderMax == b.HTTPHeaderMax && a.HandshakeMax == b.HandshakeMax &&
		a.HandshakeTimeout == b.HandshakeTimeout && a.HTTPIdleTimeout == b.HTTPIdleTimeout &&
		a.HealthPath == b.HealthPath && a.SendProxy == b.SendProxy && slices.Equal(a.WSOrigins, b.WSOrigins)
}

// readable tells whether a read from a connection would not block.
func readable(c net.Conn) bool {
	raw := layer.RawConn(c)
	return raw != nil && sockopt.Readable(raw)
}

// backendIdle is -http-idle-timeout in internal/web's words, where zero is its own
// default and less is none.
func backendIdle(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

type connectionKey struct{}

// connectionOf returns the connection that a request came by. Its requests
// follow each other, so its upstream belongs to one at a time.
func connectionOf(ctx context.Context) *connection {
	return ctx.Value(connectionKey{}).(*connection)
}

// serve serves a client that speaks HTTP until it or the server ends. early is
// what has been read of it. ctx ends with the gateway.
func (f *httpFront) serve(ctx context.Context, c *connection, early []byte) {
	if !c.session.local.IsValid() {
		c.session.local = layer.AddrPort(c.LocalAddr())
	}
	ctx = context.WithValue(ctx, connectionKey{}, c)
	conn := &replayed{c.Conn, early, c.session.client}
	if inner, ok := c.Conn.(*tls.Conn); ok {
		f.server.ServeConn(ctx, &replayedTLS{conn, inner}, c.session.forward)
	} else {
		f.server.ServeConn(ctx, conn, c.session.forward)
	}
}

// Open is for web.Gate.
func (f *httpFront) Open(ctx context.Context, sealed []byte) (address.Route, error) {
	c := connectionOf(ctx)
	route, err := c.rules.open(ctx, handshake.HTTP, sealed)
	if err == nil {
		c.proven()
	}
	return route, err
}

// Dial connects a backend and tells it of the client.
func (f *httpFront) Dial(ctx context.Context, route address.Route) (net.Conn, error) {
	c := connectionOf(ctx)
	c.proven() // where the route is fixed, nobody has to open it
	backend, err := f.dialer.connect(ctx, c.rules, &c.session, &c.upstream, route)
	if err != nil {
		return nil, err
	}
	header := f.ledger.announce(c.rules.sendProxy, &c.session, &c.upstream, c.session.local, nil)
	if len(header) > 0 {
		if _, err := backend.Write(header); err != nil {
			backend.Close()
			return nil, dialFailure(err)
		}
	}
	return backend, nil
}

// Status is for web.Gate.
func (f *httpFront) Status(err error) int {
	code, _ := strconv.Atoi(string(statusOf(err)))
	return code
}

// Relay makes a tunnel of a WebSocket and its backend.
func (f *httpFront) Relay(ctx context.Context, client *web.Conn, backend net.Conn, early []byte) {
	c := connectionOf(ctx)
	s, u := c.session, c.takeUpstream()
	s.form, s.accepted, s.done = handshake.WebSocket, time.Now(), false
	s.place, s.reserved = limit.Place{}, false // as the connection's
	u.preface = 0                              // it went before the tunnel began
	c.session.counted = true                   // as that tunnel
	f.ledger.begin()
	f.ledger.opened(&s, &u)
	f.ledger.ended(&s, &u, f.relay.RunAs(joined{&s, &u}, client, backend, early))
}

// Marked is for web.Marker.
func (f *httpFront) Marked(ctx context.Context) (mark string, most int) {
	return resume.Mark, connectionOf(ctx).rules.markedMax()
}

// ServeMarked is for web.Marker.
func (f *httpFront) ServeMarked(ctx context.Context, client *web.Conn, line, early []byte, dial func(address.Route) (net.Conn, error)) error {
	c := connectionOf(ctx)
	req, err := c.rules.marked(ctx, handshake.WebSocket, c.session.secure, line)
	if err != nil {
		return err
	}
	if req.again != nil {
		return f.resume(ctx, c, client, req.again, early)
	}
	c.proven()
	t, hello, err := f.resumable.open(req.begin)
	if err != nil {
		return err
	}
	backend, err := dial(req.route)
	if err != nil {
		t.Abandon()
		return err
	}
	// The status is a message of its own.
	for _, b := range [][]byte{handshake.WebSocket.Reply(handshake.OK), hello} {
		if _, err := client.Write(b); err != nil {
			t.Abandon()
			backend.Close()
			return errClientGone
		}
	}
	s, u := c.session, c.takeUpstream()
	s.form, s.accepted, s.done = handshake.WebSocket, time.Now(), false
	u.preface = 0            // it went before the tunnel began
	c.session.counted = true // as that tunnel
	// The tunnel outlives the connection, and so has its place.
	c.session.place, c.session.reserved = limit.Place{}, false
	f.ledger.begin()
	f.ledger.opened(&s, &u)
	link := t.Begin(client, s.client, func() { client.Close() })
	f.resumable.run(t, s, u, backend, nil)
	t.Carry(link, early)
	return nil
}

// resume has the client of a WebSocket go on with its tunnel.
func (f *httpFront) resume(ctx context.Context, c *connection, client *web.Conn, r *resume.Request, early []byte) error {
	s, u := c.session, upstream{}
	s.form, s.accepted, s.done = handshake.WebSocket, time.Now(), false
	s.place, s.reserved = limit.Place{}, false // as the connection's
	peer, err := f.resumable.elsewhere(ctx, c.rules, &s, &u, c.session.local, r)
	switch {
	case err != nil:
		return err
	case peer != nil:
		c.proven()
		if _, err := client.Write(handshake.WebSocket.Reply(handshake.OK)); err != nil {
			peer.Close()
			return errClientGone
		}
		c.session.counted = true // as that tunnel
		f.ledger.begin()
		f.ledger.opened(&s, &u)
		f.ledger.ended(&s, &u, f.relay.RunAs(joined{&s, &u}, client, peer, early))
		return nil
	}
	t, link, how, err := f.resumable.again(r, client, c.session.client)
	if err != nil {
		return err
	}
	c.proven()
	c.session.counted = true // as what resumed
	f.ledger.begin()
	f.ledger.resumed(&s, t.ID(), how)
	if _, err := client.Write(handshake.WebSocket.Reply(handshake.OK)); err != nil {
		t.Drop(link, err)
		return nil
	}
	t.Carry(link, early)
	return nil
}

// Served is for web.Gate.
func (f *httpFront) Served(ctx context.Context, e web.Exchange) {
	c := connectionOf(ctx)
	u := c.takeUpstream()
	defer u.release()
	if addr, ok := e.Route.Single(); ok {
		u.backend = addr // without a dial, where a connection was there already
	}
	if c.answered = handshake.OK; e.Err != nil {
		c.answered = ""
		if e.Status != 0 {
			c.answered = handshake.Status(strconv.Itoa(e.Status))
		}
	}
	f.ledger.exchanged(&c.session, &u, e)
}

// takeUpstream returns a request's own upstream and leaves the connection's to
// the next one.
func (c *connection) takeUpstream() upstream {
	u := c.upstream
	c.upstream = upstream{}
	return u
}

// replayed is a connection some bytes of which have been read already, from a
// client whose address is better known than the socket knows it.
type replayed struct {
	net.Conn
	early  []byte
	remote netip.AddrPort
}

func (c *replayed) Read(b []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(b, c.early)
		if c.early = c.early[n:]; len(c.early) == 0 {
			c.early = nil
		}
		return n, nil
	}
	return c.Conn.Read(b)
}

func (c *replayed) NetConn() net.Conn    { return c.Conn }
func (c *replayed) CloseWrite() error    { return layer.CloseWrite(c.Conn) }
func (c *replayed) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// replayedTLS is a replayed TLS connection that can be told for one.
type replayedTLS struct {
	*replayed
	inner *tls.Conn
}

func (c *replayedTLS) ConnectionState() tls.ConnectionState { return c.inner.ConnectionState() }
