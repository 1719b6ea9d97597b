//go:build !linux

package sockopt

import (
	"errors"
	"syscall"
)

// Dup returns an error: the system is not asked here.
func Dup(syscall.Conn) (int, error) { return -1, errors.ErrUnsupported }
