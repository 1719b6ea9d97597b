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
)

// The short way in. A loop takes the plain case of a connection from accept to
// answer with as few system calls as there can be: a sealed line or a token in
// any form but HTTP, or a listener that forwards; backends with literal addresses,
// one or several; a cheap key derivation. Whatever is not plain goes the slow
// way, in a goroutine, and comes back through loops.run. Both ways ask the
// frontend what to do with a client; only the waiting differs.
//
// In the order of a connection's life:
//
//	accept → begin → readRequest → dial → dialing → answer → open (tunnel_linux.go)
//	                      ↓           ↓        ↓
//	             leave or refuse    refuse   refuse → linger → dismiss

// watchAfter is how long a backend may take to connect before its client is
// watched for a reset. Registering every client twice would cost a system call
// for each, and most backends connect within a round trip.
const watchAfter = 50 * time.Millisecond

// connectRetries is how often a connect is tried again that the kernel
// joined to itself, or for which it wrongly had no local port; net does both.
const connectRetries = 2

// begin starts the life of a connection.
func (l *loop) begin(fd int, peer netip.AddrPort, forward *address.Route) {
	l.tick()
	t := l.alloc()
	l.current = t
	t.state = stateRequest
	t.sockets[clientSide].fd = int32(fd)
	t.session = l.front.arrival(peer, forward)
	switch {
	case l.closing:
		l.abandon(t, errShutdown)
	case t.session.asks():
		l.readRequest(t)
	default:
		l.route(t, request{route: *forward}, nil)
	}
	l.current = nil
}

// readRequest reads until there is a request, or no more to be read for now.
// What has come of it so far is kept in the client's flow.
func (l *loop) readRequest(t *tunnel) {
	c, f := &t.sockets[clientSide], &t.flows[clientSide]
	for {
		n, err := sysRead(c.fd, l.buf)
		switch {
		case err == unix.EAGAIN:
			l.awaitRequest(t)
			return
		case n <= 0:
			l.refuse(t, cutShort(&t.session, f.unsent, err))
			return
		}
		received := l.buf[:n]
		if len(f.unsent) > 0 {
			f.unsent = append(f.unsent, received...)
			received = f.unsent
		}
		if l.front.keys.slowKDF() {
			l.leave(t, received)
			return
		}
		// Nothing in it waits: only a slow derivation would.
		req, err := l.front.request(context.Background(), &t.session, received)
		form := t.session.form
		switch {
		case err == errIncomplete:
			if len(f.unsent) == 0 {
				f.unsent = append([]byte(nil), received...)
			}
			if n < len(l.buf) && !c.hung {
				l.awaitRequest(t)
				return
			}
			continue
		case err != nil:
			l.refuse(t, err)
		case form == formHTTP || form == formTLS:
			l.leave(t, received)
		default:
			l.route(t, req, received)
		}
		return
	}
}

// awaitRequest waits for the client to say more.
func (l *loop) awaitRequest(t *tunnel) {
	c := &t.sockets[clientSide]
	c.readable = false
	if c.watched {
		return
	}
	l.requests.set(t, l.now)
	if err := l.watch(t, c); err != nil {
		l.abandon(t, errEmpty)
	}
}

// route takes a connection to where its client wants to go. received is all
// that the client has sent so far.
func (l *loop) route(t *tunnel, req request, received []byte) {
	if !isPlain(req.route) {
		l.leave(t, received)
		return
	}
	// Nor here: only a service would be looked up, and that is not plain.
	if err := l.front.choose(context.Background(), &t.session, req.route); err != nil {
		l.refuse(t, err)
		return
	}
	t.flows[clientSide].unsent = append([]byte(nil), req.early...)
	t.attempts = int16(max(l.group.attempts, req.route.Len()))
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
func (l *loop) leave(t *tunnel, received []byte) {
	c := &t.sockets[clientSide]
	if c.watched {
		unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, int(c.fd), nil)
	}
	fd, s := int(c.fd), t.session
	received = append([]byte(nil), received...)
	c.fd = -1
	l.group.away.Add(1)
	l.release(t)
	go l.group.serveAway(fd, &s, received)
}

// dial begins to connect the backend.
func (l *loop) dial(t *tunnel) {
	backend := t.session.backend
	to := netip.AddrPortFrom(backend.IP, backend.Port)
	err := l.front.permit(to)
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
			err = cmp.Or(l.front.permitBroadcast(to), err)
		}
		l.dialFailed(t, err)
		return
	}
	t.state = stateDial
	l.dials.set(t, l.now)
	l.watches.push(t, l.now)
	b := &t.sockets[backendSide]
	b.wantOut = true
	if err := l.watch(t, b); err != nil {
		l.dialFailed(t, dialOpError(t, os.NewSyscallError("epoll_ctl", err)))
	}
}

// connect makes a socket and starts to connect it.
func (l *loop) connect(t *tunnel) error {
	addr := t.session.backend
	family, size := setSockaddr(&l.sockaddr, netip.AddrPortFrom(addr.IP, addr.Port))
	fd, err := sysSocket(family)
	if err != nil {
		return err
	}
	t.sockets[backendSide] = socket{fd: int32(fd)}
	return sysConnect(fd, &l.sockaddr, size)
}

func (l *loop) closeBackend(t *tunnel) {
	if b := &t.sockets[backendSide]; b.fd >= 0 {
		sysClose(b.fd)
		*b = socket{fd: -1}
	}
}

// dialing deals with an event while the backend connects. Its first edge says
// how that went, without a system call where it went well.
func (l *loop) dialing(t *tunnel, s *socket, events uint32) {
	broken := events&(unix.EPOLLERR|unix.EPOLLHUP) != 0
	if s == &t.sockets[clientSide] {
		// A client that only finishes sending still wants the answer.
		if broken {
			l.abandon(t, errClientGone)
		}
		return
	}
	if broken {
		switch err := socketError(s.fd); err {
		case nil, unix.ECONNRESET, unix.EPIPE:
			// It did connect (a refusal would be ECONNREFUSED), and the backend
			// has broken off since. What it sent before can still be read.
			t.end.note(byBackend, howReset)
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
	t.session.chosen(nil)
	l.answer(t)
	if broken && t.state == stateOpen {
		l.turnDeaf(t) // reading the error has cleared it: no read will tell
		l.move(t)
	}
}

// isSelfConnect tells whether the kernel has joined the socket to itself. It
// does so when nobody listens on a port of this host that it then picks as the
// local one (TCP's simultaneous open, RFC 9293 section 3.5).
func (l *loop) isSelfConnect(t *tunnel) bool {
	addr := t.session.backend
	if addr.Port < l.group.firstLocalPort {
		return false
	}
	fd := t.sockets[backendSide].fd
	if sysName(unix.SYS_GETSOCKNAME, fd, &l.sockaddr) != nil {
		return false
	}
	own := addrPortOf(&l.sockaddr)
	if own.Port() != addr.Port {
		return false
	}
	return sysName(unix.SYS_GETPEERNAME, fd, &l.sockaddr) == nil && addrPortOf(&l.sockaddr) == own
}

// firstLocalPort returns the start of the range from which the kernel picks
// local ports (ip(7), ip_local_port_range).
func firstLocalPort() uint16 {
	var first, last uint16
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(string(text), &first, &last)
	}
	if err != nil {
		return 1 // any may be one
	}
	return first
}

// answer says 200 and opens the tunnel.
func (l *loop) answer(t *tunnel) {
	c := &t.sockets[clientSide]
	if reply := t.session.form.reply(statusOK); len(reply) > 0 {
		// So few bytes into an empty send buffer are taken whole or not at all.
		if _, err := sysWrite(c.fd, reply); err != nil {
			l.abandon(t, errClientGone)
			return
		}
	}
	early := t.flows[clientSide].unsent
	if l.front.sendProxy != 0 {
		var local netip.AddrPort
		if sysName(unix.SYS_GETSOCKNAME, c.fd, &l.sockaddr) == nil {
			local = addrPortOf(&l.sockaddr)
		}
		early = l.front.announce(&t.session, local, early)
	}
	l.open(t, early)
}

// dialFailed goes on to the next backend, tries again, or refuses the client.
func (l *loop) dialFailed(t *tunnel, err error) {
	l.closeBackend(t)
	failure := classify(err)
	t.session.chosen(failure)
	t.attempts--
	if t.attempts > 0 && (l.front.chooseNext(&t.session) || isTimeout(err) && l.front.chooseAgain(&t.session)) {
		t.selfConnects = 0
		l.dial(t)
		return
	}
	l.refuse(t, failure)
}

// dialOpError puts the error of a dial into the form of net's.
func dialOpError(t *tunnel, err error) error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: tcpAddr(t.session.backend), Err: err}
}

func tcpAddr(a address.Address) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.IP, a.Port))
}

// refuse answers with the status of an error, accounts for it, and lets the
// client read it; see Gateway.refuse.
func (l *loop) refuse(t *tunnel, err error) {
	status := statusOf(err)
	l.front.accountRefused(&t.session, status, err)
	c := &t.sockets[clientSide]
	t.flows[clientSide].unsent = nil
	reply := t.session.form.reply(status)
	if len(reply) == 0 {
		l.dismiss(t)
		return
	}
	if _, err := sysWrite(c.fd, reply); err != nil {
		l.dismiss(t)
		return
	}
	sysShutdownWrite(c.fd)
	t.state = stateLinger
	l.lingers.set(t, l.now)
	if !c.watched {
		if err := l.watch(t, c); err != nil {
			l.dismiss(t)
			return
		}
	}
	l.linger(t)
}

// linger reads what a refused client still had under way.
func (l *loop) linger(t *tunnel) {
	f := &t.flows[clientSide]
	for f.moved < lingerBytes {
		n, err := sysRead(t.sockets[clientSide].fd, l.buf)
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
func (l *loop) abandon(t *tunnel, err error) {
	if t.state != stateLinger { // that one has its account
		l.front.accountRefused(&t.session, "", err)
	}
	if b := &t.sockets[backendSide]; b.fd >= 0 {
		unix.SetsockoptLinger(int(b.fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	l.dismiss(t)
}

// dismiss closes a connection that is accounted for and never was a tunnel.
func (l *loop) dismiss(t *tunnel) {
	s := t.session
	l.release(t)
	l.front.finish(&s)
}
