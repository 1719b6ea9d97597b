package sockopt

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Liveness is how a TCP connection finds out that its peer is gone.
type Liveness struct {
	// Keepalive is the silence after which the peer is asked: three probes, a
	// third of it apart. Whole seconds, from one to MaxKeepalive; 0 asks
	// never.
	Keepalive time.Duration
	// UserTimeout is how long sent data may stay unacknowledged, or the peer
	// take no more, before the connection is given up (TCP_USER_TIMEOUT,
	// RFC 5482). Whole milliseconds, to MaxUserTimeout; 0 is the kernel's
	// choice.
	UserTimeout time.Duration
}

// Set sets the options on a socket. On a listener, accepted sockets inherit
// them. Failures are left alone: a connection works without.
func (l Liveness) Set(fd int) {
	if l.Keepalive > 0 {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, seconds(l.Keepalive))
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, seconds(l.Keepalive/3))
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3)
	}
	if l.UserTimeout > 0 {
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, max(1, int(l.UserTimeout.Milliseconds())))
	}
}

func seconds(d time.Duration) int { return max(1, int(d.Seconds())) }

// Inherit prepares a listener that does not listen yet: connections that the
// kernel accepts from its first moment on have the options and TCP_NODELAY.
// Later would be too late for those in the queue.
func (l Liveness) Inherit(c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		l.Set(int(fd))
	})
}

// SetUserTimeout sets only that option; net sets the others itself.
func (l Liveness) SetUserTimeout(c syscall.RawConn) error {
	if l.UserTimeout == 0 {
		return nil
	}
	return c.Control(func(fd uintptr) { Liveness{UserTimeout: l.UserTimeout}.Set(int(fd)) })
}
