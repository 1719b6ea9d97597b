package kcp

import (
	"errors"
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// batchSize is how many datagrams one system call may bring.
const batchSize = 64

// A batch reads a socket's datagrams, many with one system call (recvmmsg). So
// a flood costs less for each, and more of it fits into the reader's CPU before
// the socket's buffer overflows and honest datagrams with it.
type batch struct {
	receive  func([]ipv4.Message, int) (int, error)
	socket   *net.UDPConn
	messages []ipv4.Message
	n, next  int    // of messages: how many have come, and are read
	single   []byte // instead of messages, where the system knows no batches
}

func newBatch(socket *net.UDPConn) *batch {
	// For IPv6 too: what differs between the packages are the options.
	b := &batch{receive: ipv4.NewPacketConn(socket).ReadBatch, socket: socket}
	b.messages = make([]ipv4.Message, batchSize)
	for i := range b.messages {
		b.messages[i].Buffers = [][]byte{make([]byte, maxDatagram+1)}
	}
	return b
}

// read returns the next datagram, which is the caller's until the next call.
func (b *batch) read() ([]byte, netip.AddrPort, error) {
	if b.single != nil {
		n, source, err := b.socket.ReadFromUDPAddrPort(b.single)
		return b.single[:n], source, err
	}
	for b.next == b.n {
		n, err := b.receive(b.messages, 0)
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
			b.messages, b.single = nil, make([]byte, maxDatagram+1)
			return b.read()
		}
		if err != nil {
			return nil, netip.AddrPort{}, err
		}
		b.n, b.next = n, 0
	}
	m := &b.messages[b.next]
	b.next++
	return m.Buffers[0][:m.N], m.Addr.(*net.UDPAddr).AddrPort(), nil
}

// enlarge gives a socket large buffers: beyond the system's limits where the
// process may, and otherwise as large as they allow.
func enlarge(socket *net.UDPConn) {
	socket.SetReadBuffer(socketBuffer)
	socket.SetWriteBuffer(socketBuffer)
	if raw, err := socket.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer)
		})
	}
}
