// Package uring makes many receives or many sends by one system call. It uses
// an io_uring synchronously: what is queued is made when it is submitted, and
// done when Submit returns. Nothing is under way in between, no thread of the
// kernel's helps, and no goroutine is involved.
package uring

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Ring is an io_uring and the slots of memory that it reads into and sends from.
// It belongs to the thread that made it: a goroutine has to be locked to that
// (runtime.LockOSThread) from New to Close, and nobody else may use the ring.
//
// An entry names a descriptor by its number. So from Recv or Send until Submit
// returns nothing may close that descriptor: the number could be another
// socket's by then.
type Ring struct {
	fd         int // -1: closed
	registered int // its index among the thread's registered rings; -1: none
	memory     memory

	tail    uint32 // of the submission queue; the kernel sees it at Submit
	expects int    // completions that Submit has to find: one for each receive
	results []int32
}

// SlotSize is how many bytes a slot has.
const SlotSize = 2 << 10

// ErrUnknown is the result of a receive of which the kernel has not told how it
// went. Bytes may be lost, and no more is to be read from that socket.
var ErrUnknown = errors.New("the kernel has not completed a receive")

// ErrNotMade is the result of what Submit has failed to make: nothing was
// received, nothing was sent.
var ErrNotMade = errors.New("not submitted")

// What a slot's result is where it is neither a number of bytes nor a negated
// errno, which are small.
const (
	unknown = math.MinInt32 + iota
	notMade
)

// New returns a ring with a number of slots, which is also how many entries can
// be queued at once. The error says what is missing where there can be none:
// the kernel has no io_uring, it is switched off, a filter refuses it, or it
// does not do what is needed here.
func New(slots int) (*Ring, error) {
	r := &Ring{fd: -1, registered: -1, results: make([]int32, slots)}
	err := r.setUp(slots)
	if err == nil {
		r.register()
		err = r.try()
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Slots returns how many slots there are.
func (r *Ring) Slots() int { return len(r.results) }

// Slot returns the memory of a slot.
func (r *Ring) Slot(slot int) []byte { return r.memory.slot(slot) }

// Recv queues a receive of up to n bytes into a slot, which must not have an
// entry already.
func (r *Ring) Recv(fd int32, slot, n int) { r.RecvAt(fd, slot, 0, n) }

// RecvAt is Recv into what is behind the first at bytes of a slot.
func (r *Ring) RecvAt(fd int32, slot, at, n int) {
	// DONTWAIT: it completes within Submit, by EAGAIN if there is nothing.
	r.push(sqe{opcode: opRecv, fd: fd, addr: uint64(at), len: uint32(n), msgFlags: unix.MSG_DONTWAIT}, slot)
	r.results[slot] = unknown
	r.expects++
}

// Send queues a send of a slot's first n bytes. The slot must not have an entry
// already.
//
// Those that succeed leave no completion. WAITALL is what makes a short one
// fail, which does leave one, and DONTWAIT makes that happen within Submit.
func (r *Ring) Send(fd int32, slot, n int) { r.SendAt(fd, slot, 0, n) }

// SendAt is Send of what is behind the first at bytes of a slot.
func (r *Ring) SendAt(fd int32, slot, at, n int) {
	r.push(sqe{opcode: opSend, flags: sqeSkipSuccess, fd: fd, addr: uint64(at), len: uint32(n),
		msgFlags: unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL | unix.MSG_WAITALL}, slot)
	r.results[slot] = int32(n)
}

func (r *Ring) push(e sqe, slot int) {
	e.addr += r.memory.address(slot)
	e.userData = uint64(slot)
	r.memory.sqes[r.tail&r.memory.mask] = e
	r.tail++
}

// Submit makes what is queued, in its order. When it returns, no entry names a
// descriptor or a slot any more, and Result tells of each. After an error the
// ring can do no more but be closed.
func (r *Ring) Submit() error {
	atomic.StoreUint32(r.memory.sqTail, r.tail)
	err := r.enter()
	r.reap()
	if left := r.takeBack(); left > 0 && err == nil {
		err = fmt.Errorf("io_uring_enter: %d entries are left", left)
	}
	if r.expects > 0 && err == nil {
		err = fmt.Errorf("%w: %d are missing", ErrUnknown, r.expects)
	}
	return err
}

// enter hands all entries to the kernel. It does not wait: everything completes
// as it is handed over.
func (r *Ring) enter() error {
	for {
		todo := r.tail - atomic.LoadUint32(r.memory.sqHead)
		if todo == 0 {
			return nil
		}
		fd, flags := r.fd, 0
		if r.registered >= 0 {
			fd, flags = r.registered, enterRegistered
		}
		n, _, errno := syscall.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(todo), 0, uintptr(flags), 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return fmt.Errorf("io_uring_enter: %w", errno)
		}
		if n == 0 {
			return nil
		}
	}
}

// reap takes all completions.
func (r *Ring) reap() {
	head, tail := *r.memory.cqHead, atomic.LoadUint32(r.memory.cqTail)
	for ; head != tail; head++ {
		c := &r.memory.cqes[head&r.memory.cqMask]
		if slot := c.userData; slot < uint64(len(r.results)) {
			if r.results[slot] == unknown {
				r.expects--
			}
			r.results[slot] = c.res
		}
	}
	atomic.StoreUint32(r.memory.cqHead, head)
}

// takeBack takes entries back that the kernel has not consumed, and returns how
// many there were.
func (r *Ring) takeBack() (left int) {
	head := atomic.LoadUint32(r.memory.sqHead)
	for ; r.tail != head; r.tail-- {
		e := &r.memory.sqes[(r.tail-1)&r.memory.mask]
		if e.opcode == opRecv {
			r.expects--
		}
		r.results[e.userData] = notMade
		left++
	}
	atomic.StoreUint32(r.memory.sqTail, r.tail)
	return left
}

// Result tells how a slot's last entry went: how many bytes were received or
// sent; a short send is no error. Errors are of type unix.Errno, ErrUnknown or
// ErrNotMade.
func (r *Ring) Result(slot int) (int, error) {
	switch res := r.results[slot]; {
	case res >= 0:
		return int(res), nil
	case res == unknown:
		return 0, ErrUnknown
	case res == notMade:
		return 0, ErrNotMade
	default:
		return 0, unix.Errno(-res)
	}
}

// Close gives the ring up. Memory into which the kernel may still write stays.
func (r *Ring) Close() {
	if r.fd < 0 {
		return
	}
	if r.registered >= 0 {
		r.unregister()
	}
	unix.Close(r.fd)
	r.fd = -1
	r.memory.unmap(r.expects == 0)
}
