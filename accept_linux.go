package main

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/listen"
	"gateway/internal/relay"
	"gateway/internal/sockopt"
	"gateway/internal/sys"
)

// How the loops accept: from one socket, all of them, and only as many
// connections as there are descriptors for.

// crew are the loops as those that accept see them.
type crew struct {
	all []*acceptor

	// EPOLLEXCLUSIVE wakes one loop for a connection, not all. Kernels before
	// 4.5, and some that only look like Linux, refuse it.
	exclusive uint32
	inclusive sync.Once // to tell of that
}

// idlest returns the loop with the fewest connections.
func (c *crew) idlest() *acceptor {
	best := c.all[0]
	for _, a := range c.all[1:] {
		if a.load.Load() < best.load.Load() {
			best = a
		}
	}
	return best
}

// acceptor is a loop's part in accepting.
type acceptor struct {
	handshakes
	crew            *crew
	newcomers       newcomers
	listeners       []*sharedListener
	pausedListeners int
}

// sharedListener is one loop's view of a listening socket that all loops accept
// from.
type sharedListener struct {
	fd       int // -1: no more
	entrance *entrance
	rules    func() *rules // for the next client
	paused   bool          // out of descriptors, or full
	full     bool          // as many connections as there may be: that is why
	resumeAt int64
	pace     listen.Backoff
}

// fullPause is the longest pause of accepting where there are as many connections as
// there may be, in nanoseconds. One that ends in the same loop ends it at once.
const fullPause = 50e6

// An event of a listener has listenerEvent in its Fd field, and the index of the
// listener in Pad.
const listenerEvent = -2

// listen has the loop accept from fd. The registration is level-triggered: one accept for
// each event shares a storm among the loops.
func (l *acceptor) listen(fd int, by *entrance, rules func() *rules) {
	sl := &sharedListener{fd: fd, entrance: by, rules: rules}
	l.listeners = append(l.listeners, sl)
	l.registerListener(len(l.listeners) - 1)
}

func (l *acceptor) registerListener(i int) {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | l.crew.exclusive, Fd: listenerEvent, Pad: int32(i)}
	err := l.reactor.Control(unix.EPOLL_CTL_ADD, l.listeners[i].fd, &ev)
	if err == unix.EINVAL && l.crew.exclusive != 0 {
		l.crew.inclusive.Do(func() {
			l.log.Warn("no EPOLLEXCLUSIVE here: every loop wakes for every connection", "err", err)
		})
		ev.Events = unix.EPOLLIN
		err = l.reactor.Control(unix.EPOLL_CTL_ADD, l.listeners[i].fd, &ev)
	}
	if err != nil {
		l.pause(l.listeners[i], err)
	}
}

// unlisten accepts what stands in the queue, since closing the listener would
// reset it, and then no more. Another process may have the listener too. The
// registration goes first: the kernel wakes one who waits for a connection, and has
// this loop been the one, then nobody else knows of what it does not take.
func (l *acceptor) unlisten(fd int) {
	l.reactor.Tick()
	l.reactor.Control(unix.EPOLL_CTL_DEL, fd, nil)
	for _, sl := range l.listeners {
		if sl.fd != fd {
			continue
		}
		if sl.paused {
			sl.paused = false
			l.pausedListeners--
		}
		listen.DrainQueue(func() bool { return l.accept(sl) })
		if sl.paused {
			sl.paused = false
			l.pausedListeners--
		}
		sl.fd = -1
	}
}

// pause stops accepting for a while: out of descriptors most of the time.
func (l *acceptor) pause(sl *sharedListener, err error) {
	l.breakCircle()
	delay := sl.pace.Next()
	l.ledger.warnCannotAccept(err, delay)
	l.reactor.Control(unix.EPOLL_CTL_DEL, sl.fd, nil)
	if !sl.paused {
		l.pausedListeners++
	}
	sl.full = false
	sl.paused, sl.resumeAt = true, l.reactor.Now+delay.Nanoseconds()
}

func (l *acceptor) resumeListeners() {
	for i, sl := range l.listeners {
		if sl.paused && (l.reactor.Now >= sl.resumeAt || sl.full && !l.ledger.fullAt(sl.entrance)) {
			sl.paused = false
			l.pausedListeners--
			l.registerListener(i)
		}
	}
}

// accept takes one connection. It reports whether there may be another.
func (l *acceptor) accept(sl *sharedListener) bool {
	if sl.fd < 0 {
		return false // an event of before unlisten
	}
	err := l.ledger.reserve(sl.entrance)
	if err != nil {
		l.ledger.makeRoom(l.waiting)
		err = l.ledger.reserve(sl.entrance)
	}
	if err != nil {
		l.reactor.Tick()
		l.pause(sl, err)
		sl.full, sl.resumeAt = true, min(sl.resumeAt, l.reactor.Now+fullPause)
		return false
	}
	fd, err := sys.Accept(sl.fd, &l.sockaddr)
	if err != nil {
		l.ledger.unreserve(sl.entrance)
	}
	switch err {
	case nil:
	case unix.EAGAIN: // another loop was quicker
		return false
	case unix.EINTR, unix.ECONNABORTED:
		return true
	default:
		l.reactor.Tick()
		l.pause(sl, err)
		return false
	}
	sl.pace.Reset()
	l.ledger.begin()
	l.admit(fd, sl.rules(), sys.AddrPort(&l.sockaddr), sl.entrance)
	return true
}

// admit gives a connection that has been accepted to a loop, or resets it where a limit
// does not let its client in: before there is a slot for it, or another thread wakes.
func (l *acceptor) admit(fd int, r *rules, peer netip.AddrPort, by *entrance) {
	s := r.arrival(peer, by.forward)
	l.ledger.arrived(&s, by)
	if err := l.ledger.admit(&s); err != nil {
		l.ledger.turnedAway(&s, err)
		sys.ResetOnClose(int32(fd))
		l.drop(fd, &s)
		return
	}
	l.place(fd, r, &s)
}

// drop closes a connection that no loop has.
func (l *acceptor) drop(fd int, s *session) {
	sys.Close(int32(fd))
	l.ledger.done(s, &upstream{})
}

// Tunnels that are established come first. What else a loop has to do waits until
// their messages have been relayed, and then gets a share of the turn; what is left
// waits for the next. So a flood of connects, or of requests that have to be opened,
// costs a message no more than that share.

// newcomerShare is how long a turn deals with clients that have proven nothing, one of
// them at least.
const newcomerShare = 100 * time.Microsecond

// newcomers are what a loop has put off: listeners of this turn, of which epoll tells
// again, and events of clients, of which it does not.
type newcomers struct {
	knocked []int32 // listeners
	events  []unix.EpollEvent
	head    int // of events: those before it have been dealt with
}

func (n *newcomers) empty() bool { return n.head == len(n.events) }

// knock puts off a connection that can be accepted.
func (n *newcomers) knock(listener int32) { n.knocked = append(n.knocked, listener) }

// putOff puts off an event of a client that has proven nothing, once: another one of the
// same client adds to it.
func (n *newcomers) putOff(t *tunnel, ev *unix.EpollEvent) {
	if t.later == 0 {
		n.events = append(n.events, *ev)
	}
	t.later |= ev.Events
}

// next returns the event that waits the longest.
func (n *newcomers) next() unix.EpollEvent {
	ev := n.events[n.head]
	if n.head++; n.head == len(n.events) || n.head >= 1024 {
		n.events, n.head = n.events[:copy(n.events, n.events[n.head:])], 0
	}
	return ev
}

// serveNewcomers gives newcomers their share of a turn.
func (l *acceptor) serveNewcomers() {
	n := &l.newcomers
	for len(n.knocked) > 0 {
		last := len(n.knocked) - 1
		i := n.knocked[last]
		n.knocked = n.knocked[:last]
		l.accept(l.listeners[i])
		l.current = nil
	}
	if n.empty() {
		return
	}
	for end := time.Now().Add(newcomerShare); ; {
		ev := n.next()
		if t, s := l.of(&ev); t != nil && t.later != 0 {
			events := t.later
			t.later = 0
			l.current = t
			s.noteEvents(events)
			l.event(t, s, events)
			l.current = nil
		}
		if n.empty() || !time.Now().Before(end) {
			return
		}
	}
}

// place gives a connection to the loop with the fewest, unless this one has
// hardly more.
func (l *acceptor) place(fd int, r *rules, s *session) {
	to := l.crew.idlest()
	if least := to.load.Load(); l.load.Load() <= least+least/8 {
		to = l
	}
	to.load.Add(1)
	if to == l {
		l.welcome(fd, r, s)
	} else if away := *s; !to.reactor.Post(func() { to.welcome(fd, r, &away) }) {
		l.drop(fd, s)
	}
}

// welcome begins a connection as one of the newcomers, whatever loop has accepted it.
func (l *acceptor) welcome(fd int, r *rules, s *session) {
	t := l.begin(fd, r, s)
	ev := eventOf(t, clientSide, unix.EPOLLIN)
	l.newcomers.putOff(t, &ev)
}

// dupConn is dup for what is a socket.
func dupConn(c net.Conn) (int, error) {
	switch c := c.(type) {
	case *net.TCPConn:
		return sockopt.Dup(c)
	case *net.UnixConn: // see loops.pair
		return sockopt.Dup(c)
	}
	return -1, errors.ErrUnsupported
}

// maxIdlePipes bounds the pipes that wait for their next use: half of what
// pipe-user-pages-soft lets an unprivileged user have by default.
const maxIdlePipes = 32

// Two gateways that forward to each other by mistake pass a client on and on,
// until one of them is full. Then the last connection stands in the queue of a
// listener that does not accept, and nothing ever ends; or the client leaves, and
// its end never catches up with a beginning that runs before it. Where PROXY
// headers of version 2 go with connections, hops are counted (maxHops). Else a
// circle shows by this: a gateway is full of tunnels that it forwards, that come
// from the host to which they lead, and through which never a byte came back.

// circleShare is the part of a loop's connections that have to look like a
// circle before they are taken for one: one in so many. A backend's own host
// may be a client too, and some wait for an answer at any time.
const circleShare = 4

// breakCircle ends the tunnels of a circle, if the loop has one. It is for a gateway that
// is full. What it resets here comes apart
// everywhere, and what is passed on meanwhile is refused.
func (l *acceptor) breakCircle() {
	var found []*tunnel
	var host netip.Addr
	for _, t := range l.slots {
		if from, ok := isCircular(t); ok {
			found, host = append(found, t), from
		}
	}
	if len(found) == 0 || len(found) < int(l.load.Load())/circleShare {
		return
	}
	l.ledger.circles.broken(host)
	l.log.Warn("full of tunnels that end nowhere, cutting them: does the backend forward to this gateway?",
		"tunnels", len(found), "backend", found[0].upstream.backend.String())
	for _, t := range found {
		l.current = t
		t.end.Note(relay.Gateway, relay.Failure)
		l.reset(t)
	}
	l.current = nil
}

// isCircular tells whether a tunnel looks like a part of a circle, and which host
// it comes from and leads to.
func isCircular(t *tunnel) (host netip.Addr, ok bool) {
	down := &t.flows[backendSide]
	if t.state != stateOpen || t.session.forward == nil || down.moved > 0 || down.holds() {
		return host, false
	}
	var from, to unix.RawSockaddrAny
	if sys.Getpeername(t.sockets[clientSide].fd, &from) != nil || sys.Getpeername(t.sockets[backendSide].fd, &to) != nil {
		return host, false
	}
	host = sys.AddrPort(&from).Addr()
	return host, host == sys.AddrPort(&to).Addr()
}
