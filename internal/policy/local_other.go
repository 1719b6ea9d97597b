//go:build !linux

package policy

import (
	"net"
	"net/netip"
)

// lookUp tells whether ip is an address of one of this machine's interfaces. ok
// is false if it is not, or the system does not list them.
func lookUp(ip netip.Addr) (local, ok bool) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false, false
	}
	for _, a := range addrs {
		if n, isNet := a.(*net.IPNet); isNet {
			if own, _ := netip.AddrFromSlice(n.IP); own.Unmap() == ip {
				return true, true
			}
		}
	}
	return false, false
}
