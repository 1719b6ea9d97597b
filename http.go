package main

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"gateway/internal/address"
	"gateway/internal/ask"
	"gateway/internal/handshake"
	"gateway/internal/layer"
	"gateway/internal/limit"
	"gateway/internal/pending"
	"gateway/internal/relay"
	"gateway/internal/resume"
	"gateway/internal/sockopt"
	"gateway/internal/tlslayer"
	"gateway/internal/tlsrecord"
	"gateway/internal/web"
	"gateway/internal/websocket"
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
	asked    bool             // the operator's service has said where it, or its last request, goes
	answered handshake.Status // the last request of HTTP; empty: none was
	replayed *replayed        // as internal/web has it; nil: it has not
}

// proven says that the client has brought an address that opened, or needs none.
// It may be called again.
func (c *connection) proven() {
	c.ticket.Release()
	if c.records != nil {
		c.records.Open()
	}
}

// provenBy is proven for a client whose request leads there. A ticket proves nothing
// before the service has said what it is worth.
func (c *connection) provenBy(route address.Route) {
	if route.Ticket() == "" {
		c.proven()
	}
}

// fits tells whether an engine could take it: its socket is TCP, and what is on top of
// that has a layer.Transform.
func (c *connection) fits(e engine) bool {
	_, tcp := c.socket.(*net.TCPConn)
	_, secure := c.Conn.(*tlslayer.Conn)
	return tcp && (secure || c.Conn == c.socket) && e.kind() != ""
}

// giveTo gives it and its backend to an engine, if that takes it: then both are closed
// here. b.layer is what the client speaks inside of TLS, if it speaks that.
func (c *connection) giveTo(e engine, s *session, u *upstream, backend net.Conn, b beginning) bool {
	if !c.fits(e) {
		return false
	}
	conn, secure := c.Conn.(*tlslayer.Conn)
	if secure {
		if b.layer = conn.Lift(c.records.Held(), b.layer); b.layer == nil {
			return false // cut
		}
	}
	if e.take(s, u, c.socket, backend, b) {
		return true
	}
	if secure {
		conn.Land()
	}
	return false
}

// ask asks where a name or a ticket leads, and keeps the answer's label; see rules.ask.
// q is as it wants it.
func (c *connection) ask(ctx context.Context, route address.Route, takes takes, q ask.Question) (*ask.Answer, error) {
	if inner, ok := c.Conn.(*tlslayer.Conn); ok {
		q.SNI = inner.ConnectionState().ServerName
	}
	answer, err := c.rules.ask(ctx, &c.session, route, takes, q)
	if err != nil {
		return nil, err
	}
	c.proven()
	c.upstream.label, c.asked = answer.Label, true
	return answer, nil
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
	engine engine

	resumable resumables
}

func newHTTPFront(cfg *Config, l *ledger, d *dialer, r *relay.Relay, e engine) *httpFront {
	f := &httpFront{ledger: l, dialer: d, relay: r, engine: e}
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
		StripPrefix:        cfg.HTTPStripPrefix,
		BackendHost:        cfg.HTTPHost == "backend",
		Changes:            web.ChangesOf(cfg.HTTPSet),
		Describe:           cfg.Ask != "",
		DescribeHeaders:    cfg.AskHeaders,
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
		a.HealthPath == b.HealthPath && a.HTTPHost == b.HTTPHost && a.HTTPStripPrefix == b.HTTPStripPrefix &&
		slices.Equal(a.HTTPSet, b.HTTPSet) && a.Ask == b.Ask && slices.Equal(a.AskHeaders, b.AskHeaders) && a.SendProxy == b.SendProxy && slices.Equal(a.WSOrigins, b.WSOrigins)
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
	c.replayed = conn
	if inner, ok := c.Conn.(*tlslayer.Conn); ok {
		f.server.ServeConn(ctx, &replayedTLS{conn, inner}, c.session.forward)
	} else {
		f.server.ServeConn(ctx, conn, c.session.forward)
	}
}

// Open is for web.Gate.
func (f *httpFront) Open(ctx context.Context, sealed []byte, r *web.Request) (address.Route, *web.Changes, error) {
	c := connectionOf(ctx)
	c.asked = false
	route, err := c.rules.opener.open(ctx, handshake.HTTP, sealed)
	if err != nil {
		return address.Route{}, nil, err
	}
	c.provenBy(route)
	if !route.IsAsked() {
		return route, nil, nil
	}
	answer, err := f.ask(ctx, c, route, r)
	if err != nil {
		return address.Route{}, nil, err
	}
	changes := changesOf(answer)
	if changes != nil {
		if err := changes.Check(); err != nil {
			return address.Route{}, nil, askFailure(badAnswer{err}, &ask.Question{Name: route.Asked(), Ticket: route.Ticket()})
		}
	}
	return answer.Backend, changes, nil
}

// ask asks where a request leads.
func (f *httpFront) ask(ctx context.Context, c *connection, route address.Route, r *web.Request) (*ask.Answer, error) {
	form, takes := handshake.HTTP, takesHTTP
	if r.WebSocket {
		form, takes = handshake.WebSocket, takesBytes
	}
	if r.Upgrade {
		takes |= takesHTTP
	}
	return c.ask(ctx, route, takes, ask.Question{Form: form.String(), Method: r.Method, Path: r.Path, Headers: r.Headers})
}

// changesOf returns what an answer has to say of an HTTP request, or nil.
func changesOf(a *ask.Answer) *web.Changes {
	if len(a.RequestHeaders) == 0 && len(a.ResponseHeaders) == 0 && a.Path == "" && a.Host == "" {
		return nil
	}
	return &web.Changes{RequestHeaders: a.RequestHeaders, ResponseHeaders: a.ResponseHeaders, Path: a.Path, Host: a.Host}
}

// Dial connects a backend and tells it of the client.
func (f *httpFront) Dial(ctx context.Context, route address.Route) (net.Conn, error) {
	c := connectionOf(ctx)
	c.proven() // where the route is fixed, nobody has to open it
	backend, err := f.dialer.connect(ctx, c.rules, &c.session, &c.upstream, route)
	if err != nil {
		if c.asked {
			err = blameAnswer(err)
		}
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
	if limitOf(err) != limit.None {
		return http.StatusTooManyRequests
	}
	code, _ := strconv.Atoi(string(statusOf(err)))
	return code
}

// becomeTunnel returns the session and upstream of a tunnel on a connection that spoke HTTP
// until now, and counts it. began is when its request came.
func (f *httpFront) becomeTunnel(c *connection, form handshake.Form, began time.Time) (s session, u upstream) {
	s, u = c.session, c.takeUpstream()
	s.form, s.accepted, s.done = form, began, false
	u.preface = 0            // it went before the tunnel began
	c.session.counted = true // as that tunnel
	// It outlives what serves HTTP, and so has the connection's place.
	c.session.place, c.session.reserved = limit.Place{}, false
	f.ledger.begin()
	f.ledger.opened(&s, &u)
	return s, u
}

// Relay makes a tunnel of a WebSocket and its backend.
func (f *httpFront) Relay(ctx context.Context, client *web.Conn, backend net.Conn, early []byte) {
	c := connectionOf(ctx)
	s, u := f.becomeTunnel(c, handshake.WebSocket, time.Now())
	if f.takeWebSocket(c, &s, &u, client, backend, early) {
		return
	}
	f.ledger.ended(&s, &u, f.relay.RunAs(joined{&s, &u}, client, backend, early))
}

// takeWebSocket gives a WebSocket to a loop, if that can be, wherever it is within a
// message.
func (f *httpFront) takeWebSocket(c *connection, s *session, u *upstream, client *web.Conn, backend net.Conn, early []byte) bool {
	defer client.Forget()
	if !c.fits(f.engine) {
		return false
	}
	begun, rest, ok := client.Rest()
	if !ok {
		return false
	}
	ws := websocket.New(web.MessageMax)
	if _, state := ws.In(begun); state != layer.Open {
		client.GoOn()
		return false
	}
	ws.Back(nil) // has been said
	out, state := ws.In(append(rest, c.replayed.early...))
	b := beginning{early: append(early[:len(early):len(early)], out...), layer: ws, state: state}
	if !c.giveTo(f.engine, s, u, backend, b) {
		client.GoOn()
		return false
	}
	return true
}

// Takes is for web.Taker. Behind KCP no loop could relay.
func (f *httpFront) Takes(ctx context.Context) bool { return connectionOf(ctx).fits(f.engine) }

// Take makes a tunnel of a WebSocket that its backend speaks itself: it is TCP.
func (f *httpFront) Take(ctx context.Context, backend net.Conn, early []byte, e web.Exchange) {
	c := connectionOf(ctx)
	s, u := f.becomeTunnel(c, handshake.Upgrade, time.Now().Add(-e.Duration))
	f.ledger.requests.Add(answered{e.Kind, e.Status}, 1)
	if len(c.replayed.early) > 0 {
		early = append(early[:len(early):len(early)], c.replayed.early...)
	}
	if c.giveTo(f.engine, &s, &u, backend, beginning{early: early, sent: e.Down}) {
		return
	}
	c.SetDeadline(time.Time{})
	end := f.relay.RunAs(joined{&s, &u}, c.Conn, backend, early)
	end.Down += e.Down
	f.ledger.ended(&s, &u, end)
}

// Marked is for web.Marker.
func (f *httpFront) Marked(ctx context.Context) (mark string, most int) {
	return resume.Mark, connectionOf(ctx).rules.markedMax()
}

// ServeMarked is for web.Marker.
func (f *httpFront) ServeMarked(ctx context.Context, client *web.Conn, line, early []byte, r *web.Request, dial func(address.Route) (net.Conn, error)) error {
	c := connectionOf(ctx)
	req, err := c.rules.marked(ctx, handshake.WebSocket, c.session.secure, line)
	if err != nil {
		return err
	}
	if req.again != nil {
		return f.resume(ctx, c, client, req.again, early)
	}
	c.provenBy(req.route)
	if req.route.IsAsked() {
		answer, err := f.ask(ctx, c, req.route, r)
		if err != nil {
			return err
		}
		req.route = answer.Backend
	}
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
			layer.ResetOnClose(backend) // as if the client had reset it
			backend.Close()
			return errClientGone
		}
	}
	s, u := f.becomeTunnel(c, handshake.WebSocket, time.Now())
	if carry := f.resumable.run(t, s, u, client, func() { client.Close() }, backend, nil, early); carry != nil {
		carry()
	}
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
	id, how, carry, err := f.resumable.again(r, client, func() { client.Close() }, c.session.client,
		handshake.WebSocket.Reply(handshake.OK), early)
	if err != nil {
		return err
	}
	c.proven()
	c.session.counted = true // as what resumed
	f.ledger.begin()
	f.ledger.resumed(&s, id, how)
	if carry != nil {
		carry()
	}
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
	inner *tlslayer.Conn
}

func (c *replayedTLS) ConnectionState() tls.ConnectionState { return c.inner.ConnectionState() }
