package limit

import (
	"fmt"
	"math/bits"
	"net/netip"
)

// networks is a set of networks with something for each. What contains an address
// is found by asking for each length that there is: a list of thousands has a few
// dozen at most. The zero value is empty; it is not safe for concurrent use.
type networks[T any] struct {
	all     map[netip.Prefix]T
	lengths [2]lengths // of IPv4 and of IPv6
}

// lengths counts networks by their length, and has a bit for each that there is.
type lengths struct {
	count [129]int
	there [3]uint64
}

func (n *networks[T]) of(p netip.Prefix) *lengths {
	if p.Addr().Is4() {
		return &n.lengths[0]
	}
	return &n.lengths[1]
}

// put adds a network, or replaces what is there for it.
func (n *networks[T]) put(p netip.Prefix, v T) {
	if n.all == nil {
		n.all = make(map[netip.Prefix]T)
	}
	if _, known := n.all[p]; !known {
		l := n.of(p)
		if l.count[p.Bits()]++; l.count[p.Bits()] == 1 {
			l.there[p.Bits()/64] |= 1 << (p.Bits() % 64)
		}
	}
	n.all[p] = v
}

func (n *networks[T]) remove(p netip.Prefix) {
	if _, known := n.all[p]; !known {
		return
	}
	delete(n.all, p)
	l := n.of(p)
	if l.count[p.Bits()]--; l.count[p.Bits()] == 0 {
		l.there[p.Bits()/64] &^= 1 << (p.Bits() % 64)
	}
}

// find calls f for each network that contains an address, until it returns false.
func (n *networks[T]) find(a netip.Addr, f func(netip.Prefix, T) bool) {
	l := &n.lengths[1]
	if a.Is4() {
		l = &n.lengths[0]
	}
	for word, there := range l.there {
		for ; there != 0; there &= there - 1 {
			p, err := a.Prefix(word*64 + bits.TrailingZeros64(there))
			if err != nil {
				return
			}
			if v, ok := n.all[p]; ok && !f(p, v) {
				return
			}
		}
	}
}

// ParseNetwork reads a network, or an address, which is one.
func ParseNetwork(word string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(word)
	if a, aerr := netip.ParseAddr(word); aerr == nil && a.Zone() == "" {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	if err == nil && p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if err != nil || p != p.Masked() || p.Addr().Is4In6() {
		return p, fmt.Errorf("%q: want an address or a network such as 10.0.0.0/8 or 2001:db8::/32, without bits beyond the prefix", word)
	}
	return p, nil
}
