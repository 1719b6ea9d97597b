package kcp

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// share says whether others may bind the same port. To bind a second socket both have
// to say so (udp_lib_lport_inuse in the kernel).
func share(socket *net.UDPConn, on bool) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	value := 0
	if on {
		value = 1
	}
	cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, value) })
	return errors.Join(cerr, err)
}

// openOwn returns a socket that is bound as the shared one and connected to a peer:
// the kernel gives it what comes from there.
func openOwn(shared *net.UDPConn, peer netip.AddrPort) (*net.UDPConn, error) {
	raw, err := shared.SyscallConn()
	if err != nil {
		return nil, err
	}
	var local unix.Sockaddr
	cerr := raw.Control(func(fd uintptr) { local, err = unix.Getsockname(int(fd)) })
	if err = errors.Join(cerr, err); err != nil {
		return nil, os.NewSyscallError("getsockname", err)
	}
	family, remote := unix.AF_INET, toSockaddr4(peer)
	if _, ok := local.(*unix.SockaddrInet6); ok {
		family, remote = unix.AF_INET6, toSockaddr6(peer)
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if family == unix.AF_INET6 {
		var only int
		raw.Control(func(shared uintptr) { only, err = unix.GetsockoptInt(int(shared), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY) })
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
		}
		if err != nil {
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	if err := unix.Bind(fd, local); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Connect(fd, remote); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	conn, err := net.FilePacketConn(f) // a copy
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

func toSockaddr4(peer netip.AddrPort) unix.Sockaddr {
	if !peer.Addr().Unmap().Is4() {
		return &unix.SockaddrInet4{} // not of this family: connect will say so
	}
	return &unix.SockaddrInet4{Port: int(peer.Port()), Addr: peer.Addr().Unmap().As4()}
}

func toSockaddr6(peer netip.AddrPort) unix.Sockaddr {
	sa := &unix.SockaddrInet6{Port: int(peer.Port()), Addr: peer.Addr().As16()}
	if zone := peer.Addr().Zone(); zone != "" {
		if n, err := strconv.Atoi(zone); err == nil {
			sa.ZoneId = uint32(n)
		} else if i, err := net.InterfaceByName(zone); err == nil {
			sa.ZoneId = uint32(i.Index)
		}
	}
	return sa
}

// waits tells whether a datagram waits to be read.
func waits(socket *net.UDPConn) bool {
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	var n int
	raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ = unix.Poll(fds, 0)
	})
	return n > 0
}
