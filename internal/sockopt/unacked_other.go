//go:build !linux

package sockopt

import "syscall"

// Unacked reports that the system cannot tell.
func Unacked(c syscall.RawConn) (n int, ok bool) { return 0, false }
