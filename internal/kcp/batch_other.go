//go:build !linux

package kcp

import (
	"net"
	"net/netip"
)

// A batch reads a socket's datagrams, one by one.
type batch struct {
	socket *net.UDPConn
	buf    []byte
}

func newBatch(socket *net.UDPConn) *batch {
	return &batch{socket, make([]byte, maxDatagram+1)}
}

// read returns the next datagram, which is the caller's until the next call.
func (b *batch) read() ([]byte, netip.AddrPort, error) {
	n, source, err := b.socket.ReadFromUDPAddrPort(b.buf)
	return b.buf[:n], source, err
}

// enlarge gives a socket buffers as large as the system allows.
func enlarge(socket *net.UDPConn) {
	socket.SetReadBuffer(socketBuffer)
	socket.SetWriteBuffer(socketBuffer)
}
