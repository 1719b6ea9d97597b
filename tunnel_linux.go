package main

import "golang.org/x/sys/unix"

// tunnel is a connection in a loop, from accept to its end. Its state is all
// here: two descriptors, unsent bytes, counters and times.
type tunnel struct {
	state        tunnelState
	deaf         bool  // the backend takes no more: what the client sends is dropped
	queued       bool  // stands in todo
	swept        bool  // counted in sweepable
	keepalive    bool  // set, see sweepTunnel
	wasHalf      bool  // as the last sweep saw it
	attempts     int16 // dials that are left
	selfConnects int8
	slot         uint32
	generation   uint32
	sockets      [2]socket
	flows        [2]flow
	session      session
	end          ending

	deadline int64 // of the state it is in; 0: none
	progress int64 // bytes moved, as the last sweep saw it
	since    int64 // when that changed
}

// tunnelState is how far a connection has come.
type tunnelState uint8

const (
	stateFree    tunnelState = iota // the slot is nobody's
	stateRequest                    // the client has not said all yet
	stateDial                       // the backend connects
	stateOpen                       // bytes flow
	stateLinger                     // refused; the client reads the status
)

// alloc returns a fresh tunnel.
func (l *loop) alloc() *tunnel {
	if len(l.free) == 0 {
		// Grown by slabs: tunnels do not move, and cost one allocation in 64.
		slab := make([]tunnel, 64)
		for i := range slab {
			slab[i].slot = uint32(len(l.table))
			slab[i].sockets[clientSide].fd, slab[i].sockets[backendSide].fd = -1, -1
			l.free = append(l.free, slab[i].slot)
			l.table = append(l.table, &slab[i])
		}
	}
	slot := l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	t := l.table[slot]
	t.generation++
	return t
}

// release closes a tunnel's descriptors and gives up its slot. Closing ends
// the registration with epoll, since nobody else has the same open file: net's
// copies are closed before loops.run hands over, and leave takes the socket
// out of epoll before net gets it.
func (l *loop) release(t *tunnel) {
	for i := range t.sockets {
		if fd := t.sockets[i].fd; fd >= 0 {
			sysClose(fd)
		}
		l.releasePipe(&t.flows[i])
	}
	if t.swept {
		l.sweepable--
	}
	*t = tunnel{slot: t.slot, generation: t.generation}
	t.sockets[clientSide].fd, t.sockets[backendSide].fd = -1, -1
	l.free = append(l.free, t.slot)
	l.load.Add(-1)
}

// watch registers a socket with epoll or changes what it waits for. A failure
// is as good as a reset: without events the tunnel could not go on.
func (l *loop) watch(t *tunnel, s *socket) error {
	side := clientSide
	if s == &t.sockets[backendSide] {
		side = backendSide
	}
	ev := unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff,
		Fd:     int32(t.slot<<1) | int32(side),
		Pad:    int32(t.generation),
	}
	if s.wantOut {
		ev.Events |= unix.EPOLLOUT
	}
	op := unix.EPOLL_CTL_ADD
	if s.watched {
		op = unix.EPOLL_CTL_MOD
	}
	s.watched = true
	return sysEpollCtl(l.epfd, op, s.fd, &ev)
}

// move pumps both directions of an open tunnel and ends it when both are done.
func (l *loop) move(t *tunnel) {
	wasDeaf := t.deaf
	l.pump(t, clientSide)
	l.pump(t, backendSide)
	if t.deaf != wasDeaf {
		l.pump(t, clientSide)
	}
	if t.state != stateOpen {
		return
	}
	up, down := &t.flows[clientSide], &t.flows[backendSide]
	switch {
	case up.done && down.done:
		l.finish(t)
	case up.ended || up.done || down.ended || down.done || t.deaf:
		l.sweepFor(t)
	}
}

// broken deals with a reset that move did not come across: it cannot read on
// before somebody takes what it holds.
func (l *loop) broken(t *tunnel, s *socket) {
	how := howReset
	if err := socketError(s.fd); err != nil {
		how = howOf(err)
	}
	if s == &t.sockets[clientSide] {
		// What it sent before is out as far as the backend takes it.
		t.end.note(byClient, how)
		l.reset(t)
		return
	}
	// What it sent before can still be read.
	t.end.note(byBackend, how)
	l.turnDeaf(t)
	l.move(t)
}

// finish accounts for a tunnel and releases it.
func (l *loop) finish(t *tunnel) {
	s := t.session
	end := tunnelEnd{t.flows[clientSide].moved, t.flows[backendSide].moved, t.end}
	l.release(t)
	l.publish()
	defer l.front.finish(&s) // nothing, unless the account fails
	l.account(&s, end)
}

// reset ends a tunnel with a reset to the backend: with SO_LINGER on and zero,
// close(2) sends RST and drops what was not sent.
func (l *loop) reset(t *tunnel) {
	unix.SetsockoptLinger(int(t.sockets[backendSide].fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	l.finish(t)
}

// adopt takes a tunnel that was connected elsewhere.
func (l *loop) adopt(s *session, cfd, bfd int, early []byte) {
	t := l.alloc()
	l.current = t
	t.session = *s
	t.sockets[clientSide].fd, t.sockets[backendSide].fd = int32(cfd), int32(bfd)
	t.state = stateOpen
	if l.closing {
		l.cut(t, howShutdown)
		return
	}
	t.sockets[backendSide].wantOut = true
	if err := l.watch(t, &t.sockets[backendSide]); err != nil {
		l.cut(t, howError)
		return
	}
	l.open(t, early)
}

// open begins to relay: the backend is registered, the client may be.
func (l *loop) open(t *tunnel, early []byte) {
	t.state, t.deadline = stateOpen, 0
	c := &t.sockets[clientSide]
	c.writable = true
	t.sockets[backendSide].writable = true
	if !c.watched {
		if err := l.watch(t, c); err != nil {
			l.cut(t, howError)
			return
		}
	}
	t.flows[clientSide].unsent = early
	t.since = l.now
	if l.idleTimeout > 0 || !t.keepalive {
		l.sweepFor(t)
	}
	l.move(t)
}

// cut ends a connection from outside.
func (l *loop) cut(t *tunnel, how string) {
	switch t.state {
	case stateFree:
	case stateOpen:
		t.end.note(byGateway, how)
		if t.flows[clientSide].holds() {
			l.reset(t) // a FIN would call what the backend got complete
		} else {
			l.finish(t)
		}
	default:
		err := errInternal
		if how == howShutdown {
			err = errShutdown
		}
		l.abandon(t, err)
	}
}

// socketError returns and clears what a socket has to complain about.
func socketError(fd int32) error {
	v, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if v == 0 {
		return nil
	}
	return unix.Errno(v)
}
