package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/address"
	"gateway/internal/handshake"
	"gateway/internal/limit"
	"gateway/internal/pending"
	"gateway/internal/relay"
	"gateway/internal/sys"
)

// The short way in. A loop takes the plain case of a connection from accept to
// answer with as few system calls as there can be: a sealed line or a token in
// any form but HTTP, or a listener that forwards; backends with literal addresses,
// one or several; a cheap key derivation. Whatever is not plain goes the slow
// way, in a goroutine, and comes back through loops.take. Both ways decide by the
// same rules what to do with a client; only the waiting differs.
//
// In the order of a connection's life:
//
//	accept → admit → begin → hear → readRequest → dial → dialing → answer → establish
//	           ↓                         ↓          ↓       ↓
//	       turned away            leave or refuse  refuse  refuse → linger → dismiss

// watchAfter is how long a backend may take to connect before its client is
// watched for a reset. Registering every client twice would cost a system call
// for each, and most backends connect within a round trip.
const watchAfter = 50 * time.Millisecond

// connectRetries is how often a connect is tried again that the kernel
// joined to itself, or for which it wrongly had no local port; net does both.
const connectRetries = 2

// handshakes are the connections of one loop that have no backend yet.
type handshakes struct {
	tunnels
	// slowWay serves an accepted client that has sent received, waiting where
	// need be. It owns the descriptor.
	slowWay    func(fd int, r *rules, s session, received []byte)
	localPorts localPorts
	sockaddr   unix.RawSockaddrAny // scratch

	awaiting int             // clients that have not said all
	waiting  *pending.Budget // of those, and of the refused that linger

	requests deadlines // of clients that have not said all
	dials    deadlines // of backends that are connecting
	watches  deadlines // when to watch a client whose backend still connects
}

// begin gives a connection that has been admitted its slot. It goes on with hear.
func (l *handshakes) begin(fd int, r *rules, s *session) *tunnel {
	l.reactor.Tick()
	t := l.alloc()
	t.state = stateRequest
	t.sockets[clientSide].fd = int32(fd)
	t.rules, t.session = r, *s
	return t
}

// hear goes on with a connection whose client has not said all, if it is to say any.
func (l *handshakes) hear(t *tunnel) {
	s := &t.session
	switch {
	case l.closing:
		l.abandon(t, errShutdown)
	case s.forward != nil && l.ledger.circles.holds(s.client.Addr()):
		l.refuse(t, errForwardLoop)
	case s.asks():
		l.readRequest(t)
	default:
		l.route(t, request{route: *s.forward}, nil)
	}
}

// event deals with an event of a connection that is no tunnel yet.
func (l *handshakes) event(t *tunnel, s *socket, events uint32) {
	switch t.state {
	case stateRequest:
		l.hear(t)
		// A request and a reset may be one event; there will be no other.
		if t.state == stateDial && events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
			l.abandon(t, errClientGone)
		}
	case stateDial:
		l.dialing(t, s, events)
	case stateLinger:
		l.linger(t)
	case stateOpen:
		l.tunnels.event(t, s, events)
	}
}

// requestRead is how much of a request is read at a time, in bytes. Most fit in, and what
// stands behind one is kept for as long as its client proves nothing.
const requestRead = 2048

// readRequest reads until there is a request, or no more to be read for now.
// What has come of it so far is kept in the client's flow.
func (l *handshakes) readRequest(t *tunnel) {
	c, f := &t.sockets[clientSide], &t.flows[clientSide]
	for {
		buf := l.buf[:min(len(l.buf), requestRead)]
		n, err := sys.Recv(c.fd, buf)
		switch {
		case err == unix.EAGAIN:
			l.awaitRequest(t)
			return
		case n <= 0:
			l.refuse(t, t.session.cutShort(f.unsent, err))
			return
		}
		received := buf[:n]
		if len(f.unsent) > 0 {
			f.unsent = append(f.unsent, received...)
			received = f.unsent
		}
		if t.rules.opener.slowKDF() {
			l.leave(t, received)
			return
		}
		// Nothing in it waits: only a slow derivation would.
		req, err := t.rules.request(context.Background(), &t.session, received)
		form := t.session.form
		switch {
		case err == handshake.ErrIncomplete:
			if len(f.unsent) == 0 {
				f.unsent = append([]byte(nil), received...)
			}
			if n < len(buf) && !c.hung {
				l.awaitRequest(t)
				return
			}
			continue
		case err != nil:
			l.refuse(t, err)
		case form == handshake.HTTP || form == handshake.TLS:
			l.leave(t, received)
		default:
			l.route(t, req, received)
		}
		return
	}
}

// awaitRequest waits for the client to say more.
func (l *handshakes) awaitRequest(t *tunnel) {
	c := &t.sockets[clientSide]
	c.readable = false
	if c.watched {
		if t.session.header > 0 {
			t.ticket.Of(t.session.shares()) // which its proxy has told by now
		}
		return
	}
	t.expects(&l.requests, l.reactor.Now)
	if err := l.watch(t, c); err != nil {
		l.abandon(t, errEmpty)
		return
	}
	l.awaiting++
	t.ticket = l.waiting.Admit(t.session.shares(), func() { l.abandon(t, errGaveWay) })
}

// heard says that a client has said all, or is not waited for any more.
func (l *handshakes) heard(t *tunnel) {
	if t.ticket != nil {
		t.ticket.Release()
		t.ticket = nil
		if t.state == stateRequest {
			l.awaiting--
		}
	}
}

// route takes a connection to where its client wants to go. received is all
// that the client has sent so far.
func (l *handshakes) route(t *tunnel, req request, received []byte) {
	l.heard(t)
	if answer := t.rules.known(req.route); answer != nil && isPlain(answer.Backend) && !req.resumable() {
		req.route, t.upstream.label = answer.Backend, answer.Label
	}
	if req.resumable() || !isPlain(req.route) {
		l.leave(t, received)
		return
	}
	// Nor here: only a service would be looked up, and that is not plain.
	if err := t.upstream.choose(context.Background(), t.rules, &t.session, req.route); err != nil {
		l.refuse(t, err)
		return
	}
	t.flows[clientSide].unsent = append([]byte(nil), req.early...)
	l.ledger.asked(&t.session)
	l.dial(t)
}

// isPlain tells whether all backends of a route have literal addresses and
// speak TCP.
func isPlain(r address.Route) bool {
	for i := range r.Len() {
		if a := r.Target(i).Addr; !a.IP.IsValid() || a.Scheme == "kcp" || a.Scheme == "http" {
			return false
		}
	}
	return r.Len() > 0
}

// leave hands a connection over to a goroutine, with what it has sent so far.
func (l *handshakes) leave(t *tunnel, received []byte) {
	l.heard(t)
	c := &t.sockets[clientSide]
	if c.watched {
		l.reactor.Control(unix.EPOLL_CTL_DEL, int(c.fd), nil)
	}
	fd, r, s := int(c.fd), t.rules, t.session
	received = append([]byte(nil), received...)
	c.fd = -1
	l.release(t)
	go l.slowWay(fd, r, s, received)
}

// dial begins to connect the backend.
func (l *handshakes) dial(t *tunnel) {
	l.ledger.dialing(&t.upstream)
	backend := t.upstream.backend
	to := netip.AddrPortFrom(backend.IP, backend.Port)
	err := t.rules.permit(to)
	if err == nil {
		err = t.upstream.sit(&l.ledger.seats, t.rules.maxTunnels)
	}
	if err != nil {
		l.dialFailed(t, err)
		return
	}
	for range 1 + connectRetries {
		// The kernel may report that it has no local port although it has
		// (golang.org/issue/3838).
		if err = l.connect(t); err != unix.EADDRNOTAVAIL {
			break
		}
		l.closeBackend(t)
	}
	if err != nil && err != unix.EINPROGRESS && err != unix.EINTR {
		err = dialOpError(t, os.NewSyscallError("connect", err))
		if mayBeBroadcast(err) {
			err = cmp.Or(t.rules.permitBroadcast(to), err)
		}
		l.dialFailed(t, err)
		return
	}
	t.state = stateDial
	t.expects(&l.dials, l.reactor.Now)
	l.watches.Push(t, l.reactor.Now)
	b := &t.sockets[backendSide]
	b.wantOut = true
	if err := l.watch(t, b); err != nil {
		l.dialFailed(t, dialOpError(t, os.NewSyscallError("epoll_ctl", err)))
	}
}

// connect makes a socket and starts to connect it.
func (l *handshakes) connect(t *tunnel) error {
	addr := t.upstream.backend
	family, size := sys.SetSockaddr(&l.sockaddr, netip.AddrPortFrom(addr.IP, addr.Port))
	fd, err := sys.Socket(family)
	if err != nil {
		return err
	}
	t.sockets[backendSide] = socket{fd: int32(fd)}
	return sys.Connect(fd, &l.sockaddr, size)
}

func (l *handshakes) closeBackend(t *tunnel) {
	if b := &t.sockets[backendSide]; b.fd >= 0 {
		sys.Close(b.fd)
		*b = socket{fd: -1}
	}
}

// dialing deals with an event while the backend connects. Its first edge says
// how that went, without a system call where it went well.
func (l *handshakes) dialing(t *tunnel, s *socket, events uint32) {
	broken := events&(unix.EPOLLERR|unix.EPOLLHUP) != 0
	if s == &t.sockets[clientSide] {
		// A client that only finishes sending still wants the answer.
		if broken {
			l.abandon(t, errClientGone)
		}
		return
	}
	if broken {
		switch err := sys.SocketError(s.fd); err {
		case nil, unix.ECONNRESET, unix.EPIPE:
			// It did connect (a refusal would be ECONNREFUSED), and the backend
			// has broken off since. What it sent before can still be read.
			t.end.Note(relay.Backend, relay.Reset)
		default:
			l.dialFailed(t, dialOpError(t, os.NewSyscallError("connect", err)))
			return
		}
	} else if events&unix.EPOLLOUT == 0 {
		return
	}
	if l.isSelfConnect(t) {
		l.closeBackend(t)
		if t.selfConnects++; t.selfConnects > connectRetries {
			l.dialFailed(t, dialOpError(t, os.NewSyscallError("connect", unix.ECONNREFUSED)))
		} else {
			l.dial(t)
		}
		return
	}
	t.upstream.connected()
	l.ledger.dialed(&t.session, &t.upstream, nil)
	l.answer(t)
	if broken && t.state == stateOpen {
		l.turnDeaf(t) // reading the error has cleared it: no read will tell
		l.move(t)
	}
}

// isSelfConnect tells whether the kernel has joined the socket to itself. It
// does so when nobody listens on a port of this host that it then picks as the
// local one (TCP's simultaneous open, RFC 9293 section 3.5).
func (l *handshakes) isSelfConnect(t *tunnel) bool {
	addr := t.upstream.backend
	if addr.Port < l.localPorts.first(l.reactor.Now) {
		return false
	}
	fd := t.sockets[backendSide].fd
	if sys.Getsockname(fd, &l.sockaddr) != nil {
		return false
	}
	own := sys.AddrPort(&l.sockaddr)
	if own.Port() != addr.Port {
		return false
	}
	return sys.Getpeername(fd, &l.sockaddr) == nil && sys.AddrPort(&l.sockaddr) == own
}

// localPorts tells which local ports the kernel may pick by itself. An
// administrator may change that at any time, so it is read again now and then;
// it only spares a system call for each connection.
type localPorts struct {
	least  uint16
	readAt int64 // of the reactor's clock; 0: never
}

// localPortsAge is how old what is known of local ports may be, in nanoseconds.
const localPortsAge = 10e6

// first returns the start of the range (ip(7), ip_local_port_range).
func (p *localPorts) first(now int64) uint16 {
	if p.readAt == 0 || now-p.readAt >= localPortsAge {
		var last uint16
		text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
		if err == nil {
			_, err = fmt.Sscan(string(text), &p.least, &last)
		}
		if err != nil {
			p.least = 1 // any may be one
		}
		p.readAt = max(now, 1)
	}
	return p.least
}

// answer says 200 and opens the tunnel.
func (l *handshakes) answer(t *tunnel) {
	c := &t.sockets[clientSide]
	if reply := t.session.form.Reply(handshake.OK); len(reply) > 0 {
		// So few bytes into an empty send buffer are taken whole or not at all.
		if _, err := sys.Send(c.fd, reply); err != nil {
			l.abandon(t, errClientGone)
			return
		}
	}
	early := t.flows[clientSide].unsent
	if t.rules.sendProxy != 0 {
		var local netip.AddrPort
		if sys.Getsockname(c.fd, &l.sockaddr) == nil {
			local = sys.AddrPort(&l.sockaddr)
		}
		early = l.ledger.announce(t.rules.sendProxy, &t.session, &t.upstream, local, early)
	}
	l.ledger.opened(&t.session, &t.upstream)
	l.establish(t, early)
}

// dialFailed goes on to the next backend, tries again, or refuses the client.
func (l *handshakes) dialFailed(t *tunnel, err error) {
	l.closeBackend(t)
	why := dialFailure(err)
	l.ledger.dialed(&t.session, &t.upstream, why)
	if !t.upstream.retry(&t.session, why) {
		l.refuse(t, why)
		return
	}
	t.selfConnects = 0
	l.dial(t)
}

// cut ends a connection from outside.
func (l *handshakes) cut(t *tunnel, how relay.How) {
	switch {
	case t.state == stateFree, t.state == stateFrozen: // see thaw
	case t.state == stateOpen:
		l.tunnels.cut(t, how)
	case how == relay.Shutdown:
		l.abandon(t, errShutdown)
	default:
		l.abandon(t, errInternal)
	}
}

// dialOpError puts the error of a dial into the form of net's.
func dialOpError(t *tunnel, err error) error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: tcpAddr(t.upstream.backend), Err: err}
}

func tcpAddr(a address.Address) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.IP, a.Port))
}

// refuse answers with the status of an error, accounts for it, and lets the
// client read it; see Gateway.refuse.
func (l *handshakes) refuse(t *tunnel, err error) {
	l.heard(t)
	if limitOf(err) != limit.None {
		l.turnAway(t, err)
		return
	}
	status := statusOf(err)
	l.ledger.refused(&t.session, &t.upstream, status, err)
	c := &t.sockets[clientSide]
	t.flows[clientSide].unsent = nil
	reply := t.session.form.Reply(status)
	if len(reply) == 0 {
		l.dismiss(t)
		return
	}
	if _, err := sys.Send(c.fd, reply); err != nil {
		l.dismiss(t)
		return
	}
	sys.ShutdownWrite(c.fd)
	t.state = stateLinger
	t.expects(&l.lingers, l.reactor.Now)
	if !c.watched {
		if err := l.watch(t, c); err != nil {
			l.dismiss(t)
			return
		}
	}
	l.linger(t)
	if t.state == stateLinger {
		// It has been answered, and would else take a place for as long as it likes.
		t.ticket = l.waiting.Admit(t.session.shares(), func() { l.dismiss(t) })
	}
}

// turnAway resets a client that a limit does not let in.
func (l *handshakes) turnAway(t *tunnel, err error) {
	l.ledger.turnedAway(&t.session, err)
	sys.ResetOnClose(t.sockets[clientSide].fd)
	l.dismiss(t)
}

// linger reads what a refused client still had under way.
func (l *handshakes) linger(t *tunnel) {
	f := &t.flows[clientSide]
	for f.moved < lingerBytes {
		n, err := sys.Recv(t.sockets[clientSide].fd, l.buf)
		if err == unix.EAGAIN {
			return
		}
		if n <= 0 {
			break
		}
		f.moved += int64(n)
	}
	l.dismiss(t)
}

// abandon ends a connection without an answer: there is nobody to read it.
func (l *handshakes) abandon(t *tunnel, err error) {
	l.heard(t)
	if t.state != stateLinger { // that one has its account
		l.ledger.refused(&t.session, &t.upstream, "", err)
	}
	if b := &t.sockets[backendSide]; b.fd >= 0 {
		sys.ResetOnClose(b.fd)
	}
	l.dismiss(t)
}

// dismiss closes a connection that is accounted for and never was a tunnel.
func (l *handshakes) dismiss(t *tunnel) {
	l.heard(t)
	s, u := t.session, t.upstream
	l.release(t)
	l.ledger.done(&s, &u)
}
