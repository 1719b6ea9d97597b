package systemd

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// monotonic says when a reload began, as systemd wants it.
func monotonic() string {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err) // only for a wrong clock
	}
	return fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000)
}

// Socket is one that the process was started with.
type Socket struct {
	Name string // its FileDescriptorName=, the name of the socket unit by default
	FD   int    // the caller's
}

// Sockets returns those that the process was started with ($LISTEN_FDS), and takes
// them out of the environment.
func Sockets() ([]Socket, error) {
	if err := checkCount(); err != nil {
		return nil, err
	}
	var list []Socket
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for i, f := range activation.Files(true) {
		// A copy, since f closes its own when it is collected.
		var fd int
		raw, err := f.SyscallConn()
		if err == nil {
			cerr := raw.Control(func(orig uintptr) { fd, err = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0) })
			if cerr != nil {
				err = cerr
			}
		}
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("socket %d of LISTEN_FDS: %w", i+1, err)
		}
		name := "unknown"
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		list = append(list, Socket{name, fd})
	}
	return list, nil
}

// checkCount tells what is wrong with $LISTEN_FDS, if that is for this process. Package
// activation would take it for none, or take whatever there is for a socket.
func checkCount() error {
	text, given := os.LookupEnv("LISTEN_FDS")
	if pid, err := strconv.Atoi(os.Getenv("LISTEN_PID")); !given || err != nil || pid != os.Getpid() {
		return nil
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || uint64(n) > limit.Cur {
		return fmt.Errorf("LISTEN_FDS is %q: want the number of sockets that this process was started with", text)
	}
	for fd := 3; fd < 3+n; fd++ { // others are the runtime's, which ends if they are closed
		var stat unix.Stat_t
		if err := unix.Fstat(fd, &stat); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFSOCK {
			return fmt.Errorf("LISTEN_FDS is %q, but descriptor %d is no socket", text, fd)
		}
	}
	return nil
}
