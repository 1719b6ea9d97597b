package proxyheader

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"
)

// checksum is the TLV that is put in where a header is to be checked.
const checksum = "\x03\x00\x04\x00\x00\x00\x00"

// summed returns a header with the right value in its one checksum.
func summed(header string) string {
	sum := crc32.Checksum([]byte(header), crc32.MakeTable(crc32.Castagnoli))
	before, after, _ := strings.Cut(header, checksum)
	return before + string(binary.BigEndian.AppendUint32([]byte(checksum[:3]), sum)) + after
}

// The values are those of another program.
func TestAChecksumIsThatOfTheSpecification(t *testing.T) {
	for header, want := range map[string]uint32{
		version2(0x21, 0x11, ipv4+checksum):                                     0x1774be2e,
		version2(0x21, 0x11, ipv4+"\x05\x00\x02id"+checksum+"\x04\x00\x01\x00"): 0x3fb4deb7,
	} {
		at := strings.Index(header, checksum) + 3
		if got := binary.BigEndian.Uint32([]byte(summed(header)[at:])); got != want {
			t.Errorf("the sum of %q is %#x, want %#x", header, got, want)
		}
		if _, n, err := Parse([]byte(summed(header))); n != len(header) || err != nil {
			t.Errorf("Parse: %d, %v", n, err)
		}
	}
}

func TestAHeaderWithAWrongChecksumIsInvalid(t *testing.T) {
	noop := "\x04\x00\x02\x00\x00"
	for name, header := range map[string]string{
		"TCP over IPv4":  version2(0x21, 0x11, ipv4+checksum),
		"TCP over IPv6":  version2(0x21, 0x21, ipv6+checksum),
		"behind an id":   version2(0x21, 0x11, ipv4+"\x05\x00\x02id"+checksum),
		"before others":  version2(0x21, 0x11, ipv4+checksum+noop+"\xee\x00\x01x"),
		"UDP":            version2(0x21, 0x12, ipv4+checksum),
		"a Unix stream":  version2(0x21, 0x31, strings.Repeat("/", unix)+checksum),
		"a long payload": version2(0x21, 0x11, ipv4+checksum+"\x04\x0f\xe6"+strings.Repeat("\x00", 0xfe6)),
	} {
		good := summed(header)
		if _, n, err := Parse([]byte(good)); n != len(good) || err != nil {
			t.Errorf("%s: %d, %v; want it taken", name, n, err)
		}
		// Whichever byte is another one, behind the signature, command and length,
		// which say themselves that they are wrong. Without its type there is none.
		kind := strings.Index(header, checksum)
		for i := prefixSize; i < len(good); i++ {
			if i == kind {
				continue
			}
			bad := []byte(good)
			bad[i] ^= 0x10
			if h, n, err := Parse(bad); !errors.Is(err, ErrMalformed) || n != 0 || h != (Header{}) {
				t.Errorf("%s, byte %d: %+v, %d, %v; want %v", name, i, h, n, err, ErrMalformed)
			}
		}
		if _, _, err := Parse([]byte(header)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s, zeros: %v, want %v", name, err, ErrMalformed)
		}
	}
}

func TestAChecksumIsOneAndOfFourBytes(t *testing.T) {
	for name, tlvs := range map[string]string{
		"none":  "\x03\x00\x00",
		"short": "\x03\x00\x03abc",
		"long":  "\x03\x00\x05abcde",
		"two":   checksum + checksum,
	} {
		header := version2(0x21, 0x11, ipv4+tlvs)
		if name == "two" {
			header = summed(header)
		}
		if _, _, err := Parse([]byte(header)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want %v", name, err, ErrMalformed)
		}
	}
}

func TestTLVsAreWholeInEveryFamily(t *testing.T) {
	for name, front := range map[string]string{
		"TCP over IPv4": "\x11" + ipv4, "TCP over IPv6": "\x21" + ipv6,
		"UDP over IPv4": "\x12" + ipv4, "UDP over IPv6": "\x22" + ipv6,
		"a Unix stream": "\x31" + strings.Repeat("/", unix), "a Unix datagram": "\x32" + strings.Repeat("/", unix),
	} {
		for tlvs, good := range map[string]bool{
			"":                         true,
			"\xef\x00\x00":             true,
			"\x7f\x00\x02\xff\xff":     true, // unknown types are skipped
			"\x00\x00\x01\x00":         true,
			"\xef":                     false,
			"\xef\x00":                 false,
			"\xef\x00\x01":             false,
			"\xef\x00\x01x\xef":        false,
			"\xef\xff\xff" + "x":       false,
			"\x04\x00\x02x":            false,
			"\xef\x00\x00\x05\x00\x09": false,
		} {
			h, n, err := Parse([]byte(version2(0x21, front[0], front[1:]+tlvs) + "data"))
			if (err == nil) != good || err != nil && (!errors.Is(err, ErrMalformed) || n != 0 || h != (Header{})) {
				t.Errorf("%s with %q: %+v, %d, %v", name, tlvs, h, n, err)
			}
		}
	}
}

// What stands behind LOCAL and unspecified is skipped unread, whatever it is.
func TestWhatIsToBeSkippedIsNotChecked(t *testing.T) {
	for _, front := range [][2]byte{{0x20, 0x00}, {0x20, 0x11}, {0x21, 0x00}} {
		header := version2(front[0], front[1], checksum+"\xef\x00")
		if h, n, err := Parse([]byte(header)); h != (Header{}) || n != len(header) || err != nil {
			t.Errorf("%#x: %+v, %d, %v", front, h, n, err)
		}
	}
}

func TestHopsAreCounted(t *testing.T) {
	src, dst := addrPort("203.0.113.7:51234"), addrPort("192.0.2.1:8080")
	for _, tt := range []struct {
		tlvs string
		want uint8
	}{
		{"", 0},
		{"\xe7\x00\x01\x00", 0},
		{"\xe7\x00\x01\x01", 1},
		{"\xe7\x00\x01\xff", 255},
		{"\xe7\x00\x01\x03\xe7\x00\x01\x02", 3}, // the most, so that nobody lowers it by another
		{"\xe7\x00\x00", 0},                     // somebody else's
		{"\xe7\x00\x02\x01\x01", 0},
		{"\xe0\x00\x01\x09\xea\x00\x01\x09\xee\x00\x01\x09", 0},
	} {
		header := version2(0x21, 0x11, ipv4+tt.tlvs)
		if h, n, err := Parse([]byte(header)); h != (Header{Source: src, Destination: dst, Hops: tt.want}) || n != len(header) || err != nil {
			t.Errorf("%q: %+v, %d, %v; want %d hops", tt.tlvs, h, n, err, tt.want)
		}
	}
	for _, hops := range []uint8{0, 1, 2, 255} {
		for version, want := range map[int]uint8{1: 0, 2: hops} {
			b, err := Append(nil, version, Header{Source: src, Destination: dst, Hops: hops})
			if err != nil {
				t.Fatal(err)
			}
			h, _, err := Parse(b)
			if h.Hops != want || err != nil {
				t.Errorf("version %d: %d hops came as %d, %v", version, hops, h.Hops, err)
			}
			if version == 2 && hops == 0 && string(b) != mustAppend(t, 2, src.String(), dst.String(), "") {
				t.Errorf("without hops: %q", b)
			}
		}
	}
	if !typeHops.App() || typeHops.Registered() {
		t.Error("the type is not the application's own")
	}
}

func TestALabelTravelsInVersion2(t *testing.T) {
	src, dst := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2")
	for _, label := range []string{"", "eu/room-42", strings.Repeat("x", maxLabel)} {
		b, err := Append(nil, 2, Header{Source: src, Destination: dst, Label: label, Hops: 1})
		if err != nil {
			t.Fatal(err)
		}
		if h, n, err := Parse(b); h.Label != label || h.Hops != 1 || n != len(b) || err != nil {
			t.Errorf("%q is read as %+v, %d, %v", label, h, n, err)
		}
	}
	if _, err := Append(nil, 2, Header{Source: src, Destination: dst, Label: strings.Repeat("x", maxLabel+1)}); err == nil {
		t.Error("a label that is too long was written")
	}
	if b, err := Append(nil, 1, Header{Source: src, Destination: dst, Label: "a"}); err != nil || strings.Contains(string(b), "a\r") {
		t.Errorf("%q, %v", b, err)
	}
}
