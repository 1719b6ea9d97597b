package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"time"

	"gateway/internal/address"
	"gateway/internal/balance"
	"gateway/internal/handshake"
	"gateway/internal/happyeyeballs"
	"gateway/internal/kcp"
	"gateway/internal/layer"
	"gateway/internal/relay"
	"gateway/internal/resolve"
	"gateway/internal/resume"
	"gateway/internal/resume/owner"
)

// dialer turns an opened address into a connected backend, for who can wait. Its
// methods are safe for concurrent use.
type dialer struct {
	// kcp dials backends whose scheme is kcp.
	kcp *kcp.Transport
	// ledger counts what comes of each attempt; nil in some tests.
	ledger *ledger
	// resolver looks up names; *net.Resolver is one. If it has the method
	// AddressesAndLate, as *resolve.Resolver, that is used.
	resolver interface {
		LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	}
	// base has the options of a connected backend's socket.
	base net.Dialer
}

func newDialer(cfg *Config) *dialer {
	d := &dialer{kcp: cfg.kcp}
	d.base.KeepAlive, d.base.KeepAliveConfig = cfg.keepalive()
	d.base.Control = func(_, _ string, c syscall.RawConn) error {
		return cfg.liveness().SetUserTimeout(c)
	}
	return d
}

// connect dials the backends of a route until one answers; see upstream.retry
// for which. The caller closes the connection. Every error is a *refusal, but
// for the cause of a ctx that ends.
func (d *dialer) connect(ctx context.Context, r *rules, s *session, u *upstream, route address.Route) (net.Conn, error) {
	ctx = resolve.WithPatience(ctx)
	if err := u.choose(ctx, r, s, route); err != nil {
		return nil, err
	}
	for {
		dial := d.dial
		if u.hasSpare() {
			dial = d.dialOrPass
		}
		if d.ledger != nil {
			d.ledger.dialing(u)
		}
		var backend net.Conn
		err := d.sit(r, u)
		if err == nil {
			backend, err = dial(ctx, r, u.backend)
		}
		if err == nil {
			d.account(s, u, nil)
			u.connected()
			if !u.backend.IP.IsValid() {
				dialed := layer.AddrPort(backend.RemoteAddr())
				u.dialed = &dialed
			}
			return backend, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		why := dialFailure(err)
		d.account(s, u, why)
		if !u.retry(s, why) {
			return nil, why
		}
	}
}

func (d *dialer) sit(r *rules, u *upstream) error {
	if d.ledger == nil {
		return nil
	}
	return u.sit(&d.ledger.seats, r.maxTunnels)
}

func (d *dialer) account(s *session, u *upstream, why *refusal) {
	if d.ledger != nil {
		d.ledger.dialed(s, u, why)
	}
}

// errNoTarget is a service without targets.
var errNoTarget = &refusal{status: handshake.BadGateway, reason: "no_target", cause: errors.New("the service has no targets")}

// choose finds the first backend of a route. Where the route is a service, ctx
// bounds the lookup; its cause is the error then. Others are a *refusal.
func (u *upstream) choose(ctx context.Context, r *rules, s *session, route address.Route) error {
	u.left = r.attempts
	if addr, ok := route.Single(); ok {
		u.backend = addr
		return nil
	}
	if route.IsAsked() {
		return errUnasked
	}
	group := r.routes.Group(route, balanceClock())
	if name := route.Service(); name != "" {
		targets, err := r.services.Find(ctx, name)
		switch {
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return dialFailure(err)
		}
		group.Update(targets)
	}
	u.choice = &choice{group: group, attempt: group.Start(s.client.Addr()), spares: group.Len() - 1, service: route.Service() != ""}
	u.left = max(u.left, group.Len())
	if !u.next() {
		return errNoTarget
	}
	return nil
}

// lookupPatience is how long a backend's name is looked up before another one is
// tried, if there is one. The lookup goes on meanwhile.
const lookupPatience = 500 * time.Millisecond

// dial connects to addr, once: it races the IP addresses of a name, all within
// one timeout. Cancelling ctx ends it at once, with ctx's cause.
func (d *dialer) dial(ctx context.Context, r *rules, addr address.Address) (net.Conn, error) {
	return d.dialPatiently(ctx, r, addr, r.timeout)
}

// dialOrPass is dial where there is another backend to try: if the lookup takes
// long, the error is errSlowLookup.
func (d *dialer) dialOrPass(ctx context.Context, r *rules, addr address.Address) (net.Conn, error) {
	return d.dialPatiently(ctx, r, addr, lookupPatience)
}

func (d *dialer) dialPatiently(ctx context.Context, r *rules, addr address.Address, patience time.Duration) (net.Conn, error) {
	conn, err := d.race(ctx, r, addr, patience)
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	return nil, dialFailure(err)
}

func (d *dialer) race(ctx context.Context, r *rules, addr address.Address, patience time.Duration) (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	dial := func(ctx context.Context, ip netip.Addr) (net.Conn, error) {
		return d.dialOne(ctx, r, addr.Scheme, netip.AddrPortFrom(ip.Unmap(), addr.Port))
	}
	if addr.IP.IsValid() {
		conn, err = dial(ctx, addr.IP)
	} else {
		ips, late, lookup := d.lookup(ctx, addr.Host, patience)
		if lookup != nil {
			return nil, lookup
		}
		conn, err = happyeyeballs.Dial(ctx, ips, late, dial)
	}
	var denied happyeyeballs.Skip
	switch {
	case errors.As(err, &denied):
		return nil, denied.Err
	case err == happyeyeballs.ErrNoAddress:
		return nil, fmt.Errorf("%s has no address", addr.Host)
	}
	return conn, err
}

// lookup finds the addresses of a name. Those that come later are sent to late,
// if it is not nil.
func (d *dialer) lookup(ctx context.Context, host string, patience time.Duration) (ips []netip.Addr, late <-chan []netip.Addr, err error) {
	brief, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if r, ok := d.resolver.(interface {
		AddressesAndLate(ctx context.Context, name string) ([]netip.Addr, <-chan []netip.Addr, error)
	}); ok {
		ips, late, err = r.AddressesAndLate(brief, host)
	} else {
		ips, err = d.resolver.LookupNetIP(brief, "ip", host)
	}
	if err != nil && brief.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", errSlowLookup, err)
	}
	return ips, late, err
}

// dialOne dials one IP address, if the policy permits it. It is asked right
// before, so that no name leads where a literal may not; its denial comes as a
// happyeyeballs.Skip.
func (d *dialer) dialOne(ctx context.Context, r *rules, scheme string, to netip.AddrPort) (net.Conn, error) {
	denied := r.permit(to)
	if denied == nil && scheme == "kcp" {
		denied = r.permitBroadcast(to)
	}
	if denied != nil {
		return nil, happyeyeballs.Skip{Err: denied}
	}
	if scheme == "kcp" {
		conn, err := d.kcp.Dial(ctx, to.String())
		if err != nil {
			return nil, err
		}
		return conn, nil
	}
	conn, err := d.base.DialContext(ctx, "tcp", to.String())
	if err != nil && mayBeBroadcast(err) {
		if denied := r.permitBroadcast(to); denied != nil {
			return nil, happyeyeballs.Skip{Err: denied}
		}
	}
	return conn, err
}

// mayBeBroadcast tells whether this is how a kernel refuses to connect TCP to a
// network's broadcast address.
func mayBeBroadcast(err error) bool {
	return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EACCES)
}

// resumables are the tunnels that outlive their clients' connections: what
// internal/resume/owner keeps, in the words of a session. Where there are loops, these
// carry them: what comes by TCP as it is, all else through a pair of local sockets.
type resumables struct {
	ledger *ledger
	relay  *relay.Relay
	owner  *owner.Owner
	dialer *dialer
	engine engine
	ended  context.Context // tunnels are cut once it ends
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

// run relays a tunnel that begins until it ends, and does not wait for that. Its client has
// its answer; header comes first to the backend, early is what the client has sent behind its request.
// abort ends conn at once. Where conn needs somebody to serve it, carry does, until it
// carries the tunnel no more.
func (m resumables) run(t *owner.Tunnel, s session, u upstream, conn net.Conn, abort func(), backend net.Conn, header, early []byte) (carry func()) {
	s.resumes = t.ID()
	b := beginning{early: header, resumable: t, frames: early}
	if m.engine.take(&s, &u, conn, backend, b) {
		return nil
	}
	if inner, outer, err := m.engine.pair(); err == nil {
		m.ledger.beginBridge()
		if m.engine.take(&s, &u, inner, backend, b) {
			return func() { m.bridge(conn, outer, abort) }
		}
		m.ledger.endBridge()
		inner.Close()
		outer.Close()
	}
	link := t.Begin(conn, s.client, abort)
	go func() { m.ledger.ended(&s, &u, m.relay.RunAs(joined{&s, &u}, t, backend, header)) }()
	return func() { t.Carry(link, early) }
}

// bridge moves bytes between a client and a loop, until the loop has no use for the
// client any more, or the client is gone. By then the loop may be another process's.
func (m resumables) bridge(client, loop net.Conn, abort func()) {
	defer m.ledger.endBridge()
	defer context.AfterFunc(m.ended, func() {
		time.AfterFunc(lingerTime, func() { // of ours the loop has told it
			loop.Close()
			abort()
		})
	})()
	m.relay.Bridge(client, loop, abort)
}

// again has a tunnel of this gateway go on by conn, whose client is told reply. Where conn
// needs somebody to serve it, carry does. The error is a *refusal.
func (m resumables) again(r *resume.Request, conn net.Conn, abort func(), client netip.AddrPort, reply, early []byte) (id string, how owner.Resumed, carry func(), err error) {
	t, err := m.owner.Find(r)
	if err == nil {
		id = t.ID()
		how, carry, err = m.goOn(t, &owner.Return{Request: r, Conn: conn, Client: client, Reply: reply, Early: early}, abort)
		if err == owner.ErrUnknown { // over since, or another process's
			_, err = m.owner.Find(r)
			err = cmp.Or(err, owner.ErrUnknown)
		}
	}
	if err != nil {
		err = m.failed(resumeFailure(err))
	}
	return id, how, carry, err
}

func (m resumables) goOn(t *owner.Tunnel, q *owner.Return, abort func()) (how owner.Resumed, carry func(), err error) {
	conn, reply := q.Conn, q.Reply
	carrier := t.Carrier()
	if carrier == nil {
		link, how, err := t.Resume(q, abort)
		if err != nil {
			return how, nil, err
		}
		return how, func() {
			if _, err := conn.Write(reply); err != nil {
				t.Drop(link, err)
				return
			}
			t.Carry(link, q.Early)
		}, nil
	}
	if _, ok := conn.(*net.TCPConn); ok {
		how, err = carrier.Resume(q)
		return how, nil, err
	}
	inner, outer, err := m.engine.pair()
	if err != nil {
		return how, nil, owner.ErrFew
	}
	q.Conn, q.Reply = inner, nil
	m.ledger.beginBridge()
	if how, err = carrier.Resume(q); err != nil {
		m.ledger.endBridge()
		inner.Close()
		outer.Close()
		return how, nil, err
	}
	return how, func() {
		if _, err := conn.Write(reply); err != nil {
			m.ledger.endBridge()
			outer.Close()
			abort()
			return
		}
		m.bridge(conn, outer, abort)
	}, nil
}

// failed counts a request to resume that is refused for err, and returns that.
func (m resumables) failed(err error) error {
	m.ledger.resumes.Add(reasonWord(err), 1)
	return err
}

// elsewhere asks the gateway that a ticket names to go on, if that is another one, and
// returns the connection behind its 200; or nil for a tunnel of this one. The error is a
// *refusal. local is where the client has connected to.
func (m resumables) elsewhere(ctx context.Context, r *rules, s *session, u *upstream, local netip.AddrPort, q *resume.Request) (net.Conn, error) {
	addr, err := m.owner.OwnerOf(q)
	if err != nil {
		return nil, m.failed(resumeFailure(err))
	}
	if addr == "" || s.peer { // who is asked by another gateway asks nobody
		return nil, nil
	}
	to, err := netip.ParseAddrPort(addr)
	if err != nil || !within(r.peers, to.Addr()) {
		return nil, m.failed(&refusal{status: handshake.BadGateway, reason: "foreign_owner",
			cause: fmt.Errorf("the tunnel's gateway %s is not within -resume-peers", addr)})
	}
	u.backend = address.Address{IP: to.Addr(), Port: to.Port()}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	conn, err := m.dialer.base.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, m.failed(dialFailure(err))
	}
	if err := askOwner(ctx, conn, m.ledger.announce(2, s, u, local, q.Append(nil))); err != nil {
		conn.Close()
		return nil, m.failed(err)
	}
	m.ledger.resumes.Add("passed_on", 1)
	u.preface = 0 // it went before the tunnel began
	return conn, nil
}

// askOwner sends another gateway a request and reads its answer. The error is a *refusal, with
// the answer if that is another one than 200.
func askOwner(ctx context.Context, conn net.Conn, request []byte) error {
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
	switch {
	case errors.Is(err, owner.ErrUnknown), errors.Is(err, resume.ErrOffsets):
		why.status = handshake.Gone
	case errors.Is(err, owner.ErrMoving), errors.Is(err, owner.ErrFew):
		why.status = handshake.BadGateway
	}
	return why
}

// targetOf says what DNS lists in balance's words.
func targetOf(s resolve.Service) balance.Target {
	return balance.Target{Addr: s.Addr, Weight: s.Weight, Priority: s.Priority}
}

// hostLookup looks up backends' names, in net's words.
type hostLookup struct{ *resolve.Resolver }

func (l hostLookup) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	return l.Addresses(ctx, host)
}
