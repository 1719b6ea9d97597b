package sockopt

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dup returns a descriptor of the caller's own for a socket of net's,
// close-on-exec, or -1. (File().Fd() would make it blocking, for both.)
func Dup(socket syscall.Conn) (int, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	cerr := raw.Control(func(orig uintptr) {
		fd, err = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0)
	})
	return fd, errors.Join(err, cerr)
}
