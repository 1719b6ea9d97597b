package sockopt

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// AwaitBytes waits until at least want bytes can be read, or it is known that they will
// not come by waiting; how says why. It reads nothing. head gets a copy of the first bytes,
// and n says how many there are of them. known is how many are there for certain; there is
// how many are, now, if that is Enough.
//
// With SO_RCVLOWAT the kernel wakes nobody before that many bytes are there
// (socket(7)), however they dribble in. It decides alone when that is, since it wakes also
// when it can take no more (tcp_epollin_ready in net/ipv4/tcp.c): what is accounted for in
// a receive buffer is memory and not bytes, and the last few of many small segments that
// were joined may hold all of it. To wait for more then would be for ever.
//
// Bytes that are there already, which is so for most records, cost one system call unless
// they are known, and one more for their head. The socket is told how many are wanted only
// when some of them have come: most of the time they come together.
func AwaitBytes(c syscall.RawConn, head []byte, want, known int) (n, there int, how Awaited) {
	low := false
	there = known
	how = Ended // a deadline, unless it is something else
	c.Read(func(fd uintptr) bool {
		for {
			if there < want {
				there = readable(int(fd))
			}
			if there >= want {
				how = Enough
				return true
			}
			if there > 0 && !low {
				low = true
				wakeAt(int(fd), want)
			}
			events, over := poll(int(fd))
			if events == 0 && !over {
				return false
			}
			switch there = readable(int(fd)); {
			case there >= want:
				how = Enough
			case over || events&^unix.POLLIN != 0:
				how = Ended
			case low:
				how = Full
			default: // the first of them have come just now
				low = true
				wakeAt(int(fd), want)
				continue
			}
			return true
		}
	})
	if low || len(head) > 0 {
		c.Control(func(fd uintptr) {
			if low {
				wakeAt(int(fd), 1)
			}
			if len(head) > 0 {
				n, _, _ = unix.Recvfrom(int(fd), head, unix.MSG_PEEK|unix.MSG_DONTWAIT)
			}
		})
	}
	return max(n, 0), there, how
}

// wakeAt sets how many bytes make a socket readable.
func wakeAt(fd, bytes int) { unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, bytes) }

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
