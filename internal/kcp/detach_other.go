//go:build !linux

package kcp

import (
	"errors"
	"net"
	"net/netip"
)

// openOwn fails: only Linux is known to prefer the socket that is connected.
func openOwn(*net.UDPConn, netip.AddrPort) (*net.UDPConn, error) {
	return nil, errors.ErrUnsupported
}

func share(*net.UDPConn, bool) error { return nil }

func waits(*net.UDPConn) bool { return false }
