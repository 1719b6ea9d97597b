//go:build !linux

package sockopt

import (
	"syscall"
	"time"
)

// Rested reports that the system cannot tell.
func Rested(c syscall.RawConn) (d time.Duration, ok bool) { return 0, false }
