package happyeyeballs

import (
	"net/netip"
	"slices"
)

// queue holds the addresses that are yet to be dialed. The families take turns
// (RFC 8305 section 4), also where some come later (section 3).
type queue struct {
	families [2][]netip.Addr // IPv4 and IPv6, in the order of their coming
	turn     int             // the family that is next, if it has any
	known    []netip.Addr    // all that ever came
}

// family returns an address's index in families. What is mapped is IPv4: so it
// is dialed.
func family(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 0
	}
	return 1
}

// add puts in addresses, and leaves out those that are known. The very first one
// is the first to be dialed.
func (q *queue) add(addrs []netip.Addr) {
	for _, a := range addrs {
		a = a.Unmap()
		if slices.Contains(q.known, a) {
			continue
		}
		if len(q.known) == 0 {
			q.turn = family(a)
		}
		q.known = append(q.known, a)
		f := family(a)
		q.families[f] = append(q.families[f], a)
	}
}

// next takes out the address whose turn it is. It reports false if none is left.
func (q *queue) next() (netip.Addr, bool) {
	f := q.turn
	if len(q.families[f]) == 0 {
		f = 1 - f
	}
	if len(q.families[f]) == 0 {
		return netip.Addr{}, false
	}
	a := q.families[f][0]
	q.families[f] = q.families[f][1:]
	q.turn = 1 - f
	return a, true
}

func (q *queue) len() int { return len(q.families[0]) + len(q.families[1]) }
