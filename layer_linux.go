package main

import (
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/layer"
	"gateway/internal/relay"
	"gateway/internal/sys"
)

// How the bytes of a tunnel move whose client speaks through a layer on its socket: TLS,
// a WebSocket, or one inside the other. The layer is a pure transform (layer.Transform);
// here it gets its bytes, its time, and its way out. Who knows how a plain tunnel moves
// (splice_linux.go) has to learn only what is different:
//
//   - What is read is transformed in the loop's own memory, and then sent. Nothing is
//     spliced.
//   - The layer has something to say by itself. It waits until nothing else is on its
//     way to the client, so that it never comes into the middle of a frame.
//   - The client's end is what the layer says it is, and the socket's may be its
//     failure. A client of a WebSocket that has finished wants nothing more.
//   - Behind the layer's last words the socket is read to its end, for a short while:
//     closed with something unread it would be reset, and the words be lost.

// layerPatience is how long a client has to answer when it is told that nothing more
// comes; and how long what a backend sends to a client that has finished is dropped
// before the backend is told, in nanoseconds.
const layerPatience = int64(5 * time.Second)

// layerSay is how many bytes a layer has to say at a time, most of the time.
const layerSay = 320

// pumpLayer moves what can be moved, both ways.
func (m *mover) pumpLayer(t *tunnel) {
	m.pumpIn(t)
	m.pumpOut(t)
	m.say(t)
	m.hangUp(t)
}

// hangUp ends the connection of a client that has finished and has been told so, however
// long its backend stays: it waits for that before it closes (RFC 6455 section 7.1.1).
func (m *mover) hangUp(t *tunnel) {
	l, down := t.layer, &t.flows[backendSide]
	if !l.finished || l.hungUp || l.HalfCloses() || t.roams() || t.broken || down.done || down.holds() || l.Due() {
		return
	}
	if l.Leave(); l.Due() {
		m.say(t)
	}
	if l.hungUp = !down.holds(); l.hungUp { // else once there is room
		sys.ShutdownWrite(t.sockets[clientSide].fd)
	}
}

// pumpIn is pump from the client.
func (m *mover) pumpIn(t *tunnel) {
	f, src, dst := &t.flows[clientSide], &t.sockets[clientSide], &t.sockets[backendSide]
	for budget := turnBytes; !f.done && !t.broken; {
		if f.bulk && !m.bulkTurn {
			m.goOn(t)
			return
		}
		if f.holds() && !m.flush(t, f, dst) {
			return
		}
		if f.ended {
			f.done = true
			if !t.flows[backendSide].done {
				sys.ShutdownWrite(dst.fd)
			}
			return
		}
		if !src.readable {
			return
		}
		if budget <= 0 {
			m.goOn(t)
			return
		}
		buf := m.layerBuffer(f)
		n, err := sys.Recv(src.fd, buf)
		if n <= 0 {
			m.layerCut(t, f, src, n, err)
			continue
		}
		m.layerRead(f, src, n, len(buf))
		budget -= max(n, leastCost)
		budget -= m.takeBulkIn(t, f, buf[:n])
	}
}

// takeBulkIn is takeIn. It returns what that cost beyond its bytes, which count for a
// nanosecond each: a client that has its keys changed with every one of them can have a
// layer work for a hundred times as long. For a message no clock is read.
func (m *mover) takeBulkIn(t *tunnel, f *flow, b []byte) (extra int) {
	if !f.bulk {
		m.takeIn(t, b)
		return 0
	}
	began := m.reactor.Age()
	m.takeIn(t, b)
	extra = max(0, int(m.reactor.Age()-began)-max(len(b), leastCost))
	f.dear = extra > 4*len(b)
	m.spent += extra
	return extra
}

// takeIn deals with bytes of the client's socket.
func (m *mover) takeIn(t *tunnel, b []byte) {
	f := &t.flows[clientSide]
	told := t.layer.Finished()
	out, state := t.layer.In(b)
	if len(out) > 0 && !t.deaf {
		if sent := m.write(t, f, &t.sockets[backendSide], out); sent >= 0 && sent < len(out) {
			f.unsent = append([]byte(nil), out[sent:]...)
		}
	}
	t.layer.finished = state.Over()
	if t.layer.Due() {
		m.say(t)
	}
	if state != layer.Open {
		m.layerEnded(t, state, told)
	}
}

// layerCut deals with a read that brought nothing.
func (m *mover) layerCut(t *tunnel, f *flow, src *socket, n int, err error) {
	switch err {
	case unix.EAGAIN:
		src.readable = false
		return
	case unix.EINTR:
		return
	}
	src.readable = false
	state := t.layer.Cut(err != nil)
	if state == layer.Failed && err != nil {
		t.end.Note(relay.Client, relay.HowOf(err))
	}
	m.layerEnded(t, state, t.layer.Finished())
}

// layerEnded deals with a client that has ended. told says that it was told before
// that nothing more comes: then its own end is one, however it says so.
func (m *mover) layerEnded(t *tunnel, state layer.State, told bool) {
	f := &t.flows[clientSide]
	t.layer.finished = state.Over()
	switch {
	case state == layer.HalfClosed, state == layer.Finished, state == layer.Wrong && told:
		t.end.Note(relay.Client, relay.FIN)
		f.ended = true
		if t.deaf {
			f.unsent, f.done = nil, true
		}
		return
	case state == layer.Failed:
		t.end.Note(relay.Client, relay.Reset)
	default:
		t.end.Note(relay.Client, relay.Failure)
	}
	t.broken = true
}

// pumpOut is pump from the backend.
func (m *mover) pumpOut(t *tunnel) {
	f, src, dst := &t.flows[backendSide], &t.sockets[backendSide], &t.sockets[clientSide]
	for budget := turnBytes; !f.done && !t.broken; {
		if f.bulk && !m.bulkTurn {
			m.goOn(t)
			return
		}
		if f.holds() && !m.flushOut(t, f, dst) {
			return
		}
		if f.ended {
			t.layer.Finish(t.deaf)
			m.say(t)
			if f.holds() {
				return
			}
			f.done = true
			switch {
			case !t.layer.HalfCloses():
				t.layer.by = m.reactor.Now + layerPatience
			case t.deaf: // and nothing was said
				sys.ShutdownWrite(dst.fd)
			}
			return
		}
		if !src.readable {
			return
		}
		if budget <= 0 {
			m.goOn(t)
			return
		}
		buf := m.layerBuffer(f)
		n, err := sys.Recv(src.fd, buf[layer.Headroom:])
		if n <= 0 {
			m.sourceEnded(t, f, src, n, err)
			continue
		}
		m.layerRead(f, src, layer.Headroom+n, len(buf))
		budget -= max(n, leastCost)
		if t.layer.finished || t.layer.Finished() {
			m.drop(t)
			continue
		}
		wire := t.layer.Out(buf[:layer.Headroom+n])
		t.layer.owed += int32(len(wire) - n)
		if sent := m.writeOut(t, f, dst, wire); sent >= 0 && sent < len(wire) {
			f.unsent = append([]byte(nil), wire[sent:]...)
		}
	}
}

// layerMost is how much is read at a time while there is much, in bytes, and of a
// backend that is what is made one message of, headroom included. Several records of TLS
// are then one write; and as much may be held for who does not read.
const layerMost = 1<<16 - 1

// layerBuffer returns what to read into. A read that fills the loop's buffer is what
// starts a long run, as with a plain tunnel.
func (m *mover) layerBuffer(f *flow) []byte {
	if !f.bulk || f.dear {
		return m.buf[:min(m.bufferSize, layerMost)]
	}
	if m.wide == nil {
		m.wide = make([]byte, layerMost)
	}
	return m.wide
}

// layerRead notes that a read brought n bytes, of most.
func (m *mover) layerRead(f *flow, src *socket, n, most int) {
	f.large = n >= m.slotSize
	if f.bulk = n >= min(m.bufferSize, layerMost); f.bulk {
		m.spent += max(n, leastCost)
	}
	if n < most {
		src.readable = src.hung
	}
}

// drop takes what is for a client that has finished: the backend is not reset while it
// reads to the end itself. Nobody gets it, so it does not count as moved.
func (m *mover) drop(t *tunnel) {
	switch {
	case t.layer.by == 0:
		t.layer.by = m.reactor.Now + layerPatience
	case m.reactor.Now >= t.layer.by:
		t.end.Note(relay.Client, relay.Reset)
		t.broken = true
		return
	}
	t.movedAt = m.reactor.Now
}

// flushOut sends what is held for the client. It reports whether everything is out.
func (m *mover) flushOut(t *tunnel, f *flow, dst *socket) bool {
	if !dst.writable {
		return false
	}
	n := len(f.unsent)
	sent := m.writeOut(t, f, dst, f.unsent)
	if sent < 0 {
		return false
	}
	if f.unsent = f.unsent[sent:]; sent < n {
		return false
	}
	f.unsent = nil
	return true
}

// writeOut is write to the client: of what is taken, the layer's own bytes do not count.
func (m *mover) writeOut(t *tunnel, f *flow, dst *socket, b []byte) int {
	n, err := sys.Send(dst.fd, b)
	if err != nil {
		if t.layer.finished && err != unix.EAGAIN && err != unix.EINTR {
			return len(b) // it wants no more, and need not be there
		}
		if !m.noRoom(t, f, dst, err) {
			return -1
		}
		n = 0
	}
	m.movedOut(t, f, n)
	if n < len(b) {
		m.awaitRoom(t, dst)
	}
	return n
}

// movedOut accounts for n bytes that the client's kernel has taken.
func (m *mover) movedOut(t *tunnel, f *flow, n int) {
	owed := min(t.layer.owed, int32(n))
	t.layer.owed -= owed
	if n -= int(owed); n > 0 {
		if f.moved == 0 {
			m.firstByte(t)
		}
		f.moved += int64(n)
		t.movedAt = m.reactor.Now
		m.copied[backendSide] += int64(n)
	}
}

// say sends what the layer has to say by itself, if nothing else is on its way.
func (m *mover) say(t *tunnel) {
	f, dst := &t.flows[backendSide], &t.sockets[clientSide]
	if f.holds() || t.broken || !t.layer.Due() {
		return
	}
	var room [layerSay]byte
	b := t.layer.Back(room[:0])
	t.layer.owed += int32(len(b))
	if sent := m.writeOut(t, f, dst, b); sent >= 0 && sent < len(b) {
		f.unsent = append([]byte(nil), b[sent:]...)
	}
}

// lastWords sends what the layer has to say at the end of its tunnel, and reports
// whether the client is worth the wait until it has read that.
func (m *mover) lastWords(t *tunnel) (worth bool) {
	f, dst := &t.flows[backendSide], &t.sockets[clientSide]
	if t.layer.HalfCloses() || dst.fd < 0 {
		return false
	}
	if t.layer.Leave(); t.layer.Due() {
		if f.holds() {
			return false // into the middle of a frame
		}
		if b := t.layer.Back(nil); len(b) > 0 {
			if n, err := sys.Send(dst.fd, b); err != nil || n < len(b) {
				return false
			}
		}
	}
	if t.end.By == relay.Client && t.end.How == relay.Timeout {
		return false
	}
	sys.ShutdownWrite(dst.fd)
	return true
}

// lookAfter is for the sweep: it gives up who has been waited for long enough, or does
// not answer. every is how often a layer looks, 0 for never.
func (m *mover) lookAfter(t *tunnel, every int64) {
	if t.roams() {
		t.layer.roams.session.Trim() // the kernel finds out who is gone
		return
	}
	up, down := &t.flows[clientSide], &t.flows[backendSide]
	if l := t.layer; l.by != 0 && m.reactor.Now >= l.by && down.done && !up.ended && !up.done {
		m.layerEnded(t, layer.Finished, true)
	}
	if every == 0 || m.reactor.Now < t.layer.lookAt {
		return
	}
	t.layer.lookAt = m.reactor.Now + every
	waits := !up.holds() && !up.ended && !up.done
	if !t.layer.Look(waits, down.holds()) {
		t.end.Note(relay.Client, relay.Timeout)
		t.broken = true
		return
	}
	m.say(t)
}
