package main

import (
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// defaultPump is the pump that splices.
var defaultPump pumpFunc = splicePump

// splicePump copies small messages and splices long runs.
//
// A message is cheapest through a buffer: one read, one write. Once a read
// fills the buffer, more is probably waiting, and splice(2) moves it from
// socket to socket through a pipe without a copy in user space. When the
// splices get small again, copying takes over.
//
// Buffers and pipes are borrowed only while bytes are in them, so a resting
// tunnel holds two descriptors and no buffer.
//
// SPLICE_F_MORE is never set. It corks the receiving socket: a small reply
// would wait 200 ms for the next one (golang/go#10948).
func splicePump(r *relay, dst, src *net.TCPConn, moved *atomic.Int64) (readErr, writeErr error) {
	f := &flow{relay: r, moved: moved, spliceable: true}
	var err error
	if f.src, err = src.SyscallConn(); err != nil {
		return err, nil
	}
	if f.dst, err = dst.SyscallConn(); err != nil {
		return nil, err
	}
	// Method values, made once: made for each call they would be an allocation
	// for each message.
	f.recvFn, f.sendFn, f.fillFn, f.drainFn = f.recv, f.send, f.fill, f.drain
	for {
		n := f.copy()
		if n == r.bufferSize && f.spliceable {
			n = f.splice()
		}
		if n == 0 {
			return f.readErr, f.writeErr
		}
	}
}

// flow is one direction of a tunnel. Between copy and splice it holds no
// bytes: buf and pipe are nil.
type flow struct {
	relay    *relay
	src, dst syscall.RawConn
	moved    *atomic.Int64

	spliceable        bool
	readErr, writeErr error

	// What the functions below leave for their caller: they run inside
	// RawConn.Read and Write, which call them whenever the socket may be ready
	// until they return true.
	buf  *[]byte
	pipe *pipe
	have int   // bytes in buf or pipe
	sent int   // of those in buf
	err  error // of the last system call

	recvFn, sendFn, fillFn, drainFn func(fd uintptr) bool
}

// copy moves one buffer and returns its length: 0 at the source's end or on an
// error.
func (f *flow) copy() int {
	if f.readErr = f.src.Read(f.recvFn); f.readErr == nil {
		f.readErr = f.err
	}
	if f.buf == nil {
		return 0
	}
	n := f.have
	if f.writeErr = f.dst.Write(f.sendFn); f.writeErr == nil {
		f.writeErr = f.err
	}
	f.relay.buffers.Put(f.buf)
	f.buf = nil
	if f.writeErr != nil {
		return 0
	}
	return n
}

// recv reads into a borrowed buffer. It keeps the buffer only with bytes in it.
func (f *flow) recv(fd uintptr) bool {
	buf := f.relay.buffers.Get().(*[]byte)
	n, err := unix.Read(int(fd), *buf)
	for err == unix.EINTR {
		n, err = unix.Read(int(fd), *buf)
	}
	if n > 0 {
		f.buf, f.have, f.sent, f.err = buf, n, 0, nil
		return true
	}
	f.relay.buffers.Put(buf)
	f.err = err
	return err != unix.EAGAIN
}

// send writes the buffer until it is empty.
func (f *flow) send(fd uintptr) bool {
	for f.sent < f.have {
		n, err := unix.Write(int(fd), (*f.buf)[f.sent:f.have])
		switch err {
		case nil:
			f.sent += n
			f.moved.Add(int64(n))
		case unix.EINTR:
		default:
			f.err = err
			return err != unix.EAGAIN
		}
	}
	f.err = nil
	return true
}

// splice moves bytes through a pipe for as long as they come in large pieces.
// It returns 0 at the source's end or on an error, else something positive.
func (f *flow) splice() int {
	p := f.relay.pipes.get()
	if p == nil {
		return 1 // copying works too
	}
	f.pipe = p
	defer func() {
		f.pipe = nil
		f.relay.pipes.put(p, f.have == 0)
	}()
	for {
		// The pipe is empty here, so EAGAIN can only come from the source.
		f.have = 0
		if f.readErr = f.src.Read(f.fillFn); f.readErr != nil {
			return 0
		}
		switch f.err {
		case nil:
		case unix.EAGAIN:
			return 1 // wait for more without a pipe
		case unix.EINVAL, unix.ENOSYS, unix.EPERM:
			f.spliceable = false // by this kernel or sandbox
			return 1
		default:
			f.readErr = f.err
			return 0
		}
		n := f.have
		if n == 0 {
			return 0
		}
		if f.writeErr = f.dst.Write(f.drainFn); f.writeErr == nil {
			f.writeErr = f.err
		}
		if f.writeErr != nil {
			return 0
		}
		if n < f.relay.bufferSize {
			return n
		}
	}
}

const spliceFlags = unix.SPLICE_F_NONBLOCK | unix.SPLICE_F_MOVE

// fill splices from the source into the pipe. It never waits.
func (f *flow) fill(fd uintptr) bool {
	n, err := unix.Splice(int(fd), nil, f.pipe.w, nil, f.pipe.size, spliceFlags)
	for err == unix.EINTR {
		n, err = unix.Splice(int(fd), nil, f.pipe.w, nil, f.pipe.size, spliceFlags)
	}
	f.err = err
	if err == nil {
		f.have = int(n)
	}
	return true
}

// drain splices from the pipe until it is empty.
func (f *flow) drain(fd uintptr) bool {
	for f.have > 0 {
		n, err := unix.Splice(f.pipe.r, nil, int(fd), nil, f.have, spliceFlags)
		switch err {
		case nil:
			f.have -= int(n)
			f.moved.Add(n)
		case unix.EINTR:
		default:
			f.err = err
			return err != unix.EAGAIN
		}
	}
	f.err = nil
	return true
}

const (
	// pipeSize is the wanted capacity of a pipe in bytes, the most that an
	// unprivileged process may ask for (/proc/sys/fs/pipe-max-size).
	pipeSize = 1 << 20
	// minPipeSize is the least with which splicing still pays. A user over
	// /proc/sys/fs/pipe-user-pages-soft gets pipes of one or two pages.
	minPipeSize = 64 << 10
	// maxPipes bounds all pipes of a relay, and with them the memory that
	// stalled readers can pin.
	maxPipes = 256
	// maxIdlePipes bounds those that wait for use.
	maxIdlePipes = 16
)

// pipe is a pair of non-blocking descriptors.
type pipe struct {
	r, w int
	size int // capacity in bytes
}

// pipePool lends pipes. The zero value is ready for use; it must be closed.
type pipePool struct {
	mu     sync.Mutex
	idle   []*pipe // all empty
	made   int     // idle or lent
	closed bool
}

// get lends an empty pipe, or returns nil if none is to be had.
func (pp *pipePool) get() *pipe {
	pp.mu.Lock()
	defer pp.mu.Unlock()
	if n := len(pp.idle); n > 0 {
		p := pp.idle[n-1]
		pp.idle = pp.idle[:n-1]
		return p
	}
	if pp.made >= maxPipes {
		return nil
	}
	p := openPipe()
	if p != nil {
		pp.made++
	}
	return p
}

// put takes a pipe back. One that still has bytes in it is closed, or they
// would come out in another tunnel.
func (pp *pipePool) put(p *pipe, empty bool) {
	pp.mu.Lock()
	defer pp.mu.Unlock()
	if empty && !pp.closed && len(pp.idle) < maxIdlePipes {
		pp.idle = append(pp.idle, p)
		return
	}
	pp.made--
	p.close()
}

// close closes the idle pipes now and the lent ones when they come back.
func (pp *pipePool) close() {
	pp.mu.Lock()
	defer pp.mu.Unlock()
	pp.closed = true
	for _, p := range pp.idle {
		pp.made--
		p.close()
	}
	pp.idle = nil
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
		p.close()
		return nil
	}
	p.size = size
	return p
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}
