package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"gateway/internal/address"
	"gateway/internal/sockopt"
)

// A status is the three ASCII bytes with which a request is answered. The
// empty status answers nothing.
type status string

const (
	statusOK             status = "200" // connected; from here on bytes flow
	statusBadRequest     status = "400" // no request could be read
	statusUnauthorized   status = "401" // the address could not be opened
	statusBadGateway     status = "502" // the backend could not be connected
	statusGatewayTimeout status = "504" // connecting the backend timed out
)

// Gateway lets clients through to the backends whose sealed addresses they
// bring. Its exported methods are those of net/http.Server and may be called
// from any goroutine.
type Gateway struct {
	keys   *keyring
	dialer *dialer
	relay  *relay
	log    *slog.Logger

	handshakeTimeout time.Duration // from accept to the end of the request
	handshakeMax     int           // of a sealed line, in bytes

	baseCtx   context.Context // ends at Close
	cancel    context.CancelFunc
	stopping  chan struct{}  // closed by Shutdown and Close
	accepting sync.WaitGroup // accept loops
	serving   sync.WaitGroup // connections, from accept to account
	cut       atomic.Int64   // tunnels ended by Close

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	clients   map[net.Conn]struct{} // until the relay owns them
}

// NewGateway returns a gateway for a validated configuration. It must be
// closed.
func NewGateway(cfg *Config, log *slog.Logger) *Gateway {
	ctx, cancel := context.WithCancel(context.Background())
	return &Gateway{
		keys:             newKeyring(cfg.Secrets, cfg.KDFs),
		dialer:           &dialer{attempts: cfg.Retry, timeout: cfg.Timeout},
		relay:            newRelay(cfg.Buffer, log),
		log:              log,
		handshakeTimeout: cfg.HandshakeTimeout,
		handshakeMax:     cfg.HandshakeMax,
		baseCtx:          ctx,
		cancel:           cancel,
		stopping:         make(chan struct{}),
		listeners:        make(map[net.Listener]struct{}),
		clients:          make(map[net.Conn]struct{}),
	}
}

// serveConn is the life of a connection: request, open, dial, answer, relay,
// account. Each step either hands its result to the next or refuses the
// client, and says so in the log.
func (g *Gateway) serveConn(client *net.TCPConn, accepted time.Time) {
	defer g.serving.Done()
	defer g.untrack(client)
	defer g.survive(client)
	defer client.Close() // nothing, once the relay has done so

	ctx, cancel := context.WithDeadline(g.baseCtx, accepted.Add(g.handshakeTimeout))
	defer cancel()

	line, early, err := g.readLine(ctx, client)
	if err != nil {
		g.refuse(client, statusBadRequest, err, nil)
		return
	}
	addr, err := g.keys.open(ctx, line)
	if err != nil {
		g.refuse(client, statusUnauthorized, err, nil)
		return
	}
	backend, err := g.dial(client, addr)
	if err != nil {
		g.refuse(client, statusOf(err), err, &addr)
		return
	}
	if _, err := io.WriteString(client, string(statusOK)); err != nil {
		backend.SetLinger(0) // as if the client had reset it
		backend.Close()
		g.refuse(client, "", errClientGone, &addr)
		return
	}
	g.untrack(client)
	g.relay.run(client, backend, early, func(end tunnelEnd) {
		g.account(client, backend, addr, accepted, end)
	})
}

// readLine reads the client's request, and what the same segments brought
// behind it for the backend. The read is bounded by ctx's deadline and by
// handshakeMax. Every error is a requestError.
func (g *Gateway) readLine(ctx context.Context, client *net.TCPConn) (line, early []byte, err error) {
	deadline, _ := ctx.Deadline()
	client.SetReadDeadline(deadline)
	defer client.SetReadDeadline(time.Time{})

	buf := make([]byte, g.handshakeMax+len("\r\n"))
	n := 0
	for {
		m, readErr := client.Read(buf[n:])
		n += m
		line, early, ok, err := parseLine(buf[:n], g.handshakeMax)
		switch {
		case ok || err != nil:
			return line, early, err
		case readErr == nil:
		case n == 0:
			return nil, nil, errEmpty
		case isTimeout(readErr):
			return nil, nil, errTooSlow
		case errors.Is(readErr, io.EOF):
			return nil, nil, errEOF
		default:
			return nil, nil, errReset
		}
	}
}

// dial connects the backend for a client that waits. A client that breaks the
// connection ends the dial; one that only finishes sending does not: it may
// still want the answer.
func (g *Gateway) dial(client *net.TCPConn, addr address.Address) (*net.TCPConn, error) {
	ctx, cancel := context.WithCancelCause(g.baseCtx)
	defer cancel(nil)

	raw, err := client.SyscallConn()
	if err != nil {
		return nil, &dialError{"", "client_gone", errClientGone}
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

func statusOf(err error) status {
	var de *dialError
	if errors.As(err, &de) {
		return de.status
	}
	return statusBadGateway
}

const (
	// lingerTime and lingerBytes bound how long and how much is still read
	// from a refused client.
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// refuse answers with an error status, accounts for it and closes the client.
// addr is nil unless an address was opened.
//
// Closing a socket that has unread input resets it, and the client might never
// see the status. So the client is told that nothing more comes, and what it
// has under way is read before the close (RFC 9112 section 9.6 has HTTP
// servers do the same).
func (g *Gateway) refuse(client *net.TCPConn, s status, err error, addr *address.Address) {
	g.accountRefused(client, s, err, addr)
	if s == "" {
		return
	}
	client.SetDeadline(time.Now().Add(lingerTime))
	if _, err := io.WriteString(client, string(s)); err != nil {
		return
	}
	client.CloseWrite()
	io.CopyN(io.Discard, client, lingerBytes)
}

// survive keeps a bug met by one connection from ending all the others.
func (g *Gateway) survive(client *net.TCPConn) {
	if v := recover(); v != nil {
		client.Close()
		logPanic(g.log, v)
	}
}
