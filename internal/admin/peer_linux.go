package admin

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// credentials tells who is at the other end of a Unix socket (unix(7), SO_PEERCRED).
func credentials(c *net.UnixConn) (text string) {
	raw, err := c.SyscallConn()
	if err != nil {
		return ""
	}
	raw.Control(func(fd uintptr) {
		if u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			text = fmt.Sprintf(" uid %d pid %d", u.Uid, u.Pid)
		}
	})
	return text
}
