// Package proxyheader writes and reads the header of the PROXY protocol, by
// which a proxy tells the next machine whose connection it passes on. Both
// versions are those of HAProxy's doc/proxy-protocol.txt, which the comments
// here call the specification: version 1 is a line of text (section 2.1),
// version 2 is binary (section 2.2).
package proxyheader

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/pires/go-proxyproto"
)

const (
	// MaxSize is the longest header in bytes that Parse takes. The
	// specification would let a peer send 64 KiB.
	MaxSize = prefixSize + maxPayload

	// maxUniqueID is the longest unique id in bytes (section 2.2.5).
	maxUniqueID = 128

	// maxLabel is the longest label in bytes.
	maxLabel = 128
)

// Append appends the header that tells a backend of a client. Version 0 appends
// nothing, 1 and 2 are the protocol's. Version 2 carries UniqueID as
// PP2_TYPE_UNIQUE_ID and Label unless they are empty, and Hops unless they are 0;
// version 1 has no room for them.
//
// The client's address is told whenever it is known, because a backend that is
// not told takes every client for the gateway, which it may trust more:
//   - addresses of two families are both told as IPv6, the IPv4 one mapped;
//   - an invalid or unspecified Destination, as that of an unconnected socket, is
//     told as the unspecified address of Source's family, with its port.
//
// Zones are left out. Only for an invalid Source the header says that nothing is
// known: UNKNOWN in version 1, LOCAL without anything in version 2.
//
// The error is for another version or a longer id; b comes back as it was.
func Append(b []byte, version int, h Header) ([]byte, error) {
	if version == 0 {
		return b, nil
	}
	if version != 1 && version != 2 {
		return b, fmt.Errorf("there is no version %d of the PROXY protocol", version)
	}
	if version == 2 && len(h.UniqueID) > maxUniqueID {
		return b, fmt.Errorf("a unique id of %d bytes; at most %d are allowed", len(h.UniqueID), maxUniqueID)
	}
	if version == 2 && len(h.Label) > maxLabel {
		return b, fmt.Errorf("a label of %d bytes; at most %d are allowed", len(h.Label), maxLabel)
	}
	lib := &proxyproto.Header{Version: byte(version), Command: proxyproto.LOCAL}
	if h.Source.IsValid() {
		src := unmap(h.Source)
		dst := destination(src.Addr(), h.Destination)
		lib.Command = proxyproto.PROXY
		lib.TransportProtocol = proxyproto.TCPv6
		if src.Addr().Is4() && dst.Addr().Is4() {
			lib.TransportProtocol = proxyproto.TCPv4
		}
		lib.SourceAddr = net.TCPAddrFromAddrPort(src)
		lib.DestinationAddr = net.TCPAddrFromAddrPort(dst)
		if version == 2 {
			if err := lib.SetTLVs(h.tlvs()); err != nil {
				return b, err
			}
		}
	}
	header, err := lib.Format()
	if err != nil {
		return b, err
	}
	return append(b, header...), nil
}

// tlvs returns what version 2 says behind the addresses.
func (h *Header) tlvs() []proxyproto.TLV {
	var list []proxyproto.TLV
	if h.UniqueID != "" {
		list = append(list, proxyproto.TLV{Type: proxyproto.PP2_TYPE_UNIQUE_ID, Value: []byte(h.UniqueID)})
	}
	if h.Label != "" {
		list = append(list, proxyproto.TLV{Type: typeLabel, Value: []byte(h.Label)})
	}
	if h.Hops > 0 {
		list = append(list, proxyproto.TLV{Type: typeHops, Value: []byte{h.Hops}})
	}
	return list
}

// destination returns dst in the form that goes with a client at src.
func destination(src netip.Addr, dst netip.AddrPort) netip.AddrPort {
	dst = unmap(dst)
	if dst.IsValid() && !dst.Addr().IsUnspecified() {
		return dst
	}
	unspecified := netip.IPv6Unspecified()
	if src.Is4() {
		unspecified = netip.IPv4Unspecified()
	}
	return netip.AddrPortFrom(unspecified, dst.Port())
}

// unmap turns an IPv4 address that is written as IPv6 back, and drops a zone.
func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
