package uring

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What io_uring(7) and linux/io_uring.h have.
const (
	opSend = 26
	opRecv = 27

	sqeSkipSuccess = 1 << 6 // IOSQE_CQE_SKIP_SUCCESS

	setupCoopTaskrun  = 1 << 8
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13
	setupNoSQArray    = 1 << 16

	featSingleMmap = 1 << 0
	featCQESkip    = 1 << 11

	enterRegistered = 1 << 4

	registerRingFDs   = 20
	unregisterRingFDs = 21

	offSQRing = 0
	offSQEs   = 0x10000000
)

type sqe struct {
	opcode, flags         uint8
	ioprio                uint16
	fd                    int32
	off, addr             uint64
	len, msgFlags         uint32
	userData              uint64
	bufIndex, personality uint16
	fileIndex             int32
	pad                   [2]uint64
}

type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	resv                                                                   [3]uint32
	sq                                                                     struct{ head, tail, mask, entries, flags, dropped, array, resv uint32 }
	sqAddr                                                                 uint64
	cq                                                                     struct{ head, tail, mask, entries, overflow, cqes, flags, resv uint32 }
	cqAddr                                                                 uint64
}

// flagSets are ways to make a ring, the cheapest first; a kernel refuses what it
// does not know by EINVAL. That only one thread submits, that it has no work
// left to others, and that no array stands between it and its entries: Linux
// 6.6, 6.1, 5.19, and any.
var flagSets = []uint32{
	setupSingleIssuer | setupDeferTaskrun | setupNoSQArray,
	setupSingleIssuer | setupDeferTaskrun,
	setupCoopTaskrun,
	0,
}

// setUp makes the ring and maps its memory.
func (r *Ring) setUp(slots int) error {
	var p params
	for _, flags := range flagSets {
		p = params{flags: flags}
		fd, _, errno := syscall.RawSyscall(unix.SYS_IO_URING_SETUP, uintptr(slots), uintptr(unsafe.Pointer(&p)), 0)
		switch errno {
		case 0:
			r.fd = int(fd)
			return r.memory.mapAll(r.fd, &p, slots)
		case unix.EINVAL:
			continue
		default:
			return os.NewSyscallError("io_uring_setup", errno)
		}
	}
	return os.NewSyscallError("io_uring_setup", unix.EINVAL)
}

// register spares each Submit the look-up of the descriptor. Kernels before 5.18
// do without.
func (r *Ring) register() {
	update := struct {
		offset, resv uint32
		data         uint64
	}{^uint32(0), 0, uint64(r.fd)}
	n, _, errno := syscall.RawSyscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerRingFDs, uintptr(unsafe.Pointer(&update)), 1, 0, 0)
	if errno == 0 && n == 1 {
		r.registered = int(update.offset)
	}
}

func (r *Ring) unregister() {
	update := struct {
		offset, resv uint32
		data         uint64
	}{uint32(r.registered), 0, 0}
	syscall.RawSyscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), unregisterRingFDs, uintptr(unsafe.Pointer(&update)), 1, 0, 0)
	r.registered = -1
}

// memory is what a ring shares with the kernel.
type memory struct {
	ring, entries, slots []byte // mappings

	sqHead, sqTail *uint32
	mask           uint32
	sqes           []sqe
	cqHead, cqTail *uint32
	cqMask         uint32
	cqes           []cqe
}

// stride is the distance between slots. A power of two would have all their
// beginnings share a few sets of the CPU's cache.
const stride = SlotSize + 64

func (m *memory) slot(i int) []byte { return m.slots[i*stride:][:SlotSize:SlotSize] }

func (m *memory) address(i int) uint64 {
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(m.slot(i)))))
}

func (m *memory) mapAll(fd int, p *params, slots int) (err error) {
	switch {
	case p.features&featSingleMmap == 0, p.features&featCQESkip == 0:
		return errors.New("io_uring: this kernel's is too old, want Linux 5.17 or later")
	case p.sqEntries < uint32(slots) || p.cqEntries < p.sqEntries:
		return fmt.Errorf("io_uring: %d entries, %d completions, want %d", p.sqEntries, p.cqEntries, slots)
	}
	size := p.cq.cqes + p.cqEntries*uint32(unsafe.Sizeof(cqe{}))
	withArray := p.flags&setupNoSQArray == 0
	if withArray {
		size = max(size, p.sq.array+4*p.sqEntries)
	}
	const prot = unix.PROT_READ | unix.PROT_WRITE
	if m.ring, err = unix.Mmap(fd, offSQRing, int(size), prot, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return os.NewSyscallError("mmap of an io_uring", err)
	}
	if m.entries, err = unix.Mmap(fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(sqe{})), prot, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return os.NewSyscallError("mmap of an io_uring", err)
	}
	// Not Go's: the kernel writes to it by its address.
	if m.slots, err = unix.Mmap(-1, 0, slots*stride, prot, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	word := func(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&m.ring[offset])) }
	m.sqHead, m.sqTail, m.mask = word(p.sq.head), word(p.sq.tail), *word(p.sq.mask)
	m.cqHead, m.cqTail, m.cqMask = word(p.cq.head), word(p.cq.tail), *word(p.cq.mask)
	m.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&m.ring[p.cq.cqes])), p.cqEntries)
	m.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&m.entries[0])), p.sqEntries)
	if withArray {
		for i := range p.sqEntries {
			*word(p.sq.array + 4*i) = i // each place of the queue has the entry of its number
		}
	}
	return nil
}

// unmap gives the memory back. slots is false where the kernel may still write
// to them.
func (m *memory) unmap(slots bool) {
	mappings := [][]byte{m.ring, m.entries}
	if slots {
		mappings = append(mappings, m.slots)
	}
	for _, mapping := range mappings {
		if mapping != nil {
			unix.Munmap(mapping)
		}
	}
	*m = memory{}
}
