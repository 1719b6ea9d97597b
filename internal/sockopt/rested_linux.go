package sockopt

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Rested returns for how long a TCP connection has neither sent nor received data
// (tcp(7), TCP_INFO), to a few milliseconds, and whether the system could tell.
func Rested(c syscall.RawConn) (d time.Duration, ok bool) {
	err := c.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if ok = err == nil; ok {
			d = time.Duration(min(info.Last_data_sent, info.Last_data_recv)) * time.Millisecond
		}
	})
	return d, ok && err == nil
}
