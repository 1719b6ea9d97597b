package tlsrecord

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"gateway/internal/layer"
)

// net/http ends a read that waits for the next request by a deadline when its
// connection is hijacked, and whoever took it reads on.
func TestAReadThatIsBrokenOffLosesNoRecord(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	g := NewGate(server, nil)
	g.HandshakeDone()
	if g.raw == nil {
		t.Skip("here records pass as they come")
	}

	record := []byte{0x17, 3, 3, 0, 4, 'd', 'a', 't', 'a'}
	for _, sent := range []int{0, 1, len(record) - 1} { // when the read is broken off
		if _, err := client.Write(record[:sent]); err != nil {
			t.Fatal(err)
		}
		broken := make(chan error, 1)
		go func() {
			_, err := g.Read(make([]byte, 100))
			broken <- err
		}()
		// The reader waits by then, most of the time. Where it does not, it fails in the
		// same way.
		time.AfterFunc(20*time.Millisecond, func() { server.SetReadDeadline(time.Unix(1, 0)) })
		if err := <-broken; !layer.IsTimeout(err) {
			t.Fatalf("behind %d bytes: %v, want a time-out", sent, err)
		}
		server.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := client.Write(append(bytes.Clone(record[sent:]), record...)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 2*len(record))
		if n, err := io.ReadFull(g, got); err != nil || !bytes.Equal(got, append(bytes.Clone(record), record...)) {
			t.Fatalf("behind %d bytes: % x, %v", sent, got[:n], err)
		}
	}
}
