package policy

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
)

// check wants p to say why about each address; nil means allowed.
func check(t *testing.T, p *Policy, why error, addrs ...string) {
	t.Helper()
	for _, s := range addrs {
		ap := netip.MustParseAddrPort(s)
		err := p.Check(ap)
		if why == nil && err != nil {
			t.Errorf("Check(%s): %v; want it allowed", s, err)
		}
		if why == nil {
			continue
		}
		if !errors.Is(err, why) {
			t.Errorf("Check(%s): %v; want: %v", s, err, why)
			continue
		}
		var d *Denial
		if !errors.As(err, &d) || d.Addr != ap {
			t.Errorf("Check(%s) = %#v, want a Denial of it", s, err)
		}
	}
}

// spellings returns an IPv4 address and port in every form that a connection
// may be asked for in.
func spellings(v4 string, port uint16) []string {
	ip := netip.MustParseAddr(v4)
	b := ip.As4()
	p := ":" + strings.TrimPrefix(netip.AddrPortFrom(ip, port).String(), v4+":")
	form := func(b ...byte) string { return "[" + netip.AddrFrom16([16]byte(b)).String() + "]" + p }
	return []string{
		v4 + p,
		"[::ffff:" + v4 + "]" + p,
		"[::ffff:" + v4 + "%eth0]" + p,
		"[64:ff9b::" + v4 + "]" + p,
		"[64:ff9b::" + v4 + "%1]" + p,
		"[64:ff9b:1::" + v4 + "]" + p,
		"[::ffff:0:" + v4 + "]" + p,
		"[::" + v4 + "]" + p,
		"[2001:db8::5efe:" + v4 + "]" + p,
		"[2001:db8::200:5efe:" + v4 + "]" + p,
		"[2001:db8::100:5efe:" + v4 + "%eth0]" + p,
		"[2001:db8::300:5efe:" + v4 + "]" + p,
		// 6to4, and Teredo's server and client.
		form(0x20, 0x02, b[0], b[1], b[2], b[3], 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34),
		form(0x20, 0x01, 0, 0, b[0], b[1], b[2], b[3], 0x80, 0, 0x12, 0x34, 0xf7, 0xf7, 0xf7, 0xf7),
		form(0x20, 0x01, 0, 0, 8, 8, 8, 8, 0x80, 0, 0x12, 0x34, ^b[0], ^b[1], ^b[2], ^b[3]),
	}
}

func TestEverythingElseIsAllowedWithoutRulesLoopbackIncluded(t *testing.T) {
	check(t, New(nil, nil), nil,
		"127.0.0.1:62863", "127.255.255.254:1", "[::1]:80", "[::ffff:127.0.0.1]:80", "[64:ff9b::127.0.0.1]:80",
		"10.0.0.7:4000", "192.168.1.1:22", "203.0.113.9:65535", "1.0.0.0:1", "223.255.255.255:1",
		"169.253.255.255:1", "169.255.0.0:1", "100.100.100.199:80", "168.63.129.17:80", "192.0.0.193:80",
		"[fd00::1]:4000", "[2001:db8::1]:443", "[2001:db8::1%eth0]:443", "[fec0::1]:1", "[feff::1]:1",
		"[64:ff9b::8.8.8.8]:53", "[2002:808:808::1]:53", "[::1.0.0.0]:1",
	)
	check(t, new(Policy), nil, "127.0.0.1:62863", "[2001:db8::1]:443")
}

func TestWhatIsNoAddressIsDenied(t *testing.T) {
	everything := New(rules(t, "0.0.0.0/0", "::/0"), nil)
	for _, p := range []*Policy{new(Policy), everything} {
		for _, ap := range []netip.AddrPort{
			{},
			netip.AddrPortFrom(netip.Addr{}, 80),
			netip.MustParseAddrPort("10.0.0.7:0"),
			netip.MustParseAddrPort("[fd00::1]:0"),
		} {
			if err := p.Check(ap); !errors.Is(err, ErrInvalid) {
				t.Errorf("Check(%v): %v; want: %v", ap, err, ErrInvalid)
			}
		}
	}
}

func TestUnspecifiedMulticastAndBroadcastAddressesAreNeverAllowed(t *testing.T) {
	bare := New(nil, nil)
	everything := New(rules(t, "0.0.0.0/0", "::/0", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"), nil)
	for _, p := range []*Policy{bare, everything} {
		for _, v4 := range []string{
			"0.0.0.0", "0.0.0.1", "0.1.2.3", "0.255.255.255",
			"224.0.0.0", "224.0.0.1", "232.1.2.3", "239.255.255.255",
			"255.255.255.255",
		} {
			for _, s := range spellings(v4, 80) {
				if s != "[::0.0.0.1]:80" { // ::1
					check(t, p, ErrNever, s)
				}
			}
		}
		check(t, p, ErrNever, "[::]:80", "[::%eth0]:80", "[0:0:0:0:0:0:0:0]:80", "[::ffff:0:0]:80",
			"[ff00::]:80", "[ff02::1]:80", "[ff02::1%eth0]:80", "[ff0e::1234]:80", "[ffff:ffff::1]:80")
		check(t, p, nil, "[::1]:80")
	}
}

func TestLinkLocalAndMetadataAddressesNeedARuleThatNamesThem(t *testing.T) {
	for _, tt := range []struct{ ip, exact, wide string }{
		{"169.254.169.254", "169.254.169.254", "169.254.0.0/15"},
		{"169.254.0.0", "169.254.0.0/16", "169.0.0.0/8"},
		{"169.254.255.255", "169.254.255.0/24", "128.0.0.0/1"},
		{"100.100.100.200", "100.100.100.200", "100.100.100.200/31"},
		{"168.63.129.16", "168.63.129.16/32", "168.63.129.0/24"},
		{"192.0.0.192", "192.0.0.192", "192.0.0.0/24"},
		{"fe80::1", "fe80::1", "fe80::/9"},
		{"fe80::a9fe:a9fe", "fe80::/10", "fe00::/8"},
		{"febf:ffff::1", "fe80::/10", "fe00::/8"},
		{"fd00:ec2::254", "fd00:ec2::254", "fd00:ec2::/32"},
		{"fd00:ec2::23", "fd00:ec2::23", "fd00:ec2::/32"},
		{"fd20:ce::254", "fd20:ce::254/128", "fd20:ce::254/127"},
		{"fd00:c1::a9fe:a9fe", "fd00:c1::a9fe:a9fe", "fd00::/8"},
		{"fd00:42::42", "fd00:42::42", "fd00::/8"},
		{"fd00:a9fe:a9fe::1", "fd00:a9fe:a9fe::1", "fd00::/8"},
		{"fd00:100::100:200", "fd00:100::100:200", "fd00::/8"},
	} {
		spelled := []string{"[" + tt.ip + "]:80", "[" + tt.ip + "%eth0]:80"}
		if netip.MustParseAddr(tt.ip).Is4() {
			spelled = spellings(tt.ip, 80)
		}
		check(t, New(nil, nil), ErrSensitive, spelled...)
		check(t, New(rules(t, "0.0.0.0/0", "::/0", tt.wide), nil), ErrSensitive, spelled...)
		check(t, New(rules(t, "0.0.0.0/0", "::/0", tt.exact), nil), nil, spelled...)
	}
	p := New(rules(t, "0.0.0.0/0", "169.254.1.0/24:80-81"), nil)
	check(t, p, nil, "169.254.1.9:80", "169.254.1.9:81", "[::ffff:169.254.1.9]:80", "10.0.0.7:79")
	check(t, p, ErrSensitive, "169.254.1.9:79", "169.254.1.9:82", "169.254.2.9:80", "169.254.169.254:80")
}

func TestADenyRuleIsStrongerThanARuleThatNames(t *testing.T) {
	p := New(rules(t, "169.254.0.0/16"), rules(t, "169.254.169.254"))
	check(t, p, nil, "169.254.1.1:80")
	check(t, p, ErrDenied, "169.254.169.254:80", "[::ffff:169.254.169.254]:80")
}

func TestADenyRuleCoversEverySpelling(t *testing.T) {
	p := New(nil, rules(t, "10.0.0.0/8:4000-4999", "192.168.1.1", "fd00::/8", "[2001:db8::1]:80"))
	for _, v4 := range []string{"10.0.0.7", "10.255.255.255"} {
		check(t, p, ErrDenied, spellings(v4, 4000)...)
		check(t, p, ErrDenied, spellings(v4, 4999)...)
		check(t, p, nil, spellings(v4, 3999)...)
		check(t, p, nil, spellings(v4, 5000)...)
	}
	check(t, p, nil, spellings("11.0.0.0", 4000)...)
	check(t, p, ErrDenied, spellings("192.168.1.1", 1)...)
	check(t, p, ErrDenied, "[fd00::1]:1", "[fdff::1%eth0]:65535", "[2001:db8::1]:80")
	check(t, p, nil, "[fc00::1]:1", "[2001:db8::1]:81", "127.0.0.1:80")
}

func TestAllowRulesAllowNothingElse(t *testing.T) {
	p := New(rules(t, "10.0.0.0/8:4000-4999", "[fd00::1]:80"), rules(t, "10.0.0.9"))
	check(t, p, nil, "10.0.0.7:4000", "10.255.255.255:4999", "[::ffff:10.0.0.7]:4000", "[fd00::1]:80", "[fd00::1%eth0]:80")
	check(t, p, ErrUnlisted, "10.0.0.7:3999", "10.0.0.7:5000", "11.0.0.7:4000", "127.0.0.1:4000", "[::1]:4000", "[fd00::1]:81", "[fd00::2]:80")
	check(t, p, ErrDenied, "10.0.0.9:4000", "[::ffff:10.0.0.9]:4000")
	// A translated address is somewhere else, if only by the way it takes.
	check(t, p, ErrUnlisted, "[64:ff9b::10.0.0.7]:4000", "[2002:a00:7::]:4000", "[::10.0.0.7]:4000")
}

// nat64 returns an IPv4 address as a network's own NAT64 may have it, by prefixes
// of 48, 56, 64 and 96 bits (RFC 6052 section 2.2).
func nat64(v4 string, behind byte) []string {
	b, x := netip.MustParseAddr(v4).As4(), behind
	var list []string
	for _, form := range [][16]byte{
		{0, 0x64, 0xff, 0x9b, 0, 1, b[0], b[1], 0, b[2], b[3], x, x, x, x, x},
		{0, 0x64, 0xff, 0x9b, 0, 1, 0, b[0], 0, b[1], b[2], b[3], x, x, x, x},
		{0, 0x64, 0xff, 0x9b, 0, 1, 0x12, 0x34, 0, b[0], b[1], b[2], b[3], x, x, x},
		{0, 0x64, 0xff, 0x9b, 0, 1, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, b[0], b[1], b[2], b[3]},
		{0, 0x64, 0xff, 0x9b, 0, 1, 12: b[0], 13: b[1], 14: b[2], 15: b[3]},
	} {
		list = append(list, netip.AddrPortFrom(netip.AddrFrom16(form), 80).String())
	}
	return list
}

func TestALocalNAT64IsJudgedByEveryLengthOfItsPrefix(t *testing.T) {
	p := New(nil, rules(t, "10.0.0.0/8", "192.168.1.1"))
	p.Own(netip.MustParseAddrPort("127.0.0.1:80"))
	for _, behind := range []byte{0, 1, 8, 99} { // translators do not look at it
		check(t, p, ErrSensitive, nat64("169.254.169.254", behind)...)
		check(t, p, ErrSensitive, nat64("100.100.100.200", behind)...)
		check(t, p, ErrDenied, nat64("10.0.0.7", behind)...)
		check(t, p, ErrDenied, nat64("192.168.1.1", behind)...)
		check(t, p, ErrOwn, nat64("127.0.0.1", behind)...)
		check(t, p, ErrNever, nat64("224.0.0.1", behind)...)
		check(t, p, nil, nat64("203.0.113.9", behind)...)
	}
	check(t, p, ErrNever, "[64:ff9b:1::]:80", "[64:ff9b:1::1]:80", "[64:ff9b:1::0.9.9.9]:80")
}

func TestAnAddressMayCarrySeveral(t *testing.T) {
	p := New(nil, rules(t, "10.0.0.0/8"))
	for addr, want := range map[string]string{
		"[2002:a00:7::5efe:8.8.8.8]:80":           "10.0.0.7", // 6to4, and ISATAP within
		"[2002:808:808::5efe:10.0.0.7]:80":        "10.0.0.7",
		"[2001:0:a00:7:8000:1234:f7f7:f7f7]:80":   "10.0.0.7", // Teredo
		"[2001:0:808:808:8000:1234:f5ff:fff8]:80": "10.0.0.7",
		"[64:ff9b:1:a00:0:700:808:808]:80":        "10.0.0.7",
		"[64:ff9b:1::5efe:10.0.0.7]:80":           "10.0.0.7",
	} {
		var d *Denial
		if err := p.Check(netip.MustParseAddrPort(addr)); !errors.As(err, &d) || d.Carried.String() != want {
			t.Errorf("Check(%s): %v, want it denied for %s", addr, err, want)
		}
	}
	check(t, p, nil, "[2002:808:808::5efe:8.8.8.8]:80", "[2001:0:808:808:8000:1234:f7f7:f7f7]:80",
		// No interface identifiers of ISATAP, and no prefix of Teredo.
		"[2001:db8::5eff:10.0.0.7]:80", "[2001:db8::400:5efe:10.0.0.7]:80", "[2001:db8::1:5efe:10.0.0.7]:80",
		"[2001:1:a00:7:8000:1234:f5ff:fff8]:80")
}

func TestAnIPv6RuleCoversNoIPv4Address(t *testing.T) {
	check(t, New(rules(t, "::/0"), nil), ErrUnlisted, "10.0.0.7:80", "[::ffff:10.0.0.7]:80")
	check(t, New(nil, rules(t, "::/0")), nil, "10.0.0.7:80", "[::ffff:10.0.0.7]:80")
	check(t, New(rules(t, "0.0.0.0/0"), nil), ErrUnlisted, "[fd00::1]:80")
}

func TestAListeningAddressIsDeniedInEverySpelling(t *testing.T) {
	p := New(rules(t, "0.0.0.0/0", "::/0", "127.0.0.1:8000"), nil)
	p.Own(netip.MustParseAddrPort("127.0.0.1:8000"))
	p.Own(netip.MustParseAddrPort("[::ffff:10.0.0.5]:9000"))
	p.Own(netip.MustParseAddrPort("[fe80::5%eth0]:9000"))
	p.Own(netip.MustParseAddrPort("[2001:db8::5]:9000"))
	check(t, p, ErrOwn, spellings("127.0.0.1", 8000)...)
	check(t, p, ErrOwn, spellings("10.0.0.5", 9000)...)
	check(t, p, ErrOwn, "[fe80::5]:9000", "[fe80::5%1]:9000", "[2001:db8::5]:9000", "[2001:db8::5%lo]:9000")
	check(t, p, nil, "127.0.0.1:8001", "127.0.0.2:8000", "[::1]:8000", "10.0.0.5:8000", "10.0.0.6:9000", "127.0.0.1:9000")
}

func TestAWildcardListenerOwnsEveryLocalAddressWithItsPort(t *testing.T) {
	loopback4 := append(spellings("127.0.0.1", 8000), spellings("127.255.255.254", 8000)...)
	foreign := append(spellings("192.0.2.77", 8000), "[2001:db8::77]:8000") // of RFC 5737 and RFC 3849
	for _, tt := range []struct {
		own  string
		ipv6 error
	}{
		{"0.0.0.0:8000", nil},
		{"[::ffff:0.0.0.0]:8000", nil},
		{"[::]:8000", ErrOwn},
		{"", ErrOwn}, // a nil net.IP
	} {
		ap := netip.AddrPortFrom(netip.Addr{}, 8000)
		if tt.own != "" {
			ap = netip.MustParseAddrPort(tt.own)
		}
		p := New(rules(t, "0.0.0.0/0", "::/0"), nil)
		p.Own(ap)
		check(t, p, ErrOwn, loopback4...)
		check(t, p, tt.ipv6, "[::1]:8000", "[::1%lo]:8000")
		check(t, p, nil, "127.0.0.1:8001", "[::1]:8001")
		check(t, p, nil, foreign...)
	}
}

func TestOwnTakesAnAddressOnceAndNoPortZero(t *testing.T) {
	var p Policy
	for range 3 {
		p.Own(netip.MustParseAddrPort("127.0.0.1:8000"))
		p.Own(netip.MustParseAddrPort("[::ffff:127.0.0.1]:8000"))
		p.Own(netip.AddrPort{})
		p.Own(netip.MustParseAddrPort("127.0.0.1:0"))
	}
	if own := *p.own.Load(); len(own) != 1 {
		t.Errorf("the policy owns %v", own)
	}
}

func TestOwnAndCheckMayRunAtOnce(t *testing.T) {
	var p Policy
	var wg sync.WaitGroup
	const each = 100
	for i := range 4 {
		wg.Go(func() {
			for j := range each {
				ap := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(1+i*each+j))
				if err := p.Check(ap); err != nil {
					t.Errorf("before Own: %v", err)
				}
				p.Own(ap)
				if err := p.Check(ap); !errors.Is(err, ErrOwn) {
					t.Errorf("after Own, Check(%v): %v", ap, err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(*p.own.Load()); n != 4*each {
		t.Errorf("%d addresses are left of %d", n, 4*each)
	}
}

// Two that add at once would write to the same spare element, and the one that
// loses might overwrite what the other has published.
func TestOwnWritesToNoListThatIsInUse(t *testing.T) {
	var p Policy
	for port := range uint16(20) {
		p.Own(netip.AddrPortFrom(netip.IPv6Loopback(), port+1))
		list := *p.own.Load()
		p.Own(netip.AddrPortFrom(netip.IPv6Loopback(), port+2))
		for _, ap := range list[len(list):cap(list)] {
			if ap.IsValid() {
				t.Fatalf("a list of %d now holds %v behind its end", len(list), ap)
			}
		}
	}
}

func TestTheRulesAreThePolicysOwn(t *testing.T) {
	allow, deny := rules(t, "10.0.0.7"), rules(t, "10.0.0.7:22")
	p := New(allow, deny)
	clear(allow)
	clear(deny)
	check(t, p, nil, "10.0.0.7:80")
	check(t, p, ErrDenied, "10.0.0.7:22")
}

func TestADenialSaysWhatForbidsIt(t *testing.T) {
	p := New(rules(t, "10.0.0.0/8", "127.0.0.0/8", "::/0"), rules(t, "10.0.0.7:22-23"))
	p.Own(netip.MustParseAddrPort("0.0.0.0:8000"))
	for addr, want := range map[string]string{
		"0.0.0.0:80":                 "0.0.0.0:80: never allowed: 0.0.0.0/8 (unspecified)",
		"[::]:80":                    "[::]:80: never allowed: ::/128 (unspecified)",
		"127.0.0.1:8000":             "127.0.0.1:8000: the gateway itself listens there: 0.0.0.0:8000",
		"169.254.169.254:80":         "169.254.169.254:80: only an allow rule within the range opens it: 169.254.0.0/16 (link-local, metadata of most clouds)",
		"10.0.0.7:22":                "10.0.0.7:22: a deny rule covers it: 10.0.0.7:22-23",
		"11.0.0.7:80":                "11.0.0.7:80: no allow rule covers it",
		"[64:ff9b::10.0.0.7]:22":     "[64:ff9b::a00:7]:22, which stands for 10.0.0.7: a deny rule covers it: 10.0.0.7:22-23",
		"[2002:a9fe:a9fe::]:80":      "[2002:a9fe:a9fe::]:80, which stands for 169.254.169.254: only an allow rule within the range opens it: 169.254.0.0/16 (link-local, metadata of most clouds)",
		"[::ffff:255.255.255.255]:1": "[::ffff:255.255.255.255]:1: never allowed: 255.255.255.255/32 (broadcast)",
		"10.0.0.7:0":                 "10.0.0.7:0: no address with a port",
	} {
		if err := p.Check(netip.MustParseAddrPort(addr)); err == nil || err.Error() != want {
			t.Errorf("Check(%s): %v\nwant: %s", addr, err, want)
		}
	}
}

func FuzzNoRuleOpensWhatIsNever(f *testing.F) {
	f.Add("0.0.0.0/0", "::/0", uint64(0), uint64(0), uint16(80))
	f.Add("224.0.0.1", "ff02::1", uint64(0xff02<<48), uint64(1), uint16(80))
	f.Add("169.254.0.0/16", "fe80::/10:80", uint64(0x64ff9b<<32), uint64(0xa9fea9fe), uint16(80))
	f.Add("127.0.0.0/8", "::1", uint64(0), uint64(0xffff7f000001), uint16(8000))
	f.Add("127.0.0.0/8", "::1", uint64(0x20027f000001<<16), uint64(1), uint16(8000))
	f.Fuzz(func(t *testing.T, rule1, rule2 string, high, low uint64, port uint16) {
		var allow []Rule
		for _, s := range []string{rule1, rule2} {
			if r, err := ParseRule(s); err == nil {
				allow = append(allow, r)
			}
		}
		p := New(allow, nil)
		p.Own(netip.MustParseAddrPort("[::]:8000"))

		var b [16]byte
		binary.BigEndian.PutUint64(b[:8], high)
		binary.BigEndian.PutUint64(b[8:], low)
		ip, v4 := netip.AddrFrom16(b), netip.AddrFrom4([4]byte(b[12:]))
		ask := map[netip.AddrPort]netip.Addr{netip.AddrPortFrom(ip, port): ip.Unmap()}
		for _, s := range spellings(v4.String(), port) {
			if ap := netip.MustParseAddrPort(s); ap.Addr() != netip.IPv6Loopback() {
				ask[ap] = v4
			}
		}
		for ap, ip := range ask {
			if err := p.Check(ap); err != nil {
				continue
			}
			switch {
			case port == 0, ip.IsUnspecified(), ip.IsMulticast():
			case ip.Is4() && (ip.As4()[0] == 0 || ip.As4() == [4]byte{255, 255, 255, 255}):
			case port == 8000 && ip.IsLoopback():
			case (ip.IsLinkLocalUnicast() || ip == netip.MustParseAddr("100.100.100.200")) &&
				!slices.ContainsFunc(allow, func(r Rule) bool { return r.prefix.Contains(ip) && r.prefix.Bits() >= 10 }):
			default:
				continue
			}
			t.Fatalf("allow rules %v open %v", allow, ap)
		}
	})
}

// busy is a policy with a few dozen rules, of which the last covers 10.9.9.9 and
// fd99::9.
func busy(t testing.TB) *Policy {
	var allow, deny []Rule
	for i := range 18 {
		b := byte(i)
		v4 := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, b}), 24)
		v6 := netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, b, 15: b}), 128)
		deny = append(deny, Rule{v4, 1, 65535}, Rule{v6, 80, 90})
		allow = append(allow, Rule{v4, 4000, 4999}, Rule{v6, 1, 65535})
	}
	p := New(append(allow, rules(t, "10.0.0.0/8", "fd99::/16", "2002::/16")...), deny)
	p.Own(netip.MustParseAddrPort("[::]:8000"))
	p.Own(netip.MustParseAddrPort("127.0.0.1:6060"))
	return p
}

var benchAddrs = []struct{ name, addr string }{
	{"IPv4", "10.9.9.9:4000"},
	{"IPv6", "[fd99::9]:4000"},
	{"6to4", "[2002:a09:909::1]:4000"},
	{"OwnPort", "10.9.9.9:8000"},
}

func TestCheckOfAnAllowedAddressAllocatesNothing(t *testing.T) {
	p := busy(t)
	for _, tt := range benchAddrs {
		ap := netip.MustParseAddrPort(tt.addr)
		check(t, p, nil, tt.addr) // and the system is asked
		// The remembered answer may run out on the way, once.
		if n := testing.AllocsPerRun(1000, func() { p.Check(ap) }); n >= 1 {
			t.Errorf("Check(%s) allocates %v times", tt.addr, n)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	p := busy(b)
	for _, tt := range benchAddrs {
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			ap := netip.MustParseAddrPort(tt.addr)
			for b.Loop() {
				if err := p.Check(ap); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
