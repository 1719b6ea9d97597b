//go:build !unix

package sockopt

import (
	"errors"
	"syscall"
)

// ReusePort reports that the system has no SO_REUSEPORT.
func ReusePort(network, address string, c syscall.RawConn) error {
	return errors.New("SO_REUSEPORT is not supported by this operating system")
}

// Bind returns false: the socket is net's to bind.
func Bind(network, address string, c syscall.RawConn) (ok bool, err error) { return false, nil }

// Readable returns false: the system is not asked here.
func Readable(c syscall.RawConn) bool { return false }

// AwaitReset returns false: resets show only in reads and writes here.
func AwaitReset(c syscall.RawConn) bool { return false }

// HasPeer returns true: the system is not asked.
func HasPeer(c syscall.RawConn) bool { return true }
