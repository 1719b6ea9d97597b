//go:build !linux

package kcp

import (
	"net"
	"sync"
)

// An outbox sends what goes to sessions by a shared socket, at once and one by one.
type outbox struct {
	socket *net.UDPConn
	once   sync.Once
	done   chan struct{} // the socket is closed
	err    error         // of that; set before
}

// newOutbox returns one for a socket, which it owns. It must be closed.
func newOutbox(socket *net.UDPConn) *outbox {
	return &outbox{socket: socket, done: make(chan struct{})}
}

// put sends a packet within a frame.
func (o *outbox) put(to *net.UDPAddr, f *frame, packet []byte) {
	f.seal(packet, func(d []byte) error {
		_, err := o.socket.WriteToUDPAddrPort(d, to.AddrPort())
		return err
	})
}

// close closes the socket, and may be called again.
func (o *outbox) close() {
	o.once.Do(func() {
		o.err = o.socket.Close()
		close(o.done)
	})
}
