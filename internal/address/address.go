// Package address knows the grammar of a backend's address, and of a [Route] of
// several, and nothing else:
//
//	address = [ scheme "://" ] host ":" port
//	scheme  = "tcp" | "http" | "kcp", in lower case
//	host    = IPv4 literal | "[" IPv6 literal "]" | host name
//	port    = 1–65535, decimal, no sign, no leading zero
//
// Nothing follows the port, not even a slash.
//
// The grammar is strict on purpose. It is what tells a sealed address that was
// opened with the right key from the garbage a wrong key makes, and what keeps
// out the spellings that resolvers and net.Dial would quietly repair:
// "127.1:80", ":80", "host:http", "host:+80", "[fe80::1%eth0]:80".
package address

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

const (
	// maxName is the longest host name in bytes (RFC 1035 section 2.3.4,
	// without the root's dot).
	maxName = 253
	// maxLabel is the longest label of a host name in bytes (same section).
	maxLabel = 63
)

// schemes are the ways to speak to a backend that an address may name.
var schemes = [...]string{"tcp", "http", "kcp"}

// The ways in which a text fails to be an address.
var (
	ErrScheme = errors.New("a scheme must be tcp://, http:// or kcp://")
	ErrPort   = errors.New("want host:port with a port from 1 to 65535")
	ErrIPv4   = errors.New("a host that ends in a number must be an IPv4 address in the form a.b.c.d")
	ErrIPv6   = errors.New("brackets must hold an IPv6 address without a zone")
	ErrBare   = errors.New("an IPv6 address needs brackets: [fd00::7]:4000")
	ErrName   = errors.New("a host name has letters, digits, '-', '_' and dots between labels of 1 to 63 bytes, 253 bytes in all")
)

// Address is a parsed address. The zero value is no address.
type Address struct {
	// Scheme is "tcp", "http" or "kcp", or empty if none was written.
	Scheme string
	// Host is the literal without brackets, or the name, as it was written.
	Host string
	// Port is from 1 to 65535.
	Port uint16
	// IP is the literal's value; it is invalid (netip.Addr.IsValid) for a name.
	IP netip.Addr
}

// String returns the address in the form that Parse takes.
func (a Address) String() string {
	if a.Scheme == "" {
		return a.HostPort()
	}
	return a.Scheme + "://" + a.HostPort()
}

// HostPort returns the address without its scheme, as net.Dial takes it.
func (a Address) HostPort() string {
	port := strconv.Itoa(int(a.Port))
	if a.IP.Is6() {
		return "[" + a.Host + "]:" + port
	}
	return a.Host + ":" + port
}

// Parse reads an address. Its errors are the package's Err values: they never
// repeat the text, which may be a secret or garbage.
func Parse(s string) (Address, error) {
	scheme, s, err := cutScheme(s)
	if err != nil {
		return Address{}, err
	}
	colon := strings.LastIndexByte(s, ':')
	if colon < 0 {
		return Address{}, ErrPort
	}
	port, err := parsePort(s[colon+1:])
	if err != nil {
		return Address{}, err
	}
	host, ip, err := parseHost(s[:colon])
	if err != nil {
		return Address{}, err
	}
	return Address{Scheme: scheme, Host: host, Port: port, IP: ip}, nil
}

// cutScheme returns the scheme in front of "://", and what stands behind.
func cutScheme(s string) (scheme, rest string, err error) {
	before, after, found := strings.Cut(s, "://")
	if !found {
		return "", s, nil
	}
	for _, scheme := range schemes {
		if before == scheme {
			return scheme, after, nil
		}
	}
	return "", "", ErrScheme
}

func parsePort(s string) (uint16, error) {
	n, ok := parseNumber(s, 65535)
	if !ok {
		return 0, ErrPort
	}
	return uint16(n), nil
}

// parseNumber reads a decimal number from 1 to most, which is below 100,000,
// without sign or leading zero.
func parseNumber(s string, most int) (n int, ok bool) {
	if len(s) < 1 || len(s) > 5 || s[0] == '0' {
		return 0, false
	}
	for i := range len(s) {
		if !isDigit(s[i]) {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, n <= most
}

// parseHost returns the host without brackets, and its value if it is a literal.
func parseHost(s string) (string, netip.Addr, error) {
	if strings.HasPrefix(s, "[") {
		return parseIPv6(s)
	}
	if strings.IndexByte(s, ':') >= 0 {
		if ip, err := netip.ParseAddr(s); err == nil && ip.Is6() && ip.Zone() == "" {
			return "", netip.Addr{}, ErrBare
		}
	}
	if len(s) < 1 || len(s) > maxName {
		return "", netip.Addr{}, ErrName
	}
	start := 0 // of the label at hand
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] != '.' {
			if !isNameByte(s[i]) {
				return "", netip.Addr{}, ErrName
			}
			continue
		}
		if n := i - start; n < 1 || n > maxLabel {
			return "", netip.Addr{}, ErrName
		}
		if i < len(s) {
			start = i + 1
		}
	}
	if !isNumeric(s[start:]) {
		return s, netip.Addr{}, nil
	}
	// Some resolvers read "127.1", "0x7f.1" or "2130706433" as 127.0.0.1, so
	// only the one form that everybody reads alike is let through. netip
	// refuses leading zeros, which other readers take for octal.
	ip, err := netip.ParseAddr(s)
	if err != nil || !ip.Is4() {
		return "", netip.Addr{}, ErrIPv4
	}
	return s, ip, nil
}

func parseIPv6(s string) (string, netip.Addr, error) {
	if !strings.HasSuffix(s, "]") {
		return "", netip.Addr{}, ErrIPv6
	}
	s = s[1 : len(s)-1]
	ip, err := netip.ParseAddr(s)
	// A zone names an interface of one machine; in an address that any gateway
	// may be given, it has no meaning.
	if err != nil || !ip.Is6() || ip.Zone() != "" {
		return "", netip.Addr{}, ErrIPv6
	}
	return s, ip, nil
}

// isNumeric tells whether some resolver may read the label as a number:
// decimal, octal, or hexadecimal after "0x" (inet_aton(3); the WHATWG URL
// standard's "ends in a number" checker).
func isNumeric(label string) bool {
	digit := isDigit
	if len(label) >= 2 && label[0] == '0' && (label[1] == 'x' || label[1] == 'X') {
		label, digit = label[2:], isHexDigit
	}
	for i := range len(label) {
		if !digit(label[i]) {
			return false
		}
	}
	return true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isHexDigit(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func isNameByte(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-' || c == '_'
}
