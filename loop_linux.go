package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/descriptors"
	"gateway/internal/pending"
	"gateway/internal/pipe"
	"gateway/internal/reactor"
	"gateway/internal/relay"
	"gateway/internal/sockopt"
	"gateway/internal/sys"
	"gateway/internal/uring"
)

// loops relay on Linux: one epoll loop per CPU, each on a thread of its own, and
// no goroutine, timer or buffer for a tunnel. They also take the plain case of a
// handshake from accept to answer (handshake_linux.go).
//
// A tunnel, the table that it stands in, pipes and deadlines belong to one loop,
// and only that loop's thread touches them. Nothing of a tunnel is locked, and it
// never moves to another loop. Other threads reach a loop only through its
// reactor's inbox.
type loops struct {
	crew     crew
	pipes    pipe.Budget // of all loops
	liveness sockopt.Liveness
	all      []*loop
	batching bool // all have an io_uring
}

func init() {
	newEngine = func(cfg *Config, l *ledger, slowWay func(int, *rules, session, []byte)) (engine, error) {
		ls, err := newLoops(cfg, l, slowWay)
		if err != nil {
			return nil, err // and no *loops that is nil
		}
		return ls, nil
	}
}

// newLoops starts the loops. slowWay serves, in a goroutine of its own, an
// accepted client that a loop cannot serve without waiting; it owns the
// descriptor.
func newLoops(cfg *Config, l *ledger, slowWay func(fd int, r *rules, s session, received []byte)) (*loops, error) {
	if err := sys.Probe(); err != nil {
		return nil, err
	}
	ls := &loops{liveness: cfg.liveness()}
	ls.crew.exclusive = unix.EPOLLEXCLUSIVE
	limit, _ := descriptors.Limit()
	_, ls.pipes.Max = descriptors.Divide(limit)
	for range cfg.loopCount() {
		l, err := newLoop(ls, cfg, l, slowWay)
		if err != nil {
			for _, l := range ls.all {
				l.reactor.Close()
			}
			return nil, fmt.Errorf("cannot make an event loop: %w", err)
		}
		ls.all = append(ls.all, l)
		ls.crew.all = append(ls.crew.all, &l.acceptor)
	}
	rings := make(chan error, len(ls.all))
	for _, l := range ls.all {
		go l.run(cfg.IOUring, rings)
	}
	ls.batching = cfg.IOUring
	for range ls.all {
		if err := <-rings; err != nil && ls.batching {
			ls.batching = false
			l.log.Warn("no io_uring here: messages cost more (-io-uring=0 does not ask for it)", "err", err)
		}
	}
	return ls, nil
}

// kind says by what the loops relay messages.
func (ls *loops) kind() string {
	if ls.batching {
		return "io_uring"
	}
	return "epoll"
}

// serve accepts from ln in all loops until stopping is closed. It owns ln, and
// returns once no loop accepts any more. rules returns those for a connection
// that begins; it is called from any thread.
func (ls *loops) serve(ln *net.TCPListener, by *entrance, stopping <-chan struct{}, rules func() *rules) error {
	defer ln.Close()
	// net's descriptor is registered with the runtime's poller. As long as it is, each
	// connection wakes the thread that waits there, once any goroutine waits for any
	// socket: that costs more than a connection's handshake.
	fd, err := sockopt.Dup(ln)
	if err != nil {
		return err
	}
	ln.Close()
	defer unix.Close(fd)
	// Accepted sockets inherit the options of their listener.
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	ls.liveness.Set(fd)

	ls.onAll(func(l *loop) { l.listen(fd, by, rules) })
	<-stopping
	ls.onAll(func(l *loop) { l.unlisten(fd) })
	return nil
}

// onAll runs f in each loop's thread and waits until all have.
func (ls *loops) onAll(f func(*loop)) {
	done := make(chan struct{}, len(ls.all))
	for _, l := range ls.all {
		if !l.reactor.Post(func() { defer func() { done <- struct{}{} }(); f(l) }) {
			done <- struct{}{}
		}
	}
	for range ls.all {
		<-done
	}
}

// work tells what each loop does with its time, the longest turn of the last minute
// or two, how many connections it has, and how many of those have not said all.
func (ls *loops) work(tell func(busy, longest time.Duration, conns, awaiting int)) {
	for _, l := range ls.all {
		busy, longest := l.meter.Read(l.reactor.Age())
		tell(busy, longest, int(l.load.Load()), int(l.awaitingSeen.Load()))
	}
}

// pipeCount returns how many pipes there are, and how many there may be.
func (ls *loops) pipeCount() (made, limit int) {
	return ls.pipes.Made(), int(ls.pipes.Max)
}

// take hands a tunnel that was connected elsewhere to the loop with the fewest,
// and reports whether it did: then client and backend are closed, the
// descriptors having changed hands by dup, since net keeps its own to itself.
// What is not TCP stays with the caller; and so does everything where there are
// no descriptors left for a dup: the client has its 200.
func (ls *loops) take(s *session, u *upstream, client, backend net.Conn, b beginning) bool {
	cfd, err := dupConn(client)
	if err != nil {
		return false
	}
	bfd, err := dupConn(backend)
	if err != nil {
		unix.Close(cfd)
		return false
	}
	client.Close()
	backend.Close()
	to := ls.crew.idlest()
	if b.resumable != nil {
		b.resumable.CarriedBy(to.carrier(), s.client)
		b.frames = append([]byte(nil), b.frames...)
	}
	b.early = append([]byte(nil), b.early...) // not the whole of its array
	to.load.Add(1)
	if !to.reactor.Post(func() { to.adopt(s, u, cfd, bfd, b) }) {
		unix.Close(cfd)
		unix.Close(bfd)
		if b.resumable != nil {
			b.resumable.Over()
		}
		to.ledger.ended(s, u, relay.End{Ending: relay.Ending{By: relay.Gateway, How: relay.Shutdown}, Limit: relay.Drain})
	}
	return true
}

// pair is for engine.
func (*loops) pair() (inner, outer net.Conn, err error) { return newPair() }

// retime gives the loops the times and sizes of another configuration, for what
// begins from here on. A time that is shorter than before counts from the moment
// on when those have passed that began with the longer one.
func (ls *loops) retime(cfg *Config) {
	ls.onAll(func(l *loop) {
		l.requests.After = cfg.HandshakeTimeout.Nanoseconds()
		l.dials.After = cfg.Timeout.Nanoseconds()
		if size := max(cfg.Buffer, cfg.HandshakeMax+len("\r\n")); size > len(l.buf) {
			l.buf = make([]byte, size)
		}
	})
}

// portion is how many connections a loop looks at before others have their turn:
// less than a millisecond's worth, none of which may be in a cache.
const portion = 256

// visit calls look for each open tunnel, in the thread that has it and one at a
// time, and cuts those for which it returns true. Loops go on with their work
// between two portions, and then the caller is called too, by between. An error is
// ctx's; look may be called once more then.
func (ls *loops) visit(ctx context.Context, look func(*session, *upstream, relay.Pulse) (cut bool), between func()) error {
	for _, l := range ls.all {
		for at, more := 0, true; more; {
			done := make(chan struct{})
			if !l.reactor.Post(func() { at, more = l.visit(at, look); close(done) }) {
				break // it has ended, and its tunnels too
			}
			select {
			case <-done:
			case <-ctx.Done():
				return ctx.Err()
			}
			between()
		}
	}
	return nil
}

// visit is one portion of loops.visit. It returns where the next one begins, if
// there is one.
func (l *loop) visit(at int, look func(*session, *upstream, relay.Pulse) (cut bool)) (next int, more bool) {
	l.reactor.Tick()
	next = l.openFrom(at, portion, func(t *tunnel) {
		if look(&t.session, &t.upstream, l.pulse(t)) {
			l.cut(t, relay.Cut)
		}
	})
	return next, next < len(l.slots)
}

// answer returns whether all loops go on with their work, or nil. ctx bounds the
// wait.
func (ls *loops) answer(ctx context.Context) error {
	for i, l := range ls.all {
		done := make(chan struct{})
		if !l.reactor.Post(func() { close(done) }) {
			continue // it has ended, as it was told to
		}
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("loop %d does not answer", i)
		}
	}
	return nil
}

// handOver is crew.handOver.
func (ls *loops) handOver(ctx context.Context, conn *net.UnixConn, first time.Duration, state map[string][]byte, told func(tunnels int, took time.Duration)) error {
	return ls.crew.handOver(ctx, conn, first, state, told)
}

// takeOver is crew.takeOver.
func (ls *loops) takeOver(conn *net.UnixConn, rules func() *rules, state func(string, []byte), idle func(bool)) (taken int, err error) {
	return ls.crew.takeOver(conn, rules, state, idle)
}

// close cuts all tunnels and ends the loops. It does not wait for them.
func (ls *loops) close() {
	for _, l := range ls.all {
		l.reactor.Post(l.shutdown)
	}
}

// movedFrom returns how many bytes were spliced, and how many were copied, by the side that
// they came from, the client's first.
func (ls *loops) movedFrom() (spliced, copied [2]int64) {
	for _, l := range ls.all {
		for side := range spliced {
			spliced[side] += l.totalSpliced[side].Load()
			copied[side] += l.totalCopied[side].Load()
		}
	}
	return spliced, copied
}

// loop is a reactor and the connections that it serves.
type loop struct {
	acceptor
	batch            batch
	pending, handled int // events: a panic loses one of them
	meter            reactor.Meter
	metered          bool         // somebody may ask for what meter knows
	awaitingSeen     atomic.Int32 // awaiting, published at the end of a turn
}

func newLoop(ls *loops, cfg *Config, ledger *ledger, slowWay func(int, *rules, session, []byte)) (*loop, error) {
	// A raw wait keeps its processor, so it needs one to itself.
	r, err := reactor.New(runtime.GOMAXPROCS(0) > cfg.loopCount())
	if err != nil {
		return nil, err
	}
	l := &loop{}
	l.reactor = r
	l.crew = &ls.crew
	l.ledger, l.log = ledger, ledger.log
	l.bounds, l.liveness = cfg.bounds(), cfg.liveness()
	l.buf = make([]byte, max(cfg.Buffer, cfg.HandshakeMax+len("\r\n")))
	l.bufferSize = cfg.Buffer
	l.slotSize = min(cfg.Buffer, uring.SlotSize)
	l.pipes = pipe.NewPool(&ls.pipes, max(1, maxIdlePipes/cfg.loopCount()))
	l.spliceable = cfg.Splice
	l.slowWay = slowWay
	l.metered = cfg.Admin != ""
	l.firstBytes = ledger.times.firstByte
	l.waiting = pending.NewBudget(max(1, cfg.maxPending()/cfg.loopCount()), cfg.pendingShare(cfg.loopCount()))
	l.requests.After = cfg.HandshakeTimeout.Nanoseconds()
	l.dials.After = cfg.Timeout.Nanoseconds()
	l.watches.After = watchAfter.Nanoseconds()
	l.look = cfg.Keepalive.Nanoseconds() / 2
	l.lingers.After = lingerTime.Nanoseconds()
	l.acks.After = ackAfter.Nanoseconds()
	return l, nil
}

// run is the loop. It tells whether it has an io_uring, if it is to, before it
// serves.
func (l *loop) run(ring bool, told chan<- error) {
	// A thread of its own: the scheduler has nothing to move around, the
	// reactor's waits are its to make, and a ring belongs to it.
	runtime.LockOSThread()
	if ring {
		told <- l.batch.open()
	} else {
		told <- nil
	}
	for turns := uint(0); ; turns++ {
		l.pending, l.handled, l.batch.looked = l.wait(), 0, 0
		switch {
		case l.metered && l.reactor.Slept:
			l.meter.Woke(l.reactor)
		case !l.metered && (l.anythingTimed() || l.reactor.Rested || turns%staleTurns == 0):
			l.reactor.Tick()
		}
		for !l.turn() {
		}
		l.publish()
		if l.metered {
			l.awaitingSeen.Store(int32(l.awaiting))
			l.meter.Turned(l.reactor)
		}
		if l.closing && l.empty() && l.reactor.End() {
			l.pipes.CloseIdle()
			l.batch.close()
			return
		}
	}
}

// staleTurns is after how many turns the clock is read where nothing waits for it: it
// tells how long a tunnel had rested when it ended, and no clock is read for a message.
// With sleeps that are no longer than reactor.Brief it is a third of a second behind at
// most.
const staleTurns = 64

// wait returns how many events there are, after waiting for at least one or
// for something to be due.
func (l *loop) wait() int {
	n := l.reactor.Poll()
	if n > 0 || len(l.todo) > 0 || l.reactor.Busy() || !l.newcomers.empty() {
		return n
	}
	timeout := l.untilDue()
	if timeout == 0 {
		return 0
	}
	return l.reactor.Sleep(timeout)
}

// turn deals with a batch of events and with what is due. It returns false
// when a panic cut it short; what is left is there to be dealt with. A panic
// ends the tunnel that it happened to, and no other.
func (l *loop) turn() (done bool) {
	defer func() {
		if v := recover(); v != nil {
			t := l.current
			l.current = nil
			if t == nil {
				l.ledger.panicked(v, nil)
			} else {
				l.ledger.panicked(v, &t.session)
				t.layer = nil // may be what has failed, and has no last words
				l.cut(t, relay.Failure)
			}
		}
	}()
	l.bulkTurn = false
	l.batch.relay(&l.tunnels, l.reactor.Events[:l.pending])
	for l.handled < l.pending {
		ev := &l.reactor.Events[l.handled]
		l.handled++
		l.dispatch(ev)
	}
	for f := l.reactor.Next(); f != nil; f = l.reactor.Next() {
		f()
		l.current = nil
	}
	l.moveBulk()
	l.serveNewcomers()
	l.expire()
	l.current = nil
	return true
}

// dispatch deals with one event.
func (l *loop) dispatch(ev *unix.EpollEvent) {
	switch ev.Fd {
	case takenEvent:
		return
	case reactor.WakeEvent:
		l.reactor.ReadInbox()
		return
	case listenerEvent:
		l.newcomers.knock(ev.Pad)
		return
	}
	t, s := l.of(ev)
	if t == nil {
		return
	}
	if t.state == stateRequest || t.state == stateLinger {
		l.newcomers.putOff(t, ev)
		return
	}
	l.current = t
	s.noteEvents(ev.Events)
	l.event(t, s, ev.Events)
	l.current = nil
}

// shutdown cuts everything; the loop ends once that is done.
func (l *loop) shutdown() {
	l.closing = true
	for _, t := range l.slots {
		l.cut(t, relay.Shutdown)
	}
}

// expire deals with everything whose time has come.
func (l *loop) expire() {
	for {
		t, at := l.requests.Due(l.reactor.Now)
		if t == nil {
			break
		}
		if l.current = t; t.deadline == at {
			l.refuse(t, t.session.cutShort(t.flows[clientSide].unsent, errTooSlow))
		}
	}
	for {
		t, _ := l.watches.Due(l.reactor.Now)
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
		t, at := l.dials.Due(l.reactor.Now)
		if t == nil {
			break
		}
		if l.current = t; t.deadline == at {
			l.dialFailed(t, dialOpError(t, os.ErrDeadlineExceeded))
		}
	}
	for {
		t, at := l.lingers.Due(l.reactor.Now)
		if t == nil {
			break
		}
		if l.current = t; t.deadline == at {
			l.dismiss(t)
		}
	}
	for {
		t, _ := l.acks.Due(l.reactor.Now)
		if t == nil {
			break
		}
		l.current = t
		l.remind(t)
		l.move(t)
	}
	if l.pausedListeners > 0 {
		l.resumeListeners()
	}
	if l.sweepable > 0 && l.reactor.Now >= l.sweepDue {
		l.sweep()
	}
}

// queues returns all deadlines.
func (l *loop) queues() [5]*deadlines {
	return [...]*deadlines{&l.requests, &l.dials, &l.watches, &l.lingers, &l.acks}
}

// anythingTimed tells whether the clock matters.
func (l *loop) anythingTimed() bool {
	for _, d := range l.queues() {
		if _, ok := d.Next(); ok {
			return true
		}
	}
	return l.sweepable > 0 || l.pausedListeners > 0
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
	for _, d := range l.queues() {
		if at, ok := d.Next(); ok {
			earlier(at)
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
	l.reactor.Tick()
	return int(min(max(0, (next-l.reactor.Now+1e6-1)/1e6), 1<<30)) // epoll takes an int
}
