//go:build !linux

package sockopt

import "syscall"

// HungUp reports that the system cannot tell.
func HungUp(c syscall.RawConn) bool { return false }
