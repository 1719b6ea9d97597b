package sockopt

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// AwaitBytes waits until at least want bytes can be read, the peer has finished,
// the connection is broken, or its read deadline has passed. It reads nothing.
// head gets a copy of the first bytes, and n says how many there are of them.
//
// With SO_RCVLOWAT the kernel wakes nobody before that many bytes are there
// (socket(7)), however they dribble in.
func AwaitBytes(c syscall.RawConn, head []byte, want int) (n int) {
	waited := false
	c.Read(func(fd uintptr) bool {
		if !waited && !ready(int(fd), want) {
			waited = true
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, want)
		}
		// More may have come before that.
		return ready(int(fd), want)
	})
	c.Control(func(fd uintptr) {
		if waited {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1)
		}
		n, _, _ = unix.Recvfrom(int(fd), head, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	return max(n, 0)
}

// ready tells whether want bytes can be read, or no more will come.
func ready(fd, want int) bool {
	n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	return err != nil || n >= want || finished(fd)
}

// finished tells whether nothing more can come.
func finished(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return err != nil || n > 0
		}
	}
}
