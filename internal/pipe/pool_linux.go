// Package pipe lends kernel pipes for splice(2), which moves bytes between two
// sockets only through one.
package pipe

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// wantedSize is the wanted capacity of a pipe in bytes, the most that an
	// unprivileged process may ask for (/proc/sys/fs/pipe-max-size). Smaller
	// ones cost more system calls, larger ones fall out of the CPU's caches.
	wantedSize = 1 << 20
	// minSize is the least with which splicing still pays. A user over
	// /proc/sys/fs/pipe-user-pages-soft gets pipes of one or two pages.
	minSize = 64 << 10
	// retryAfter is how long no pipe is asked for after one was refused. Asking
	// each time would cost more than splicing saves.
	retryAfter = time.Second
)

// Pipe is a pair of non-blocking descriptors.
type Pipe struct {
	R, W int
	Size int // capacity in bytes
}

// Budget bounds the pipes of several pools, idle or lent. It is safe for
// concurrent use.
type Budget struct {
	Max  int32
	made atomic.Int32
}

// Pool lends pipes. It is for one thread alone.
type Pool struct {
	budget  *Budget
	maxIdle int
	idle    []*Pipe // all empty
	refused time.Time
}

// NewPool returns a pool that keeps at most maxIdle pipes for their next use.
func NewPool(b *Budget, maxIdle int) Pool { return Pool{budget: b, maxIdle: maxIdle} }

// Get lends an empty pipe, or returns nil if none is to be had.
func (pp *Pool) Get() *Pipe {
	if n := len(pp.idle); n > 0 {
		p := pp.idle[n-1]
		pp.idle = pp.idle[:n-1]
		return p
	}
	if pp.budget.made.Load() >= pp.budget.Max || !pp.refused.IsZero() && time.Since(pp.refused) < retryAfter {
		return nil
	}
	p := open()
	if p == nil {
		pp.refused = time.Now()
		return nil
	}
	pp.refused = time.Time{}
	pp.budget.made.Add(1)
	return p
}

// Adopt counts a pipe that was made elsewhere among those that are lent. It returns
// nil, and leaves the pipe to the caller, if there are as many as there may be.
func (pp *Pool) Adopt(r, w int) *Pipe {
	size, err := unix.FcntlInt(uintptr(w), unix.F_GETPIPE_SZ, 0)
	if err != nil || pp.budget.made.Add(1) > pp.budget.Max {
		if err == nil {
			pp.budget.made.Add(-1)
		}
		return nil
	}
	return &Pipe{R: r, W: w, Size: size}
}

// Empty reads the n bytes that are in a pipe, and closes it.
func Empty(r, w, n int) []byte {
	b := make([]byte, n)
	for at := 0; at < n; {
		m, err := unix.Read(r, b[at:])
		if m <= 0 && err != unix.EINTR {
			b = b[:at] // only for a wrong n
			break
		}
		at += max(m, 0)
	}
	unix.Close(r)
	unix.Close(w)
	return b
}

// Put takes a pipe back. One that still has bytes in it is closed, or they
// would come out in another tunnel.
func (pp *Pool) Put(p *Pipe, empty bool) {
	if empty && len(pp.idle) < pp.maxIdle {
		pp.idle = append(pp.idle, p)
		return
	}
	pp.close(p)
}

// CloseIdle closes the pipes that are not lent.
func (pp *Pool) CloseIdle() {
	for _, p := range pp.idle {
		pp.close(p)
	}
	pp.idle = nil
}

func (pp *Pool) close(p *Pipe) {
	unix.Close(p.R)
	unix.Close(p.W)
	pp.budget.made.Add(-1)
}

// open returns nil if the kernel has no descriptors or no room for a pipe.
func open() *Pipe {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil
	}
	p := &Pipe{R: fds[0], W: fds[1]}
	size, err := unix.FcntlInt(uintptr(p.W), unix.F_SETPIPE_SZ, wantedSize)
	if err != nil {
		size, err = unix.FcntlInt(uintptr(p.W), unix.F_GETPIPE_SZ, 0)
	}
	if err != nil || size < minSize {
		unix.Close(p.R)
		unix.Close(p.W)
		return nil
	}
	p.Size = size
	return p
}

// Idle returns how many pipes wait for their next use.
func (pp *Pool) Idle() int { return len(pp.idle) }

// Made returns how many pipes there are, idle or lent.
func (b *Budget) Made() int { return int(b.made.Load()) }
