package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"gateway/internal/address"
	"gateway/internal/policy"
	"gateway/internal/sockopt"
)

// Gateway lets clients through to the backends whose sealed addresses they
// bring. Its exported methods are those of net/http.Server and may be called
// from any goroutine.
type Gateway struct {
	*frontend
	dialer *dialer
	relay  relayer
	loops  *loops // the relay, if it is one of loops

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
			keys:             newKeyring(cfg.Secrets, cfg.KDFs),
			policy:           policy.New(cfg.Allow, cfg.Deny),
			log:              log,
			handshakeTimeout: cfg.HandshakeTimeout,
			handshakeMax:     cfg.HandshakeMax,
			sendProxy:        cfg.proxyVersion(),
			idPrefix:         strings.ToLower(rand.Text()[:12]),
		},
		baseCtx:   ctx,
		cancel:    cancel,
		stopping:  make(chan struct{}),
		listeners: make(map[net.Listener]struct{}),
		clients:   make(map[net.Conn]struct{}),
	}
	g.dialer = newDialer(cfg, g.permit)
	rc := relayConfig{
		bufferSize:       cfg.Buffer,
		idleTimeout:      cfg.IdleTimeout,
		halfCloseTimeout: cfg.HalfCloseTimeout,
		liveness:         cfg.liveness(),
		log:              log,
		account:          g.account,
	}
	g.relay = newRelay(rc)
	if cfg.loopCount() == 0 {
		return g, nil
	}
	loops, err := newLoops(cfg, rc, g.frontend, g.serveDescriptor)
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
func (g *Gateway) serveConn(client *net.TCPConn, s *session, received []byte) {
	defer g.survive(client, s)

	req := request{addr: s.backend} // of a client that is forwarded
	var err error
	if s.form != formForward {
		req, err = g.readRequest(client, s, received)
	}
	if err != nil {
		g.refuse(client, s, err)
		return
	}
	s.backend = req.addr
	backend, err := g.dial(client, req.addr)
	if err != nil {
		g.refuse(client, s, err)
		return
	}
	if !req.addr.IP.IsValid() {
		dialed := addrPort(backend.RemoteAddr())
		s.dialed = &dialed
	}
	if _, err := client.Write(s.reply(statusOK)); err != nil {
		backend.SetLinger(0) // as if the client had reset it
		backend.Close()
		g.refuse(client, s, errClientGone)
		return
	}
	early := g.announce(s, addrPort(client.LocalAddr()), req.early)
	g.untrack(client)
	g.relay.run(s, client, backend, early) // ends in g.account
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
	client := conn.(*net.TCPConn)
	g.setKeepalive(client)
	g.track(client)
	g.serveConn(client, s, received)
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
func (g *Gateway) readRequest(client *net.TCPConn, s *session, received []byte) (request, error) {
	deadline := s.accepted.Add(g.handshakeTimeout)
	ctx, cancel := context.WithDeadline(g.baseCtx, deadline)
	defer cancel()
	client.SetReadDeadline(deadline)
	defer client.SetReadDeadline(time.Time{})

	buf := append(make([]byte, 0, max(len(received), g.handshakeMax+len("\r\n"))), received...)
	for {
		req, err := g.request(ctx, buf)
		if err != errIncomplete {
			return req, err
		}
		// Close ends baseCtx first and closes clients then: one of the two
		// ends this read, whenever it begins.
		if g.baseCtx.Err() != nil {
			return request{}, errShutdown
		}
		// As long as the request is incomplete, the buffer is not full.
		n, err := client.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case n > 0 || err == nil:
		case g.baseCtx.Err() != nil:
			return request{}, errShutdown
		case len(buf) == 0:
			return request{}, errEmpty
		case isTimeout(err):
			return request{}, errTooSlow
		case errors.Is(err, io.EOF):
			return request{}, errEOF
		default:
			return request{}, errReset
		}
	}
}

// dial connects the backend for a client that waits. A client that breaks the
// connection ends the dial; one that only finishes sending does not: it still
// wants the answer.
func (g *Gateway) dial(client *net.TCPConn, addr address.Address) (*net.TCPConn, error) {
	ctx, cancel := context.WithCancelCause(g.baseCtx)
	defer cancel(nil)

	raw, err := client.SyscallConn()
	if err != nil {
		return nil, errClientGone
	}
	var watching sync.WaitGroup
	watching.Go(func() {
		if sockopt.AwaitReset(raw) {
			cancel(errClientGone)
		}
	})
	defer func() {
		client.SetReadDeadline(time.Unix(1, 0)) // call the watcher back
		watching.Wait()
		client.SetReadDeadline(time.Time{})
	}()
	return g.dialer.dial(ctx, addr)
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
func (g *Gateway) refuse(client *net.TCPConn, s *session, err error) {
	defer g.dismiss(client, s)
	status := statusOf(err)
	g.accountRefused(s, status, err)
	reply := s.reply(status)
	if len(reply) == 0 {
		return
	}
	client.SetDeadline(time.Now().Add(lingerTime))
	if _, err := client.Write(reply); err != nil {
		return
	}
	client.CloseWrite()
	io.CopyN(io.Discard, client, lingerBytes)
}

// dismiss closes a client that is accounted for and never had a tunnel.
func (g *Gateway) dismiss(client *net.TCPConn, s *session) {
	client.Close()
	g.untrack(client)
	g.finish(s)
}

// survive keeps a bug met by one connection from ending all the others.
func (g *Gateway) survive(client *net.TCPConn, s *session) {
	if v := recover(); v != nil {
		logPanic(g.log, v)
		g.dismiss(client, s)
	}
}
