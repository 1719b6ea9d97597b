package harness

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// unacked returns how many bytes the peer has not yet acknowledged (tcp(7),
// SIOCOUTQ), and whether the system could tell.
func unacked(c syscall.RawConn) (n int, ok bool) {
	err := c.Control(func(fd uintptr) {
		var err error
		n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
		ok = err == nil
	})
	return n, ok && err == nil
}
