package sockopt

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// AwaitBytes waits until at least want bytes can be read, or it is known that they will
// not come by waiting; how says why. It reads nothing. head gets a copy of the first bytes,
// and n says how many there are of them.
//
// With SO_RCVLOWAT the kernel wakes nobody before that many bytes are there
// (socket(7)), however they dribble in. It decides alone when that is, since it wakes also
// when it can take no more (tcp_epollin_ready in net/ipv4/tcp.c): what is accounted for in
// a receive buffer is memory and not bytes, and the last few of many small segments that
// were joined may hold all of it. To wait for more then would be for ever.
func AwaitBytes(c syscall.RawConn, head []byte, want int) (n int, how Awaited) {
	low := false
	how = Ended // a deadline, unless it is something else
	c.Read(func(fd uintptr) bool {
		if !low && readable(int(fd)) < want {
			low = true
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, want)
		}
		events, over := poll(int(fd))
		switch {
		case readable(int(fd)) >= want:
			how = Enough
		case over || events&^unix.POLLIN != 0:
			how = Ended
		case events != 0:
			how = Full
		default:
			return false
		}
		return true
	})
	c.Control(func(fd uintptr) {
		if low {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1)
		}
		n, _, _ = unix.Recvfrom(int(fd), head, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	return max(n, 0), how
}

// readable returns how many bytes can be read; tcp(7), SIOCINQ.
func readable(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// poll returns what the kernel says of a socket now; over, that it cannot be asked.
func poll(fd int) (events int16, over bool) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
	for {
		_, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return fds[0].Revents, err != nil
		}
	}
}
