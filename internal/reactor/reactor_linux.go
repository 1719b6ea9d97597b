// Package reactor waits for the events of descriptors by epoll, on a thread of the
// caller's, and runs there what other threads ask of it. It knows nothing of what the
// events mean.
package reactor

import (
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"gateway/internal/sys"
)

// Reactor is an epoll instance, the thread that waits on it, and the inbox by
// which other threads reach that thread. Only Post, Backlog and Age may be called
// from elsewhere.
type Reactor struct {
	Events [256]unix.EpollEvent // what Poll and Sleep have found
	Now    int64                // coarse clock in nanoseconds since the reactor was made, see Tick
	Slept  bool                 // since the last Poll
	Rested bool                 // … perhaps for longer than Brief

	epfd        int
	wakefd      int  // eventfd: something is in the inbox
	rawWait     bool // it may sleep in raw waits, see Sleep
	start       time.Time
	interrupted bool // the last poll was, by a signal

	work []func() // taken from the inbox

	mu    sync.Mutex
	inbox []func()
	gone  bool // the thread has ended
}

// Brief is the longest of the sleeps that Rested does not tell of.
const Brief = 5 * time.Millisecond

// WakeEvent stands in the Fd field of the event that says that something was posted:
// call ReadInbox. All other values are the caller's, who registers descriptors by
// Control.
const WakeEvent = -1

// New returns a reactor; it is closed by Close or End. rawWait must be false where
// threads have no processor to spare, since a raw wait keeps its own.
func New(rawWait bool) (*Reactor, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	wakefd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		err = unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, wakefd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: WakeEvent})
	}
	r := &Reactor{epfd: epfd, wakefd: wakefd, rawWait: rawWait, start: time.Now()}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Control is epoll_ctl.
func (r *Reactor) Control(op, fd int, ev *unix.EpollEvent) error {
	return unix.EpollCtl(r.epfd, op, fd, ev)
}

// ControlRaw is Control by a raw system call, for what is done often.
func (r *Reactor) ControlRaw(op int, fd int32, ev *unix.EpollEvent) error {
	return sys.EpollCtl(r.epfd, op, fd, ev)
}

// Close closes the descriptors of a reactor whose thread has not begun.
func (r *Reactor) Close() {
	unix.Close(r.epfd)
	if r.wakefd >= 0 {
		unix.Close(r.wakefd)
	}
}

// End closes the reactor for good. It reports false if something came in at the
// last moment.
func (r *Reactor) End() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.inbox)+len(r.work) > 0 {
		return false
	}
	r.gone = true
	r.Close()
	return true
}

// Tick reads the clock. Between two ticks Now stands still.
func (r *Reactor) Tick() { r.Now = r.Age().Nanoseconds() }

// Age returns how old the reactor is. It may be called from any thread.
func (r *Reactor) Age() time.Duration { return time.Since(r.start) }

// Post has a function run by the reactor's thread. It reports false if that has
// ended.
func (r *Reactor) Post(f func()) bool {
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

// Backlog returns how many functions were posted that the thread has not seen yet. It
// may be called from any thread.
func (r *Reactor) Backlog() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.inbox)
}

// ReadInbox makes what others have posted ready for Next.
func (r *Reactor) ReadInbox() {
	var count [8]byte
	unix.Read(r.wakefd, count[:])
	r.mu.Lock()
	r.work = append(r.work, r.inbox...)
	r.inbox = nil
	r.mu.Unlock()
}

// Busy tells whether Next has a function.
func (r *Reactor) Busy() bool { return len(r.work) > 0 }

// Next takes the first of the functions that ReadInbox has brought, for the caller to
// run; nil if there is none. One that panics takes none of the others with it.
func (r *Reactor) Next() func() {
	if len(r.work) == 0 {
		return nil
	}
	f := r.work[0]
	r.work = r.work[1:]
	return f
}

// Waiting goes in three steps:
//
//  1. poll: not at all. Under load there is always something;
//  2. sleep, up to Brief in a raw system call. The scheduler does not know that
//     the thread sleeps, so nothing is handed over and back: that costs as much
//     as a message;
//  3. sleep, in an ordinary one for as long as it takes, which gives the
//     scheduler its processor back. A raw wait that never ended would hold it for
//     ever.
//
// A signal ends step 2 early: it may be the collector, which has to stop the
// world and cannot while a thread sleeps unknown to the scheduler.

// Poll returns how many events there are, without waiting for one.
func (r *Reactor) Poll() int {
	n, err := sys.EpollWait(r.epfd, r.Events[:], 0)
	r.interrupted, r.Slept, r.Rested = err == unix.EINTR, false, false
	return max(n, 0)
}

// Sleep returns how many events there are, after waiting for one for up to
// timeout milliseconds; below 0 for as long as it takes.
func (r *Reactor) Sleep(timeout int) int {
	r.Slept = true
	if !r.interrupted && r.rawWait {
		brief := int(Brief.Milliseconds())
		if timeout > 0 {
			brief = min(brief, timeout)
		}
		n, err := sys.EpollWait(r.epfd, r.Events[:], brief)
		if n > 0 {
			return n
		}
		if err == nil && timeout > 0 {
			if timeout -= brief; timeout == 0 {
				r.Rested = true
				return 0
			}
		}
	}
	r.Rested = true
	n, err := unix.EpollWait(r.epfd, r.Events[:], timeout)
	if err != nil && err != unix.EINTR {
		panic(fmt.Sprintf("epoll_wait: %v", err)) // only for a bug: EBADF, EFAULT, EINVAL
	}
	return max(n, 0)
}
