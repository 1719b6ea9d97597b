//go:build !unix

package policy

import (
	"net"
	"net/netip"
)

// isBroadcast tells whether ip is the broadcast address of a network that this
// machine is in.
func isBroadcast(ip netip.Addr) (bool, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil || !ip.Is4() {
		return false, err
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || n.IP.To4() == nil || len(n.Mask) != net.IPv4len {
			continue
		}
		last := [4]byte(n.IP.To4())
		for i := range last {
			last[i] |= ^n.Mask[i]
		}
		if ones, _ := n.Mask.Size(); ones < 31 && netip.AddrFrom4(last) == ip {
			return true, nil
		}
	}
	return false, nil
}
