package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"gateway/internal/sys"
)

// reactor is an epoll instance, the thread that waits on it, and the inbox by
// which other threads reach that thread. Only post may be called from elsewhere.
type reactor struct {
	epfd    int
	wakefd  int // eventfd: something is in the inbox
	events  [256]unix.EpollEvent
	rawWait bool // it may sleep in raw waits, see sleep

	start       time.Time
	now         int64 // coarse clock in nanoseconds since start, see tick
	interrupted bool  // the last poll was, by a signal
	slept       bool  // since the last turn

	work []func() // taken from the inbox

	mu    sync.Mutex
	inbox []func()
	gone  bool // the thread has ended
}

// An event says in its Fd field what it is for: a number from 0 on is the
// caller's, wakeEvent is the reactor's.
const wakeEvent = -1

// newReactor returns a reactor. rawWait must be false where threads have no
// processor to spare, since a raw wait keeps its own.
func newReactor(rawWait bool) (*reactor, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	wakefd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		err = unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, wakefd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: wakeEvent})
	}
	r := &reactor{epfd: epfd, wakefd: wakefd, rawWait: rawWait, start: time.Now()}
	if err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *reactor) close() {
	unix.Close(r.epfd)
	if r.wakefd >= 0 {
		unix.Close(r.wakefd)
	}
}

// end closes the reactor for good. It reports false if something came in at the
// last moment.
func (r *reactor) end() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.inbox)+len(r.work) > 0 {
		return false
	}
	r.gone = true
	r.close()
	return true
}

// tick reads the clock. Between two ticks its time stands still.
func (r *reactor) tick() { r.now = time.Since(r.start).Nanoseconds() }

// post has a function run by the reactor's thread. It reports false if that has
// ended.
func (r *reactor) post(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		return false
	}
	r.inbox = append(r.inbox, f)
	if len(r.inbox) == 1 {
		one := uint64(1)
		unix.Write(r.wakefd, (*[8]byte)(unsafe.Pointer(&one))[:])
	}
	return true
}

// readInbox adds what others have posted to work.
func (r *reactor) readInbox() {
	var count [8]byte
	unix.Read(r.wakefd, count[:])
	r.mu.Lock()
	r.work = append(r.work, r.inbox...)
	r.inbox = nil
	r.mu.Unlock()
}

// Waiting goes in three steps:
//
//  1. poll: not at all. Under load there is always something;
//  2. sleep, up to 5 ms in a raw system call. The scheduler does not know that
//     the thread sleeps, so nothing is handed over and back: that costs as much
//     as a message;
//  3. sleep, in an ordinary one for as long as it takes, which gives the
//     scheduler its processor back. A raw wait that never ended would hold it for
//     ever.
//
// A signal ends step 2 early: it may be the collector, which has to stop the
// world and cannot while a thread sleeps unknown to the scheduler.

// poll returns how many events there are, without waiting for one.
func (r *reactor) poll() int {
	n, err := sys.EpollWait(r.epfd, r.events[:], 0)
	r.interrupted, r.slept = err == unix.EINTR, false
	return max(n, 0)
}

// sleep returns how many events there are, after waiting for one for up to
// timeout milliseconds; below 0 for as long as it takes.
func (r *reactor) sleep(timeout int) int {
	r.slept = true
	if !r.interrupted && r.rawWait {
		brief := 5
		if timeout > 0 {
			brief = min(brief, timeout)
		}
		n, err := sys.EpollWait(r.epfd, r.events[:], brief)
		if n > 0 {
			return n
		}
		if err == nil && timeout > 0 {
			if timeout -= brief; timeout == 0 {
				return 0
			}
		}
	}
	n, err := unix.EpollWait(r.epfd, r.events[:], timeout)
	if err != nil && err != unix.EINTR {
		panic(fmt.Sprintf("epoll_wait: %v", err)) // only for a bug: EBADF, EFAULT, EINVAL
	}
	return max(n, 0)
}

// meter tells how much of a reactor's time is work. It reads the clock once in a
// turn, and once more after a sleep; then there is time for that.
type meter struct {
	on     bool
	began  int64        // when this turn did, by the reactor's clock
	worked int64        // nanoseconds; the reactor's own
	busy   atomic.Int64 // the same, published

	awaiting atomic.Int32 // clients that have not said all, published

	// The longest turn of this minute and of the one before, by its parity.
	minutes [2]atomic.Int64 // which minute that is, from 1 on
	longest [2]atomic.Int64 // nanoseconds
}

// woke notes that a turn begins after a sleep.
func (m *meter) woke(r *reactor) {
	r.tick()
	m.began = r.now
}

// turned notes the end of a turn. The next one begins now, unless the reactor sleeps.
func (m *meter) turned(r *reactor) {
	r.tick()
	took := r.now - m.began
	m.began = r.now
	m.worked += took
	m.busy.Store(m.worked)
	minute := minuteOf(r.now)
	i := minute & 1
	if m.minutes[i].Load() != minute {
		m.longest[i].Store(0)
		m.minutes[i].Store(minute)
	}
	if took > m.longest[i].Load() {
		m.longest[i].Store(took)
	}
}

func minuteOf(now int64) int64 { return now/int64(time.Minute) + 1 }

// read returns how long the reactor has worked, and its longest turn of this minute
// and the one before. It may be called from any thread.
func (m *meter) read(now time.Duration) (busy, longest time.Duration) {
	minute := minuteOf(int64(now))
	for i := range m.minutes {
		if m.minutes[i].Load() >= minute-1 {
			longest = max(longest, time.Duration(m.longest[i].Load()))
		}
	}
	return time.Duration(m.busy.Load()), longest
}
