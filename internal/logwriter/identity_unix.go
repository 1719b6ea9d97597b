//go:build unix

package logwriter

import (
	"fmt"
	"os"
	"syscall"
)

// identity returns the device and the inode of what a file is, as $JOURNAL_STREAM has
// them.
func identity(f *os.File) (string, bool) {
	info, err := f.Stat()
	if err != nil {
		return "", false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", false
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), true
}

const nonblock = syscall.O_NONBLOCK
