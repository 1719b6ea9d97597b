//go:build unix

package filelock

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// TryLock locks the byte at offset unless another process has. It reports
// whether it did.
func TryLock(f *os.File, offset int64) (bool, error) {
	err := fcntl(f, unix.F_SETLK, unix.F_WRLCK, offset)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	return err == nil, err
}

// Unlock gives up the lock of the byte at offset.
func Unlock(f *os.File, offset int64) error {
	return fcntl(f, unix.F_SETLK, unix.F_UNLCK, offset)
}

func fcntl(f *os.File, cmd int, typ int16, offset int64) error {
	return unix.FcntlFlock(f.Fd(), cmd, &unix.Flock_t{
		Type:   typ,
		Whence: io.SeekStart,
		Start:  offset,
		Len:    1,
	})
}
