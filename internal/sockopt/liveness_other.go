//go:build !linux

package sockopt

import (
	"syscall"
	"time"
)

// Liveness is how a TCP connection finds out that its peer is gone. Here, only
// net's own keepalive does.
type Liveness struct {
	Keepalive   time.Duration
	UserTimeout time.Duration
}

// Inherit does nothing: net sets options on each accepted connection.
func (l Liveness) Inherit(syscall.RawConn) error { return nil }

// SetUserTimeout does nothing: the system has no TCP_USER_TIMEOUT.
func (l Liveness) SetUserTimeout(syscall.RawConn) error { return nil }
