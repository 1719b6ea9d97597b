package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
)

// flood is what backends pushed to one client, and how far they got.
type flood struct {
	stalled atomic.Bool // for a while, nothing was taken
	stop    chan struct{}
	sent    chan [sha256.Size]byte
}

// push writes noise until it is told to stop, and reports the sum of it.
func (f *flood) push(b *net.TCPConn, block []byte) {
	sum := sha256.New()
	for {
		select {
		case <-f.stop:
			b.CloseWrite()
			f.sent <- [sha256.Size]byte(sum.Sum(nil))
			io.Copy(io.Discard, b)
			return
		default:
		}
		b.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		n, err := b.Write(block)
		sum.Write(block[:n])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			f.stalled.Store(true)
		} else if err != nil {
			close(f.sent)
			return
		}
	}
}

// A client that does not read holds up nobody but itself, and loses nothing of
// what it comes to read at last.
func TestAHundredStalledReadersLoseNothingAndHoldUpNobody(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	const clients, rounds = 100, 14
	for name, configure := range map[string]func(*Config){
		"one loop":     func(cfg *Config) { cfg.Loops = 1 },
		"only copying": func(cfg *Config) { cfg.Loops, cfg.Splice = 1, false },
		"goroutines":   func(cfg *Config) { cfg.Loops = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			g := startConfigured(t, configure, nil)
			gateway := serveWithSmallBuffers(t, g)
			floods := make([]flood, clients)
			block := noise(1, 1<<16)
			backend := startBackend(t, func(b *net.TCPConn) {
				harness.SmallBuffers(b)
				which := make([]byte, 1) // the client says which one it is
				if _, err := io.ReadFull(b, which); err == nil {
					floods[which[0]].push(b, block)
				}
			})
			stalled := make([]*net.TCPConn, clients)
			for i := range stalled {
				floods[i].stop, floods[i].sent = make(chan struct{}), make(chan [sha256.Size]byte, 1)
				stalled[i] = openTunnel(t, gateway, backend)
				harness.SmallBuffers(stalled[i])
				stalled[i].Write([]byte{byte(i)})
			}
			eventually(t, "all readers are stalled", func() bool {
				for i := range floods {
					if !floods[i].stalled.Load() {
						return false
					}
				}
				return true
			})

			line := sealed(t, startEcho(t))
			var busy sync.WaitGroup
			for i := range clients {
				busy.Go(func() {
					if err := converse(gateway, line, byte(i), rounds); err != nil {
						t.Errorf("busy client %d: %v", i, err)
					}
				})
			}
			busy.Wait()

			var reading sync.WaitGroup
			for i, c := range stalled {
				close(floods[i].stop)
				reading.Go(func() {
					sum := sha256.New()
					n, err := io.Copy(sum, struct{ io.Reader }{c})
					if want := <-floods[i].sent; err != nil || [sha256.Size]byte(sum.Sum(nil)) != want {
						t.Errorf("stalled client %d read %d bytes, not those that its backend sent: %v", i, n, err)
					}
					c.Close()
				})
			}
			reading.Wait()
		})
	}
}

// serveWithSmallBuffers has a gateway serve a listener whose connections have
// small send buffers, so that readers stall before the kernel has taken much
// for them. It returns where.
func serveWithSmallBuffers(t testing.TB, g *testGateway) string {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 256<<10) })
	}}
	ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		g.Serve(ln)
	}()
	t.Cleanup(func() {
		g.Close()
		<-served
	})
	return ln.Addr().String()
}

// converse has messages of several sizes echoed, and finishes.
func converse(gateway, line string, seed byte, rounds int) error {
	c, err := net.Dial("tcp", gateway)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	status := make([]byte, 3)
	if _, err := io.ReadFull(c, status); err != nil || string(status) != "200" {
		return fmt.Errorf("answered %q, %v", status, err)
	}
	for i := range rounds {
		message := bytes.Repeat([]byte{seed, byte(i)}, 1<<(i%14))
		go c.Write(message)
		got := make([]byte, len(message))
		if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, message) {
			return fmt.Errorf("round %d: %d of %d bytes came back, or others: %v", i, n, len(message), err)
		}
	}
	c.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
		return fmt.Errorf("at the end: %d bytes, %v", len(rest), err)
	}
	return nil
}
