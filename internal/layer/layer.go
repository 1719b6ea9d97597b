// Package layer has the words for connections of every kind. A connection may
// be made of layers: TLS or a WebSocket on top of TCP, a stream on top of
// datagrams. Each layer is a net.Conn and tells of the one below by NetConn, as
// *tls.Conn does. What a layer can do besides, it says by methods that the
// functions here look for; what it lacks, they do the nearest thing to.
package layer

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"

	"gateway/internal/sockopt"
)

// Socket returns the lowest layer.
func Socket(c net.Conn) net.Conn {
	for {
		upper, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = upper.NetConn()
	}
}

// CloseWrite tells the peer that nothing more comes. What has no half-close
// does nothing.
func CloseWrite(c net.Conn) error {
	if hc, ok := c.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return nil
}

// FailWrite is CloseWrite after less than all that was to come.
func FailWrite(c net.Conn) error {
	if fc, ok := c.(interface{ FailWrite() error }); ok {
		return fc.FailWrite()
	}
	return CloseWrite(c)
}

// Abort ends a connection at once, both directions and whoever waits for them.
// It goes below TLS, whose Close would wait for a client that does not read;
// a layer whose socket is shared has an Abort method of its own.
func Abort(c net.Conn) {
	if a, ok := c.(interface{ Abort() }); ok {
		a.Abort()
		return
	}
	Socket(c).Close()
}

// Broken returns why a peer is gone that has not finished, as far as that can be
// told without reading; or nil.
func Broken(c net.Conn) error {
	switch c := c.(type) {
	case interface{ Broken() error }:
		return c.Broken()
	case interface{ Below() net.Conn }:
		return Broken(c.Below())
	}
	if raw := RawConn(c); raw != nil && !sockopt.HasPeer(raw) {
		return syscall.ECONNRESET
	}
	return nil
}

// RawConn returns access to the socket's descriptor, or nil if it has none of
// its own.
func RawConn(c net.Conn) syscall.RawConn {
	sc, ok := Socket(c).(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// ResetOnClose has a TCP connection closed by a reset: with SO_LINGER on and
// zero, close(2) sends RST and drops what was not sent (socket(7)).
func ResetOnClose(c net.Conn) {
	if tcp, ok := Socket(c).(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
}

// AddrPort returns a socket's address without a zone, an IPv4-mapped one as
// IPv4: no prefix contains an address with a zone.
func AddrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// IsTimeout tells whether an error of a connection says that time ran out.
func IsTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}
