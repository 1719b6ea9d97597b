package proxyheader

import (
	"bufio"
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
)

const unix = 216 // bytes of two paths

func TestParseTakesEveryFormOfTheSpecification(t *testing.T) {
	longRest := "PROXY UNKNOWN " + strings.Repeat("f", 107-16) + "\r\n"
	longest := strings.Repeat("i", maxUniqueID)
	noop := func(n int) string { return "\x04" + string([]byte{byte(n >> 8), byte(n)}) + strings.Repeat("\x00", n) }
	for _, tt := range []struct {
		name     string
		header   string
		src, dst string
		id       string
	}{
		{"the specification's example", "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", "192.168.0.1:56324", "192.168.0.11:443", ""},
		{"the lowest numbers", "PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", "0.0.0.0:0", "0.0.0.0:0", ""},
		{"upper case in IPv6", "PROXY TCP6 2001:DB8::A ::1 1 2\r\n", "[2001:db8::a]:1", "[::1]:2", ""},
		{"IPv6 in full", "PROXY TCP6 0000:0000:0000:0000:0000:0000:0000:0001 1:2:3:4:5:6:7:8 1 2\r\n", "[::1]:1", "[1:2:3:4:5:6:7:8]:2", ""},
		{"IPv4 as IPv6", "PROXY TCP6 ::ffff:203.0.113.7 ::ffff:c000:0201 1 2\r\n", "203.0.113.7:1", "192.0.2.1:2", ""},
		{"UNKNOWN", "PROXY UNKNOWN\r\n", "", "", ""},
		{"UNKNOWN with addresses", "PROXY UNKNOWN 203.0.113.7 192.0.2.1 1 2\r\n", "", "", ""},
		{"UNKNOWN with anything", "PROXY UNKNOWN  \x00\xff TCP4 \r\n", "", "", ""},
		{"the longest line", longRest, "", "", ""},

		{"TCP over IPv4", version2(0x21, 0x11, ipv4), "203.0.113.7:51234", "192.0.2.1:8080", ""},
		{"TCP over IPv6", version2(0x21, 0x21, ipv6), "[2001:db8::1]:51234", "[2001:db8::2]:8080", ""},
		{"TCP over IPv4 as IPv6", version2(0x21, 0x21, mapped), "203.0.113.7:51234", "[2001:db8::2]:8080", ""},
		{"an id", version2(0x21, 0x11, ipv4+"\x05\x00\x02\x00\xff"), "203.0.113.7:51234", "192.0.2.1:8080", "\x00\xff"},
		{"an empty id", version2(0x21, 0x11, ipv4+"\x05\x00\x00"), "203.0.113.7:51234", "192.0.2.1:8080", ""},
		{"the longest id", version2(0x21, 0x11, ipv4+"\x05\x00\x80"+longest), "203.0.113.7:51234", "192.0.2.1:8080", longest},
		{"an id among others", version2(0x21, 0x11, ipv4+noop(0)+"\x02\x00\x01a"+"\x05\x00\x01i"+"\xee\x00\x00"), "203.0.113.7:51234", "192.0.2.1:8080", "i"},
		{"the longest payload", version2(0x21, 0x11, ipv4+noop(maxPayload-12-3)), "203.0.113.7:51234", "192.0.2.1:8080", ""},
		{"LOCAL", version2(0x20, 0x00, ""), "", "", ""},
		{"LOCAL with addresses", version2(0x20, 0x11, ipv4), "", "", ""},
		{"LOCAL with too few addresses", version2(0x20, 0x21, ipv4), "", "", ""},
		{"LOCAL with anything", version2(0x20, 0x00, "anything"), "", "", ""},
		{"unspecified", version2(0x21, 0x00, ""), "", "", ""},
		{"unspecified with anything", version2(0x21, 0x00, "anything"), "", "", ""},
		{"UDP over IPv4", version2(0x21, 0x12, ipv4), "", "", ""},
		{"UDP over IPv6", version2(0x21, 0x22, ipv6), "", "", ""},
		{"a Unix stream", version2(0x21, 0x31, strings.Repeat("/", unix)), "", "", ""},
		{"a Unix datagram", version2(0x21, 0x32, strings.Repeat("\x00", unix)), "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := Header{Source: addrPort(tt.src), Destination: addrPort(tt.dst), UniqueID: tt.id}
			for _, rest := range []string{"", "x", "\r\n", tt.header} {
				h, n, err := Parse([]byte(tt.header + rest))
				if err != nil || n != len(tt.header) || h != want {
					t.Errorf("with %q behind it: %+v, %d, %v; want %+v, %d", rest, h, n, err, want, len(tt.header))
				}
			}
			for i := range tt.header {
				if h, n, err := Parse([]byte(tt.header[:i])); err != ErrIncomplete || n != 0 || h != (Header{}) {
					t.Errorf("the first %d bytes: %+v, %d, %v; want %v", i, h, n, err, ErrIncomplete)
				}
			}
		})
	}
}

func TestParseRefusesWhatTheSpecificationForbids(t *testing.T) {
	for name, header := range map[string]string{
		// Section 2.1.
		"a leading zero in a port":         "PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
		"a port of zeros":                  "PROXY TCP4 1.2.3.4 5.6.7.8 1 00\r\n",
		"a port too large":                 "PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n",
		"a signed port":                    "PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
		"a negative port":                  "PROXY TCP4 1.2.3.4 5.6.7.8 -1 2\r\n",
		"a hexadecimal port":               "PROXY TCP4 1.2.3.4 5.6.7.8 0x1 2\r\n",
		"an underscore in a port":          "PROXY TCP4 1.2.3.4 5.6.7.8 1_0 2\r\n",
		"no ports":                         "PROXY TCP4 1.2.3.4 5.6.7.8\r\n",
		"one port":                         "PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
		"an empty port":                    "PROXY TCP4 1.2.3.4 5.6.7.8 1 \r\n",
		"three ports":                      "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
		"a trailing space":                 "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
		"two spaces":                       "PROXY TCP4 1.2.3.4  5.6.7.8 1 2\r\n",
		"two spaces after the family":      "PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
		"a tab":                            "PROXY TCP4 1.2.3.4\t5.6.7.8 1 2\r\n",
		"a NUL":                            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\x00\r\n",
		"a leading zero in IPv4":           "PROXY TCP4 1.2.3.04 5.6.7.8 1 2\r\n",
		"short IPv4":                       "PROXY TCP4 127.1 5.6.7.8 1 2\r\n",
		"long IPv4":                        "PROXY TCP4 1.2.3.4.5 5.6.7.8 1 2\r\n",
		"IPv4 too large":                   "PROXY TCP4 1.2.3.256 5.6.7.8 1 2\r\n",
		"a name":                           "PROXY TCP4 localhost 5.6.7.8 1 2\r\n",
		"IPv6 in TCP4":                     "PROXY TCP4 ::1 ::1 1 2\r\n",
		"mapped IPv6 in TCP4":              "PROXY TCP4 ::ffff:1.2.3.4 5.6.7.8 1 2\r\n",
		"IPv4 in TCP6":                     "PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
		"one IPv4 in TCP6":                 "PROXY TCP6 ::1 5.6.7.8 1 2\r\n",
		"a zone":                           "PROXY TCP6 fe80::1%1 fe80::2 1 2\r\n",
		"brackets":                         "PROXY TCP6 [::1] [::1] 1 2\r\n",
		"two double colons":                "PROXY TCP6 1::2::3 ::1 1 2\r\n",
		"five digits":                      "PROXY TCP6 ::00001 ::1 1 2\r\n",
		"IPv6 too short":                   "PROXY TCP6 1:2:3:4:5:6:7 ::1 1 2\r\n",
		"IPv6 too long":                    "PROXY TCP6 1:2:3:4:5:6:7:8:9 ::1 1 2\r\n",
		"a bare LF":                        "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
		"a bare CR":                        "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\rx",
		"a doubled CR":                     "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\r",
		"a bare LF behind UNKNOWN":         "PROXY UNKNOWN \n",
		"a bare CR behind UNKNOWN":         "PROXY UNKNOWN \rx",
		"UNKNOWN with a bare LF":           "PROXY UNKNOWN\n",
		"UNKNOWN without a space":          "PROXY UNKNOWNx",
		"a line of 57 bytes for TCP4":      "PROXY TCP4 " + strings.Repeat("1", 56-13) + "1\r",
		"a line of 105 bytes for TCP6":     "PROXY TCP6 " + strings.Repeat("1", 104-13) + "1\r",
		"a line of 108 bytes for UNKNOWN":  "PROXY UNKNOWN " + strings.Repeat("1", 107-16) + "1\r",
		"a line without end":               "PROXY UNKNOWN " + strings.Repeat("1", 107-14),
		"lower case":                       "PROXY t",
		"a line without family":            "PROXY\r",
		"another word":                     "PROXYx",
		"a line without family nor spaces": "PROXY \r",
		"UDP":                              "PROXY UD",
		"another TCP":                      "PROXY TCP5",
		// Section 2.2. Only the last byte is too much, so that the length of
		// the header plays no part where it is not the point.
		"version 1 in binary":           signature2 + "\x11",
		"version 3":                     signature2 + "\x31",
		"an unknown command":            signature2 + "\x22",
		"an unknown family":             signature2 + "\x21\x41",
		"an unknown protocol":           signature2 + "\x21\x13",
		"a family without protocol":     signature2 + "\x21\x10",
		"a protocol without family":     signature2 + "\x21\x01",
		"an unknown family, LOCAL":      signature2 + "\x20\x41",
		"a payload too long":            signature2 + "\x21\x11\x10\x01",
		"the longest payload there is":  signature2 + "\x20\x00\xff\xff",
		"no IPv4 addresses":             signature2 + "\x21\x11\x00\x00",
		"IPv4 addresses cut short":      signature2 + "\x21\x11\x00\x0b",
		"IPv6 addresses cut short":      signature2 + "\x21\x21\x00\x23",
		"UDP addresses cut short":       signature2 + "\x21\x12\x00\x0b",
		"a Unix path cut short":         signature2 + "\x21\x31\x00\xd7",
		"a TLV without length":          version2(0x21, 0x11, ipv4+"\x05\x00"),
		"a TLV longer than the payload": version2(0x21, 0x11, ipv4+"\x05\x00\x02x"),
		"an id too long":                version2(0x21, 0x11, ipv4+"\x05\x00\x81"+strings.Repeat("i", maxUniqueID+1)),
	} {
		t.Run(name, func(t *testing.T) {
			for _, rest := range []string{"", "\r\n", strings.Repeat("x", MaxSize)} {
				h, n, err := Parse([]byte(header + rest))
				if !errors.Is(err, ErrMalformed) || n != 0 || h != (Header{}) {
					t.Errorf("with %.5q behind it: %+v, %d, %v; want %v", rest, h, n, err, ErrMalformed)
				}
			}
			// Not too early either: the header goes wrong with its last byte.
			if _, _, err := Parse([]byte(header[:len(header)-1])); err != ErrIncomplete {
				t.Errorf("without its last byte: %v, want %v", err, ErrIncomplete)
			}
		})
	}
}

func TestWhatIsNoHeaderIsRefusedWithItsFirstWrongByte(t *testing.T) {
	for _, s := range []string{
		"G", "U", "\x16", "\x00", "p", " ", "\n", "\xff",
		"PO", "PRI", "PROXy", "\rx", "\r\nx", "\r\n\r\n\r", "\r\n\r\n\x00\r\nQUIT\r",
	} {
		if _, n, err := Parse([]byte(s)); err != ErrAbsent || n != 0 {
			t.Errorf("Parse(%q) = %d, %v; want %v", s, n, err, ErrAbsent)
		}
		if _, _, err := Parse([]byte(s[:len(s)-1])); err != ErrIncomplete {
			t.Errorf("Parse(%q) = %v; want %v", s[:len(s)-1], err, ErrIncomplete)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", "PROXY TCP6 ::1 ::ffff:1.2.3.4 1 2\r\n", "PROXY UNKNOWN\r\n",
		"PROXY UNKNOWN x\r\n", "PROXY TCP6 1.2.3.4 5.6.7.8 01 2 \n", "GET / HTTP/1.1\r\n",
		version2(0x21, 0x11, ipv4), version2(0x21, 0x21, ipv6+"\x05\x00\x01i"), version2(0x20, 0x00, "x"),
		version2(0x21, 0x31, strings.Repeat("/", unix)), version2(0x21, 0x13, ipv4), version2(0x21, 0x11, ipv4+"\x04"),
	} {
		f.Add([]byte(s), []byte("\r\n"))
	}
	f.Fuzz(func(t *testing.T, b, more []byte) {
		h, n, err := Parse(b)
		longer := append(bytes.Clone(b), more...)
		h2, n2, err2 := Parse(longer)
		if n > len(b) || n > MaxSize || (n > 0) != (err == nil) {
			t.Fatalf("Parse(%q) = %d, %v", b, n, err)
		}
		switch {
		case err == nil:
			if h2 != h || n2 != n || err2 != nil {
				t.Fatalf("Parse(%q) = %+v, %d, but with more: %+v, %d, %v", b, h, n, h2, n2, err2)
			}
			for i := range n {
				if _, _, err := Parse(b[:i]); err != ErrIncomplete {
					t.Fatalf("Parse(%q): %v, but it begins the header %q", b[:i], err, b[:n])
				}
			}
			agreeWithLibrary(t, h, n, b)
		case err == ErrIncomplete:
			if h != (Header{}) || len(b) >= MaxSize {
				t.Fatalf("Parse(%q) = %+v, %v", b, h, err)
			}
		case err == ErrAbsent || errors.Is(err, ErrMalformed):
			if h != (Header{}) || err2 == nil || err2 == ErrIncomplete {
				t.Fatalf("Parse(%q) = %+v, %v, but with more: %v", b, h, err, err2)
			}
		default:
			t.Fatalf("Parse(%q): %v", b, err)
		}
	})
}

// agreeWithLibrary fails unless the library finds the same addresses and the
// same end of the header.
func agreeWithLibrary(t *testing.T, h Header, n int, b []byte) {
	if h.Source.IsValid() != h.Destination.IsValid() {
		t.Fatalf("Parse(%q) = %+v", b, h)
	}
	if !h.Source.IsValid() {
		return
	}
	in := bytes.NewReader(b)
	r := bufio.NewReader(in)
	lib, err := proxyproto.Read(r)
	if err != nil {
		t.Fatalf("Parse(%q) = %+v, the library says %v", b, h, err)
	}
	if lib.SourceAddr.String() != h.Source.String() || lib.DestinationAddr.String() != h.Destination.String() {
		t.Fatalf("Parse(%q) = %+v, the library says %v, %v", b, h, lib.SourceAddr, lib.DestinationAddr)
	}
	if read := len(b) - in.Len() - r.Buffered(); read != n {
		t.Fatalf("Parse(%q) = %d bytes, the library says %d", b, n, read)
	}
}
