package handshake

import (
	"bytes"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"
)

// hello returns the ClientHello that crypto/tls begins with.
func hello(t testing.TB) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go tls.Client(a, &tls.Config{ServerName: "game.example"}).Handshake()
	b.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, HelloMax)
	n, err := b.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// inRecords puts a handshake message into records of at most size bytes.
func inRecords(message []byte, size int) []byte {
	var out []byte
	for len(message) > 0 {
		n := min(size, len(message))
		out = append(append(out, 0x16, 3, 1, byte(n>>8), byte(n)), message[:n]...)
		message = message[n:]
	}
	return out
}

func TestAHelloIsWholeWithItsLastByte(t *testing.T) {
	one := hello(t)
	for name, b := range map[string][]byte{
		"in one record":       one,
		"in records of 100":   inRecords(one[5:], 100),
		"in records of 3":     inRecords(one[5:], 3),
		"largest in a record": inRecords(append([]byte{1, 0, 0x1f, 0xf7}, make([]byte, 0x1ff7)...), HelloMax),
	} {
		for n := range b {
			if err := TLS.Whole(b[:n], 0); err != ErrIncomplete {
				t.Errorf("%s: %d of %d bytes are %v", name, n, len(b), err)
				break
			}
		}
		if err := TLS.Whole(b, 0); err != nil && len(b) > 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAHelloThatIsTooLongIsKnownByItsAnnouncement(t *testing.T) {
	for name, b := range map[string][]byte{
		"a record of 16 KiB":         {0x16, 3, 1, 0x40, 0},
		"a record beyond the limit":  {0x16, 3, 1, 0x1f, 0xfc},
		"a message beyond the limit": {0x16, 3, 1, 0, 4, 1, 0, 0x20, 0},
		"many records":               inRecords(append([]byte{1, 0, 0x1f, 0}, make([]byte, 0x1f00)...), 10)[:HelloMax+10],
	} {
		if err := TLS.Whole(b, 0); err != ErrTooLong {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, b := range map[string][]byte{
		"an alert behind a part": append(inRecords(hello(t)[5:105], 100), 0x15, 3, 3, 0, 2),
		"an empty record":        {0x16, 3, 1, 0, 0},
	} {
		if err := TLS.Whole(b, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAHeadIsWholeWithItsEmptyLine(t *testing.T) {
	for _, tt := range []struct {
		head    string
		decided int // bytes after which it is whole; 0: not yet
	}{
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody", 27},
		{"GET / HTTP/1.0\n\nbody", 16},
		{"GET / HTTP/1.1\r\nHost: a\r\n", 0},
		{"GET / HTTP/1.1", 0},
		{"GET /\r\nHost: a", 7},
		{"GET / a HTTP/1.1\r\n", 18},
		{"PRI * HTTP/2.0\r\n", 16},
		{"nonsense\n", 9},
		{"GET / HTTP/1.1\r\n" + strings.Repeat("x", 100), 101},
	} {
		for n := range len(tt.head) + 1 {
			whole := HTTP.Whole([]byte(tt.head[:n]), 100) == nil
			if want := tt.decided > 0 && n >= tt.decided; whole != want {
				t.Errorf("%.30q: whole after %d bytes: %v", tt.head, n, whole)
				break
			}
		}
	}
}

func FuzzWhole(f *testing.F) {
	f.Add(hello(f))
	f.Add(inRecords(hello(f)[5:], 20))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, form := range []Form{HTTP, TLS} {
			decided := false
			for n := range len(b) + 1 {
				err := form.Whole(bytes.Clone(b[:n]), 1000)
				if decided && err == ErrIncomplete {
					t.Fatalf("%v: %q was decided, and with more is not", form, b[:n])
				}
				if decided = err != ErrIncomplete; !decided && n > HelloMax {
					t.Fatalf("%v: undecided after %d bytes", form, n)
				}
			}
		}
	})
}
