package main

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"

	"gateway/internal/address"
)

// How the loops accept: from one socket, all of them, and only as many
// connections as there are descriptors for.

// errFull is why accepting pauses before the descriptors run out.
var errFull = errors.New("as many connections as the limit of descriptors allows (ulimit -n)")

// sharedListener is a listening socket that all loops accept from.
type sharedListener struct {
	fd      int
	forward *address.Route // where its clients go; nil: they say so

	// One loop's view of it.
	paused   bool // out of descriptors
	resumeAt int64
	pace     backoff
}

// serve accepts from ln in all loops until stopping is closed. It owns ln, and
// returns once no loop accepts any more.
func (ls *loops) serve(ln *net.TCPListener, forward *address.Route, stopping <-chan struct{}) error {
	defer ln.Close()
	// net's descriptor is registered with the runtime's poller.
	fd, err := dup(ln)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Accepted sockets inherit the options of their listener.
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	ls.liveness.Set(fd)

	ls.onAll(func(l *loop) { l.listen(fd, forward) })
	<-stopping
	ls.onAll(func(l *loop) { l.unlisten(fd) })
	return ErrGatewayClosed
}

// onAll runs f in each loop's thread and waits until all have.
func (ls *loops) onAll(f func(*loop)) {
	done := make(chan struct{}, len(ls.all))
	for _, l := range ls.all {
		if !l.send(func() { defer func() { done <- struct{}{} }(); f(l) }) {
			done <- struct{}{}
		}
	}
	for range ls.all {
		<-done
	}
}

// listen has the loop accept from fd. EPOLLEXCLUSIVE wakes one loop for a
// connection, not all. The registration is level-triggered: one accept for
// each event shares a storm among the loops.
func (l *loop) listen(fd int, forward *address.Route) {
	sl := &sharedListener{fd: fd, forward: forward}
	l.listeners = append(l.listeners, sl)
	l.registerListener(len(l.listeners) - 1)
}

func (l *loop) registerListener(i int) {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLEXCLUSIVE, Fd: listenerSlot, Pad: int32(i)}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, l.listeners[i].fd, &ev); err != nil {
		l.pause(l.listeners[i], err)
	}
}

// unlisten accepts what stands in the queue, since closing the listener would
// reset it, and then no more.
func (l *loop) unlisten(fd int) {
	l.tick()
	for _, sl := range l.listeners {
		if sl.fd != fd {
			continue
		}
		if sl.paused {
			sl.paused = false
			l.pausedListeners--
		}
		for range 4096 { // what a queue holds: a storm must not go on here
			if !l.accept(sl) {
				break
			}
		}
		if sl.paused {
			sl.paused = false
			l.pausedListeners--
		} else {
			unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, fd, nil)
		}
		sl.fd = -1
	}
}

// pause stops accepting for a while: out of descriptors most of the time.
func (l *loop) pause(sl *sharedListener, err error) {
	delay := sl.pace.next()
	l.front.warnCannotAccept(err, delay)
	unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, sl.fd, nil)
	if !sl.paused {
		l.pausedListeners++
	}
	sl.paused, sl.resumeAt = true, l.now+delay.Nanoseconds()
}

func (l *loop) resumeListeners() {
	for i, sl := range l.listeners {
		if sl.paused && l.now >= sl.resumeAt {
			sl.paused = false
			l.pausedListeners--
			l.registerListener(i)
		}
	}
}

// accept takes one connection. It reports whether there may be another.
func (l *loop) accept(sl *sharedListener) bool {
	if sl.fd < 0 {
		return false // an event of before unlisten
	}
	if l.group.full() {
		l.tick()
		l.pause(sl, errFull)
		return false
	}
	fd, err := sysAccept(sl.fd, &l.sockaddr)
	switch err {
	case nil:
	case unix.EAGAIN: // another loop was quicker
		return false
	case unix.EINTR, unix.ECONNABORTED:
		return true
	default:
		l.tick()
		l.pause(sl, err)
		return false
	}
	sl.pace.reset()
	l.front.serving.Add(1)
	peer := addrPortOf(&l.sockaddr)

	// To the loop with the fewest, unless this one has hardly more.
	to := l.group.idlest()
	if least := to.load.Load(); l.load.Load() <= least+least/8 {
		to = l
	}
	to.load.Add(1)
	if to == l {
		l.begin(fd, peer, sl.forward)
	} else if !to.send(func() { to.begin(fd, peer, sl.forward) }) {
		unix.Close(fd)
		l.front.serving.Done()
	}
	return true
}
