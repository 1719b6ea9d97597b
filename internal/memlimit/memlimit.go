// Package memlimit tells how much memory the process may use.
package memlimit

import (
	"math"
	"runtime/debug"
)

// Limit returns the least of GOMEMLIMIT, the limits of the process's control
// groups, and the machine's memory, in bytes, as far as they are known;
// math.MaxInt64 if none is.
func Limit() int64 {
	limit := debug.SetMemoryLimit(-1) // asks
	for _, l := range system("/") {
		if l > 0 && l < limit {
			limit = l
		}
	}
	if limit <= 0 {
		return math.MaxInt64
	}
	return limit
}
