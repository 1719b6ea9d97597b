//go:build !linux

package sockopt

import (
	"syscall"
	"time"
)

// Unacked reports that the system cannot tell.
func Unacked(c syscall.RawConn) (n int, ok bool) { return 0, false }

// UserTimeout returns a Control function that does nothing: the system has no
// TCP_USER_TIMEOUT.
func UserTimeout(time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(string, string, syscall.RawConn) error { return nil }
}
