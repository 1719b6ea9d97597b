package main

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/layer"
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
	look     int64     // how often layers look after their clients, in nanoseconds; 0: never
	lingers  deadlines // of clients that read what is the last they are told
	room     layer.Room
	closing  bool // what begins now is cut

	sweepDue  int64
	sweepAt   int // next slot of the table
	sweepable int // tunnels that the sweep has something to do for
}

// adopt takes a tunnel that was connected elsewhere, and owns its descriptors.
func (l *tunnels) adopt(s *session, u *upstream, cfd, bfd int, b beginning) {
	t := l.alloc()
	l.current = t
	t.session, t.upstream = *s, *u
	t.sockets[clientSide].fd, t.sockets[backendSide].fd = int32(cfd), int32(bfd)
	t.state = stateOpen
	t.flows[backendSide].moved = b.sent
	l.copied[backendSide] += b.sent
	if b.layer != nil {
		t.layer = &layered{Transform: b.layer, lookAt: l.reactor.Now + l.look}
		if s, ok := b.layer.(layer.Sharer); ok {
			s.Share(&l.room)
			if b.state == layer.Open {
				var held []byte
				held, b.state = b.layer.In(nil)
				b.early = append(b.early, held...)
			}
		}
	}
	if b.resumable != nil {
		b.resumable.Carrier().(*carrier).roam(t, b.resumable, b.resumable.Session(), b.frames)
	}
	if l.closing {
		l.cut(t, relay.Shutdown)
		return
	}
	t.sockets[backendSide].wantOut = true
	if err := l.watch(t, &t.sockets[backendSide]); err != nil {
		l.cut(t, relay.Failure)
		return
	}
	if b.state != layer.Open {
		if b.state.Over() && len(b.early) > 0 { // it comes before the end, whichever that is
			if sent := l.write(t, &t.flows[clientSide], &t.sockets[backendSide], b.early); sent < 0 {
				b.early = nil
			} else {
				b.early = b.early[sent:]
			}
		}
		l.say(t)
		l.layerEnded(t, b.state, false)
	}
	l.establish(t, b.early)
}

// carrier returns how the owner of a resumable tunnel will reach it in this loop.
func (l *tunnels) carrier() *carrier { return &carrier{loop: l, m: &l.mover} }

// turn is for roamers.
func (l *tunnels) turn(t *tunnel) { l.current = t }

// resumed is for roamers.
func (l *tunnels) resumed(t *tunnel) {
	l.sweepFor(t)
	l.move(t)
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
	l.reactor.Tick() // once in a tunnel's life
	t.rest.Begin(0, l.reactor.Now)
	t.openedAt, t.movedAt = l.reactor.Now, l.reactor.Now
	if l.bounds.Idle > 0 || !t.keepalive || t.layer != nil {
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
	if t.roams() {
		switch over, reset := l.pumpRoaming(t); {
		case reset:
			l.reset(t)
		case over:
			l.finish(t)
		case t.halfClosed():
			l.sweepFor(t)
		}
		return
	}
	wasDeaf := t.deaf
	if t.layer != nil {
		if l.pumpLayer(t); t.deaf != wasDeaf {
			l.pumpLayer(t)
		}
	} else {
		l.pump(t, clientSide)
		l.pump(t, backendSide)
		if t.deaf != wasDeaf {
			l.pump(t, clientSide)
		}
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
	if s == &t.sockets[clientSide] && t.roams() {
		l.roamBroken(t)
		l.move(t)
		return
	}
	how := relay.Reset
	if err := sys.SocketError(s.fd); err != nil {
		how = relay.HowOf(err)
	}
	if s == &t.sockets[clientSide] {
		if t.layer != nil && t.layer.finished {
			t.flows[backendSide].unsent = nil // it has said so, and wants no more
			l.move(t)
			return
		}
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
	words := t.layer != nil && l.lastWords(t)
	if t.roams() {
		t.layer.roams.over()
	}
	end := relay.End{
		Up: t.flows[clientSide].moved, Down: t.flows[backendSide].moved,
		Ending: t.end, Limit: t.limit(),
		FirstByte: time.Duration(t.firstByte) * time.Millisecond,
		Idle:      time.Duration(l.reactor.Now - t.movedAt),
	}
	if words {
		l.publish()
		s.done = true // not yet: see handshakes.dismiss
		l.awaitReading(t)
		l.ledger.ended(&s, &u, end)
		return
	}
	l.release(t)
	l.publish()
	defer l.ledger.done(&s, &u) // nothing, unless the account fails
	l.ledger.ended(&s, &u, end)
}

// limit returns the limit that a tunnel has come to, if that is its end.
func (t *tunnel) limit() relay.Limit {
	if t.end.How != relay.Timeout || t.end.By == relay.Gateway {
		return t.end.LimitOf(t.halfClosed())
	}
	side := clientSide
	if t.end.By == relay.Backend {
		side = backendSide
	}
	unacked, err := unix.IoctlGetInt(int(t.sockets[side].fd), unix.SIOCOUTQ)
	if err != nil {
		return relay.NoLimit
	}
	return relay.KernelLimit(unacked)
}

// awaitReading leaves the client of a tunnel that has ended the time to read the last
// that it was told.
func (l *tunnels) awaitReading(t *tunnel) {
	b := &t.sockets[backendSide]
	sys.Close(b.fd)
	*b, t.flows, t.layer = socket{fd: -1}, [2]flow{}, nil
	if t.swept {
		t.swept = false
		l.sweepable--
	}
	t.state = stateLinger
	t.expects(&l.lingers, l.reactor.Now)
	// This makes an edge of what is there to be read. Where it fails there is the deadline.
	l.watch(t, &t.sockets[clientSide])
}

// reset ends a tunnel with a reset to the backend.
func (l *tunnels) reset(t *tunnel) {
	sys.ResetOnClose(t.sockets[backendSide].fd)
	l.finish(t)
}

// cut ends a tunnel from outside.
func (l *tunnels) cut(t *tunnel, how relay.How) {
	t.end.Note(relay.Gateway, how)
	if t.flows[clientSide].holds() || t.roams() && t.layer.roams.session.Buffered() > 0 {
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
		Idle:       time.Duration(l.reactor.Now - t.movedAt),
		HalfClosed: t.halfClosed(),
	}
}

// sweepSlices is how many sweeps look at the whole table once: a table of
// 100,000 tunnels at one go would make all of them wait.
const sweepSlices = 8

// sweepPeriod is the time in which a sweep looks at the whole table, in nanoseconds.
func (l *tunnels) sweepPeriod() int64 {
	period := l.bounds.SweepPeriod()
	if l.look > 0 {
		period = min(period, max(time.Duration(l.look)/4, 10*time.Millisecond))
	}
	return period.Nanoseconds()
}

// sweepFor has t looked at by the sweep from now on.
func (l *tunnels) sweepFor(t *tunnel) {
	if t.swept {
		return
	}
	t.swept = true
	if l.sweepable++; l.sweepable == 1 {
		l.reactor.Tick()
		l.sweepDue = l.reactor.Now + l.sweepPeriod()/sweepSlices
	}
	t.rest.Begin(t.progress(), l.reactor.Now)
}

// sweep looks at the next slice of the table.
func (l *tunnels) sweep() {
	l.sweepDue = l.reactor.Now + l.sweepPeriod()/sweepSlices
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
	if t.layer != nil {
		l.lookAfter(t, l.look)
		if l.move(t); t.state != stateOpen {
			return
		}
	}
	half := t.halfClosed()
	if l.bounds.Of(half) == 0 && t.layer == nil {
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
	if t.rest.TooLong(l.bounds, progress, half, l.reactor.Now) {
		l.cut(t, relay.Timeout)
	}
}

// table holds the connections of one loop by their slots. An event names its
// tunnel by slot and generation, not by descriptor: both descriptor and slot may
// have a new owner within the same batch of events, and a stale EPOLLOUT would
// read as "connected". In the Fd field of EpollEvent stands slot<<1|side, in Pad
// the generation.
type table struct {
	slots   []*tunnel
	free    []uint32     // slots that are nobody's
	load    atomic.Int32 // connections that are here or on their way
	current *tunnel      // whose turn it is: a panic is its
}

// of returns the tunnel and the socket that an event is for, or nil if it is for
// a former owner of the slot.
func (tb *table) of(ev *unix.EpollEvent) (*tunnel, *socket) {
	t := tb.slots[ev.Fd>>1]
	if t.generation != uint32(ev.Pad) || t.state == stateFree {
		return nil, nil
	}
	return t, &t.sockets[ev.Fd&1]
}

// alloc returns a fresh tunnel.
func (tb *table) alloc() *tunnel {
	if len(tb.free) == 0 {
		// Grown by slabs: tunnels do not move, and cost one allocation in 64.
		slab := make([]tunnel, 64)
		for i := range slab {
			slab[i].slot = uint32(len(tb.slots))
			slab[i].sockets[clientSide].fd, slab[i].sockets[backendSide].fd = -1, -1
			tb.free = append(tb.free, slab[i].slot)
			tb.slots = append(tb.slots, &slab[i])
		}
	}
	slot := tb.free[len(tb.free)-1]
	tb.free = tb.free[:len(tb.free)-1]
	t := tb.slots[slot]
	t.generation++
	return t
}

// put gives a slot up. Its sockets are closed, and nothing of it is lent.
func (tb *table) put(t *tunnel) {
	*t = tunnel{slot: t.slot, generation: t.generation}
	t.sockets[clientSide].fd, t.sockets[backendSide].fd = -1, -1
	tb.free = append(tb.free, t.slot)
	tb.load.Add(-1)
}

// openFrom calls f for each open tunnel in the next slots from one on, of which it
// looks at most at most, and returns the slot to go on with. f may end the tunnel.
func (tb *table) openFrom(slot, most int, f func(*tunnel)) int {
	end := min(slot+most, len(tb.slots))
	for ; slot < end; slot++ {
		if t := tb.slots[slot]; t.state == stateOpen {
			tb.current = t
			f(t)
		}
	}
	tb.current = nil
	return slot
}

func (tb *table) empty() bool { return len(tb.free) == len(tb.slots) }
