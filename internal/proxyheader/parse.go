package proxyheader

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/pires/go-proxyproto"
)

// Header is what a proxy says of a connection.
type Header struct {
	// Source is the client, Destination where it connected to. Both are
	// invalid where the proxy does not know, or speaks for itself, as in a
	// health check: then the socket's own addresses are the true ones. IPv4
	// addresses are never in their IPv6 form.
	Source, Destination netip.AddrPort
	// UniqueID is the proxy's id of the connection, or empty. It is any bytes,
	// at most maxUniqueID. Only version 2 has room for it.
	UniqueID string
	// Label is what the proxy calls the connection, or rather what it is for; or
	// empty. It is any bytes, at most maxLabel; a longer one is none. Only version 2
	// has room for it.
	Label string
	// Hops is how many gateways have passed the connection on, by their own
	// count: two that forward to each other can so end their circle. It is 0
	// where none has said so. Only version 2 has room for it.
	Hops uint8
}

// Why there is no header. ErrMalformed comes wrapped in what is wrong, the two
// others as they are.
var (
	// ErrIncomplete is no failure: more has to be read.
	ErrIncomplete = errors.New("the PROXY header is incomplete")
	ErrAbsent     = errors.New("a PROXY header is required")
	ErrMalformed  = errors.New("malformed PROXY header")
)

func malformed(why any) error { return fmt.Errorf("%w: %v", ErrMalformed, why) }

const (
	signature1 = "PROXY"
	signature2 = "\r\n\r\n\x00\r\nQUIT\n"

	prefixSize = 16   // of version 2: signature, command, family, length
	maxPayload = 4096 // of version 2: addresses and TLVs; a certificate fits in

	// maxLine is the longest line of version 1, with CRLF.
	maxLine = 107
)

// Parse reads a header from the start of b, which is all that a peer has sent
// so far. n is the header's length in bytes. What cannot become a header is
// refused with ErrAbsent or ErrMalformed as soon as that is known, which for a
// first byte of something else is at once. What is ErrIncomplete is shorter
// than MaxSize.
//
// Believe a header only from a peer that is trusted, and wait for it only so
// long.
//
// Only TCP has addresses here. The valid rest (UNKNOWN, LOCAL, unspecified,
// UDP, Unix sockets) is taken as "not known", which the specification allows
// for whatever a receiver does not support, as long as it is all of it. TLVs
// must be whole, and a checksum among them must be right, except where what
// stands there is to be skipped unread: behind LOCAL and unspecified.
func Parse(b []byte) (h Header, n int, err error) {
	switch {
	case agree(b, signature1):
		n, err = measureLine(b)
	case agree(b, signature2):
		n, err = measureBinary(b)
	default:
		err = ErrAbsent
	}
	if err != nil {
		return Header{}, 0, err
	}
	if h, err = decode(b[:n]); err != nil {
		return Header{}, 0, err
	}
	return h, n, nil
}

// agree tells whether b begins with s, as far as it goes.
func agree(b []byte, s string) bool {
	n := min(len(b), len(s))
	return string(b[:n]) == s[:n]
}

// lines are the forms of version 1, and the longest line of each with CRLF.
var lines = []struct {
	start string
	max   int
}{
	{"PROXY TCP4 ", 56},
	{"PROXY TCP6 ", 104},
	{"PROXY UNKNOWN\r\n", 15},
	{"PROXY UNKNOWN ", maxLine}, // the rest is to be ignored
}

// measureLine returns the length of the line of version 1 at the start of b.
func measureLine(b []byte) (int, error) {
	for _, line := range lines {
		if !agree(b, line.start) {
			continue
		}
		// The first CR or LF has to be the line's end: what one reader takes
		// for the end, another must not take for a part of an ignored rest.
		head := b[:min(len(b), line.max)]
		end := bytes.IndexAny(head, "\r\n")
		switch {
		case end >= 0 && end+1 < len(head) && string(head[end:end+2]) == "\r\n":
			return end + 2, nil
		case end >= 0 && (end+1 < len(head) || head[end] == '\n'):
			return 0, malformed("the line does not end with CRLF")
		case len(head) == line.max:
			return 0, malformed("the line is too long")
		}
		return 0, ErrIncomplete
	}
	return 0, malformed("a line that is neither TCP4, TCP6 nor UNKNOWN")
}

// The 13th byte of version 2 is the version and a command.
const (
	local = byte(proxyproto.LOCAL)
	proxy = byte(proxyproto.PROXY)
)

// measureBinary returns the length of the header of version 2 at the start of b.
func measureBinary(b []byte) (int, error) {
	if len(b) > 12 && b[12] != local && b[12] != proxy {
		return 0, malformed("an unknown version or command")
	}
	addresses := 0
	if len(b) > 13 {
		known := false
		if addresses, known = addressesSize(b[13]); !known {
			return 0, malformed("an unknown address family or protocol")
		}
	}
	if len(b) < prefixSize {
		return 0, ErrIncomplete
	}
	payload := int(binary.BigEndian.Uint16(b[14:16]))
	if payload > maxPayload {
		return 0, malformed(fmt.Sprintf("it is longer than %d bytes", MaxSize))
	}
	// What LOCAL carries is to be skipped, whatever it is.
	if b[12] == proxy && payload < addresses {
		return 0, malformed("the addresses are cut short")
	}
	if len(b) < prefixSize+payload {
		return 0, ErrIncomplete
	}
	return prefixSize + payload, nil
}

// addressesSize returns how many bytes of addresses version 2 has for a family
// and protocol, and whether there is such a one.
func addressesSize(family byte) (int, bool) {
	switch proxyproto.AddressFamilyAndProtocol(family) {
	case proxyproto.UNSPEC:
		return 0, true
	case proxyproto.TCPv4, proxyproto.UDPv4:
		return 12, true
	case proxyproto.TCPv6, proxyproto.UDPv6:
		return 36, true
	case proxyproto.UnixStream, proxyproto.UnixDatagram:
		return 216, true
	}
	return 0, false
}

// decode reads a complete header.
func decode(b []byte) (h Header, err error) {
	if b[0] == signature2[0] && b[12] == proxy {
		if size, _ := addressesSize(b[13]); size > 0 {
			err = h.readTLVs(b, prefixSize+size)
		}
	}
	if err != nil || !hasAddresses(b) {
		return h, err
	}
	// Version 1 must come out of one read: the library takes a line that
	// arrives in pieces for an attack.
	lib, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(b), maxLine))
	if err != nil {
		return h, malformed(err)
	}
	src, dst, ok := lib.TCPAddrs()
	if !ok {
		return h, malformed("no addresses")
	}
	h.Source, h.Destination = unmap(src.AddrPort()), unmap(dst.AddrPort())
	return h, nil
}

// hasAddresses tells whether a complete header has a client's TCP address.
func hasAddresses(b []byte) bool {
	if b[0] == signature1[0] {
		return bytes.HasPrefix(b, []byte("PROXY TCP"))
	}
	family := proxyproto.AddressFamilyAndProtocol(b[13])
	return b[12] == proxy && (family == proxyproto.TCPv4 || family == proxyproto.TCPv6)
}
