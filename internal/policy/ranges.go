package policy

import "net/netip"

// named is a range of addresses with the words for it in an error.
type named struct {
	prefix netip.Prefix
	words  string
}

func (n named) String() string { return n.prefix.String() + " (" + n.words + ")" }

func name(prefix, words string) named { return named{netip.MustParsePrefix(prefix), words} }

// never is what no rule opens. A network's own broadcast address (10.0.0.255)
// is not known here; see CheckBroadcast.
var never = []named{
	name("0.0.0.0/8", "unspecified"), // RFC 6890; Linux takes 0.0.0.0 for this host
	name("::/128", "unspecified"),
	name("224.0.0.0/4", "multicast"),
	name("ff00::/8", "multicast"),
	name("255.255.255.255/32", "broadcast"),
}

// sensitive is what only an allow rule within the range opens: addresses that
// mean something else on each network or machine, and those where a cloud
// answers whoever asks with the machine's credentials.
var sensitive = []named{
	name("169.254.0.0/16", "link-local, metadata of most clouds"),
	name("fe80::/10", "link-local"),
	name("100.100.100.200/32", "metadata of Alibaba Cloud"),
	name("fd00:100::100:200/128", "metadata of Alibaba Cloud"),
	name("fd00:ec2::254/128", "metadata of AWS"),
	name("fd00:ec2::23/128", "credentials of AWS EKS"),
	name("168.63.129.16/32", "host of Azure"),
	name("192.0.0.192/32", "metadata of Oracle Cloud"),
	name("fd00:c1::a9fe:a9fe/128", "metadata of Oracle Cloud"),
	name("fd20:ce::254/128", "metadata of Google Cloud"),
	name("fd00:42::42/128", "metadata of Scaleway"),
	name("fd00:a9fe:a9fe::1/128", "metadata of Akamai"),
}

// carrier is a way in which IPv6 addresses hold an IPv4 address that some
// translator or tunnel may deliver to.
type carrier struct {
	prefix netip.Prefix
	at     [4]int // where the IPv4 address's bytes stand
	// inverted says that all bits of it are.
	inverted bool
	// isatap says that only interface identifiers of ISATAP hold one.
	isatap bool
	// perhaps says that there are several readings. One of 0.0.0.0/8 does not
	// count next to another: it is what the zeros around that look like.
	perhaps bool
}

// carriers are all that are known. A network's own prefix for NAT64 or 6rd is
// not; a deny rule can say it.
var carriers = []carrier{
	{prefix: netip.MustParsePrefix("64:ff9b::/96"), at: last}, // NAT64, RFC 6052 section 2.1
	// A network's own NAT64 (RFC 8215), by a prefix of 48, 56, 64 or 96 bits. What
	// stands behind the IPv4 address may be anything, since translators ignore it
	// (RFC 6052 sections 2.2 and 2.3).
	{prefix: ownNAT64, at: [4]int{6, 7, 9, 10}, perhaps: true},
	{prefix: ownNAT64, at: [4]int{7, 9, 10, 11}, perhaps: true},
	{prefix: ownNAT64, at: [4]int{9, 10, 11, 12}, perhaps: true},
	{prefix: ownNAT64, at: last, perhaps: true},
	{prefix: netip.MustParsePrefix("2002::/16"), at: [4]int{2, 3, 4, 5}},   // 6to4, RFC 3056 section 2
	{prefix: netip.MustParsePrefix("2001::/32"), at: [4]int{4, 5, 6, 7}},   // Teredo's server, RFC 4380 section 4
	{prefix: netip.MustParsePrefix("2001::/32"), at: last, inverted: true}, // and client
	{prefix: netip.MustParsePrefix("::/0"), at: last, isatap: true},        // RFC 5214 section 6.1
	{prefix: netip.MustParsePrefix("::ffff:0:0:0/96"), at: last},           // IPv4-translated, RFC 2765 section 2.1
	{prefix: netip.MustParsePrefix("::/96"), at: last},                     // IPv4-compatible, RFC 4291 section 2.5.5.1
}

var (
	ownNAT64 = netip.MustParsePrefix("64:ff9b:1::/48")
	last     = [4]int{12, 13, 14, 15}
)

// maxCarried is how many IPv4 addresses there may be in one IPv6 address: the
// four readings of a network's own NAT64, and one of ISATAP.
const maxCarried = 5

// carried returns the IPv4 addresses that an IPv6 address holds, and how many. It
// returns an array because Check must not allocate.
func carried(ip netip.Addr) (list [maxCarried]netip.Addr, n int) {
	if !ip.Is6() || ip.IsLoopback() { // ::1 is in ::/96, but no IPv4 address
		return list, 0
	}
	b := ip.As16()
	var zeros netip.Addr
	for i := range carriers {
		c := &carriers[i]
		if !c.prefix.Contains(ip) || c.isatap && !isISATAP(&b) {
			continue
		}
		v4 := c.read(&b)
		if c.perhaps && v4.As4()[0] == 0 {
			zeros = v4
			continue
		}
		list[n] = v4
		n++
	}
	if n == 0 && zeros.IsValid() {
		list[0], n = zeros, 1
	}
	return list, n
}

// read returns the IPv4 address in an IPv6 address.
func (c *carrier) read(b *[16]byte) netip.Addr {
	var v4 [4]byte
	for i, at := range c.at {
		v4[i] = b[at]
		if c.inverted {
			v4[i] ^= 0xff
		}
	}
	return netip.AddrFrom4(v4)
}

// isISATAP tells whether an address ends in an interface identifier of ISATAP.
// Its first byte has the bits "universal" and "group", set or not.
func isISATAP(b *[16]byte) bool {
	return b[8]&^3 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}
