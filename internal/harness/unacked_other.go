//go:build !linux

package harness

import "syscall"

// unacked reports that the system cannot tell.
func unacked(c syscall.RawConn) (n int, ok bool) { return 0, false }
