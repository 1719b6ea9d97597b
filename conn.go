package main

import (
	"net"
	"net/netip"
	"syscall"

	"gateway/internal/sockopt"
)

// Connections of every kind, in the words of net. A client may speak through
// layers: TLS or a WebSocket on top of TCP. Each layer is a net.Conn and tells
// of the one below by NetConn, as tls.Conn does.

// client is a client's connection: Conn is what speaks with it, socket what was
// accepted. They are the same where there is no layer in between.
type client struct {
	net.Conn
	socket net.Conn
}

// closeWrite tells the peer that nothing more comes. What has no half-close
// does what comes next to it.
func closeWrite(c net.Conn) error {
	if hc, ok := c.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return nil
}

// failWrite is closeWrite after less than all that was to come.
func failWrite(c net.Conn) error {
	if fc, ok := c.(interface{ FailWrite() error }); ok {
		return fc.FailWrite()
	}
	return closeWrite(c)
}

// socketOf returns the lowest layer.
func socketOf(c net.Conn) net.Conn {
	for {
		layer, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = layer.NetConn()
	}
}

// abort ends a connection at once, both directions and whoever waits for them.
// It goes below TLS, whose Close would wait for a client that does not read;
// KCP's waits for acknowledgements.
func abort(c net.Conn) {
	if a, ok := c.(interface{ Abort() }); ok {
		a.Abort()
		return
	}
	socketOf(c).Close()
}

// broken returns why a peer is gone that has not finished, as far as that can be
// told without reading; or nil.
func broken(c net.Conn) error {
	switch c := c.(type) {
	case interface{ Broken() error }:
		return c.Broken()
	case interface{ Below() net.Conn }:
		return broken(c.Below())
	}
	if raw := rawConn(c); raw != nil && !sockopt.HasPeer(raw) {
		return syscall.ECONNRESET
	}
	return nil
}

// rawConn returns access to the socket's descriptor, or nil.
func rawConn(c net.Conn) syscall.RawConn {
	sc, ok := socketOf(c).(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// resetOnClose has a TCP connection closed by a reset: with SO_LINGER on and
// zero, close(2) sends RST and drops what was not sent.
func resetOnClose(c net.Conn) {
	if tcp, ok := socketOf(c).(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
}

// addrPort returns a socket's address without a zone, an IPv4-mapped one as
// IPv4: no prefix contains an address with a zone.
func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// replayed is a connection some bytes of which have been read already, from a
// client whose address is better known than the socket knows it.
type replayed struct {
	net.Conn
	early  []byte
	remote netip.AddrPort
}

func (c *replayed) Read(b []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(b, c.early)
		if c.early = c.early[n:]; len(c.early) == 0 {
			c.early = nil
		}
		return n, nil
	}
	return c.Conn.Read(b)
}

func (c *replayed) NetConn() net.Conn    { return c.Conn }
func (c *replayed) CloseWrite() error    { return closeWrite(c.Conn) }
func (c *replayed) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }
