package tlsrecord

import (
	"bytes"
	"io"
	"net"
	"sync/atomic"
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

// pair returns both ends of a TCP connection.
func pair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	server.SetReadDeadline(time.Now().Add(20 * time.Second))
	return client, server
}

// Wherever what was read already ends, within a record or within its header.
func TestWhatWasReadAlreadyIsTheBeginningOfTheRecords(t *testing.T) {
	var stream []byte
	for _, size := range []int{1, 300, 16384, 5, 0, 77} {
		stream = append(stream, 0x17, 3, 3, byte(size>>8), byte(size))
		stream = append(stream, bytes.Repeat([]byte{byte(size)}, size)...)
	}
	for _, early := range []int{0, 3, 5, 6, 8, 11, 100, 311, 313, 400, 16700, len(stream)} {
		client, server := pair(t)
		g := NewGate(server, bytes.Clone(stream[:early]))
		g.HandshakeDone()
		go func() {
			for rest := stream[early:]; len(rest) > 0; {
				n := min(len(rest), 1000)
				client.Write(rest[:n])
				rest = rest[n:]
			}
			client.Close()
		}()
		if got, err := io.ReadAll(g); err != nil || !bytes.Equal(got, stream) {
			t.Errorf("behind %d bytes: %d bytes came, %v; want %d", early, len(got), err, len(stream))
		}
	}
}

func TestARecordIsNotShownBeforeItIsWhole(t *testing.T) {
	for early := range 8 {
		client, server := pair(t)
		record := append([]byte{0x17, 3, 3, 0, 100}, make([]byte, 100)...)
		g := NewGate(server, bytes.Clone(record[:early]))
		g.HandshakeDone()
		if g.raw == nil {
			t.Skip("here records pass as they come")
		}
		client.Write(record[early : len(record)-1])
		server.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		n, err := g.Read(make([]byte, 200))
		if n > early || n == 0 && !layer.IsTimeout(err) {
			t.Errorf("behind %d bytes: %d bytes of an unfinished record, %v", early, n, err)
		}
	}
}

func TestAHandshakeMayNotTakeBytesForEver(t *testing.T) {
	client, server := pair(t)
	g := NewGate(server, nil)
	go func() {
		for {
			if _, err := client.Write(append([]byte{0x16, 3, 3, 0, 100}, make([]byte, 100)...)); err != nil {
				return
			}
		}
	}()
	n, err := io.Copy(io.Discard, g)
	if n != maxHandshake || err != ErrHandshakeTooLong {
		t.Errorf("%d bytes, %v", n, err)
	}
	client.Close()
}

// What the kernel accounts for is memory: the last bytes of many small segments, which it
// has joined, may take all of a receive buffer, and the rest of their record has no room.
func TestARecordWithoutRoomInTheKernelIsReadNevertheless(t *testing.T) {
	for _, size := range []int{0, 1, 17, 18, 19, 40} {
		client, server := pair(t)
		g := NewGate(server, nil)
		g.HandshakeDone()
		record := append([]byte{0x17, 3, 3, 0, byte(size)}, bytes.Repeat([]byte{'x'}, size)...)
		stream := bytes.Repeat(record, 1+200<<10/len(record))
		var written atomic.Int64
		go func() {
			for rest := stream; len(rest) > 0; rest = rest[min(len(rest), len(record)):] { // a segment each
				client.Write(rest[:min(len(rest), len(record))])
				written.Add(1)
			}
		}()
		for before := int64(-1); written.Load() != before; time.Sleep(5 * time.Millisecond) {
			before = written.Load() // until there is no room for more
		}
		for got := 0; got < len(stream); {
			b := make([]byte, 512)
			n, err := g.Read(b)
			if err != nil || !bytes.Equal(b[:n], stream[got:got+n]) {
				t.Fatalf("records of %d bytes: after %d of %d bytes %q, %v", size, got, len(stream), b[:n], err)
			}
			got += n
		}
	}
}
