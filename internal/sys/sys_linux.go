// Package sys has the system calls that an event loop makes for each message
// and each connection, on sockets that never block.
//
// They are raw: an ordinary one tells the scheduler that the thread may sleep,
// which on a busy CPU makes it take the loop's processor away and wake another
// thread for it. On a non-blocking socket nothing sleeps, so there is nothing
// to tell. And recvfrom and sendto are cheaper than read and write, which look
// at the descriptor for more than a socket has. They go by package syscall,
// whose raw calls take their arguments in registers; those of x/sys/unix take
// the stack to get there.
package sys

import (
	"encoding/binary"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Recv reads from a socket. Errors, here and below, are of type unix.Errno.
func Recv(fd int32, b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
	return result(n, errno)
}

// Send writes to a socket, without SIGPIPE where it is broken.
func Send(fd int32, b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	return result(n, errno)
}

// Splice moves up to n bytes from one descriptor to another, of which one
// is a pipe.
func Splice(from, to int, n int) (int, error) {
	const flags = unix.SPLICE_F_NONBLOCK | unix.SPLICE_F_MOVE
	m, _, errno := syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), flags)
	return result(m, errno)
}

// EpollWait is epoll_pwait for up to msec milliseconds. While it sleeps, the
// scheduler does not know it, and cannot stop the world.
func EpollWait(epfd int, events []unix.EpollEvent, msec int) (int, error) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd),
		uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(msec), 0, 0)
	return result(n, errno)
}

// Accept is accept4. The peer's address goes to sa.
func Accept(fd int, sa *unix.RawSockaddrAny) (int, error) {
	size := uint32(unix.SizeofSockaddrAny)
	n, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(sa)),
		uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return result(n, errno)
}

// Socket makes a TCP socket with TCP_NODELAY.
func Socket(family int) (int, error) {
	r, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(family),
		unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	on := int32(1)
	syscall.RawSyscall6(unix.SYS_SETSOCKOPT, r, unix.IPPROTO_TCP, unix.TCP_NODELAY,
		uintptr(unsafe.Pointer(&on)), unsafe.Sizeof(on), 0)
	return int(r), nil
}

// Connect begins to connect to a sockaddr of the given size.
func Connect(fd int, sa *unix.RawSockaddrAny, size int) error {
	_, _, errno := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(sa)), uintptr(size))
	if errno != 0 {
		return errno
	}
	return nil
}

// Getsockname puts the socket's own address into sa.
func Getsockname(fd int32, sa *unix.RawSockaddrAny) error { return name(unix.SYS_GETSOCKNAME, fd, sa) }

// Getpeername puts the peer's address into sa.
func Getpeername(fd int32, sa *unix.RawSockaddrAny) error { return name(unix.SYS_GETPEERNAME, fd, sa) }

func name(call uintptr, fd int32, sa *unix.RawSockaddrAny) error {
	size := uint32(unix.SizeofSockaddrAny)
	_, _, errno := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(sa)), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return errno
	}
	return nil
}

// EpollCtl adds, changes or removes a registration.
func EpollCtl(epfd, op int, fd int32, ev *unix.EpollEvent) error {
	_, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(ev)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// ShutdownWrite sends FIN.
func ShutdownWrite(fd int32) { syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0) }

// Close closes a descriptor.
func Close(fd int32) { syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// result turns a system call's return into Go's, without an allocation for the
// error that is no error.
func result(n uintptr, errno unix.Errno) (int, error) {
	switch errno {
	case 0:
		return int(n), nil
	case unix.EAGAIN:
		return 0, errAgain
	}
	return 0, errno
}

var errAgain error = unix.EAGAIN

// SocketError returns and clears what a socket has to complain about
// (SO_ERROR), or nil.
func SocketError(fd int32) error {
	v, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if v == 0 {
		return nil
	}
	return unix.Errno(v)
}

// ResetOnClose has a socket closed by a reset: with SO_LINGER on and zero,
// close(2) sends RST and drops what was not sent (socket(7)).
func ResetOnClose(fd int32) {
	unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// AddrPort returns the address in a sockaddr, IPv4-mapped ones as IPv4.
func AddrPort(sa *unix.RawSockaddrAny) netip.AddrPort {
	switch sa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), networkOrder(in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), networkOrder(in.Port))
	}
	return netip.AddrPort{}
}

// Probe makes the system calls that a loop cannot do without, for the error of the
// first that this kernel, or a sandbox, refuses. What can be done without (splice,
// EPOLLEXCLUSIVE) is found missing when it is first used.
func Probe() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if _, err := Send(int32(pair[0]), []byte{1}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	if _, err := Recv(int32(pair[1]), make([]byte, 1)); err != nil {
		return os.NewSyscallError("recvfrom", err)
	}
	// Not on a socket that does not listen; but the call is there.
	if _, err := Accept(pair[0], &unix.RawSockaddrAny{}); err != unix.EINVAL && err != unix.EOPNOTSUPP {
		return os.NewSyscallError("accept4", err)
	}
	return nil
}

// SetSockaddr writes an address, IPv4-mapped ones as IPv4, and returns its size.
func SetSockaddr(sa *unix.RawSockaddrAny, ap netip.AddrPort) (family, size int) {
	ip := ap.Addr().Unmap()
	if ip.Is4() {
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(sa)) = unix.RawSockaddrInet4{
			Family: unix.AF_INET, Port: networkOrder(ap.Port()), Addr: ip.As4()}
		return unix.AF_INET, unix.SizeofSockaddrInet4
	}
	*(*unix.RawSockaddrInet6)(unsafe.Pointer(sa)) = unix.RawSockaddrInet6{
		Family: unix.AF_INET6, Port: networkOrder(ap.Port()), Addr: ip.As16()}
	return unix.AF_INET6, unix.SizeofSockaddrInet6
}

// networkOrder turns a port into the order of a sockaddr, or back.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}
