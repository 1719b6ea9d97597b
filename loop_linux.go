package main

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const loopsSupported = true

// loops is the relayer of Linux: one epoll loop per CPU, each on a thread of
// its own, and no goroutine, timer or buffer for a tunnel. The loops also take
// the plain case of a handshake from accept to answer (accept_linux.go).
//
// Who may touch what:
//
//   - A tunnel, the table it stands in, pipes and deadlines belong to one
//     loop, and only that loop's thread touches them. Nothing of a tunnel is
//     locked, and it never moves to another loop.
//   - Other threads reach a loop only through its inbox.
//   - A descriptor belongs to a loop from the moment it is in a tunnel, and
//     the loop closes it. net's runtime poller never knows of it.
type loops struct {
	front *frontend
	// slowWay serves an accepted client that has sent received, waiting where
	// need be. It owns the descriptor.
	slowWay  func(fd int, s *session, received []byte)
	portable *relay // for what is not TCP, and for want of descriptors
	relayConfig
	attempts       int // to dial
	all            []*loop
	pipes          atomic.Int32 // pipes of all loops
	firstLocalPort uint16       // the least that the kernel picks by itself
	rawWait        bool         // loops may sleep in raw waits
	maxConns       int32        // that the descriptors suffice for
	maxPipes       int32        // the same
	away           atomic.Int32 // connections that goroutines serve
}

// newLoops starts the loops.
func newLoops(cfg *Config, rc relayConfig, front *frontend, portable *relay, slowWay func(int, *session, []byte)) (*loops, error) {
	n := cfg.loopCount()
	ls := &loops{
		front:          front,
		slowWay:        slowWay,
		portable:       portable,
		relayConfig:    rc,
		attempts:       cfg.Retry,
		firstLocalPort: firstLocalPort(),
		// A raw wait keeps its processor, so it needs one to itself.
		rawWait: runtime.GOMAXPROCS(0) > n,
	}
	ls.maxConns, ls.maxPipes = budget(descriptorLimit())
	for range n {
		l, err := newLoop(ls, cfg)
		if err != nil {
			for _, l := range ls.all {
				l.closeFiles()
			}
			return nil, fmt.Errorf("cannot make an event loop: %w", err)
		}
		ls.all = append(ls.all, l)
	}
	for _, l := range ls.all {
		go l.run()
	}
	return ls, nil
}

// run hands a tunnel that was connected elsewhere to the loop with the fewest.
// The descriptors change hands by dup: net keeps its own to itself. What is not
// TCP, goroutines relay; and where there are no descriptors left for a dup, they
// relay everything: the client has its 200.
func (ls *loops) run(s *session, client, backend net.Conn, early []byte) {
	cfd, err := dupConn(client)
	bfd := -1
	if err == nil {
		bfd, err = dupConn(backend)
	}
	if err != nil {
		if cfd >= 0 {
			unix.Close(cfd)
		}
		ls.away.Add(1)
		defer ls.away.Add(-1)
		ls.portable.run(s, client, backend, early)
		return
	}
	client.Close()
	backend.Close()
	l := ls.idlest()
	early = append([]byte(nil), early...) // not the whole of its array
	l.load.Add(1)
	if !l.send(func() { l.adopt(s, cfd, bfd, early) }) {
		unix.Close(cfd)
		unix.Close(bfd)
		ls.account(s, tunnelEnd{ending: ending{byGateway, howShutdown}})
	}
}

// serveAway has a goroutine serve a connection that a loop cannot.
func (ls *loops) serveAway(fd int, s *session, received []byte) {
	defer ls.away.Add(-1)
	ls.slowWay(fd, s, received)
}

// dupConn is dup for what is TCP.
func dupConn(c net.Conn) (int, error) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return -1, errors.ErrUnsupported
	}
	return dup(tcp)
}

// dup returns a descriptor of the caller's own for a socket of net's,
// close-on-exec, or -1. (File().Fd() would make it blocking, for both.)
func dup(socket syscall.Conn) (int, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	cerr := raw.Control(func(orig uintptr) {
		fd, err = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0)
	})
	return fd, errors.Join(err, cerr)
}

// idlest returns the loop with the fewest connections.
func (ls *loops) idlest() *loop {
	best := ls.all[0]
	for _, l := range ls.all[1:] {
		if l.load.Load() < best.load.Load() {
			best = l
		}
	}
	return best
}

// full tells whether another connection might not get its two descriptors.
// Then it is better off in the listener's queue than with a 502.
func (ls *loops) full() bool {
	n := ls.away.Load()
	for _, l := range ls.all {
		n += l.load.Load()
	}
	return n >= ls.maxConns
}

// budget divides the descriptors that a process may have: two for each
// connection, two for each pipe, and some put by for everything else. Few
// descriptors mean few pipes: a tunnel can do without, and not a client.
func budget(limit uint64) (conns, pipes int32) {
	const putBy = 128
	n := int32(min(limit, 1<<30))
	pipes = min(maxPipes, n/8)
	return max(16, (n-putBy)/2-pipes), pipes
}

// descriptorLimit returns how many descriptors this process may have.
func descriptorLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return unix.RLIM_INFINITY
	}
	return limit.Cur
}

// close cuts all tunnels and ends the loops.
func (ls *loops) close() {
	ls.portable.close()
	for _, l := range ls.all {
		l.send(l.shutdown)
	}
}

func (ls *loops) moved() (spliced, copied int64) {
	_, copied = ls.portable.moved()
	for _, l := range ls.all {
		spliced += l.totalSpliced.Load()
		copied += l.totalCopied.Load()
	}
	return spliced, copied
}

// loop is an epoll instance, its thread, and the connections that it serves.
type loop struct {
	group *loops
	front *frontend
	relayConfig

	epfd   int
	wakefd int // eventfd: something is in the inbox
	events [256]unix.EpollEvent
	buf    []byte // for every read; empty between two of them

	table    []*tunnel // by slot
	free     []uint32  // slots of table
	work     []func()  // taken from the inbox
	todo     []*tunnel // to go on with before the next wait
	spent    int       // bytes of bulk moved in this turn
	bulkTurn bool      // it is the turn of bulk
	pipes    pipePool

	spliceable bool
	closing    bool
	now        int64 // coarse clock, see tick
	start      time.Time

	listeners       []*sharedListener
	pausedListeners int

	requests  deadlines // of clients that have not said all
	dials     deadlines // of backends that are connecting
	watches   deadlines // when to watch a client whose backend still connects
	lingers   deadlines // of refused clients
	sweepDue  int64
	sweepAt   int // next slot of the table
	sweepable int // tunnels that the sweep has something to do for

	sockaddr unix.RawSockaddrAny // scratch

	// A batch of events and how far it is dealt with: a panic loses one event.
	pending, handled int
	current          *tunnel // whose event is dealt with

	spliced, copied           int64        // bytes since the last publication
	totalSpliced, totalCopied atomic.Int64 // published
	load                      atomic.Int32 // connections here or on their way

	mu    sync.Mutex
	inbox []func()
	gone  bool // the loop has ended
}

func newLoop(ls *loops, cfg *Config) (*loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	wakefd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		err = unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, wakefd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: wakeSlot})
	}
	l := &loop{
		group:       ls,
		front:       ls.front,
		relayConfig: ls.relayConfig,
		epfd:        epfd,
		wakefd:      wakefd,
		buf:         make([]byte, max(cfg.Buffer, cfg.HandshakeMax+len("\r\n"))),
		pipes:       pipePool{made: &ls.pipes, max: ls.maxPipes, maxIdle: max(1, maxIdlePipes/cfg.loopCount())},
		spliceable:  cfg.Splice,
		start:       time.Now(),
	}
	l.requests.after = cfg.HandshakeTimeout.Nanoseconds()
	l.dials.after = cfg.Timeout.Nanoseconds()
	l.watches.after = watchAfter.Nanoseconds()
	l.lingers.after = lingerTime.Nanoseconds()
	if err != nil {
		l.closeFiles()
		return nil, err
	}
	return l, nil
}

func (l *loop) closeFiles() {
	unix.Close(l.epfd)
	if l.wakefd >= 0 {
		unix.Close(l.wakefd)
	}
	l.pipes.closeIdle()
}

// An event names its tunnel by slot and generation, not by descriptor: both
// descriptor and slot may have a new owner within the same batch of events,
// and a stale EPOLLOUT would read as "connected". In the Fd field of
// EpollEvent stands slot<<1|side, in Pad the generation.
const (
	wakeSlot     = -1 // the eventfd
	listenerSlot = -2 // Pad is the index of the listener
)

// run is the loop.
func (l *loop) run() {
	// A thread of its own: the scheduler has nothing to move around, and the
	// waits below are its to make.
	runtime.LockOSThread()
	for {
		l.pending, l.handled = l.wait(), 0
		if l.anythingTimed() {
			l.tick()
		}
		for !l.turn() {
		}
		l.publish()
		if l.closing && len(l.free) == len(l.table) && l.end() {
			return
		}
	}
}

// end ends a loop that has nothing left. It reports false if something came
// in at the last moment.
func (l *loop) end() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.inbox)+len(l.work) > 0 {
		return false
	}
	l.gone = true
	l.closeFiles()
	return true
}

// turn deals with a batch of events and with what is due. It returns false
// when a panic cut it short; what is left is there to be dealt with. A panic
// ends the tunnel that it happened to, and no other.
func (l *loop) turn() (done bool) {
	defer func() {
		if v := recover(); v != nil {
			logPanic(l.log, v)
			t := l.current
			l.current = nil
			if t != nil {
				l.cut(t, howError)
			}
		}
	}()
	l.bulkTurn = false
	for l.handled < l.pending {
		ev := &l.events[l.handled]
		l.handled++
		l.dispatch(ev)
	}
	for len(l.work) > 0 {
		f := l.work[0]
		l.work = l.work[1:]
		f()
		l.current = nil
	}
	// Bulk comes last and in portions, so that messages wait for one portion
	// and not for all the bulk there is. What comes to todo now waits too.
	l.spent, l.bulkTurn = 0, true
	for n := len(l.todo); n > 0 && l.spent < bulkBytes; n-- {
		t := l.todo[0]
		l.todo = l.todo[1:]
		t.queued = false
		if l.current = t; t.state == stateOpen {
			l.move(t)
		}
	}
	l.expire()
	l.current = nil
	return true
}

// goOn has a tunnel gone on with after the others had their turn.
func (l *loop) goOn(t *tunnel) {
	if !t.queued {
		t.queued = true
		l.todo = append(l.todo, t)
	}
}

// dispatch deals with one event.
func (l *loop) dispatch(ev *unix.EpollEvent) {
	switch ev.Fd {
	case wakeSlot:
		l.readInbox()
		return
	case listenerSlot:
		l.accept(l.listeners[ev.Pad])
		return
	}
	t := l.table[ev.Fd>>1]
	if t.generation != uint32(ev.Pad) || t.state == stateFree {
		return // of a former owner of the slot
	}
	l.current = t
	s := &t.sockets[ev.Fd&1]
	if ev.Events&unix.EPOLLOUT != 0 {
		s.writable = true
	}
	if ev.Events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.readable = true
	}
	if ev.Events&(unix.EPOLLPRI|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.hung = true
	}
	if ev.Events&unix.EPOLLERR != 0 {
		s.writable = true // the write will say why not
	}
	switch t.state {
	case stateRequest:
		l.readRequest(t)
		// A request and a reset may be one event; there will be no other.
		if t.state == stateDial && ev.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
			l.abandon(t, errClientGone)
		}
	case stateDial:
		l.dialing(t, s, ev.Events)
	case stateLinger:
		l.linger(t)
	case stateOpen:
		broken := ev.Events&unix.EPOLLERR != 0
		l.bulkTurn = broken // what came before a reset is delivered before it
		l.move(t)
		l.bulkTurn = false
		if broken && t.state == stateOpen {
			l.broken(t, s)
		}
	}
	l.current = nil
}

// shutdown cuts everything; the loop ends once that is done.
func (l *loop) shutdown() {
	l.closing = true
	for _, t := range l.table {
		l.cut(t, howShutdown)
	}
}

// send has a function run by the loop's thread. It reports false if the loop
// has ended.
func (l *loop) send(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return false
	}
	l.inbox = append(l.inbox, f)
	if len(l.inbox) == 1 {
		one := uint64(1)
		unix.Write(l.wakefd, (*[8]byte)(unsafe.Pointer(&one))[:])
	}
	return true
}

// readInbox runs what others have sent.
func (l *loop) readInbox() {
	var count [8]byte
	unix.Read(l.wakefd, count[:])
	l.mu.Lock()
	l.work = append(l.work, l.inbox...)
	l.inbox = nil
	l.mu.Unlock()
}

// wait returns how many events there are, after waiting for at least one or
// for something to be due. It waits in three steps:
//
//  1. not at all: under load there is always something;
//  2. up to 5 ms in a raw system call. The scheduler does not know that the
//     thread sleeps, so nothing is handed over and back: that costs as much as
//     a message;
//  3. in an ordinary one for as long as it takes, which gives the scheduler
//     its processor back. A raw wait that never ended would hold it for ever.
//
// A signal ends step 2 early: it may be the collector, which has to stop the
// world and cannot while a thread sleeps unknown to the scheduler.
func (l *loop) wait() int {
	n, err := sysWait(l.epfd, l.events[:], 0)
	if n > 0 || len(l.todo) > 0 || len(l.work) > 0 {
		return max(n, 0)
	}
	timeout := l.untilDue()
	if timeout == 0 {
		return 0
	}
	if err != unix.EINTR && l.group.rawWait {
		brief := 5
		if timeout > 0 {
			brief = min(brief, timeout)
		}
		if n, err = sysWait(l.epfd, l.events[:], brief); n > 0 {
			return n
		}
		if err == nil && timeout > 0 {
			if timeout -= brief; timeout == 0 {
				return 0
			}
		}
	}
	n, err = unix.EpollWait(l.epfd, l.events[:], timeout)
	if err != nil && err != unix.EINTR {
		panic(fmt.Sprintf("epoll_wait: %v", err)) // only for a bug: EBADF, EFAULT, EINVAL
	}
	return max(n, 0)
}
