package sockopt

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Unacked returns how many bytes the peer has not yet acknowledged (tcp(7),
// SIOCOUTQ), and whether the system could tell.
func Unacked(c syscall.RawConn) (n int, ok bool) {
	err := c.Control(func(fd uintptr) {
		var err error
		n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
		ok = err == nil
	})
	return n, ok && err == nil
}

// UserTimeout returns a Control function of net.Dialer and net.ListenConfig
// that sets TCP_USER_TIMEOUT (RFC 5482): how long sent data may stay
// unacknowledged, or a peer refuse to take more, before the connection is
// given up. d is rounded down to milliseconds.
func UserTimeout(d time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		}); cerr != nil {
			return cerr
		}
		return err
	}
}
