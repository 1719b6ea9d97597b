//go:build unix

package sockopt

import (
	"net/netip"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ReusePort is a net.ListenConfig.Control function that sets SO_REUSEPORT, so
// that several processes of one user can listen on one port. Linux and
// DragonFly spread connections over them; other systems may prefer the last.
func ReusePort(network, address string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}); cerr != nil {
		return cerr
	}
	return err
}

// Bind binds a socket that net is about to bind to address, and reports whether it
// did: nothing else than listening is then missing. network and address are those
// that a net.ListenConfig.Control function gets.
func Bind(network, address string, c syscall.RawConn) (ok bool, err error) {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || ap.Addr().Zone() != "" {
		return false, nil
	}
	ip, port := ap.Addr(), int(ap.Port())
	var sa unix.Sockaddr
	switch {
	case !strings.HasSuffix(network, "6"):
		sa = &unix.SockaddrInet4{Port: port, Addr: ip.As4()}
	case ip.IsUnspecified(): // net calls both families' 0.0.0.0
		sa = &unix.SockaddrInet6{Port: port}
	default:
		sa = &unix.SockaddrInet6{Port: port, Addr: ip.As16()}
	}
	if cerr := c.Control(func(fd uintptr) { err = os.NewSyscallError("bind", unix.Bind(int(fd), sa)) }); cerr != nil {
		return false, cerr
	}
	return true, err
}

// Readable tells, without waiting, whether a read would not block; for a
// listener, whether a connection stands in its queue.
func Readable(c syscall.RawConn) bool {
	var readable bool
	err := c.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		for err == unix.EINTR {
			n, err = unix.Poll(fds, 0)
		}
		readable = n > 0
	})
	return err == nil && readable
}

// AwaitReset returns true once the peer has reset the connection, or the
// kernel has given it up. A peer that only finished sending does not count,
// and nothing is read from the socket. It returns false when the connection's
// read deadline passes or it is closed; set the deadline to call it back.
//
// poll(2) reports POLLHUP when both directions are shut or the connection is
// gone, and POLLERR while an error waits. With our own side open, that is a
// reset.
func AwaitReset(c syscall.RawConn) bool {
	var reset bool
	err := c.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd)}} // POLLHUP and POLLERR need no asking
		for {
			n, err := unix.Poll(fds, 0)
			if err == unix.EINTR {
				continue
			}
			reset = n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
			return reset || err != nil
		}
	})
	return err == nil && reset
}

// HasPeer returns false for a connection that was reset, of which both
// directions have ended, or that was closed.
func HasPeer(c syscall.RawConn) bool {
	var err error
	cerr := c.Control(func(fd uintptr) { _, err = unix.Getpeername(int(fd)) })
	return cerr == nil && err != unix.ENOTCONN
}
