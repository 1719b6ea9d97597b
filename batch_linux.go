package main

import (
	"errors"

	"golang.org/x/sys/unix"

	"gateway/internal/relay"
	"gateway/internal/sys"
	"gateway/internal/uring"
)

// Messages in batches. Entering the kernel is a large part of what a message
// costs. So of all the events that one wait returns those that announce a plain
// message are taken out first, and their messages relayed together: one system
// call receives all, another sends all. What is not plain goes by pump, and so
// does everything where there is no ring.
//
// An entry of a ring names a socket by its descriptor. Were that closed before
// the entry is made, the next accept could get its number, and the bytes of one
// client would reach another. What keeps this from happening is that the three
// steps of a batch do not mix, and that only the last knows how to close:
//
//	collect   takes events; nothing is queued, and no handler runs
//	exchange  queues and submits, both times; it sees numbers, no tunnels
//	settle    notes what came of it, moves on, and ends tunnels; nothing is queued
//
// A batch comes before all other events of its wait, before the inbox, bulk and
// deadlines. Nothing of it is left when they have their turn.

// batch relays messages of one loop. It is taken up where it was after a panic,
// which costs the tunnel whose turn it was.
type batch struct {
	ring       *uring.Ring // nil: none, or no more
	entries    [batchSize]entry
	n          int  // how many there are
	exchanging bool // true in settle: a panic has ended the exchange
	noted      int  // entries of which settle has noted what came of them
	gone       int  // entries with which settle has gone on
	looked     int  // events of this wait that collect has looked at
	err        error
}

// batchSize is how many messages are relayed by two system calls. More save
// next to nothing, and for as long as these calls take the collector waits.
const batchSize = 64

// entry is a message: one direction of a tunnel, which has only one in a batch.
// Its bytes are in the slot of its number.
type entry struct {
	t          *tunnel
	generation uint32
	from       int8
	src, dst   int32 // descriptors

	received, sent   int
	recvErr, sendErr error
	goOn             bool // there is more to do than to note
}

// takenEvent stands in the Fd field of an event that a batch has taken.
const takenEvent = -3

// open makes the ring, on the loop's thread. Without one a batch takes nothing.
func (b *batch) open() (err error) {
	b.ring, err = uring.New(batchSize)
	return err
}

// close gives the ring up.
func (b *batch) close() {
	if b.ring != nil {
		b.ring.Close()
		b.ring = nil
	}
}

// relay relays the messages that events announce, and takes those events.
func (b *batch) relay(l *tunnels, events []unix.EpollEvent) {
	b.settle(l) // what a panic has left
	for b.ring != nil && b.collect(&l.table, events) {
		b.exchange(l.slotSize)
		b.settle(l)
	}
}

// collect takes the next events that announce plain messages. It reports false
// if there are not two: one message alone is no dearer by pump.
func (b *batch) collect(tb *table, events []unix.EpollEvent) bool {
	var taken [batchSize]*unix.EpollEvent
	n := 0
	for ; b.looked < len(events) && n < batchSize; b.looked++ {
		ev := &events[b.looked]
		// A backend is registered for EPOLLOUT, and then each of its events
		// says that it takes something, too.
		if ev.Fd < 0 || ev.Events&^unix.EPOLLOUT != unix.EPOLLIN {
			continue
		}
		t, _ := tb.of(ev)
		if t == nil || !t.plain(int(ev.Fd&1)) {
			continue
		}
		// A wait returns each socket once, so no direction is in here twice.
		from := int(ev.Fd & 1)
		b.entries[n] = entry{t: t, generation: t.generation, from: int8(from),
			src: t.sockets[from].fd, dst: t.sockets[1-from].fd}
		taken[n] = ev
		n++
	}
	if n < 2 {
		return false
	}
	for _, ev := range taken[:n] {
		_, s := tb.of(ev)
		s.noteEvents(ev.Events)
		ev.Fd = takenEvent
	}
	b.n = n
	return true
}

// plain tells whether a message from one end of t can be relayed by just reading
// it and writing it.
func (t *tunnel) plain(from int) bool {
	f, other := &t.flows[from], &t.flows[1-from]
	src, dst := &t.sockets[from], &t.sockets[1-from]
	return t.state == stateOpen && !t.broken && !t.deaf && !t.queued &&
		!src.hung && !dst.hung && dst.writable && !f.large &&
		!f.bulk && !f.ended && !f.done && !f.holds() &&
		!other.bulk && !other.ended && !other.done && !other.holds()
}

// exchange receives all messages of the batch and sends them on. Nothing is
// queued any more when it returns.
func (b *batch) exchange(size int) {
	b.exchanging = true
	entries := b.entries[:b.n]
	for i := range entries {
		b.ring.Recv(entries[i].src, i, size)
	}
	b.err = b.ring.Submit()
	for i := range entries {
		e := &entries[i]
		e.received, e.recvErr = b.ring.Result(i)
		if e.received > 0 && b.err == nil {
			b.ring.Send(e.dst, i, e.received)
		}
	}
	if b.err != nil { // nothing is sent
		for i := range entries {
			entries[i].sendErr = uring.ErrNotMade
		}
	} else {
		b.err = b.ring.Submit()
		for i := range entries {
			if e := &entries[i]; e.received > 0 {
				e.sent, e.sendErr = b.ring.Result(i)
			}
		}
	}
	b.exchanging = false
}

// settle notes what came of each message, of all of them before it goes on with
// any: a tunnel may have two, and to go on with one moves both directions.
func (b *batch) settle(l *tunnels) {
	if b.exchanging {
		b.exchanging = false
		b.err = errors.New("a bug")
		for i := range b.entries[:b.n] {
			b.entries[i].received, b.entries[i].recvErr = 0, uring.ErrUnknown
		}
	}
	for b.noted < b.n {
		i := b.noted
		b.noted++
		if e := &b.entries[i]; e.holds() {
			l.current = e.t
			e.note(l, b.ring, i)
		}
	}
	for b.gone < b.n {
		e := &b.entries[b.gone]
		b.gone++
		if e.goOn && e.holds() {
			l.current = e.t
			e.moveOn(l)
		}
	}
	l.current = nil
	b.n, b.noted, b.gone = 0, 0, 0
	if b.err != nil {
		l.log.Warn("io_uring fails: messages cost more from now on", "err", b.err)
		b.err = nil
		b.close()
	}
}

// holds tells whether the tunnel is still the one that it was.
func (e *entry) holds() bool {
	return e.t.generation == e.generation && e.t.state == stateOpen
}

// note brings the state of a tunnel to what copy would have left. Nothing is
// read, written or closed.
func (e *entry) note(l *tunnels, ring *uring.Ring, slot int) {
	t, from := e.t, int(e.from)
	f, src, dst := &t.flows[from], &t.sockets[from], &t.sockets[1-from]
	if e.received <= 0 {
		e.goOn = true
		if e.recvErr != uring.ErrUnknown && e.recvErr != uring.ErrNotMade {
			l.sourceEnded(t, f, src, 0, e.recvErr)
		}
		return
	}
	if f.large = e.received >= l.slotSize; f.large {
		l.goOn(t) // there is more to read, for which other messages do not wait
	} else {
		src.readable = src.hung
	}
	if from == backendSide && f.moved == 0 && e.sent > 0 {
		l.firstByte(t)
	}
	f.moved += int64(e.sent)
	t.movedAt = l.reactor.now
	l.copied[from] += int64(e.sent)
	if e.sendErr == nil && e.sent == e.received {
		return
	}
	e.goOn = true
	switch {
	case e.sendErr == uring.ErrNotMade: // there may be room
	case e.sendErr == nil || l.noRoom(t, f, dst, e.sendErr):
		l.awaitRoom(t, dst)
	}
	if !t.broken && !(from == clientSide && t.deaf) {
		f.unsent = append([]byte(nil), ring.Slot(slot)[e.sent:e.received]...)
	}
}

// moveOn does what is left to do for a tunnel, which may be to end it.
func (e *entry) moveOn(l *tunnels) {
	if e.recvErr == uring.ErrUnknown {
		sys.ResetOnClose(e.src) // what it sent may be incomplete
		sys.ResetOnClose(e.dst)
		l.cut(e.t, relay.Failure)
		return
	}
	l.move(e.t)
}
