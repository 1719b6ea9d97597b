package main

import (
	"context"
	"crypto/tls"
	"net"
	"strconv"
	"time"

	"gateway/internal/address"
	"gateway/internal/sockopt"
	"gateway/internal/web"
)

// HTTP and WebSocket clients. internal/web speaks with them; what their
// addresses are worth and how backends are reached is decided here, by the
// functions that serve every other client.

// keepAliveTimeout is how long an HTTP client's connection may rest between
// two requests.
const keepAliveTimeout = 75 * time.Second

// newWeb returns the server of HTTP clients.
func (g *Gateway) newWeb(cfg *Config) *web.Server {
	return web.NewServer(gate{g}, web.Options{
		HeaderMax:        cfg.HTTPHeaderMax,
		LineMax:          cfg.HandshakeMax,
		HeaderTimeout:    cfg.HandshakeTimeout,
		KeepAliveTimeout: keepAliveTimeout,
		IdleTimeout:      cfg.IdleTimeout,
		HalfCloseTimeout: cfg.HalfCloseTimeout,
		PingInterval:     cfg.Keepalive,
		Origins:          cfg.WSOrigins,
		ShareBackends:    cfg.proxyVersion() == 0,
		Readable:         readable,
		Broken:           broken,
		Log:              g.log,
	})
}

// readable tells whether a read from a connection would not block.
func readable(c net.Conn) bool {
	raw := rawConn(c)
	return raw != nil && sockopt.Readable(raw)
}

type sessionKey struct{}

// sessionOf returns the session of the connection that a request came by.
// Requests of one connection follow each other, so it belongs to one at a time.
func sessionOf(ctx context.Context) *session { return ctx.Value(sessionKey{}).(*session) }

// serveHTTP serves a client that speaks HTTP until it or the gateway ends.
func (g *Gateway) serveHTTP(c *client, s *session, early []byte) {
	defer g.finish(s)
	if !s.local.IsValid() {
		s.local = addrPort(c.LocalAddr())
	}
	conn := &replayed{c.Conn, early, s.client}
	ctx := context.WithValue(g.baseCtx, sessionKey{}, s)
	g.untrack(c.socket) // Close ends it by web.Server.Close
	if inner, ok := c.Conn.(*tls.Conn); ok {
		g.web.ServeConn(ctx, &replayedTLS{conn, inner}, s.forward)
	} else {
		g.web.ServeConn(ctx, conn, s.forward)
	}
}

// replayedTLS is a replayed TLS connection that can be told for one.
type replayedTLS struct {
	*replayed
	inner *tls.Conn
}

func (c *replayedTLS) ConnectionState() tls.ConnectionState { return c.inner.ConnectionState() }

// gate is the gateway as internal/web sees it.
type gate struct{ *Gateway }

func (g gate) Open(ctx context.Context, sealed []byte) (address.Route, error) {
	return g.open(ctx, sealed)
}

// Dial connects a backend and tells it of the client.
func (g gate) Dial(ctx context.Context, route address.Route) (net.Conn, error) {
	s := sessionOf(ctx)
	backend, err := g.connect(ctx, s, route)
	if err != nil {
		return nil, err
	}
	if header := g.announce(s, s.local, nil); len(header) > 0 {
		if _, err := backend.Write(header); err != nil {
			backend.Close()
			return nil, classify(err)
		}
	}
	return backend, nil
}

func (g gate) Status(err error) int {
	code, _ := strconv.Atoi(string(statusOf(err)))
	return code
}

// Relay makes a tunnel of a WebSocket and its backend.
func (g gate) Relay(ctx context.Context, client *web.Conn, backend net.Conn, early []byte) {
	s := g.takeSession(ctx)
	s.form = formWebSocket
	g.serving.Add(1)
	g.streams.run(&s, client, backend, early)
}

func (g gate) Served(ctx context.Context, e web.Exchange) {
	s := g.takeSession(ctx)
	defer s.choice.release()
	if addr, ok := e.Route.Single(); ok {
		s.backend = addr // without a dial, where a connection was there already
	}
	g.accountExchange(&s, e)
}

// takeSession returns a request's own session and leaves its connection's to
// the next one.
func (g gate) takeSession(ctx context.Context) session {
	s := sessionOf(ctx)
	own := *s
	own.accepted, own.preface, own.finished = time.Now(), 0, false
	s.backend, s.choice, s.dialed, s.id = address.Address{}, nil, nil, ""
	return own
}
