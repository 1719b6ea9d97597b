package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"gateway/internal/address"
	"gateway/internal/handshake"
	"gateway/internal/layer"
	"gateway/internal/pending"
	"gateway/internal/relay"
	"gateway/internal/resume"
	"gateway/internal/resume/owner"
	"gateway/internal/resume/stream"
	"gateway/internal/tlsrecord"
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
}

// proven says that the client has brought an address that opened, or needs none.
// It may be called again.
func (c *connection) proven() {
	c.ticket.Release()
	if c.records != nil {
		c.records.Open()
	}
}

// resumables are the tunnels that outlive their clients' connections: what
// internal/resume/owner keeps, in the words of a session.
type resumables struct {
	ledger *ledger
	relay  *relay.Relay
	owner  *owner.Owner
	dialer *dialer
}

// newOwner returns what keeps resumable tunnels.
func newOwner(cfg *Config, log *slog.Logger) *owner.Owner {
	return owner.New(owner.Options{
		Tickets: cfg.tickets,
		Address: cfg.ResumePeer,
		Hold:    cfg.ResumeHold,
		Buffer:  cfg.ResumeBuffer,
		Memory:  int64(cfg.ResumeMemory),
		Max:     cfg.ResumeMax,
		Log:     log,
	})
}

// open makes a tunnel for a client that asks for one. The error is a *refusal.
func (m resumables) open(r *resume.Open) (t *owner.Tunnel, hello []byte, err error) {
	t, hello, err = m.owner.Open(r)
	if err != nil {
		return nil, nil, resumeFailure(err)
	}
	return t, hello, nil
}

// run relays until the tunnel ends, and does not wait for that. header comes first to
// the backend.
func (m resumables) run(t *owner.Tunnel, s session, u upstream, backend net.Conn, header []byte) {
	s.resumes = t.ID()
	go func() { m.ledger.ended(&s, &u, m.relay.Run(t, backend, header)) }()
}

// again has a tunnel carried on by conn. The error is a *refusal.
func (m resumables) again(r *resume.Request, conn net.Conn, client netip.AddrPort) (*owner.Tunnel, *stream.Link, owner.Resumed, error) {
	t, link, how, err := m.owner.Resume(r, conn, client, func() { layer.Abort(conn) })
	if err != nil {
		err = resumeFailure(err)
	}
	return t, link, how, err
}

// elsewhere asks the gateway that a ticket names to go on, if that is another one, and
// returns the connection behind its 200; or nil for a tunnel of this one. The error is a
// *refusal. local is where the client has connected to.
func (m resumables) elsewhere(ctx context.Context, r *rules, s *session, u *upstream, local netip.AddrPort, q *resume.Request) (net.Conn, error) {
	addr, err := m.owner.OwnerOf(q)
	if err != nil {
		return nil, resumeFailure(err)
	}
	if addr == "" || s.peer { // who is asked by another gateway asks nobody
		return nil, nil
	}
	to, err := netip.ParseAddrPort(addr)
	if err != nil || !within(r.peers, to.Addr()) {
		return nil, &refusal{status: handshake.BadGateway, reason: "foreign_owner",
			cause: fmt.Errorf("the tunnel's gateway %s is not within -resume-peers", addr)}
	}
	u.backend = address.Address{IP: to.Addr(), Port: to.Port()}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	conn, err := m.dialer.base.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, dialFailure(err)
	}
	if err := ask(ctx, conn, m.ledger.announce(2, s, u, local, q.Append(nil))); err != nil {
		conn.Close()
		return nil, err
	}
	u.preface = 0 // it went before the tunnel began
	return conn, nil
}

// ask sends another gateway a request and reads its answer. The error is a *refusal, with
// the answer if that is another one than 200.
func ask(ctx context.Context, conn net.Conn, request []byte) error {
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	var answer [len(handshake.OK)]byte
	_, err := conn.Write(request)
	if err == nil {
		_, err = io.ReadFull(conn, answer[:])
	}
	if err != nil {
		why := dialFailure(fmt.Errorf("the tunnel's gateway does not answer: %w", err))
		why.blamesBackend = false
		return why
	}
	conn.SetDeadline(time.Time{})
	switch st := handshake.Status(answer[:]); st {
	case handshake.OK:
		return nil
	case handshake.Unauthorized, handshake.Gone, handshake.BadGateway, handshake.GatewayTimeout:
		return &refusal{status: st, reason: "peer_refused"}
	}
	return &refusal{status: handshake.BadGateway, reason: "peer_refused"}
}

// resumeFailure is why there is no such tunnel.
func resumeFailure(err error) *refusal {
	why := &refusal{status: handshake.Unauthorized, reason: err.Error()}
	if errors.Is(err, owner.ErrUnknown) || errors.Is(err, resume.ErrOffsets) {
		why.status = handshake.Gone
	}
	return why
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
