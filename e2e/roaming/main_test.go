// Package roaming tests tunnels that outlive their clients' connections, by the client
// in clients/go and a gateway that runs as a process.
package roaming

import (
	"bytes"
	"context"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gateway/clients/go/tunnel"
	"gateway/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// counted is a backend that counts its connections.
type counted struct {
	addr  string
	conns atomic.Int32
}

func startCounted(t testing.TB, serve func(*net.TCPConn)) *counted {
	b := new(counted)
	b.addr = harness.StartBackend(t, func(c *net.TCPConn) {
		b.conns.Add(1)
		serve(c)
	})
	return b
}

func echo(c *net.TCPConn) {
	io.Copy(c, struct{ io.Reader }{c})
	c.CloseWrite()
}

// events are what a client was told.
type events struct {
	mu  sync.Mutex
	all []tunnel.Event
}

func (e *events) add(ev tunnel.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

func (e *events) of(k tunnel.EventKind) (list []tunnel.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.all {
		if ev.Kind == k {
			list = append(list, ev)
		}
	}
	return list
}

// open opens a resumable tunnel. The client does not notice silence, unless the test
// says so.
func open(t testing.TB, d *tunnel.Dialer, backend string) (*tunnel.Conn, *events) {
	t.Helper()
	seen := new(events)
	d.OnEvent = seen.add
	if d.Silence == 0 {
		d.Silence = -1
	}
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	c, err := d.Dial(ctx, harness.Sealed(backend))
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(2 * harness.Patience))
	t.Cleanup(func() {
		c.Abort()
		if done := c.Done(); done != nil {
			<-done
		}
	})
	return c, seen
}

// through is a client of these gateways.
func through(gateways ...*harness.Process) *tunnel.Dialer {
	d := new(tunnel.Dialer)
	for _, g := range gateways {
		d.Gateways = append(d.Gateways, g.Addr)
	}
	return d
}

// reconnect has a tunnel go on by another connection, and waits until it does.
func reconnect(t testing.TB, c *tunnel.Conn) {
	t.Helper()
	before := c.Resumes()
	c.Reconnect()
	harness.Eventually(t, "the tunnel is resumed", func() bool { return c.Resumes() > before })
}

// both sends noise both ways through an echo, and sees that it comes back.
func both(t testing.TB, c *tunnel.Conn, seed uint64, n int) {
	t.Helper()
	sent := harness.Noise(seed, n)
	var writing sync.WaitGroup
	writing.Go(func() {
		if _, err := c.Write(sent); err != nil {
			t.Error(err)
		}
	})
	got := make([]byte, n)
	_, err := io.ReadFull(c, got)
	writing.Wait()
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back otherwise: %v; CRC %08x, want %08x", n, err, crc32.ChecksumIEEE(got), crc32.ChecksumIEEE(sent))
	}
}
