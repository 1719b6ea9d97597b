package main

import (
	"math"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/handover"
	"gateway/internal/relay"
	"gateway/internal/sockopt"
	"gateway/internal/sys"
)

// tunnels are the connections of one loop that have a backend: from the moment
// that bytes flow to their account. A descriptor belongs to the loop as long as
// it is in a tunnel, and the loop closes it; net's runtime poller never knows of
// it.
type tunnels struct {
	table
	mover
	ledger   *ledger
	bounds   relay.Bounds
	liveness sockopt.Liveness
	closing  bool // what begins now is cut

	sweepDue  int64
	sweepAt   int // next slot of the table
	sweepable int // tunnels that the sweep has something to do for
}

// adopt takes a tunnel that was connected elsewhere, and owns its descriptors.
// early is what the client has already sent for the backend.
func (l *tunnels) adopt(s *session, u *upstream, cfd, bfd int, early []byte) {
	t := l.alloc()
	l.current = t
	t.session, t.upstream = *s, *u
	t.sockets[clientSide].fd, t.sockets[backendSide].fd = int32(cfd), int32(bfd)
	t.state = stateOpen
	if l.closing {
		l.cut(t, relay.Shutdown)
		return
	}
	t.sockets[backendSide].wantOut = true
	if err := l.watch(t, &t.sockets[backendSide]); err != nil {
		l.cut(t, relay.Failure)
		return
	}
	l.establish(t, early)
}

// establish begins to relay: the backend is registered, the client may be.
func (l *tunnels) establish(t *tunnel, early []byte) {
	t.state, t.deadline = stateOpen, 0
	c := &t.sockets[clientSide]
	c.writable = true
	t.sockets[backendSide].writable = true
	if !c.watched {
		if err := l.watch(t, c); err != nil {
			l.cut(t, relay.Failure)
			return
		}
	}
	t.flows[clientSide].unsent = early
	t.rest.Begin(0, l.reactor.now)
	t.openedAt, t.movedAt = l.reactor.now, l.reactor.now
	if l.bounds.Idle > 0 || !t.keepalive {
		l.sweepFor(t)
	}
	l.move(t)
}

// event deals with an event of an open tunnel.
func (l *tunnels) event(t *tunnel, s *socket, events uint32) {
	broken := events&unix.EPOLLERR != 0
	l.bulkTurn = broken // what came before a reset is delivered before it
	l.move(t)
	l.bulkTurn = false
	if broken && t.state == stateOpen {
		l.broken(t, s)
	}
}

// moveBulk goes on with bulk, in portions, so that messages wait for one portion
// and not for all the bulk there is. What comes to todo now waits too.
func (l *tunnels) moveBulk() {
	l.spent, l.bulkTurn = 0, true
	for n := len(l.todo); n > 0 && l.spent < bulkBytes; n-- {
		t := l.todo[0]
		l.todo = l.todo[1:]
		t.queued = false
		if l.current = t; t.state == stateOpen {
			l.move(t)
		}
	}
	l.bulkTurn = false
}

// move pumps both directions of an open tunnel and ends it when both are done.
func (l *tunnels) move(t *tunnel) {
	wasDeaf := t.deaf
	l.pump(t, clientSide)
	l.pump(t, backendSide)
	if t.deaf != wasDeaf {
		l.pump(t, clientSide)
	}
	switch {
	case t.broken:
		l.reset(t)
	case t.flows[clientSide].done && t.flows[backendSide].done:
		l.finish(t)
	case t.halfClosed():
		l.sweepFor(t)
	}
}

// broken deals with a reset that move did not come across: it cannot read on
// before somebody takes what it holds.
func (l *tunnels) broken(t *tunnel, s *socket) {
	how := relay.Reset
	if err := sys.SocketError(s.fd); err != nil {
		how = relay.HowOf(err)
	}
	if s == &t.sockets[clientSide] {
		// What it sent before is out as far as the backend takes it.
		t.end.Note(relay.Client, how)
		l.reset(t)
		return
	}
	// What it sent before can still be read.
	t.end.Note(relay.Backend, how)
	l.turnDeaf(t)
	l.move(t)
}

// finish accounts for a tunnel and releases it.
func (l *tunnels) finish(t *tunnel) {
	s, u := t.session, t.upstream
	end := relay.End{Up: t.flows[clientSide].moved, Down: t.flows[backendSide].moved, Ending: t.end, Limit: t.end.LimitOf(t.halfClosed())}
	l.release(t)
	l.publish()
	defer l.ledger.done(&s, &u) // nothing, unless the account fails
	l.ledger.ended(&s, &u, end)
}

// reset ends a tunnel with a reset to the backend.
func (l *tunnels) reset(t *tunnel) {
	sys.ResetOnClose(t.sockets[backendSide].fd)
	l.finish(t)
}

// cut ends a tunnel from outside.
func (l *tunnels) cut(t *tunnel, how relay.How) {
	t.end.Note(relay.Gateway, how)
	if t.flows[clientSide].holds() {
		l.reset(t) // a FIN would call what the backend got complete
	} else {
		l.finish(t)
	}
}

// release closes a connection's descriptors and gives up its slot. Closing ends
// the registration with epoll, since nobody else has the same open file: net's
// copies are closed before loops.take hands over, and leave takes the socket
// out of epoll before net gets it.
func (l *tunnels) release(t *tunnel) {
	for i := range t.sockets {
		if fd := t.sockets[i].fd; fd >= 0 {
			sys.Close(fd)
		}
		l.releasePipe(&t.flows[i])
	}
	if t.swept {
		l.sweepable--
	}
	l.put(t)
}

// pulse tells what can be seen of an open tunnel.
func (l *tunnels) pulse(t *tunnel) relay.Pulse {
	return relay.Pulse{
		Up:         t.flows[clientSide].moved,
		Down:       t.flows[backendSide].moved,
		Idle:       time.Duration(l.reactor.now - t.movedAt),
		HalfClosed: t.halfClosed(),
	}
}

// sweepSlices is how many sweeps look at the whole table once: a table of
// 100,000 tunnels at one go would make all of them wait.
const sweepSlices = 8

// sweepFor has t looked at by the sweep from now on.
func (l *tunnels) sweepFor(t *tunnel) {
	if t.swept {
		return
	}
	t.swept = true
	if l.sweepable++; l.sweepable == 1 {
		l.reactor.tick()
		l.sweepDue = l.reactor.now + l.bounds.SweepPeriod().Nanoseconds()/sweepSlices
	}
	t.rest.Begin(t.progress(), l.reactor.now)
}

// sweep looks at the next slice of the table.
func (l *tunnels) sweep() {
	l.sweepDue = l.reactor.now + l.bounds.SweepPeriod().Nanoseconds()/sweepSlices
	for range (len(l.slots) + sweepSlices - 1) / sweepSlices {
		if l.sweepAt >= len(l.slots) {
			l.sweepAt = 0
		}
		t := l.slots[l.sweepAt]
		l.sweepAt++
		if t.state == stateOpen && t.swept {
			l.current = t
			l.sweepOne(t)
		}
	}
}

// sweepOne cuts a tunnel that rests for too long. It also sets the options
// that find a peer gone: a connection that lives for less than a sweep does
// without, and costs some system calls less. Clients inherit most of them from
// their listener, but not TCP_USER_TIMEOUT, and nothing if they were in the
// queue of a listener that was made elsewhere.
func (l *tunnels) sweepOne(t *tunnel) {
	if !t.keepalive {
		t.keepalive = true
		unix.SetsockoptInt(int(t.sockets[clientSide].fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		l.liveness.Set(int(t.sockets[clientSide].fd))
		l.liveness.Set(int(t.sockets[backendSide].fd))
	}
	half := t.halfClosed()
	if l.bounds.Of(half) == 0 {
		t.swept = false // until it is half-closed
		l.sweepable--
		return
	}
	progress := t.progress()
	if t.deaf && t.flows[backendSide].done {
		// All was written, and the client is to acknowledge it.
		unacked, err := unix.IoctlGetInt(int(t.sockets[clientSide].fd), unix.SIOCOUTQ)
		if err == nil && unacked == 0 {
			l.finish(t) // whoever ended it is noted already
			return
		}
		progress -= int64(unacked)
	}
	if t.rest.TooLong(l.bounds, progress, half, l.reactor.now) {
		l.cut(t, relay.Timeout)
	}
}

// How live tunnels go from the loops of one process to those of the next. A tunnel
// is frozen, sent away with its sockets, and forgotten once the other process has
// said that it has it; or else it goes on here:
//
//	open → yield → frozen → depart
//	  ↑                ↓
//	  ←──── resume ←───
//
// Between two portions loops go on with their work. The other process adopts a
// tunnel as it was. What had been an edge while nobody watched makes one again when
// the sockets are registered: epoll looks at them then.

// What a parcel holds at most: as much as keeps nobody waiting for a millisecond.
const (
	parcelTunnels     = 64
	parcelDescriptors = handover.MaxDescriptors - 6 // what one tunnel may have
	parcelPipes       = 8
	parcelBytes       = 256 << 10
	parcelSlots       = 512 // that are looked at
)

// parcel is frozen tunnels of one loop.
type parcel struct {
	tunnels     []*tunnel
	states      []handover.Tunnel
	descriptors int
	bytes       int
}

func (p *parcel) full() bool {
	return len(p.tunnels) >= parcelTunnels || p.descriptors > parcelDescriptors || p.bytes >= parcelBytes ||
		p.descriptors-2*len(p.tunnels) >= 2*parcelPipes
}

func (p *parcel) add(t *tunnel, h handover.Tunnel) {
	p.tunnels, p.states = append(p.tunnels, t), append(p.states, h)
	p.descriptors += h.Descriptors()
	p.bytes += len(h.Up.Unsent) + len(h.Down.Unsent)
}

// yield fills p with open tunnels of slots from one on, and returns the slot to go on
// with; more says whether there is one.
func (l *tunnels) yield(p *parcel, slot int) (next int, more bool) {
	l.reactor.tick()
	end := min(slot+parcelSlots, len(l.slots))
	for ; slot < end && !p.full(); slot++ {
		t := l.slots[slot]
		if t.state != stateOpen || t.broken {
			continue
		}
		l.current = t
		h := t.describe(l.reactor.now)
		l.freeze(t)
		p.add(t, h)
	}
	l.current = nil
	return slot, slot < len(l.slots)
}

// freeze has nothing done for a tunnel until resume or depart. Its registrations go:
// the other process has the same open files, and as long as these are not closed,
// events would come here.
func (l *tunnels) freeze(t *tunnel) {
	t.state = stateFrozen
	for i := range t.sockets {
		if s := &t.sockets[i]; s.watched {
			s.watched = false
			sys.EpollCtl(l.reactor.epfd, unix.EPOLL_CTL_DEL, s.fd, nil)
		}
	}
}

// resume goes on with tunnels that stay.
func (l *tunnels) resume(p *parcel) {
	for len(p.tunnels) > 0 {
		l.current = p.tunnels[0]
		p.tunnels = p.tunnels[1:]
		l.thaw(l.current)
	}
	l.current = nil
}

// thaw goes on with a tunnel as if every edge there is had come. Those that there
// will be come by themselves, since the sockets are registered first.
func (l *tunnels) thaw(t *tunnel) {
	t.state = stateOpen
	if l.closing {
		l.cut(t, relay.Shutdown)
		return
	}
	for i := range t.sockets {
		s := &t.sockets[i]
		s.readable, s.writable = true, true
		if err := l.watch(t, s); err != nil {
			l.cut(t, relay.Failure)
			return
		}
	}
	l.move(t)
}

// depart forgets tunnels that are another process's. Closing tells the peers
// nothing: the other process has the same sockets.
func (l *tunnels) depart(p *parcel) {
	for len(p.tunnels) > 0 {
		t := p.tunnels[0]
		p.tunnels = p.tunnels[1:]
		s, u := t.session, t.upstream
		l.release(t)
		l.ledger.departed(&s, &u)
	}
}

// adoptLive goes on with a tunnel of another process, which has been counted in, and
// owns its descriptors.
func (l *tunnels) adoptLive(h *handover.Tunnel, r *rules) {
	l.reactor.tick()
	t := l.alloc()
	l.current = t
	t.restore(h, r, &l.pipes, l.reactor.now)
	l.ledger.adopted(&t.session, &t.upstream, h.Listener)
	if r.maxTunnels > 0 {
		t.upstream.sit(&l.ledger.seats, math.MaxInt)
	}
	if l.bounds.Idle > 0 || !t.keepalive || t.halfClosed() {
		l.sweepFor(t)
	}
	t.rest.Resume(t.progress(), t.halfClosed(), h.Rest, l.reactor.now)
	l.thaw(t)
	if t.state == stateOpen && t.swept {
		l.sweepOne(t) // what is due is due, however often it moves
	}
	l.current = nil
}

// Two gateways that forward to each other by mistake pass a client on and on,
// until one of them is full. Then the last connection stands in the queue of a
// listener that does not accept, and nothing ever ends; or the client leaves, and
// its end never catches up with a beginning that runs before it. Where PROXY
// headers of version 2 go with connections, hops are counted (maxHops). Else a
// circle shows by this: a gateway is full of tunnels that it forwards, that come
// from the host to which they lead, and through which never a byte came back.

const (
	// circleShare is the part of a loop's connections that have to look like a
	// circle before they are taken for one: one in so many. A backend's own host
	// may be a client too, and some wait for an answer at any time.
	circleShare = 4
	// circleTime is how long a host is then suspected.
	circleTime = time.Minute
)

// circles remember the last circle that was broken. The zero value knows of none.
// Its methods may be called from any thread.
type circles struct{ last atomic.Pointer[circle] }

type circle struct {
	host  netip.Addr // that passes connections back to this gateway
	until time.Time
}

// holds tells whether a client that is to be forwarded is part of a circle.
func (c *circles) holds(client netip.Addr) bool {
	last := c.last.Load()
	return last != nil && last.host == client && time.Now().Before(last.until)
}

// breakUp ends the tunnels of a circle, if a loop has one. It is for a gateway that
// is full, and for the loop's own thread. What it resets here comes apart
// everywhere, and what is passed on meanwhile is refused.
func (c *circles) breakUp(l *tunnels) {
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
	c.last.Store(&circle{host, time.Now().Add(circleTime)})
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
