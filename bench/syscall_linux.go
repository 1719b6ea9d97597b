package main

import (
	"net/netip"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the load generator and the backend. They are raw: each
// of the two is a single thread that has nothing to do while a call blocks, so
// the Go scheduler need not know of it. What they save counts for the
// contender in the middle, whose share of the machine grows.

// endpoint is an IPv4 address and port as the kernel takes it.
type endpoint = unix.RawSockaddrInet4

func endpointOf(ap netip.AddrPort) *endpoint {
	sa := &endpoint{Family: unix.AF_INET, Addr: ap.Addr().As4()}
	port := (*[2]byte)(unsafe.Pointer(&sa.Port))
	port[0], port[1] = byte(ap.Port()>>8), byte(ap.Port())
	return sa
}

// outcome turns a raw call's into Go's. A zero errno must not become a non-nil
// error.
func outcome(n uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

func newSocket() (int, error) {
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET,
		unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	return outcome(fd, errno)
}

func connect(fd int, to *endpoint) error {
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd),
		uintptr(unsafe.Pointer(to)), unsafe.Sizeof(*to))
	if errno != 0 && errno != unix.EINPROGRESS {
		return errno
	}
	return nil
}

func accept(fd int) (int, error) {
	conn, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0,
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return outcome(conn, errno)
}

// recv reads into b. With MSG_TRUNC among the flags the kernel only drops what
// was received, which is the cheapest way to receive it.
func recv(fd int, b []byte, flags uintptr) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
		uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), flags, 0, 0)
	return outcome(n, errno)
}

func send(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd),
		uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	return outcome(n, errno)
}

func shutdownWrite(fd int) {
	unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
}

func closeSocket(fd int) {
	unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

func setNoDelay(fd int) {
	on := int32(1)
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY,
		uintptr(unsafe.Pointer(&on)), unsafe.Sizeof(on), 0)
}

// socketError is what went wrong on a socket for which epoll reports an error.
func socketError(fd int) error {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	return unix.Errno(n)
}

// congestionOf names the congestion control that is in force on a socket.
func congestionOf(fd int) (string, error) {
	name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	return strings.TrimRight(name, "\x00"), os.NewSyscallError("TCP_CONGESTION", err)
}

// poller is an epoll set. What is watched is known by a number of its own.
type poller struct {
	fd     int
	events [256]unix.EpollEvent
}

// Edge-triggered, so a message costs one read; with the peer's FIN visible, so
// a short read that comes with it is not mistaken for the last.
const (
	watchEdges = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET
	watchIn    = unix.EPOLLIN | unix.EPOLLRDHUP
	watchOut   = unix.EPOLLOUT | unix.EPOLLRDHUP
)

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	return &poller{fd: fd}, os.NewSyscallError("epoll_create1", err)
}

func (p *poller) ctl(op, fd, number int, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(number)}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.fd), uintptr(op), uintptr(fd),
		uintptr(unsafe.Pointer(&ev)), 0, 0)
	if errno != 0 {
		return os.NewSyscallError("epoll_ctl", errno)
	}
	return nil
}

func (p *poller) add(fd, number int, events uint32) error {
	return p.ctl(unix.EPOLL_CTL_ADD, fd, number, events)
}

func (p *poller) modify(fd, number int, events uint32) error {
	return p.ctl(unix.EPOLL_CTL_MOD, fd, number, events)
}

// wait returns the events of now or of the next moments, at the latest after
// timeout; none on a signal.
func (p *poller) wait(timeout time.Duration) ([]unix.EpollEvent, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd),
		uintptr(unsafe.Pointer(&p.events[0])), uintptr(len(p.events)),
		uintptr(timeout.Milliseconds()), 0, 0)
	if errno == unix.EINTR {
		return nil, nil
	}
	if errno != 0 {
		return nil, os.NewSyscallError("epoll_pwait", errno)
	}
	return p.events[:n], nil
}
