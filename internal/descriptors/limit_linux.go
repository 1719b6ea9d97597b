package descriptors

import "golang.org/x/sys/unix"

// Limit returns how many descriptors this process may have.
func Limit() (n uint64, ok bool) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return unix.RLIM_INFINITY, true
	}
	return limit.Cur, true
}
