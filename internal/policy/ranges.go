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

// carriers are the IPv6 prefixes whose addresses hold an IPv4 address that some
// translator or tunnel may deliver to. A network's own NAT64 prefix is not known
// here; a deny rule can say it.
var carriers = []struct {
	prefix netip.Prefix
	offset int // of the IPv4 address, in bytes
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12},    // NAT64, RFC 6052 section 2.1
	{netip.MustParsePrefix("64:ff9b:1::/48"), 12},  // a network's own NAT64, RFC 8215, in its usual form
	{netip.MustParsePrefix("2002::/16"), 2},        // 6to4, RFC 3056 section 2
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12}, // IPv4-translated, RFC 2765 section 2.1
	{netip.MustParsePrefix("::/96"), 12},           // IPv4-compatible, RFC 4291 section 2.5.5.1
}

// carried returns the IPv4 address that an IPv6 address holds, and whether it
// holds one.
func carried(ip netip.Addr) (netip.Addr, bool) {
	if !ip.Is6() || ip.IsLoopback() { // ::1 is in ::/96, but no IPv4 address
		return netip.Addr{}, false
	}
	for i := range carriers {
		if c := &carriers[i]; c.prefix.Contains(ip) {
			b := ip.As16()
			return netip.AddrFrom4([4]byte(b[c.offset:])), true
		}
	}
	return netip.Addr{}, false
}
