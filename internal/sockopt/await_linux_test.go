package sockopt

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns a connection that something is sent to, and its other end.
func pair(t *testing.T) (to *net.TCPConn, raw syscall.RawConn, from *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	to = accepted.(*net.TCPConn)
	to.SetDeadline(time.Now().Add(30 * time.Second))
	if raw, err = to.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	return to, raw, c.(*net.TCPConn)
}

// mark returns how many bytes make a socket readable.
func mark(t *testing.T, raw syscall.RawConn) (bytes int) {
	t.Helper()
	var err error
	cerr := raw.Control(func(fd uintptr) { bytes, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT) })
	if err := errors.Join(err, cerr); err != nil {
		t.Fatal(err)
	}
	return bytes
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestBytesAreAwaitedHoweverTheyDribbleIn(t *testing.T) {
	const text = "0123456789"
	for first := range len(text) {
		_, raw, from := pair(t)
		send(t, from, text[:first])
		go func() {
			for _, b := range []byte(text[first:]) {
				from.Write([]byte{b})
			}
		}()
		var head [3]byte
		n, there, how := AwaitBytes(raw, head[:], len(text), 0)
		if n != len(head) || there != len(text) || how != Enough || string(head[:]) != text[:3] {
			t.Errorf("%d bytes of a head %q, %d there, %d", n, head, there, how)
		}
		if bytes := mark(t, raw); bytes > 1 {
			t.Errorf("%d bytes make the socket readable now", bytes)
		}
	}
}

func TestTheWaitForBytesEndsWithTheirSender(t *testing.T) {
	for _, text := range []string{"", "012"} {
		_, raw, from := pair(t)
		go func() {
			from.Write([]byte(text))
			from.CloseWrite()
		}()
		var head [5]byte
		if n, _, how := AwaitBytes(raw, head[:], 5, 0); how != Ended || string(head[:n]) != text {
			t.Errorf("%q: %d, and %q of it", text, how, head[:n])
		}
		if bytes := mark(t, raw); bytes > 1 {
			t.Errorf("%d bytes make the socket readable after %q", bytes, text)
		}
	}
}

func TestTheWaitForBytesEndsAtTheDeadline(t *testing.T) {
	to, raw, from := pair(t)
	send(t, from, "012")
	to.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, _, how := AwaitBytes(raw, nil, 5, 0); how != Ended {
		t.Errorf("%d", how)
	}
	if bytes := mark(t, raw); bytes > 1 {
		t.Errorf("%d bytes make the socket readable now", bytes)
	}
}

func TestBytesForWhichTheKernelHasNoRoomAreNotAwaited(t *testing.T) {
	to, raw, from := pair(t)
	to.SetReadBuffer(2048)
	go from.Write(make([]byte, 1<<20))
	if _, _, how := AwaitBytes(raw, nil, 1<<20, 0); how != Full {
		t.Errorf("%d", how)
	}
}

func TestKnownBytesAreNotAskedFor(t *testing.T) {
	_, raw, from := pair(t)
	send(t, from, "0123456789")
	if _, there, how := AwaitBytes(raw, nil, 10, 0); there != 10 || how != Enough {
		t.Fatalf("%d there, %d", there, how)
	}
	if _, there, how := AwaitBytes(raw, nil, 5, 7); there != 7 || how != Enough {
		t.Errorf("%d there, %d: the kernel was asked", there, how)
	}
}
