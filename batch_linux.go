package main

import (
	"errors"

	"golang.org/x/sys/unix"

	"gateway/internal/layer"
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
// client would reach another. What keeps this from happening is that the five
// steps of a batch do not mix, and that a tunnel ends only where nothing is queued:
//
//	collect    takes events; no handler runs
//	receive    queues and submits; it sees numbers, and no tunnels
//	transform  has layers make of what came what is sent; nothing is queued
//	send       queues and submits
//	settle     notes what came of it, moves on, and ends tunnels; nothing is queued
//
// A batch comes before all other events of its wait, before the inbox, bulk and
// deadlines. Nothing of it is left when they have their turn.

// batch relays messages of one loop. It is taken up where it was after a panic,
// which costs the tunnel whose turn it was.
type batch struct {
	ring    *uring.Ring // nil: none, or no more
	entries [batchSize]entry
	kept    [batchSize][]byte // what a layer has made that its slot has no room for
	n       int               // how many there are
	at      phase             // which step is at work, or was when a panic came
	made    int               // entries that transform has looked at
	noted   int               // entries of which settle has noted what came of them
	gone    int               // entries with which settle has gone on
	looked  int               // events of this wait that collect has looked at
	err     error
}

// phase is a step of a batch that has been collected.
type phase uint8

const (
	receiving phase = iota
	transforming
	sending
	settling
)

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

	room    int8        // before what is received, in the slot
	told    bool        // the client knew before that nothing more comes
	state   layer.State // what the layer has learned of the client
	goOn    bool        // there is more to do than to note
	at, out int32       // of what is sent: where it begins, and how much it is
	layer   *layered    // on the client's socket; nil: none

	received, sent   int
	recvErr, sendErr error
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
	if b.n > 0 {
		b.goOn(l) // with what a panic has left
	}
	for b.ring != nil && b.collect(&l.table, events) {
		b.receive(l.slotSize)
		b.goOn(l)
	}
}

// goOn does what is left to do for a batch behind its receive.
func (b *batch) goOn(l *tunnels) {
	switch b.at {
	case transforming:
		b.transform(l)
		b.send()
	case receiving, sending: // and a panic came
		b.err = errors.New("a bug")
		for i := range b.entries[:b.n] {
			b.entries[i].received, b.entries[i].recvErr = 0, uring.ErrUnknown
		}
	}
	b.settle(l)
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
			src: t.sockets[from].fd, dst: t.sockets[1-from].fd, layer: t.layer}
		if t.layer != nil && from == backendSide {
			b.entries[n].room = layer.Headroom
		}
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
	b.n, b.at = n, receiving
	return true
}

// plain tells whether a message from one end of t can be relayed by just reading
// it and writing it.
func (t *tunnel) plain(from int) bool {
	f, other := &t.flows[from], &t.flows[1-from]
	src, dst := &t.sockets[from], &t.sockets[1-from]
	return t.state == stateOpen && (t.layer == nil || t.layer.talks()) && !t.broken && !t.deaf && !t.queued &&
		!src.hung && !dst.hung && dst.writable && !f.large &&
		!f.bulk && !f.ended && !f.done && !f.holds() &&
		!other.bulk && !other.ended && !other.done && !other.holds()
}

// talks tells whether there is nothing but messages to relay.
func (l *layered) talks() bool {
	if l.roams != nil {
		return l.roams.session.Flows(uring.SlotSize)
	}
	return !l.finished && !l.Finished() && !l.Due()
}

// receive receives all messages of the batch. Nothing is queued when it returns.
func (b *batch) receive(size int) {
	entries := b.entries[:b.n]
	for i := range entries {
		e := &entries[i]
		b.ring.RecvAt(e.src, i, int(e.room), size-int(e.room))
	}
	b.err = b.ring.Submit()
	for i := range entries {
		e := &entries[i]
		e.received, e.recvErr = b.ring.Result(i)
		e.out = int32(e.received)
	}
	b.at = transforming
}

// transform has layers make of what was received what is to be sent.
func (b *batch) transform(l *tunnels) {
	for b.made < b.n {
		i := b.made
		b.made++
		if e := &b.entries[i]; e.layer != nil && e.received > 0 && e.holds() {
			l.current = e.t
			if kept := e.transform(b.ring.Slot(i)); kept != nil {
				b.kept[i] = kept
			}
		}
	}
	l.current = nil
	b.at = sending
}

// send sends it, but for tunnels that transform has lost. Nothing is queued any more
// when it returns.
func (b *batch) send() {
	entries := b.entries[:b.n]
	for i := range entries {
		switch e := &entries[i]; {
		case e.layer != nil && !e.holds():
			e.out = 0
		case e.out == 0:
		case b.err != nil:
			e.sendErr = uring.ErrNotMade
		default:
			b.ring.SendAt(e.dst, i, int(e.at), int(e.out))
		}
	}
	if b.err == nil {
		b.err = b.ring.Submit()
		for i := range entries {
			if e := &entries[i]; e.out > 0 {
				e.sent, e.sendErr = b.ring.Result(i)
			}
		}
	}
	b.at = settling
}

// transform has the layer make of what was received what is to be sent, in its slot. What
// that has no room for goes by pump: it is returned.
func (e *entry) transform(slot []byte) (kept []byte) {
	var made []byte
	switch {
	case e.from == clientSide:
		e.told = e.layer.Finished()
		made, e.state = e.layer.In(slot[:e.received])
		e.layer.finished = e.state.Over()
	case e.layer.finished: // since this batch: it is dropped
	default:
		made = e.layer.Out(slot[:int(e.room)+e.received])
		if e.layer.roams == nil {
			e.layer.owed += int32(len(made) - e.received)
		}
	}
	e.at, e.out = 0, int32(len(made))
	at := cap(slot) - cap(made)
	switch {
	case len(made) == 0:
	case at >= 0 && &made[0] == &slot[:cap(slot)][at]: // it was made there
		e.at = int32(at)
	case len(made) <= cap(slot):
		copy(slot[:cap(slot)], made)
	default:
		e.out = 0
		return append([]byte(nil), made...)
	}
	return nil
}

// settle notes what came of each message, of all of them before it goes on with
// any: a tunnel may have two, and to go on with one moves both directions.
func (b *batch) settle(l *tunnels) {
	for b.noted < b.n {
		i := b.noted
		b.noted++
		if e := &b.entries[i]; e.holds() {
			l.current = e.t
			e.note(l, b.ring, i)
			if b.kept[i] != nil && !(e.from == clientSide && e.t.deaf) {
				e.t.flows[e.from].unsent, e.goOn = b.kept[i], true
			}
			if e.t.roams() {
				e.noteRoaming(l)
			}
		}
		if b.kept[i] != nil {
			b.kept[i] = nil
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
	b.n, b.made, b.noted, b.gone = 0, 0, 0, 0
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
		switch {
		case e.recvErr == uring.ErrUnknown || e.recvErr == uring.ErrNotMade:
		case from == clientSide && t.roams():
			l.roamCut(t, e.recvErr)
		case e.layer != nil && from == clientSide:
			l.layerCut(t, f, src, 0, e.recvErr)
		default:
			l.sourceEnded(t, f, src, 0, e.recvErr)
		}
		return
	}
	if f.large = e.received >= l.slotSize-int(e.room); f.large {
		l.goOn(t) // there is more to read, for which other messages do not wait
	} else {
		src.readable = src.hung
	}
	if from == backendSide && t.roams() {
		l.countOut(t, e.received)
	} else if e.layer != nil && from == backendSide {
		l.movedOut(t, f, e.sent)
	} else {
		if from == backendSide && f.moved == 0 && e.sent > 0 {
			l.firstByte(t)
		}
		f.moved += int64(e.sent)
		if e.out > 0 { // not for a ping alone
			t.movedAt = l.reactor.Now
		}
		l.copied[from] += int64(e.sent)
	}
	if e.layer != nil && (e.state != layer.Open || e.layer.Due()) {
		e.goOn = true
	}
	if e.sendErr == nil && e.sent == int(e.out) {
		return
	}
	e.goOn = true
	switch {
	case e.sendErr == uring.ErrNotMade: // there may be room
	case e.sendErr != nil && e.sendErr != unix.EAGAIN && e.sendErr != unix.EINTR &&
		from == backendSide && e.layer != nil && e.layer.Finished():
		return // since then it wants no more, and need not be there; see writeOut
	case e.sendErr == nil || l.noRoom(t, f, dst, e.sendErr):
		l.awaitRoom(t, dst)
	}
	if !t.broken && !(from == clientSide && t.deaf) {
		f.unsent = append([]byte(nil), ring.Slot(slot)[int(e.at)+e.sent:e.at+e.out]...)
	}
}

// noteRoaming is note for what only the session of a resumable tunnel has to know.
func (e *entry) noteRoaming(l *tunnels) {
	if l.passed(e.t); !e.layer.roams.session.Flows(0) {
		e.goOn = true
	}
	if e.from == backendSide && e.t.broken && e.received > 0 {
		l.roamLost(e.t, e.sendErr)
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
	if e.state != layer.Open {
		l.say(e.t)
		l.layerEnded(e.t, e.state, e.told)
	}
	l.move(e.t)
}
