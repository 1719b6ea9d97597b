package main

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/address"
	"gateway/internal/handover"
	"gateway/internal/handshake"
	"gateway/internal/pending"
	"gateway/internal/pipe"
	"gateway/internal/relay"
)

// What a loop knows of its connections.

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
	sockets      [2]socket
	flows        [2]flow
	rules        *rules          // those that it began with
	later        uint32          // events that newcomers.defer has put off
	ticket       *pending.Ticket // nil: not among those that have not said all
	session      session
	upstream     upstream
	end          relay.Ending
	rest         relay.Rest // what the sweep remembers
	openedAt     int64      // by the reactor's clock of that turn
	movedAt      int64      // the same for when a byte last moved

	deadline int64 // of the state it is in; 0: none
}

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

// flow is one direction of a tunnel.
type flow struct {
	moved  int64      // bytes that the receiver's kernel has taken
	unsent []byte     // read, but not taken yet; nil most of the time
	pipe   *pipe.Pipe // borrowed while bytes are in it
	inPipe int32      // how many
	bulk   bool       // the last piece was large: splice the next, if possible
	large  bool       // the last message was too large for a batch
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

// progress returns how many bytes have moved.
func (t *tunnel) progress() int64 { return t.flows[clientSide].moved + t.flows[backendSide].moved }

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

// deadlines is a queue of deadlines of one duration: they expire in the order
// in which they are set. An entry is void once its tunnel has moved on.
type deadlines struct {
	after int64 // nanoseconds
	queue []deadline
	head  int // the first that is still to come
}

type deadline struct {
	t          *tunnel
	generation uint32
	state      tunnelState
	at         int64
}

// set gives t a deadline in the state that it is in, instead of any former.
func (d *deadlines) set(t *tunnel, now int64) {
	t.deadline = now + d.after
	d.push(t, now)
}

// push queues an entry that leaves t's deadline alone.
func (d *deadlines) push(t *tunnel, now int64) {
	// Most connections move on long before their time. Dropping those at the
	// head here keeps the queue about as short as the list of those that wait.
	for d.head < len(d.queue) && d.queue[d.head].void() {
		d.pop()
	}
	d.queue = append(d.queue, deadline{t, t.generation, t.state, now + d.after})
}

// void tells whether the tunnel has moved on.
func (e *deadline) void() bool {
	return e.t.generation != e.generation || e.t.state != e.state
}

// pop drops the head.
func (d *deadlines) pop() {
	d.head++
	if d.head == len(d.queue) || d.head >= 64 && 2*d.head >= len(d.queue) {
		n := copy(d.queue, d.queue[d.head:])
		clear(d.queue[n:])
		d.queue, d.head = d.queue[:n], 0
	}
}

func (d *deadlines) empty() bool { return len(d.queue) == 0 }

// due removes and returns the next tunnel whose time has come, or nil.
func (d *deadlines) due(now int64) (t *tunnel, at int64) {
	for d.head < len(d.queue) {
		e := d.queue[d.head]
		if e.void() {
			d.pop()
			continue
		}
		if e.at > now {
			return nil, 0
		}
		d.pop()
		return e.t, e.at
	}
	return nil, 0
}

// describe tells what another process has to know of an open tunnel. now is the
// reactor's clock. The result refers to bytes of
// the tunnel's, which do not change as long as that is frozen.
func (t *tunnel) describe(now int64) handover.Tunnel {
	s, u := &t.session, &t.upstream
	h := handover.Tunnel{
		Client:    describeSide(&t.sockets[clientSide]),
		Backend:   describeSide(&t.sockets[backendSide]),
		Up:        describeFlow(&t.flows[clientSide]),
		Down:      describeFlow(&t.flows[backendSide]),
		Deaf:      t.deaf,
		Optioned:  t.keepalive,
		EndedBy:   t.end.By.String(),
		How:       t.end.How.String(),
		Age:       time.Since(s.accepted),
		Addr:      s.client,
		Local:     s.local,
		Idle:      time.Duration(now - t.movedAt),
		Listener:  s.entranceName(),
		Form:      s.form.String(),
		Secure:    s.secure,
		Proxied:   s.proxied,
		Hops:      s.hops,
		Header:    s.header,
		Target:    u.backend.String(),
		BackendID: u.id,
		Preface:   int(u.preface),
	}
	if t.swept {
		h.Rest = t.rest.Rested(t.progress(), t.halfClosed(), now)
	}
	if s.forward != nil {
		h.Forward = s.forward.String()
	}
	if u.dialed != nil {
		h.Dialed = *u.dialed
	}
	if u.choice != nil {
		h.Route = u.choice.group.Route()
	}
	return h
}

func describeSide(s *socket) handover.Side {
	return handover.Side{FD: int(s.fd), Hung: s.hung, Stalled: s.wantOut}
}

func describeFlow(f *flow) handover.Flow {
	h := handover.Flow{Moved: f.moved, Unsent: f.unsent, InPipe: int(f.inPipe),
		Bulk: f.bulk, Large: f.large, Ended: f.ended, Done: f.done}
	if f.inPipe > 0 {
		h.Pipe = handover.Pipe{R: f.pipe.R, W: f.pipe.W}
	}
	return h
}

// restore makes a tunnel what it was in another process, but for its account. It owns
// the descriptors; a pipe too many is emptied into memory.
func (t *tunnel) restore(h *handover.Tunnel, r *rules, pipes *pipe.Pool, now int64) {
	t.state, t.rules = stateOpen, r
	t.sockets[clientSide] = socket{fd: int32(h.Client.FD), hung: h.Client.Hung, wantOut: h.Client.Stalled}
	t.sockets[backendSide] = socket{fd: int32(h.Backend.FD), hung: h.Backend.Hung, wantOut: true}
	t.flows[clientSide] = restoreFlow(&h.Up, pipes)
	t.flows[backendSide] = restoreFlow(&h.Down, pipes)
	t.deaf, t.keepalive = h.Deaf, h.Optioned
	t.end = relay.ParseEnding(h.EndedBy, h.How)
	t.session = session{
		client:   h.Addr,
		local:    h.Local,
		accepted: time.Now().Add(-h.Age),
		form:     handshake.ParseForm(h.Form),
		secure:   h.Secure,
		proxied:  h.Proxied,
		hops:     h.Hops,
		header:   h.Header,
	}
	if route, err := address.ParseRoute(h.Forward); err == nil {
		t.session.forward = &route
	}
	t.upstream = restoreUpstream(h, r)
	t.openedAt, t.movedAt = now-h.Age.Nanoseconds(), now-h.Idle.Nanoseconds()
}

func restoreFlow(h *handover.Flow, pipes *pipe.Pool) flow {
	f := flow{moved: h.Moved, unsent: h.Unsent, bulk: h.Bulk, large: h.Large, ended: h.Ended, done: h.Done}
	if h.InPipe == 0 {
		return f
	}
	if f.pipe = pipes.Adopt(h.Pipe.R, h.Pipe.W); f.pipe != nil {
		f.inPipe = int32(h.InPipe)
	} else {
		f.unsent = append(f.unsent, pipe.Empty(h.Pipe.R, h.Pipe.W, h.InPipe)...)
	}
	return f
}

// restoreUpstream is the backend's end of a tunnel of another process. It counts among
// the connections of its target.
func restoreUpstream(h *handover.Tunnel, r *rules) upstream {
	u := upstream{id: h.BackendID, preface: int32(h.Preface)}
	if addr, err := address.Parse(h.Target); err == nil {
		u.backend = addr
	}
	if h.Dialed.IsValid() {
		u.dialed = &h.Dialed
	}
	if route, err := address.ParseRoute(h.Route); err == nil {
		group := r.routes.Group(route, balanceClock())
		u.choice = &choice{group: group, attempt: group.Join(u.backend), service: route.Service() != ""}
	}
	return u
}
