package harness

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// unacked returns how many bytes the peer has not yet acknowledged (tcp(7),
// SIOCOUTQ), and whether the system could tell. A connection that is reset has
// none under way, whatever its queue says.
func unacked(c syscall.RawConn) (n int, ok bool) {
	err := c.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil && info.State != tcpClose {
			n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
		}
		ok = err == nil
	})
	return n, ok && err == nil
}

// tcpClose is TCP_CLOSE of linux/tcp_states.h.
const tcpClose = 7
