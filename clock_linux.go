package main

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// What a loop does by the clock. There is one queue for each kind of deadline
// and one sweep for all tunnels, so nothing is set or reset for a message.

// tick reads the clock. The loop does so when it has something timed; between
// two ticks its time stands still.
func (l *loop) tick() { l.now = time.Since(l.start).Nanoseconds() }

func (l *loop) anythingTimed() bool {
	return l.sweepable > 0 || !l.requests.empty() || !l.dials.empty() ||
		!l.watches.empty() || !l.lingers.empty() || l.pausedListeners > 0
}

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

// expire deals with everything whose time has come.
func (l *loop) expire() {
	for {
		t, at := l.requests.due(l.now)
		if t == nil {
			break
		}
		if l.current = t; t.deadline == at {
			l.refuse(t, cutShort(&t.session, t.flows[clientSide].unsent, errTooSlow))
		}
	}
	for {
		t, _ := l.watches.due(l.now)
		if t == nil {
			break
		}
		if l.current = t; !t.sockets[clientSide].watched {
			// A client that resets ends the dial; see dialing.
			if err := l.watch(t, &t.sockets[clientSide]); err != nil {
				l.abandon(t, errClientGone)
			}
		}
	}
	for {
		t, at := l.dials.due(l.now)
		if t == nil {
			break
		}
		if l.current = t; t.deadline == at {
			l.dialFailed(t, dialOpError(t, os.ErrDeadlineExceeded))
		}
	}
	for {
		t, at := l.lingers.due(l.now)
		if t == nil {
			break
		}
		if l.current = t; t.deadline == at {
			l.dismiss(t)
		}
	}
	if l.pausedListeners > 0 {
		l.resumeListeners()
	}
	if l.sweepable > 0 && l.now >= l.sweepDue {
		l.sweep()
	}
}

// untilDue returns how many milliseconds there are until something is due,
// rounded up; -1 for nothing.
func (l *loop) untilDue() int {
	next := int64(-1)
	earlier := func(at int64) {
		if next < 0 || at < next {
			next = at
		}
	}
	for _, d := range []*deadlines{&l.requests, &l.dials, &l.watches, &l.lingers} {
		if !d.empty() {
			earlier(d.queue[d.head].at)
		}
	}
	for _, sl := range l.listeners {
		if sl.paused {
			earlier(sl.resumeAt)
		}
	}
	if l.sweepable > 0 {
		earlier(l.sweepDue)
	}
	if next < 0 {
		return -1
	}
	l.tick()
	return int(min(max(0, (next-l.now+1e6-1)/1e6), 1<<30)) // epoll takes an int
}

// sweepSlices is how many sweeps look at the whole table once: a table of
// 100,000 tunnels at one go would make all of them wait.
const sweepSlices = 8

// sweepFor has t looked at by the sweep from now on.
func (l *loop) sweepFor(t *tunnel) {
	if t.swept {
		return
	}
	t.swept = true
	if l.sweepable++; l.sweepable == 1 {
		l.tick()
		l.sweepDue = l.now + l.sweepPeriod().Nanoseconds()/sweepSlices
	}
	t.since = l.now
	t.progress = t.flows[clientSide].moved + t.flows[backendSide].moved
}

// sweep looks at the next slice of the table.
func (l *loop) sweep() {
	period := l.sweepPeriod().Nanoseconds()
	l.sweepDue = l.now + period/sweepSlices
	for range (len(l.table) + sweepSlices - 1) / sweepSlices {
		if l.sweepAt >= len(l.table) {
			l.sweepAt = 0
		}
		t := l.table[l.sweepAt]
		l.sweepAt++
		if t.state == stateOpen && t.swept {
			l.current = t
			l.sweepTunnel(t, period)
		}
	}
}

// sweepTunnel cuts a tunnel that rests for too long. It also sets the options
// that find a peer gone: a connection that lives for less than a sweep does
// without, and costs some system calls less. Clients inherit most of them from
// their listener, but not TCP_USER_TIMEOUT, and nothing if they were in the
// queue of a listener that was made elsewhere.
func (l *loop) sweepTunnel(t *tunnel, period int64) {
	up, down := &t.flows[clientSide], &t.flows[backendSide]
	half := up.ended || up.done || down.ended || down.done || t.deaf
	if !t.keepalive {
		t.keepalive = true
		unix.SetsockoptInt(int(t.sockets[clientSide].fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		l.liveness.Set(int(t.sockets[clientSide].fd))
		l.liveness.Set(int(t.sockets[backendSide].fd))
	}
	bound := l.idleTimeout.Nanoseconds()
	if half {
		bound = l.halfCloseTimeout.Nanoseconds()
	}
	if bound == 0 {
		t.swept = false // until it is half-closed
		l.sweepable--
		return
	}
	progress := up.moved + down.moved
	if t.deaf && down.done {
		// All was written, and the client is to acknowledge it.
		unacked, err := unix.IoctlGetInt(int(t.sockets[clientSide].fd), unix.SIOCOUTQ)
		if err == nil && unacked == 0 {
			l.finish(t) // whoever ended it is noted already
			return
		}
		progress -= int64(unacked)
	}
	if progress != t.progress || half != t.wasHalf {
		t.progress, t.wasHalf, t.since = progress, half, l.now
	} else if l.now-t.since >= bound {
		l.cut(t, howTimeout)
	}
}
