package sockopt

import (
	"syscall"

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
