package harness

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// Connect dials addr; the connection is closed at the end of the test, and no
// read or write on it hangs for ever.
func Connect(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(Patience))
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// OpenTunnel connects through a gateway with Secret to a backend and reads the 200.
func OpenTunnel(t testing.TB, gateway, backend string) *net.TCPConn {
	t.Helper()
	c := Connect(t, gateway)
	Send(t, c, Line(backend))
	Expect(t, c, "200")
	return c
}

// Send writes text to a connection.
func Send(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// Expect reads exactly the wanted bytes.
func Expect(t testing.TB, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	if string(got[:n]) != want {
		t.Fatalf("read %.100q, %v; want %.100q", got[:n], err, want)
	}
}

// ExpectAll reads until the end of the stream, which must be a FIN.
func ExpectAll(t testing.TB, c net.Conn, want string) {
	t.Helper()
	got, err := io.ReadAll(c)
	if string(got) != want || err != nil {
		t.Fatalf("read %d bytes %.100q, %v; want %d bytes %.100q", len(got), got, err, len(want), want)
	}
}

// ExpectCut reads the end of a connection that the gateway closes without a
// word. There may be a reset behind it.
func ExpectCut(t testing.TB, c net.Conn) {
	t.Helper()
	if got, err := io.ReadAll(c); len(got) > 0 || err != nil && !IsReset(err) {
		t.Errorf("read %.100q, %v; want the end", got, err)
	}
}

// Echo sends a text to a backend of StartEcho's kind and reads it back.
func Echo(t testing.TB, c net.Conn, text string) {
	t.Helper()
	Send(t, c, text)
	Expect(t, c, text)
}

// Finish ends a tunnel as a client does that has no more to say.
func Finish(t testing.TB, c *net.TCPConn) {
	t.Helper()
	c.CloseWrite()
	ExpectAll(t, c, "")
	c.Close()
}

// Noise returns n bytes that the seed alone determines and no compression shortens.
func Noise(seed uint64, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

// IsReset tells a reset from a FIN.
func IsReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// IsRefused tells a connect to a port where nobody listens from other failures.
func IsRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// PortOf returns the port of an address, as text.
func PortOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// ByName returns an address of this host in the form of a name.
func ByName(addr string) string { return "localhost:" + PortOf(addr) }

// AddrPort returns a socket's address as the gateway's log has it: an IPv4-mapped
// one as IPv4, and without a zone.
func AddrPort(a net.Addr) netip.AddrPort {
	ap := netip.MustParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// Socket returns the TCP connection beneath TLS, or c itself.
func Socket(c net.Conn) *net.TCPConn {
	for {
		layer, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c.(*net.TCPConn)
		}
		c = layer.NetConn()
	}
}

// Reset ends a connection by a TCP reset, also beneath TLS.
func Reset(c net.Conn) {
	socket := Socket(c)
	socket.SetLinger(0)
	socket.Close()
}

// Delivered waits until the peer's kernel has all that was written to c. The test
// is skipped where the system cannot tell.
func Delivered(t testing.TB, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the peer acknowledges everything", func() bool {
		n, ok := unacked(raw)
		if !ok {
			t.Skip("this system cannot tell what is acknowledged")
		}
		return n == 0
	})
}
