package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/handover"
	"gateway/internal/sockopt"
	"gateway/internal/sys"
)

// How the loops accept: from one socket, all of them, and only as many
// connections as there are descriptors for.

// crew are the loops as those that accept see them.
type crew struct {
	all     []*acceptor
	circles circles

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
	pace     backoff
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
	err := unix.EpollCtl(l.reactor.epfd, unix.EPOLL_CTL_ADD, l.listeners[i].fd, &ev)
	if err == unix.EINVAL && l.crew.exclusive != 0 {
		l.crew.inclusive.Do(func() {
			l.log.Warn("no EPOLLEXCLUSIVE here: every loop wakes for every connection", "err", err)
		})
		ev.Events = unix.EPOLLIN
		err = unix.EpollCtl(l.reactor.epfd, unix.EPOLL_CTL_ADD, l.listeners[i].fd, &ev)
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
	l.reactor.tick()
	unix.EpollCtl(l.reactor.epfd, unix.EPOLL_CTL_DEL, fd, nil)
	for _, sl := range l.listeners {
		if sl.fd != fd {
			continue
		}
		if sl.paused {
			sl.paused = false
			l.pausedListeners--
		}
		acceptQueue(func() bool { return l.accept(sl) })
		if sl.paused {
			sl.paused = false
			l.pausedListeners--
		}
		sl.fd = -1
	}
}

// pause stops accepting for a while: out of descriptors most of the time.
func (l *acceptor) pause(sl *sharedListener, err error) {
	l.circles.breakUp(&l.tunnels)
	delay := sl.pace.next()
	l.ledger.warnCannotAccept(err, delay)
	unix.EpollCtl(l.reactor.epfd, unix.EPOLL_CTL_DEL, sl.fd, nil)
	if !sl.paused {
		l.pausedListeners++
	}
	sl.full = false
	sl.paused, sl.resumeAt = true, l.reactor.now+delay.Nanoseconds()
}

func (l *acceptor) resumeListeners() {
	for i, sl := range l.listeners {
		if sl.paused && (l.reactor.now >= sl.resumeAt || sl.full && !l.ledger.fullAt(sl.entrance)) {
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
	if err := l.ledger.reserve(sl.entrance); err != nil {
		l.reactor.tick()
		l.pause(sl, err)
		sl.full, sl.resumeAt = true, min(sl.resumeAt, l.reactor.now+fullPause)
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
		l.reactor.tick()
		l.pause(sl, err)
		return false
	}
	sl.pace.reset()
	l.ledger.begin()
	l.place(fd, sl.rules(), sys.AddrPort(&l.sockaddr), sl.entrance)
	return true
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
func (l *acceptor) place(fd int, r *rules, peer netip.AddrPort, by *entrance) {
	to := l.crew.idlest()
	if least := to.load.Load(); l.load.Load() <= least+least/8 {
		to = l
	}
	to.load.Add(1)
	if to == l {
		l.begin(fd, r, peer, by)
	} else if !to.reactor.post(func() { to.begin(fd, r, peer, by) }) {
		unix.Close(fd)
		s, u := session{entrance: by, reserved: true}, upstream{}
		l.ledger.done(&s, &u)
	}
}

// dupConn is dup for what is TCP.
func dupConn(c net.Conn) (int, error) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return -1, errors.ErrUnsupported
	}
	return sockopt.Dup(tcp)
}

const (
	// maxPipes bounds all pipes of the process, and with them the memory that
	// stalled readers can pin: maxPipes × 1 MiB. Beyond it, tunnels copy. Where
	// descriptors are few there may be less; see budget.
	maxPipes = 256
	// maxIdlePipes bounds the pipes that wait for their next use: half of what
	// pipe-user-pages-soft lets an unprivileged user have by default.
	maxIdlePipes = 32
)

// budget divides the descriptors that a process may have: two for each
// connection, two for each pipe, and some put by for everything else. Few
// descriptors mean few pipes: a tunnel can do without, and not a client.
func budget(limit uint64) (conns, pipes int32) {
	const putBy = 128
	n := int32(min(limit, 1<<30))
	pipes = min(maxPipes, n/8)
	return max(16, (n-putBy)/2-pipes), pipes
}

// connBudget returns for how many connections the descriptors suffice.
func connBudget() int32 {
	conns, _ := budget(descriptorLimit())
	return conns
}

// descriptorLimit returns how many descriptors this process may have.
func descriptorLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return unix.RLIM_INFINITY
	}
	return limit.Cur
}

// Connections also come from another process, with all that they have been so far, and
// go to one.

const (
	// handoverPatience is how long the other process may take for an answer.
	handoverPatience = 5 * time.Second
	// handoverPause is the longest pause before it is looked whether there is more
	// to hand over: handshakes end, and the slow way brings tunnels.
	handoverPause = 200 * time.Millisecond
)

// handOver gives the tunnels of all loops to another process, those that are open
// and those that will be, until ctx ends or the other process does. It owns the
// stream. state is what the other process has to know before, by names. told gets to
// know how many tunnels there were in the first go.
func (c *crew) handOver(ctx context.Context, conn *net.UnixConn, state map[string][]byte, told func(tunnels int, took time.Duration)) error {
	to, err := handover.NewSender(conn, handoverPatience)
	if err != nil {
		conn.Close()
		return err
	}
	defer to.Close()
	for name, text := range state {
		if err := to.State(name, text); err != nil {
			return err
		}
	}
	began := time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, handoverPause) {
		moved, err := c.handOverNow(ctx, to)
		if err == nil {
			err = to.Idle()
		}
		if told != nil {
			told(moved, time.Since(began))
			told = nil
		}
		if moved > 0 {
			pause = time.Millisecond
		}
		if err != nil && !errors.Is(err, handover.ErrBusy) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// handOverNow gives those tunnels away that are open now, and returns how many.
func (c *crew) handOverNow(ctx context.Context, to *handover.Sender) (moved int, err error) {
	for _, l := range c.all {
		if l.load.Load() == 0 {
			continue
		}
		for slot, more := 0, true; more && ctx.Err() == nil; {
			p := &parcel{}
			l.do(func() { slot, more = l.yield(p, slot) })
			if len(p.tunnels) == 0 {
				continue
			}
			if err := to.Send(p.states); err != nil {
				for len(p.tunnels) > 0 { // a panic costs one
					l.do(func() { l.resume(p) })
				}
				return moved, err
			}
			moved += len(p.tunnels)
			for len(p.tunnels) > 0 {
				l.do(func() { l.depart(p) })
			}
		}
	}
	return moved, nil
}

// do runs f in the loop's thread and waits for it. A loop with frozen tunnels does
// not end.
func (l *acceptor) do(f func()) {
	done := make(chan struct{})
	if l.reactor.post(func() { defer close(done); f() }) {
		<-done
	}
}

// takeOver adopts the tunnels of another process, until that sends no more, and returns
// how many. It owns the stream, whose read deadline ends it. state gets what the other
// process lets know; idle is told when that has no more for now, and when it has.
func (c *crew) takeOver(conn *net.UnixConn, rules func() *rules, state func(name string, text []byte), idle func(bool)) (taken int, err error) {
	from, err := handover.NewReceiver(conn)
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil // it has none, or has ended
		}
		return 0, err
	}
	defer from.Close()
	from.Room = func(tunnels []handover.Tunnel) error {
		if n, most := c.all[0].ledger.conns.Count(); most > 0 && n+len(tunnels) > most {
			return errFull
		}
		return nil
	}
	from.State, from.Idle = state, idle
	for {
		tunnels, err := from.Next()
		switch {
		case err == io.EOF, errors.Is(err, os.ErrDeadlineExceeded):
			return taken, nil
		case err != nil:
			return taken, err
		}
		taken += len(tunnels)
		to, r := c.idlest(), rules()
		to.load.Add(int32(len(tunnels)))
		for i := range tunnels {
			to.ledger.begin()
			// No loop ends before this does, see Gateway.stop.
			to.reactor.post(func() { to.adoptLive(&tunnels[i], r) })
		}
	}
}
