package sockopt

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// IsMPTCP tells whether a listener takes clients that speak MPTCP (RFC 8684).
func IsMPTCP(ln net.Listener) bool {
	socket, ok := ln.(syscall.Conn)
	if !ok {
		return false
	}
	c, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	protocol := 0
	err = c.Control(func(fd uintptr) {
		protocol, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL)
	})
	return err == nil && protocol == unix.IPPROTO_MPTCP
}
