package proxyheader

import (
	"bufio"
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
)

// addrPort is netip.MustParseAddrPort, with "" for no address.
func addrPort(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(s)
}

func mustAppend(t testing.TB, version int, src, dst, id string) string {
	t.Helper()
	b, err := Append(nil, version, Header{Source: addrPort(src), Destination: addrPort(dst), UniqueID: id})
	if err != nil {
		t.Fatalf("Append(%d, %q, %q, %q): %v", version, src, dst, id, err)
	}
	return string(b)
}

// version2 is a header of version 2 with a true length.
func version2(command, family byte, payload string) string {
	n := len(payload)
	return signature2 + string([]byte{command, family, byte(n >> 8), byte(n)}) + payload
}

// IPv4 and IPv6 addresses as version 2 has them.
const (
	ipv4 = "\xcb\x00\x71\x07" + "\xc0\x00\x02\x01" + "\xc8\x22" + "\x1f\x90"
	ipv6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02" + "\xc8\x22" + "\x1f\x90"
	mapped = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xcb\x00\x71\x07" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02" + "\xc8\x22" + "\x1f\x90"
)

func TestAHeaderIsThatOfTheSpecification(t *testing.T) {
	for _, tt := range []struct {
		name     string
		src, dst string
		id       string
		v1, v2   string
	}{
		{
			"IPv4", "203.0.113.7:51234", "192.0.2.1:8080", "",
			"PROXY TCP4 203.0.113.7 192.0.2.1 51234 8080\r\n",
			version2(0x21, 0x11, ipv4),
		}, {
			"IPv6", "[2001:db8::1]:51234", "[2001:db8::2]:8080", "",
			"PROXY TCP6 2001:db8::1 2001:db8::2 51234 8080\r\n",
			version2(0x21, 0x21, ipv6),
		}, {
			"an id", "203.0.113.7:51234", "192.0.2.1:8080", "a1b2",
			"PROXY TCP4 203.0.113.7 192.0.2.1 51234 8080\r\n",
			version2(0x21, 0x11, ipv4+"\x05\x00\x04a1b2"),
		}, {
			"IPv4 as a dual-stack socket has it", "[::ffff:203.0.113.7]:51234", "[::ffff:192.0.2.1]:8080", "",
			"PROXY TCP4 203.0.113.7 192.0.2.1 51234 8080\r\n",
			version2(0x21, 0x11, ipv4),
		}, {
			"IPv4 to IPv6", "203.0.113.7:51234", "[2001:db8::2]:8080", "",
			"PROXY TCP6 ::ffff:203.0.113.7 2001:db8::2 51234 8080\r\n",
			version2(0x21, 0x21, mapped),
		}, {
			"IPv6 to IPv4", "[2001:db8::1]:1", "192.0.2.1:2", "",
			"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 1 2\r\n",
			version2(0x21, 0x21, ipv6[:16]+mapped[:12]+"\xc0\x00\x02\x01"+"\x00\x01\x00\x02"),
		}, {
			"a zone", "[fe80::1%eth0]:1", "[fe80::2%eth0]:2", "",
			"PROXY TCP6 fe80::1 fe80::2 1 2\r\n",
			version2(0x21, 0x21, "\xfe\x80"+strings.Repeat("\x00", 13)+"\x01"+
				"\xfe\x80"+strings.Repeat("\x00", 13)+"\x02"+"\x00\x01\x00\x02"),
		}, {
			"IPv4 to an unknown address", "203.0.113.7:51234", "", "",
			"PROXY TCP4 203.0.113.7 0.0.0.0 51234 0\r\n",
			version2(0x21, 0x11, ipv4[:4]+"\x00\x00\x00\x00"+"\xc8\x22"+"\x00\x00"),
		}, {
			"IPv4 to an unspecified IPv6 address", "203.0.113.7:51234", "[::%eth0]:8080", "",
			"PROXY TCP4 203.0.113.7 0.0.0.0 51234 8080\r\n",
			version2(0x21, 0x11, ipv4[:4]+"\x00\x00\x00\x00"+"\xc8\x22"+"\x1f\x90"),
		}, {
			"IPv6 to an unspecified IPv4 address", "[2001:db8::1]:51234", "0.0.0.0:8080", "",
			"PROXY TCP6 2001:db8::1 :: 51234 8080\r\n",
			version2(0x21, 0x21, ipv6[:16]+strings.Repeat("\x00", 16)+"\xc8\x22"+"\x1f\x90"),
		}, {
			"an unknown client", "", "192.0.2.1:8080", "a1b2",
			"PROXY UNKNOWN\r\n",
			version2(0x20, 0x00, ""),
		},
	} {
		if got := mustAppend(t, 1, tt.src, tt.dst, tt.id); got != tt.v1 {
			t.Errorf("%s, version 1: %q, want %q", tt.name, got, tt.v1)
		}
		if got := mustAppend(t, 2, tt.src, tt.dst, tt.id); got != tt.v2 {
			t.Errorf("%s, version 2: %q, want %q", tt.name, got, tt.v2)
		}
		if got := mustAppend(t, 0, tt.src, tt.dst, tt.id); got != "" {
			t.Errorf("%s, version 0: %q, want nothing", tt.name, got)
		}
	}
}

func TestAHeaderIsReadBackByTheLibrary(t *testing.T) {
	for _, version := range []int{1, 2} {
		s := mustAppend(t, version, "203.0.113.7:51234", "[2001:db8::2]:8080", "a1b2")
		r := bufio.NewReader(strings.NewReader(s + "data"))
		h, err := proxyproto.Read(r)
		if err != nil {
			t.Fatalf("version %d: %v", version, err)
		}
		if got := h.SourceAddr.String() + " " + h.DestinationAddr.String(); got != "203.0.113.7:51234 [2001:db8::2]:8080" {
			t.Errorf("version %d: addresses %s", version, got)
		}
		if rest, _ := r.Peek(5); string(rest) != "data" {
			t.Errorf("version %d: %q is left behind the header", version, rest)
		}
		tlvs, err := h.TLVs()
		if version == 2 && (err != nil || len(tlvs) != 1 || string(tlvs[0].Value) != "a1b2") {
			t.Errorf("TLVs %v, %v", tlvs, err)
		}
	}
}

func TestAHeaderIsAppended(t *testing.T) {
	for _, version := range []int{0, 1, 2} {
		b, err := Append([]byte("x"), version, Header{Source: addrPort("127.0.0.1:1"), Destination: addrPort("127.0.0.1:2")})
		want := "x" + mustAppend(t, version, "127.0.0.1:1", "127.0.0.1:2", "")
		if err != nil || string(b) != want {
			t.Errorf("version %d: %q, %v; want %q", version, b, err, want)
		}
	}
}

func TestAnUnknownVersionAndALongIDAreRefused(t *testing.T) {
	longest := strings.Repeat("i", maxUniqueID)
	for _, tt := range []struct {
		version int
		id      string
		ok      bool
	}{
		{-1, "", false},
		{3, "", false},
		{257, "", false}, // 1 in its lowest byte
		{2, longest, true},
		{2, longest + "i", false},
		{1, longest + "i", true},
		{0, longest + "i", true},
	} {
		b, err := Append([]byte("x"), tt.version, Header{Source: addrPort("127.0.0.1:1"), Destination: addrPort("127.0.0.1:2"), UniqueID: tt.id})
		if (err == nil) != tt.ok {
			t.Errorf("version %d, id of %d bytes: error %v", tt.version, len(tt.id), err)
		}
		if err != nil && string(b) != "x" {
			t.Errorf("version %d, id of %d bytes: %q with the error", tt.version, len(tt.id), b)
		}
	}
}

func TestTheLongestLineFitsIntoTheSpecification(t *testing.T) {
	const full = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	for _, tt := range []struct {
		src, dst string
		want     int
	}{
		{"255.255.255.255:65535", "255.255.255.255:65535", 56},
		{"[" + full + "]:65535", "[" + full + "]:65535", 104},
	} {
		s := mustAppend(t, 1, tt.src, tt.dst, "")
		if len(s) != tt.want {
			t.Errorf("%q has %d bytes, want %d", s, len(s), tt.want)
		}
		if _, n, err := Parse([]byte(s)); n != tt.want || err != nil {
			t.Errorf("Parse(%q) = %d, %v", s, n, err)
		}
	}
}

// FuzzAnAppendedHeaderIsParsed makes addresses of 4, 16 and any other number
// of bytes, the last of which are no address.
func FuzzAnAppendedHeaderIsParsed(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1}, uint16(1), []byte{10, 0, 0, 1}, uint16(2), "id", uint8(7))
	f.Add([]byte{127, 0, 0, 1}, uint16(65535), bytes.Repeat([]byte{0xff}, 16), uint16(0), "", uint8(255))
	f.Add(make([]byte, 16), uint16(0), []byte{0, 0, 0, 0}, uint16(7), strings.Repeat("\x00", maxUniqueID), uint8(0))
	f.Add([]byte(mapped[:16]), uint16(0), []byte{}, uint16(7), "\r\n", uint8(0))
	f.Add([]byte{}, uint16(1), []byte(ipv6[:16]), uint16(2), strings.Repeat("x", maxUniqueID+1), uint8(0))
	f.Fuzz(func(t *testing.T, srcIP []byte, srcPort uint16, dstIP []byte, dstPort uint16, id string, hops uint8) {
		srcAddr, _ := netip.AddrFromSlice(srcIP)
		dstAddr, _ := netip.AddrFromSlice(dstIP)
		src, dst := netip.AddrPortFrom(srcAddr, srcPort), netip.AddrPortFrom(dstAddr, dstPort)
		for version := 1; version <= 2; version++ {
			b, err := Append(nil, version, Header{Source: src, Destination: dst, UniqueID: id, Hops: hops})
			if err != nil {
				if version == 2 && len(id) > maxUniqueID {
					continue
				}
				t.Fatalf("Append(%d, %v, %v, %q): %v", version, src, dst, id, err)
			}
			var want Header
			if src.IsValid() {
				want.Source = netip.AddrPortFrom(srcAddr.Unmap(), srcPort)
				want.Destination = netip.AddrPortFrom(dstAddr.Unmap(), dstPort)
				if version == 2 {
					want.UniqueID, want.Hops = id, hops
				}
			}
			h, n, err := Parse(append(b, "data"...))
			if err != nil || n != len(b) {
				t.Fatalf("Parse(%q) = %d, %v", b, n, err)
			}
			if src.IsValid() && (!dst.IsValid() || dstAddr.Unmap().IsUnspecified()) {
				if !h.Destination.Addr().IsUnspecified() || h.Destination.Port() != dst.Port() ||
					h.Destination.Addr().Is4() != h.Source.Addr().Is4() {
					t.Fatalf("Parse(%q): destination %v", b, h.Destination)
				}
				h.Destination = want.Destination
			}
			if h != want {
				t.Fatalf("Parse(%q) = %+v, want %+v", b, h, want)
			}
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, bb := range []struct {
		name     string
		version  int
		src, dst string
	}{
		{"v1/IPv4", 1, "203.0.113.7:51234", "192.0.2.1:8080"},
		{"v1/IPv6", 1, "[2001:db8::1:2]:51234", "[2001:db8::2]:8080"},
		{"v2/IPv4", 2, "203.0.113.7:51234", "192.0.2.1:8080"},
		{"v2/IPv6", 2, "[2001:db8::1:2]:51234", "[2001:db8::2]:8080"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			h := Header{Source: addrPort(bb.src), Destination: addrPort(bb.dst), UniqueID: "0123456789abcdef"}
			buf := make([]byte, 0, 256)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Append(buf, bb.version, h); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
