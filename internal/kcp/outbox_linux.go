package kcp

import (
	"errors"
	"net"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	// maxWaiting is how many datagrams wait to be sent. Beyond that sessions wait, as
	// for a socket that is full.
	maxWaiting = 1024
	// maxSegments and maxSegmented bound what is sent as one, in datagrams and bytes:
	// UDP_MAX_SEGMENTS of older kernels, and what a packet of IP holds.
	maxSegments  = 64
	maxSegmented = 65000
	// closePatience bounds the sends of an outbox that closes.
	closePatience = time.Second
)

// An outbox sends what goes to sessions by a shared socket, from one goroutine: what many
// sessions have to say at the same time with one system call (sendmmsg), and what one
// has, in datagrams of one size, as one that the kernel or the network card takes apart
// (UDP_SEGMENT). kcp-go would do the former itself on a socket of its own, for one session
// at a time; below that, nothing says where a session's turn ends.
//
// What is for one client is sent in the order in which it was put.
type outbox struct {
	socket *net.UDPConn

	mu      sync.Mutex
	ready   sync.Cond // something waits, or the outbox is closed
	room    sync.Cond // less than maxWaiting wait, or the same
	waiting []parcel
	busy    bool // the sender has taken some
	closed  bool

	done chan struct{} // the socket is closed
	err  error         // of that; set before

	// The sender's alone.
	send      func([]ipv4.Message, int) (int, error)
	segmented bool // UDP_SEGMENT is known
	messages  [batchSize]ipv4.Message
	controls  [batchSize]segmentControl
	counts    [batchSize]int
	buffers   [][]byte
}

// segmentControl is the control message that says UDP_SEGMENT, with its padding.
type segmentControl struct {
	unix.Cmsghdr
	size uint16
	_    [6]byte
}

// parcel is a datagram, whose buffer is the outbox's until it is sent.
type parcel struct {
	to *net.UDPAddr
	in *[maxDatagram]byte
	d  []byte // within in
}

// newOutbox returns one for a socket, which it owns. It must be closed.
func newOutbox(socket *net.UDPConn) *outbox {
	o := &outbox{
		socket: socket, done: make(chan struct{}),
		// For IPv6 too, whose sockets take addresses of both kinds.
		send:      ipv4.NewPacketConn(socket).WriteBatch,
		segmented: knowsSegments(socket),
		buffers:   make([][]byte, 0, maxWaiting),
	}
	o.ready.L, o.room.L = &o.mu, &o.mu
	go o.run()
	return o
}

// knowsSegments asks the kernel whether it knows UDP_SEGMENT: one that does not (before
// Linux 4.18) would send all as one datagram.
func knowsSegments(socket *net.UDPConn) bool {
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	cerr := raw.Control(func(fd uintptr) { _, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT) })
	return cerr == nil && err == nil
}

// put has a packet sent within a frame. It keeps neither. It waits while too much
// waits, and drops the packet once the outbox is closed. to must not change, and be the
// same pointer for the same client.
func (o *outbox) put(to *net.UDPAddr, f *frame, packet []byte) {
	in := datagrams.Get().(*[maxDatagram]byte)
	p := parcel{to, in, f.fill(in, packet)}
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.waiting) >= maxWaiting && !o.closed {
		o.room.Wait()
	}
	if o.closed {
		datagrams.Put(in)
		return
	}
	if o.waiting = append(o.waiting, p); len(o.waiting) == 1 {
		o.ready.Signal()
	}
}

// close has what waits sent, and the socket closed after that; done tells when. It does not
// wait, and may be called again.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	o.closed = true
	o.ready.Signal()
	o.room.Broadcast()
	if !o.busy && len(o.waiting) == 0 {
		o.shut()
		return
	}
	o.socket.SetWriteDeadline(time.Now().Add(closePatience))
}

// shut closes the socket. The caller holds mu.
func (o *outbox) shut() {
	o.err = o.socket.Close()
	close(o.done)
}

// run sends until the outbox is closed.
func (o *outbox) run() {
	var taken []parcel
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		for len(o.waiting) == 0 && !o.closed {
			o.ready.Wait()
		}
		if len(o.waiting) == 0 {
			return // close has closed the socket
		}
		o.busy = true
		o.mu.Unlock()
		// Who is about to speak does so first: the session that has put this is in
		// the middle of its turn, and others may have been woken with it.
		runtime.Gosched()
		o.mu.Lock()
		taken, o.waiting = o.waiting, taken[:0]
		o.room.Broadcast()
		o.mu.Unlock()
		o.sendAll(taken)
		o.mu.Lock()
		if o.busy = false; o.closed && len(o.waiting) == 0 {
			o.shut()
			return
		}
	}
}

// sendAll sends parcels and gives their buffers back.
func (o *outbox) sendAll(all []parcel) {
	for rest := all; len(rest) > 0; {
		batch, counts := o.gather(rest)
		n, err := o.send(batch, 0)
		if err != nil {
			n = 0
		}
		sent := 0
		for _, count := range counts[:n] {
			sent += count
		}
		if n == 0 {
			// The first failed, as a whole: a filter or an old kernel has no sendmmsg, the
			// card or the path no segments. By themselves they may go, or are lost as UDP may
			// lose anything.
			sent = counts[0]
			o.segmented = o.segmented && !errors.Is(err, unix.EIO)
			for _, p := range rest[:sent] {
				o.socket.WriteToUDPAddrPort(p.d, p.to.AddrPort())
			}
		}
		rest = rest[sent:]
	}
	for i := range all {
		datagrams.Put(all[i].in)
		all[i] = parcel{}
	}
}

// gather makes messages of the first parcels, and tells how many are in each. There are no
// more than maxWaiting.
func (o *outbox) gather(rest []parcel) (batch []ipv4.Message, counts []int) {
	k := 0
	o.buffers = o.buffers[:0]
	for ; k < batchSize && len(rest) > 0; k++ {
		n := 1
		if o.segmented {
			n = alike(rest)
		}
		first := len(o.buffers)
		for _, p := range rest[:n] {
			o.buffers = append(o.buffers, p.d)
		}
		m := &o.messages[k]
		m.Buffers, m.Addr, m.OOB = o.buffers[first:], rest[0].to, nil
		if n > 1 {
			m.OOB = o.controls[k].of(len(rest[0].d))
		}
		o.counts[k], rest = n, rest[n:]
	}
	return o.messages[:k], o.counts[:k]
}

// alike returns how many of the first parcels may be sent as one: they are for one client
// and of one size, but the last, which may be smaller.
func alike(all []parcel) int {
	size, sum := len(all[0].d), len(all[0].d)
	for i, p := range all[1:] {
		last := len(all[i].d) < size
		if sum += len(p.d); last || p.to != all[0].to || len(p.d) > size || i+1 == maxSegments || sum > maxSegmented {
			return i + 1
		}
	}
	return len(all)
}

// of returns the control message for segments of a size.
func (c *segmentControl) of(size int) []byte {
	c.Level, c.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	c.SetLen(unix.CmsgLen(2))
	c.size = uint16(size)
	return unsafe.Slice((*byte)(unsafe.Pointer(c)), unix.CmsgSpace(2))
}
