//go:build unix

package admin

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// makePrivate gives the socket file that bind is going to make the mode 0600. Linux
// takes it from the socket; elsewhere this may fail or have no effect.
func makePrivate(c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { unix.Fchmod(int(fd), 0o600) })
}

// lockDir keeps two processes that start at once from taking each other's socket for
// a dead one's. Who cannot lock goes on without.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for range 100 {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return func() { f.Close() }, nil
}
