package harness

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// SmallBuffers has the kernel hold little of what passes a socket. By themselves
// buffers grow to megabytes while nobody reads, and all sockets of a host share what
// they may hold (net.ipv4.tcp_mem): where many tests stall at once it breaks
// connections of others.
func SmallBuffers(c *net.TCPConn) {
	c.SetReadBuffer(64 << 10)
	c.SetWriteBuffer(64 << 10)
}

// Fill writes until nothing is taken any more. The connection has its deadline back
// when it returns.
func Fill(c net.Conn) {
	if socket, ok := c.(*net.TCPConn); ok {
		SmallBuffers(socket)
	}
	for b := make([]byte, 64<<10); ; {
		c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		if _, err := c.Write(b); err != nil {
			break
		}
	}
	c.SetWriteDeadline(time.Now().Add(Patience))
}

// StartStalled starts a backend that reads nothing until it is released, and tells
// then how what it reads ends.
func StartStalled(t testing.TB) (addr string, release func(), end chan error) {
	t.Helper()
	released := make(chan struct{})
	release, end = sync.OnceFunc(func() { close(released) }), make(chan error, 1)
	addr = StartBackend(t, func(c *net.TCPConn) {
		SmallBuffers(c)
		<-released
		_, err := io.Copy(io.Discard, struct{ io.Reader }{c})
		end <- err
	})
	t.Cleanup(release)
	return addr, release, end
}
