package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Rule is a set of destinations: a prefix of addresses and a range of ports. It
// comes from [ParseRule]; the zero value covers nothing. Rules are comparable
// with ==.
type Rule struct {
	prefix   netip.Prefix // without host bits; IPv4 if it is IPv4-mapped
	from, to uint16       // both included
}

// The ways in which a text fails to be a rule.
var (
	errAddress  = errors.New("want an IP address or a prefix with or without ports, such as 10.0.0.7, 10.0.0.0/8:4000-4999 or [fd00::/8]:4000")
	errBrackets = errors.New("want an IPv6 address or prefix in the brackets and ports behind them, such as [fd00::1], [fd00::1]:4000 or [fd00::/8]:4000")
	errColons   = errors.New("want an IPv6 address, in brackets if a port follows: fd00::1 or [fd00::1]:4000")
	errZone     = errors.New("want an address without a zone (%)")
	errPorts    = errors.New("want a port from 1 to 65535, or a range such as 4000-4999, without signs and leading zeros")
	errMapped   = errors.New("want at least 96 bits of an IPv4-mapped prefix, or better the IPv4 prefix itself, such as 10.0.0.0/8")
)

// ParseRule reads a rule:
//
//	rule   = cidr [":" ports]
//	cidr   = address ["/" bits]
//	ports  = port | from "-" to
//
// No bits mean that one address, no ports every port. An IPv6 address or prefix
// may stand in brackets; it must if ports follow an address without bits, since
// fd00::1:4000 is an address too. IPv4-mapped IPv6 is the same as its IPv4;
// apart from that an IPv6 rule covers no IPv4 address. Bits set beyond the
// prefix's length are an error, because nobody can tell whether 10.0.0.7/8 was
// to mean one address or sixteen million. Errors fit on one line, repeat the
// rule and tell what would be right.
func ParseRule(s string) (Rule, error) {
	r, err := parseRule(s)
	if err != nil {
		return Rule{}, fmt.Errorf("%q: %w", s, err)
	}
	return r, nil
}

func parseRule(s string) (Rule, error) {
	cidr, ports, hasPorts, err := splitPorts(s)
	if err != nil {
		return Rule{}, err
	}
	r := Rule{from: 1, to: 65535}
	if r.prefix, err = parsePrefix(cidr); err != nil {
		return Rule{}, err
	}
	if hasPorts {
		r.from, r.to, err = parsePorts(ports)
	}
	return r, err
}

// splitPorts cuts a rule into its prefix, without brackets, and its ports.
func splitPorts(s string) (cidr, ports string, hasPorts bool, err error) {
	if inside, ok := strings.CutPrefix(s, "["); ok {
		inside, rest, ok := strings.Cut(inside, "]")
		if !ok || !strings.Contains(inside, ":") {
			return "", "", false, errBrackets
		}
		rest, ports, hasPorts = strings.Cut(rest, ":")
		// Bits stand within the brackets or behind them: [fd00::/8], [fd00::]/8.
		if rest != "" && (rest[0] != '/' || strings.Contains(inside, "/")) {
			return "", "", false, errBrackets
		}
		return inside + rest, ports, hasPorts, nil
	}
	if addr, rest, ok := strings.Cut(s, "/"); ok {
		bits, ports, hasPorts := strings.Cut(rest, ":")
		return addr + "/" + bits, ports, hasPorts, nil
	}
	if strings.Count(s, ":") == 1 {
		cidr, ports, hasPorts = strings.Cut(s, ":")
		return cidr, ports, hasPorts, nil
	}
	return s, "", false, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	addr, text, hasBits := strings.Cut(s, "/")
	if strings.Contains(addr, "%") {
		return netip.Prefix{}, errZone
	}
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		if strings.Contains(addr, ":") {
			return netip.Prefix{}, errColons
		}
		return netip.Prefix{}, errAddress
	}
	bits := ip.BitLen()
	if hasBits {
		n, ok := parseNumber(text)
		if !ok || n > bits {
			return netip.Prefix{}, fmt.Errorf("want from 0 to %d bits behind the slash", bits)
		}
		bits = n
	}
	if ip.Is4In6() {
		if bits < 96 {
			return netip.Prefix{}, errMapped
		}
		ip, bits = ip.Unmap(), bits-96
	}
	prefix := netip.PrefixFrom(ip, bits)
	if masked := prefix.Masked(); masked != prefix {
		return netip.Prefix{}, fmt.Errorf("bits are set beyond the first %d: want %v for the network or %v/%d for the address",
			bits, masked, ip, ip.BitLen())
	}
	return prefix, nil
}

func parsePorts(s string) (from, to uint16, err error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	low, ok1 := parseNumber(first)
	high, ok2 := parseNumber(last)
	if !ok1 || !ok2 || low < 1 || high < 1 {
		return 0, 0, errPorts
	}
	if low > high {
		return 0, 0, fmt.Errorf("want the lower port first: %d-%d", high, low)
	}
	return uint16(low), uint16(high), nil
}

// parseNumber reads 0 to 65535 in the one decimal form that it is written in.
func parseNumber(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, false
	}
	return int(n), true
}

// String returns the shortest form that ParseRule takes.
func (r Rule) String() string {
	if !r.prefix.IsValid() {
		return "no rule"
	}
	cidr := r.prefix.String()
	if r.prefix.IsSingleIP() {
		cidr = r.prefix.Addr().String()
	}
	switch {
	case r.from == 1 && r.to == 65535:
		return cidr
	case r.prefix.Addr().Is6():
		cidr = "[" + cidr + "]"
	}
	ports := strconv.Itoa(int(r.from))
	if r.to != r.from {
		ports += "-" + strconv.Itoa(int(r.to))
	}
	return cidr + ":" + ports
}

// covers tells whether the rule covers a plain address and a port.
func (r *Rule) covers(ip netip.Addr, port uint16) bool {
	return r.from <= port && port <= r.to && r.prefix.Contains(ip)
}
