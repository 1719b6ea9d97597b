package sockopt

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// HungUp tells, without waiting, whether the peer has closed a connection, and not only
// finished, or has broken it (poll(2)). What it has sent before may still be read.
func HungUp(c syscall.RawConn) (yes bool) {
	c.Control(func(fd uintptr) {
		events, over := poll(int(fd))
		yes = over || events&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return yes
}
