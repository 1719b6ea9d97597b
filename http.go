package main

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"strconv"
	"time"

	"gateway/internal/address"
	"gateway/internal/handshake"
	"gateway/internal/layer"
	"gateway/internal/relay"
	"gateway/internal/sockopt"
	"gateway/internal/web"
)

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
		a.SendProxy == b.SendProxy && slices.Equal(a.WSOrigins, b.WSOrigins)
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
	u.preface = 0 // it went before the tunnel began
	f.ledger.begin()
	f.ledger.ended(&s, &u, f.relay.Run(client, backend, early))
}

// Served is for web.Gate.
func (f *httpFront) Served(ctx context.Context, e web.Exchange) {
	c := connectionOf(ctx)
	u := c.takeUpstream()
	defer u.release()
	if addr, ok := e.Route.Single(); ok {
		u.backend = addr // without a dial, where a connection was there already
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
