//go:build unix

package policy

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// isBroadcast tells whether ip is the broadcast address of a network that this
// machine is in. It sends nothing: a UDP socket cannot be connected there before
// it is allowed to broadcast (package net allows all of its own), and can be
// then. (Where a route prohibits ip, it cannot either way.)
func isBroadcast(ip netip.Addr) (bool, error) {
	if !ip.Is4() {
		return false, nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	unix.CloseOnExec(fd)
	to := &unix.SockaddrInet4{Port: 9, Addr: ip.As4()} // any port will do
	if unix.Connect(fd, to) != unix.EACCES {
		return false, nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
		return false, err
	}
	return unix.Connect(fd, to) == nil, nil
}
