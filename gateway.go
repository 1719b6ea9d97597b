package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"gateway/internal/address"
	"gateway/internal/balance"
	"gateway/internal/certificate"
	"gateway/internal/policy"
	"gateway/internal/resolve"
	"gateway/internal/sockopt"
	"gateway/internal/web"
)

// Gateway lets clients through to the backends whose sealed addresses they
// bring. Serve, Shutdown and Close are those of net/http.Server. Its methods may
// be called from any goroutine.
type Gateway struct {
	*frontend
	dialer    *dialer
	resolver  *resolve.Resolver
	relay     relayer
	loops     *loops      // the relay, if it is one of loops
	streams   *relay      // for layers on top of TCP
	web       *web.Server // for HTTP clients
	tlsConfig *tls.Config // nil: clients do not speak TLS

	baseCtx   context.Context // ends at Close
	cancel    context.CancelCauseFunc
	stopping  chan struct{}  // closed by Shutdown and Close
	accepting sync.WaitGroup // accept loops

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	clients   map[net.Conn]struct{} // in serveConn, until the relay owns them
}

// NewGateway returns a gateway for a validated configuration. It must be
// closed.
func NewGateway(cfg *Config, log *slog.Logger) (*Gateway, error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	g := &Gateway{
		frontend: &frontend{
			policy:           policy.New(cfg.Allow, cfg.Deny),
			routes:           balance.NewTable(cfg.Balance),
			log:              log,
			handshakeTimeout: cfg.HandshakeTimeout,
			handshakeMax:     cfg.HandshakeMax,
			sendProxy:        cfg.proxyVersion(),
			trusted:          cfg.TrustedProxies,
			tls:              cfg.TLSCert != "",
			idPrefix:         strings.ToLower(rand.Text()[:12]),
		},
		baseCtx:   ctx,
		cancel:    cancel,
		stopping:  make(chan struct{}),
		listeners: make(map[net.Listener]struct{}),
		clients:   make(map[net.Conn]struct{}),
	}
	if cfg.Legacy {
		g.keys = newKeyring(cfg.Secrets, cfg.KDFs)
	}
	var err error
	if g.tokens, err = cfg.tokenKeys(log); err != nil {
		return nil, err
	}
	g.resolver = resolve.New(resolve.Options{Server: cfg.Resolver, Timeout: cfg.ResolverTimeout, Log: log})
	g.services = &services{resolver: g.resolver, known: make(map[string]knownService)}
	g.dialer = newDialer(cfg, g.permit)
	g.dialer.permitBroadcast = g.permitBroadcast
	g.dialer.resolver = hostLookup{g.resolver}
	if g.dialer.kcp, err = cfg.kcpTransport(); err != nil {
		return nil, err
	}
	g.web = g.newWeb(cfg)
	if cfg.TLSCert != "" {
		reloader, err := certificate.Load(cfg.TLSCert, cfg.TLSKey, log)
		if err != nil {
			return nil, fmt.Errorf("-tls-cert and -tls-key: %w", err)
		}
		g.tlsConfig = certificate.Config(reloader)
	}
	rc := relayConfig{
		bufferSize:       cfg.Buffer,
		idleTimeout:      cfg.IdleTimeout,
		halfCloseTimeout: cfg.HalfCloseTimeout,
		liveness:         cfg.liveness(),
		log:              log,
		account:          g.account,
	}
	g.streams = newRelay(rc)
	g.relay = g.streams
	if cfg.loopCount() == 0 {
		return g, nil
	}
	loops, err := newLoops(cfg, rc, g.frontend, g.streams, g.serveDescriptor)
	switch {
	case err == nil:
		g.loops, g.relay = loops, loops
	case cfg.Loops > 0: // asked for
		return nil, fmt.Errorf("-loops: %w (-loops=-1 does without)", err)
	default:
		log.Warn("no event loops here, goroutines serve instead", "err", err)
	}
	return g, nil
}

// serveConn is the life of a connection: request, open, dial, answer, relay,
// account. Each step either hands its result to the next or refuses the
// client, and says so in the log. received is what has been read already.
//
// On Linux the loops take most connections the same way with fewer system
// calls, by the same functions (accept_linux.go).
func (g *Gateway) serveConn(conn net.Conn, s *session, received []byte) {
	defer g.survive(conn, s)
	c := &client{conn, conn}
	req, err := g.readRequest(c, s, received)
	if err == nil && s.form == formTLS {
		req, err = g.startTLS(c, s, req.early)
	}
	switch {
	case err != nil:
		g.refuse(c, s, err)
	case s.form == formHTTP:
		g.serveHTTP(c, s, req.early)
	default:
		g.serveTunnel(c, s, req)
	}
}

// serveTunnel dials, answers and relays.
func (g *Gateway) serveTunnel(c *client, s *session, req request) {
	backend, err := g.dial(c, s, req.route)
	if err != nil {
		g.refuse(c, s, err)
		return
	}
	if reply := s.form.reply(statusOK); len(reply) > 0 {
		if _, err := c.Write(reply); err != nil {
			resetOnClose(backend) // as if the client had reset it
			backend.Close()
			g.refuse(c, s, errClientGone)
			return
		}
	}
	early := g.announce(s, addrPort(c.LocalAddr()), req.early)
	g.untrack(c.socket)
	// Not here: this goroutine's stack has grown with TLS, and a tunnel rests.
	go g.runTunnel(c, s, backend, early)
}

// runTunnel relays until the tunnel ends, or a loop has taken it.
func (g *Gateway) runTunnel(c *client, s *session, backend net.Conn, early []byte) {
	defer g.survive(c.socket, s)
	g.relay.run(s, c.Conn, backend, early) // ends in g.account
}

// serveDescriptor serves a connection that a loop has accepted but cannot
// serve without waiting.
func (g *Gateway) serveDescriptor(fd int, s *session, received []byte) {
	f := os.NewFile(uintptr(fd), "")
	conn, err := net.FileConn(f) // a dup
	f.Close()
	if err != nil {
		g.accountRefused(s, "", &dialError{"", "no_descriptors", err})
		g.finish(s)
		return
	}
	g.setKeepalive(conn.(*net.TCPConn))
	g.track(conn)
	g.serveConn(conn, s, received)
}

// setKeepalive undoes what net.FileConn does on its own: its own keepalive.
func (g *Gateway) setKeepalive(client *net.TCPConn) {
	if g.dialer.base.KeepAlive < 0 {
		client.SetKeepAlive(false)
	} else {
		client.SetKeepAliveConfig(g.dialer.base.KeepAliveConfig)
	}
}

// readRequest reads until there is a request. It gives up at the end of
// handshakeTimeout.
func (g *Gateway) readRequest(c *client, s *session, received []byte) (request, error) {
	deadline := s.accepted.Add(g.handshakeTimeout)
	ctx, cancel := context.WithDeadline(g.baseCtx, deadline)
	defer cancel()
	c.SetReadDeadline(deadline)
	defer c.SetReadDeadline(time.Time{})

	buf := received
	for {
		req, err := g.request(ctx, s, buf)
		if err != errIncomplete {
			return req, err
		}
		// Close ends baseCtx first and closes clients then: one of the two
		// ends this read, whenever it begins.
		if g.baseCtx.Err() != nil {
			return request{}, errShutdown
		}
		// As long as the request is incomplete, the buffer is not full.
		if most := g.requestMax(); cap(buf) < most {
			buf = append(make([]byte, 0, most), buf...)
		}
		n, err := c.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case n > 0 || err == nil:
		case g.baseCtx.Err() != nil:
			return request{}, errShutdown
		default:
			return request{}, cutShort(s, buf, err)
		}
	}
}

// startTLS speaks TLS with a client that has begun to, and reads the request
// inside.
func (g *Gateway) startTLS(c *client, s *session, early []byte) (request, error) {
	conn := tls.Server(&replayed{Conn: c.socket, early: bytes.Clone(early), remote: s.client}, g.tlsConfig)
	ctx, cancel := context.WithDeadline(g.baseCtx, s.accepted.Add(g.handshakeTimeout))
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		if g.baseCtx.Err() != nil {
			return request{}, errShutdown
		}
		return request{}, fmt.Errorf("%w: %w", errTLS, err)
	}
	c.Conn, s.secure, s.form, s.header, s.proxied = conn, true, formUnknown, 0, false
	return g.readRequest(c, s, nil)
}

// dial connects the backend for a client that waits. A client that breaks the
// connection ends the dial; one that only finishes sending does not: it still
// wants the answer.
func (g *Gateway) dial(c *client, s *session, route address.Route) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(g.baseCtx)
	defer cancel(nil)

	if raw := rawConn(c.socket); raw != nil {
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
	return g.connect(ctx, s, route)
}

// connect dials the backends of a route until one answers, each once. Then only
// a time-out is worth another attempt: who refuses now will refuse at once
// again.
func (g *Gateway) connect(ctx context.Context, s *session, route address.Route) (net.Conn, error) {
	if err := g.choose(ctx, s, route); err != nil {
		return nil, err
	}
	for left := max(g.dialer.attempts, s.choice.len()) - 1; ; left-- {
		backend, err := g.dialer.dial(ctx, s.backend)
		s.chosen(err)
		switch {
		case err == nil:
			if !s.backend.IP.IsValid() {
				dialed := addrPort(backend.RemoteAddr())
				s.dialed = &dialed
			}
			return backend, nil
		case ctx.Err() != nil, left == 0:
			return nil, err
		case g.chooseNext(s):
		case isTimeout(err) && g.chooseAgain(s):
		default:
			return nil, err
		}
	}
}

const (
	// lingerTime and lingerBytes bound how long and how much is still read
	// from a refused client.
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// refuse answers with the status of an error, accounts for it and closes the
// client.
//
// Closing a socket that has unread input resets it, and the client might never
// see the status. So the client is told that nothing more comes, and what it
// has under way is read before the close (RFC 9112 section 9.6 has HTTP
// servers do the same).
func (g *Gateway) refuse(c *client, s *session, err error) {
	defer g.dismiss(c.socket, s)
	status := statusOf(err)
	g.accountRefused(s, status, err)
	reply := s.form.reply(status)
	if len(reply) == 0 {
		return
	}
	c.SetDeadline(time.Now().Add(lingerTime))
	if _, err := c.Write(reply); err != nil {
		return
	}
	closeWrite(c.Conn)
	io.CopyN(io.Discard, c.Conn, lingerBytes)
}

// dismiss closes a client that is accounted for and never had a tunnel.
func (g *Gateway) dismiss(socket net.Conn, s *session) {
	socket.Close()
	g.untrack(socket)
	g.finish(s)
}

// survive keeps a bug met by one connection from ending all the others.
func (g *Gateway) survive(socket net.Conn, s *session) {
	if v := recover(); v != nil {
		logPanic(g.log, v)
		g.dismiss(socket, s)
	}
}
