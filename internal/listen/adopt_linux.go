package listen

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// listens tells whether a listener's socket does (SO_ACCEPTCONN).
func listens(ln net.Listener) (yes bool) {
	if raw, err := ln.(syscall.Conn).SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
			yes = err == nil && n != 0
		})
	}
	return yes
}
