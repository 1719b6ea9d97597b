//go:build !linux

package sockopt

import "syscall"

// AwaitBytes does not wait, and tells that nothing is known.
func AwaitBytes(c syscall.RawConn, head []byte, want, known int) (n, there int, how Awaited) {
	return 0, 0, Ended
}
