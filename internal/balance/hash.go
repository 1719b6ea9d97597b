package balance

import (
	"encoding/binary"
	"net/netip"

	"gateway/internal/address"
)

// Hashes for Source. They are the same in every process and every version:
// gateways that share clients must agree.

// hashClient returns the hash of an IPv4 address or of an IPv6 /64.
func hashClient(ip netip.Addr) uint64 {
	ip = ip.Unmap()
	if ip.Is4() {
		b := ip.As4()
		return mix(uint64(binary.BigEndian.Uint32(b[:])))
	}
	b := ip.As16()
	return mix(binary.BigEndian.Uint64(b[:8]))
}

// hashTarget returns the hash of an address that stands in its list for the
// nth time, from zero: FNV-1a, whose high bits need mixing.
func hashTarget(a address.Address, nth int) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range []byte(a.String()) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return mix(h + uint64(nth))
}

// mix is the finalizer of SplitMix64: each bit of x changes about half of the
// bits of the result.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
