package main

import (
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/admin"
	"gateway/internal/layer"
	"gateway/internal/pending"
	"gateway/internal/pipe"
	"gateway/internal/reactor"
	"gateway/internal/relay"
	"gateway/internal/resume"
	"gateway/internal/resume/owner"
	"gateway/internal/sys"
)

// What a loop knows of a connection, and how its bytes move. Everything here runs in the
// tunnel's loop and never waits.

// tunnel is a connection in a loop, from accept to its end. Its state is all
// here: two descriptors, unsent bytes, counters and times.
type tunnel struct {
	state        tunnelState
	broken       bool // the client is: what is left is to reset the backend
	deaf         bool // the backend takes no more: what the client sends is dropped
	queued       bool // stands in todo
	swept        bool // counted in sweepable
	keepalive    bool // set, see tunnels.sweepOne
	selfConnects int8
	slot         uint32
	generation   uint32
	layer        *layered // on the client's socket; nil: it is plain
	sockets      [2]socket
	flows        [2]flow
	rules        *rules          // those that it began with
	later        uint32          // events that newcomers.putOff has put off
	firstByte    int32           // of the backend: when it had moved, in milliseconds after openedAt
	ticket       *pending.Ticket // nil: not among those that have not said all
	session      session
	upstream     upstream
	end          relay.Ending
	rest         relay.Rest // what the sweep remembers
	openedAt     int64      // by the reactor's clock of that turn
	movedAt      int64      // the same for when a byte last moved

	deadline int64 // of the state it is in; 0: none
}

// Stage is for deadlines: none outlives the state that it was set in.
func (t *tunnel) Stage() uint64 { return uint64(t.generation)<<8 | uint64(t.state) }

// expects gives t a deadline in the state that it is in, instead of any former.
func (t *tunnel) expects(d *deadlines, now int64) { t.deadline = d.Push(t, now) }

// deadlines are those of one kind.
type deadlines = reactor.Deadlines[*tunnel]

// tunnelState is how far a connection has come.
type tunnelState uint8

const (
	stateFree    tunnelState = iota // the slot is nobody's
	stateRequest                    // the client has not said all yet
	stateDial                       // the backend connects
	stateOpen                       // bytes flow
	stateLinger                     // refused; the client reads the status
	stateFrozen                     // on its way to another process, see yield
)

// The two sockets of a tunnel, and its two directions by their source.
const (
	clientSide  = 0 // from here it goes up
	backendSide = 1 // from here it goes down
)

// socket is one of the two of a tunnel, and what is known of it between two
// events, which are edges.
type socket struct {
	fd int32
	// readable: a read may return something. It is cleared by EAGAIN, and by a
	// short read: the queue was empty then, and whatever comes later makes an
	// edge of its own. That spares a read for each message.
	readable bool
	// hung: FIN, reset or error was reported. Such an event may have been one
	// with the data before it and no further edge will come, so from here on a
	// short read proves nothing: reads go on until 0 or an error.
	hung bool
	// writable: a write may take something. It is cleared by EAGAIN or a short
	// write; room makes an edge.
	writable bool
	watched  bool // registered with epoll
	wantOut  bool // … with EPOLLOUT
}

// noteEvents remembers what an event says.
func (s *socket) noteEvents(events uint32) {
	if events&(unix.EPOLLOUT|unix.EPOLLERR) != 0 {
		s.writable = true // after an error, the write will say why not
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.readable = true
	}
	if events&(unix.EPOLLPRI|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.hung = true
	}
}

// layered is what a tunnel with a layer has besides; see layer_linux.go.
type layered struct {
	layer.Transform
	owed     int32 // bytes on their way to the client that are the layer's, not the backend's
	hungUp   bool  // see hangUp
	by       int64 // when the client is not waited for any more; 0: no bound
	lookAt   int64 // when to look after the client
	finished bool  // the client has; what is for it is dropped

	roams *roaming // the layer is a session that outlives sockets; nil: it is not
}

// roaming is what a loop has for the session of a tunnel.
type roaming struct {
	*owner.Tunnel
	session   resume.Layer
	memory    int   // of the session, as the owner was told
	lost      error // why the client's socket is of no more use
	reminding bool  // stands in mover.acks
	whole     bool  // the backend has got all that the client has said, and that this was all
}

// over tells the owner that a tunnel is over, or another process's.
func (r *roaming) over() {
	r.Hold(-r.memory)
	r.memory = 0
	r.Over()
}

// flow is one direction of a tunnel.
type flow struct {
	moved  int64      // bytes that the receiver's kernel has taken
	unsent []byte     // read, but not taken yet; nil most of the time
	pipe   *pipe.Pipe // borrowed while bytes are in it
	inPipe int32      // how many
	bulk   bool       // the last piece was large: splice the next, if possible
	large  bool       // the last message was too large for a batch
	dear   bool       // bulk takes a layer long
	ended  bool       // the source has finished; FIN goes out behind what is held
	done   bool       // FIN is out, or the receiver is gone
}

func (f *flow) holds() bool { return f.inPipe > 0 || len(f.unsent) > 0 }

// from returns the side that a direction comes from.
func (t *tunnel) from(f *flow) int {
	if f == &t.flows[clientSide] {
		return clientSide
	}
	return backendSide
}

// halfClosed tells whether one side has finished, or is gone.
func (t *tunnel) halfClosed() bool {
	up, down := &t.flows[clientSide], &t.flows[backendSide]
	return up.ended || up.done || down.ended || down.done || t.deaf
}

// roams tells whether a tunnel is a resumable one.
func (t *tunnel) roams() bool { return t.layer != nil && t.layer.roams != nil }

// progress returns how many bytes have moved.
func (t *tunnel) progress() int64 { return t.flows[clientSide].moved + t.flows[backendSide].moved }

// mover moves the bytes of one loop's tunnels. It decides nothing about them: a
// tunnel that is to end has both flows done, or is broken.
type mover struct {
	reactor    *reactor.Reactor
	buf        []byte // for every read; empty between two of them
	wide       []byte // the same for long runs through layers; nil: there were none
	bufferSize int    // how much of it a message may take
	slotSize   int    // what a message in a batch may take
	pipes      pipe.Pool
	spliceable bool // false: everything is copied
	log        *slog.Logger

	todo     []*tunnel // to go on with before the next wait
	spent    int       // bytes of bulk moved in this turn
	bulkTurn bool      // it is the turn of bulk

	acks deadlines // of clients of resumable tunnels, to be told what was passed on

	firstBytes *admin.Histogram // until the first byte of a backend; nil: nobody looks

	// Bytes by the side that they came from: since the last publication, and
	// published.
	spliced, copied           [2]int64
	totalSpliced, totalCopied [2]atomic.Int64
}

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
// Nothing is lost when it returns: either the source is not readable, and its
// next edge calls pump; or bytes are held for a receiver that is not writable,
// and its next edge calls pump; or the budget is used up, or it is not the turn
// of bulk, and t stands in todo; or the direction is done, or t is broken.
//
// A message is cheapest through the loop's buffer: one read, one write. Once a
// read fills the buffer, more is probably waiting, and splice(2) moves it from
// socket to socket through a pipe without a copy in user space. When the
// pieces get small again, copying takes over. SPLICE_F_MORE is never set: it
// corks the receiving socket, and a small reply would wait 200 ms for the next
// one (golang/go#10948).
func (m *mover) pump(t *tunnel, from int) {
	f, src, dst := &t.flows[from], &t.sockets[from], &t.sockets[1-from]
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
			if !t.flows[1-from].done { // else both sockets are closed next
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
		switch {
		case from == clientSide && t.deaf:
			budget -= m.discard(t, src)
		case f.bulk && m.spliceable:
			budget -= m.splice(t, f, src, dst)
		default:
			budget -= m.copy(t, f, src, dst)
		}
	}
}

// copy moves one message. The source is readable, and nothing is held. Only what the
// receiver does not take at once is kept, in memory of its own.
func (m *mover) copy(t *tunnel, f *flow, src, dst *socket) int {
	buf := m.buf[:m.bufferSize]
	n, err := sys.Recv(src.fd, buf)
	if n <= 0 {
		m.sourceEnded(t, f, src, n, err)
		return 0
	}
	f.large = n >= m.slotSize
	if f.bulk = n == len(buf); f.bulk {
		m.spent += max(n, leastCost)
	} else {
		src.readable = src.hung
	}
	if sent := m.write(t, f, dst, buf[:n]); sent >= 0 && sent < n {
		f.unsent = append([]byte(nil), buf[sent:n]...)
	}
	return max(n, leastCost)
}

// write returns how many bytes were taken, or -1 if the receiver is gone.
func (m *mover) write(t *tunnel, f *flow, dst *socket, b []byte) int {
	n, err := sys.Send(dst.fd, b)
	if err != nil {
		if !m.noRoom(t, f, dst, err) {
			return -1
		}
		n = 0
	}
	from := t.from(f)
	if from == backendSide && f.moved == 0 && n > 0 {
		m.firstByte(t)
	}
	f.moved += int64(n)
	t.movedAt = m.reactor.Now
	m.copied[from] += int64(n)
	if n < len(b) {
		m.awaitRoom(t, dst)
	}
	return n
}

// firstByte says that the first byte of a backend has been moved.
func (m *mover) firstByte(t *tunnel) {
	m.reactor.Tick() // once in a tunnel's life
	took := time.Duration(m.reactor.Now - t.openedAt)
	t.firstByte = int32(min(took.Milliseconds(), math.MaxInt32))
	if m.firstBytes != nil {
		m.firstBytes.Observe(took)
	}
}

// flush sends what is held. It reports whether everything is out.
func (m *mover) flush(t *tunnel, f *flow, dst *socket) bool {
	if !dst.writable {
		return false
	}
	if n := len(f.unsent); n > 0 {
		sent := m.write(t, f, dst, f.unsent)
		if sent < 0 {
			return false
		}
		if f.unsent = f.unsent[sent:]; sent < n {
			return false
		}
		f.unsent = nil
	}
	for f.inPipe > 0 {
		n, err := sys.Splice(f.pipe.R, int(dst.fd), int(f.inPipe))
		if err != nil {
			if m.noRoom(t, f, dst, err) {
				m.awaitRoom(t, dst)
			}
			return false
		}
		f.inPipe -= int32(n)
		f.moved += int64(n)
		t.movedAt = m.reactor.Now
		m.spliced[t.from(f)] += int64(n)
	}
	m.releasePipe(f)
	return true
}

// splice fills a pipe from the source and sends it on. The source is readable,
// and nothing is held.
func (m *mover) splice(t *tunnel, f *flow, src, dst *socket) int {
	if f.pipe = m.pipes.Get(); f.pipe == nil {
		return m.copy(t, f, src, dst)
	}
	// A pipe that is lent is empty, so EAGAIN can only come from the source.
	n, err := sys.Splice(int(src.fd), f.pipe.W, f.pipe.Size)
	if n <= 0 {
		m.releasePipe(f)
		if err == unix.EINVAL || err == unix.ENOSYS || err == unix.EPERM {
			m.spliceable = false // by this kernel, or in this sandbox
			m.log.Warn("cannot splice, copying instead", "err", err)
			return 0
		}
		if err == nil || err == unix.EAGAIN && src.hung {
			// It stops at urgent data and says what it says at the end. A read
			// goes on behind it, or tells that this is the end.
			return m.copy(t, f, src, dst)
		}
		m.sourceEnded(t, f, src, int(n), err)
		return 0
	}
	m.spent += n
	f.inPipe = int32(n)
	f.bulk = n >= m.bufferSize
	m.flush(t, f, dst)
	return int(n)
}

func (m *mover) releasePipe(f *flow) {
	if f.pipe != nil {
		m.pipes.Put(f.pipe, f.inPipe == 0)
		f.pipe, f.inPipe = nil, 0
	}
}

// discard drops what the client sends to a backend that is gone; see
// internal/relay.
func (m *mover) discard(t *tunnel, src *socket) int {
	n, err := sys.Recv(src.fd, m.buf)
	if n <= 0 {
		m.sourceEnded(t, &t.flows[clientSide], src, n, err)
		return 0
	}
	if n < len(m.buf) {
		src.readable = src.hung
	}
	return n
}

// awaitRoom remembers that dst takes no more for now. EPOLLOUT is asked for
// only when it is first needed: most clients never stall, and without it a
// registration has no edge of its own.
func (m *mover) awaitRoom(t *tunnel, dst *socket) {
	dst.writable = false
	if !dst.wantOut {
		dst.wantOut = true
		m.watch(t, dst)
	}
}

// sourceEnded deals with a read that brought nothing.
func (m *mover) sourceEnded(t *tunnel, f *flow, src *socket, n int, err error) {
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
			t.end.Note(relay.Backend, relay.FIN)
		} else {
			t.end.Note(relay.Backend, relay.HowOf(err))
			m.turnDeaf(t)
		}
	case err != nil:
		t.end.Note(relay.Client, relay.HowOf(err))
		t.broken = true
	case t.deaf:
		t.end.Note(relay.Client, relay.FIN)
		f.done = true
	default:
		t.end.Note(relay.Client, relay.FIN)
		f.ended = true
	}
	src.readable = false
}

// noRoom deals with a write that failed. It reports whether dst is alive and
// only has no room now.
func (m *mover) noRoom(t *tunnel, f *flow, dst *socket, err error) bool {
	switch {
	case err == unix.EAGAIN:
		return true
	case err == unix.EINTR:
		// Taken for "no room": asking for EPOLLOUT makes an edge if there is.
		dst.wantOut = false
		return true
	case dst == &t.sockets[backendSide]:
		t.end.Note(relay.Backend, relay.HowOf(err))
		m.turnDeaf(t)
	default:
		t.end.Note(relay.Client, relay.HowOf(err))
		t.broken = true
	}
	return false
}

// turnDeaf has everything dropped that the client sends: the backend is gone.
func (m *mover) turnDeaf(t *tunnel) {
	up := &t.flows[clientSide]
	t.deaf = true
	up.unsent = nil
	m.releasePipe(up)
	if up.ended {
		up.done = true // its FIN has nowhere to go
	}
}

// publish makes the counters visible to other threads.
func (m *mover) publish() {
	for side := range m.copied {
		if n := m.spliced[side]; n > 0 {
			m.totalSpliced[side].Add(n)
			m.spliced[side] = 0
		}
		if n := m.copied[side]; n > 0 {
			m.totalCopied[side].Add(n)
			m.copied[side] = 0
		}
	}
}

// goOn has a tunnel gone on with after the others had their turn.
func (m *mover) goOn(t *tunnel) {
	if !t.queued {
		t.queued = true
		m.todo = append(m.todo, t)
	}
}

// eventOf is an event of one of a tunnel's sockets, as tunnels.of knows it.
func eventOf(t *tunnel, side int, events uint32) unix.EpollEvent {
	return unix.EpollEvent{Events: events, Fd: int32(t.slot<<1) | int32(side), Pad: int32(t.generation)}
}

// watch registers a socket with epoll or changes what it waits for. A failure
// is as good as a reset: without events the tunnel could not go on.
func (m *mover) watch(t *tunnel, s *socket) error {
	side := clientSide
	if s == &t.sockets[backendSide] {
		side = backendSide
	}
	ev := eventOf(t, side, unix.EPOLLIN|unix.EPOLLPRI|unix.EPOLLRDHUP|unix.EPOLLET&0xffffffff)
	if s.wantOut {
		ev.Events |= unix.EPOLLOUT
	}
	op := unix.EPOLL_CTL_ADD
	if s.watched {
		op = unix.EPOLL_CTL_MOD
	}
	s.watched = true
	return m.reactor.ControlRaw(op, s.fd, &ev)
}
