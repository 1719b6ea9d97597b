package main

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is the wanted capacity of a pipe in bytes, the most that an
	// unprivileged process may ask for (/proc/sys/fs/pipe-max-size). Smaller
	// ones cost more system calls, larger ones fall out of the CPU's caches.
	pipeSize = 1 << 20
	// minPipeSize is the least with which splicing still pays. A user over
	// /proc/sys/fs/pipe-user-pages-soft gets pipes of one or two pages.
	minPipeSize = 64 << 10
	// maxPipes bounds all pipes of the process, and with them the memory that
	// stalled readers can pin: maxPipes × pipeSize. Beyond it, tunnels copy. Where
	// descriptors are few there may be less; see budget.
	maxPipes = 256
	// maxIdlePipes bounds the pipes that wait for their next use: half of what
	// pipe-user-pages-soft lets an unprivileged user have by default.
	maxIdlePipes = 32
	// pipeRetry is how long no pipe is asked for after one was refused. Asking
	// each time would cost more than splicing saves.
	pipeRetry = time.Second
)

// pipe is a pair of non-blocking descriptors.
type pipe struct {
	r, w int
	size int // capacity in bytes
}

// pipePool lends pipes to the tunnels of one loop, and only that loop uses it.
type pipePool struct {
	made    *atomic.Int32 // pipes of the process, idle or lent
	max     int32         // of those
	maxIdle int
	idle    []*pipe // all empty
	refused time.Time
}

// get lends an empty pipe, or returns nil if none is to be had.
func (pp *pipePool) get() *pipe {
	if n := len(pp.idle); n > 0 {
		p := pp.idle[n-1]
		pp.idle = pp.idle[:n-1]
		return p
	}
	if pp.made.Load() >= pp.max || !pp.refused.IsZero() && time.Since(pp.refused) < pipeRetry {
		return nil
	}
	p := openPipe()
	if p == nil {
		pp.refused = time.Now()
		return nil
	}
	pp.refused = time.Time{}
	pp.made.Add(1)
	return p
}

// put takes a pipe back. One that still has bytes in it is closed, or they
// would come out in another tunnel.
func (pp *pipePool) put(p *pipe, empty bool) {
	if empty && len(pp.idle) < pp.maxIdle {
		pp.idle = append(pp.idle, p)
		return
	}
	pp.close(p)
}

// closeIdle closes the pipes that are not lent.
func (pp *pipePool) closeIdle() {
	for _, p := range pp.idle {
		pp.close(p)
	}
	pp.idle = nil
}

func (pp *pipePool) close(p *pipe) {
	unix.Close(p.r)
	unix.Close(p.w)
	pp.made.Add(-1)
}

// openPipe returns nil if the kernel has no descriptors or no room for one.
func openPipe() *pipe {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil
	}
	p := &pipe{r: fds[0], w: fds[1]}
	size, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeSize)
	if err != nil {
		size, err = unix.FcntlInt(uintptr(p.w), unix.F_GETPIPE_SZ, 0)
	}
	if err != nil || size < minPipeSize {
		unix.Close(p.r)
		unix.Close(p.w)
		return nil
	}
	p.size = size
	return p
}
