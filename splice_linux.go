package main

import "golang.org/x/sys/unix"

// How the bytes of a tunnel move. Everything here runs in the tunnel's loop
// and never waits.
//
// What is known of a socket between two events:
//
//   - readable: a read may return something. It is cleared by EAGAIN, and by a
//     short read: the queue was empty then, and whatever comes later makes an
//     edge of its own (epoll is edge-triggered). That spares a read for each
//     message.
//   - hung: FIN, reset or error was reported. Such an event may have been one
//     with the data before it and no further edge will come, so from here on a
//     short read proves nothing: reads go on until 0 or an error.
//   - writable: a write may take something. It is cleared by EAGAIN or a short
//     write; room makes an edge.
//
// Why nothing is lost at each return of pump: either the source is not
// readable, and its next edge calls pump; or bytes are held for a receiver
// that is not writable, and its next edge calls pump; or the budget is used up,
// or it is not the turn of bulk, and the tunnel stands in the loop's list of those
// to go on with; or the direction is done.

// The two sockets of a tunnel, and its two directions by their source.
const (
	clientSide  = 0 // from here it goes up
	backendSide = 1 // from here it goes down
)

// socket is one of the two of a tunnel.
type socket struct {
	fd       int32
	readable bool
	hung     bool
	writable bool
	watched  bool // registered with epoll
	wantOut  bool // … with EPOLLOUT
}

// flow is one direction of a tunnel.
type flow struct {
	moved  int64  // bytes that the receiver's kernel has taken
	unsent []byte // read, but not taken yet; nil most of the time
	pipe   *pipe  // borrowed while bytes are in it
	inPipe int32  // how many
	bulk   bool   // the last piece was large: splice the next, if possible
	ended  bool   // the source has finished; FIN goes out behind what is held
	done   bool   // FIN is out, or the receiver is gone
}

func (f *flow) holds() bool { return f.inPipe > 0 || len(f.unsent) > 0 }

// What one direction moves before the others have their turn, and what all
// bulk together does before messages have theirs: about a millisecond's worth.
const (
	turnBytes = 1 << 20
	bulkBytes = 4 << 20
	// leastCost is what a piece counts for at least: a small -buffer makes
	// system calls, not bytes, what others wait for.
	leastCost = 4 << 10
)

// pump moves what can be moved from one end of t to the other.
//
// A message is cheapest through the loop's buffer: one read, one write. Once a
// read fills the buffer, more is probably waiting, and splice(2) moves it from
// socket to socket through a pipe without a copy in user space. When the
// pieces get small again, copying takes over. SPLICE_F_MORE is never set: it
// corks the receiving socket, and a small reply would wait 200 ms for the next
// one (golang/go#10948).
func (l *loop) pump(t *tunnel, from int) {
	f, src, dst := &t.flows[from], &t.sockets[from], &t.sockets[1-from]
	for budget := turnBytes; !f.done && t.state == stateOpen; {
		if f.bulk && !l.bulkTurn {
			l.goOn(t)
			return
		}
		if f.holds() && !l.flush(t, f, dst) {
			return
		}
		if f.ended {
			f.done = true
			if !t.flows[1-from].done { // else both sockets are closed next
				sysShutdownWrite(dst.fd)
			}
			return
		}
		if !src.readable {
			return
		}
		if budget <= 0 {
			l.goOn(t)
			return
		}
		switch {
		case from == clientSide && t.deaf:
			budget -= l.discard(t, src)
		case f.bulk && l.spliceable:
			budget -= l.splice(t, f, src, dst)
		default:
			budget -= l.copy(t, f, src, dst)
		}
	}
}

// copy moves one message. Only what the receiver does not take at once is
// kept, in memory of its own.
func (l *loop) copy(t *tunnel, f *flow, src, dst *socket) int {
	buf := l.buf[:l.bufferSize]
	n, err := sysRead(src.fd, buf)
	if n <= 0 {
		l.sourceEnded(t, f, src, n, err)
		return 0
	}
	if f.bulk = n == len(buf); f.bulk {
		l.spent += max(n, leastCost)
	} else {
		src.readable = src.hung
	}
	if m := l.write(t, f, dst, buf[:n]); m >= 0 && m < n {
		f.unsent = append([]byte(nil), buf[m:n]...)
	}
	return max(n, leastCost)
}

// write returns how many bytes were taken, or -1 if the receiver is gone.
func (l *loop) write(t *tunnel, f *flow, dst *socket, b []byte) int {
	n, err := sysWrite(dst.fd, b)
	if err != nil {
		if !l.noRoom(t, f, dst, err) {
			return -1
		}
		n = 0
	}
	f.moved += int64(n)
	l.copied += int64(n)
	if n < len(b) {
		l.awaitRoom(t, dst)
	}
	return n
}

// flush sends what is held. It reports whether everything is out.
func (l *loop) flush(t *tunnel, f *flow, dst *socket) bool {
	if !dst.writable {
		return false
	}
	if n := len(f.unsent); n > 0 {
		m := l.write(t, f, dst, f.unsent)
		if m < 0 {
			return false
		}
		if f.unsent = f.unsent[m:]; m < n {
			return false
		}
		f.unsent = nil
	}
	for f.inPipe > 0 {
		n, err := sysSplice(f.pipe.r, int(dst.fd), int(f.inPipe))
		if err != nil {
			if l.noRoom(t, f, dst, err) {
				l.awaitRoom(t, dst)
			}
			return false
		}
		f.inPipe -= int32(n)
		f.moved += int64(n)
		l.spliced += int64(n)
	}
	l.releasePipe(f)
	return true
}

// splice fills an empty pipe from the source and sends it on.
func (l *loop) splice(t *tunnel, f *flow, src, dst *socket) int {
	if f.pipe = l.pipes.get(); f.pipe == nil {
		return l.copy(t, f, src, dst)
	}
	// The pipe is empty, so EAGAIN can only come from the source.
	n, err := sysSplice(int(src.fd), f.pipe.w, f.pipe.size)
	if n <= 0 {
		l.releasePipe(f)
		if err == unix.EINVAL || err == unix.ENOSYS || err == unix.EPERM {
			l.spliceable = false // by this kernel, or in this sandbox
			l.log.Warn("cannot splice, copying instead", "err", err)
			return 0
		}
		if err == nil || err == unix.EAGAIN && src.hung {
			// It stops at urgent data and says what it says at the end. A read
			// goes on behind it, or tells that this is the end.
			return l.copy(t, f, src, dst)
		}
		l.sourceEnded(t, f, src, int(n), err)
		return 0
	}
	l.spent += n
	f.inPipe = int32(n)
	f.bulk = n >= l.bufferSize
	l.flush(t, f, dst)
	return int(n)
}

func (l *loop) releasePipe(f *flow) {
	if f.pipe != nil {
		l.pipes.put(f.pipe, f.inPipe == 0)
		f.pipe, f.inPipe = nil, 0
	}
}

// discard drops what the client sends to a backend that is gone; see
// pair.discard.
func (l *loop) discard(t *tunnel, src *socket) int {
	n, err := sysRead(src.fd, l.buf)
	if n <= 0 {
		l.sourceEnded(t, &t.flows[clientSide], src, n, err)
		return 0
	}
	if n < len(l.buf) {
		src.readable = src.hung
	}
	return n
}

// awaitRoom remembers that dst takes no more for now. EPOLLOUT is asked for
// only when it is first needed: most clients never stall, and without it a
// registration has no edge of its own.
func (l *loop) awaitRoom(t *tunnel, dst *socket) {
	dst.writable = false
	if !dst.wantOut {
		dst.wantOut = true
		l.watch(t, dst)
	}
}

// sourceEnded deals with a read that brought nothing.
func (l *loop) sourceEnded(t *tunnel, f *flow, src *socket, n int, err error) {
	switch {
	case err == unix.EAGAIN:
		src.readable = false
		return
	case err == unix.EINTR:
		return
	case src == &t.sockets[backendSide]:
		// The backend has finished, or has reset: then it takes no more, but
		// what it sent is not void, and the client gets a FIN after the data.
		f.ended = true
		if err == nil {
			t.end.note(byBackend, howFIN)
		} else {
			t.end.note(byBackend, howOf(err))
			l.turnDeaf(t)
		}
	case err != nil:
		t.end.note(byClient, howOf(err))
		l.reset(t)
	case t.deaf:
		t.end.note(byClient, howFIN)
		f.done = true
	default:
		t.end.note(byClient, howFIN)
		f.ended = true
	}
	src.readable = false
}

// noRoom deals with a write that failed. It reports whether dst is alive and
// only has no room now.
func (l *loop) noRoom(t *tunnel, f *flow, dst *socket, err error) bool {
	switch {
	case err == unix.EAGAIN:
		return true
	case err == unix.EINTR:
		// Taken for "no room": asking for EPOLLOUT makes an edge if there is.
		dst.wantOut = false
		return true
	case dst == &t.sockets[backendSide]:
		t.end.note(byBackend, howOf(err))
		l.turnDeaf(t)
	default:
		t.end.note(byClient, howOf(err))
		l.reset(t)
	}
	return false
}

// turnDeaf has everything dropped that the client sends: the backend is gone.
func (l *loop) turnDeaf(t *tunnel) {
	up := &t.flows[clientSide]
	t.deaf = true
	up.unsent = nil
	l.releasePipe(up)
	if up.ended {
		up.done = true // its FIN has nowhere to go
	}
}

// publish makes the counters visible to other threads.
func (l *loop) publish() {
	if l.spliced > 0 {
		l.totalSpliced.Add(l.spliced)
	}
	if l.copied > 0 {
		l.totalCopied.Add(l.copied)
	}
	l.spliced, l.copied = 0, 0
}
