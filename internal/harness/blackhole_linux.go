package harness

import (
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Blackhole returns an address of 127.0.0.1 where connects are neither accepted nor
// refused: a listener whose queue is full drops every SYN.
func Blackhole(t testing.TB) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprint("127.0.0.1:", sa.(*unix.SockaddrInet4).Port)
	// The queue has room for one, which a busy machine may take its time for; for more where
	// a system only looks like Linux.
	for wait := Patience; ; wait = 100 * time.Millisecond {
		c, err := net.DialTimeout("tcp", addr, wait)
		if err != nil && wait == Patience {
			t.Fatal(err)
		}
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
}
