package kcp

import (
	"context"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"

	"gateway/internal/harness"
)

// options are usable ones, that hold on a busy machine.
func options() Options {
	return Options{
		Mode: "fast3", SendWindow: 1024, ReceiveWindow: 1024, MTU: 1350,
		Crypt: "none", IdleTimeout: time.Minute,
	}
}

func transport(t testing.TB, o Options) *Transport {
	t.Helper()
	tr, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// listen starts a listener whose sessions serve handles, and which ends with
// the test together with all its sessions.
func listen(t testing.TB, o Options, serve func(*Conn)) *Listener {
	t.Helper()
	l, err := transport(t, o).Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	var mu sync.Mutex
	var conns []*Conn
	over := false
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			if conns = append(conns, c); over { // nobody else would end it before its IdleTimeout
				c.Abort()
			}
			mu.Unlock()
			served.Go(func() { serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		over = true
		for _, c := range conns {
			c.Abort()
		}
		mu.Unlock()
		served.Wait()
		eventually(t, "the socket closes with its last session", func() bool {
			_, _, err := l.guard.ReadFromUDPAddrPort(nil)
			return err != nil && strings.Contains(err.Error(), "closed")
		})
	})
	return l
}

// echo sends back what comes until the session ends.
func echo(c *Conn) {
	io.Copy(onlyWriter{c}, onlyReader{c})
	c.Abort()
}

type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

// dialPlain is kcp-go's own client, as its documentation has it.
func dialPlain(t testing.TB, addr string, block kcpgo.BlockCrypt, dataShards, parityShards int) *kcpgo.UDPSession {
	t.Helper()
	s, err := kcpgo.DialWithOptions(addr, block, dataShards, parityShards)
	if err != nil {
		t.Fatal(err)
	}
	s.SetStreamMode(true) //lint:ignore SA1019 kcp-go's own clients call it
	t.Cleanup(func() { s.Close() })
	return s
}

func dial(t testing.TB, o Options, addr string) *Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := transport(t, o).Dial(ctx, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Abort)
	return c
}

// roundTrip sends a text and expects it back.
func roundTrip(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	expect(t, c, text)
}

func expect(t testing.TB, c net.Conn, want string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v; want %q", got, err, want)
	}
}

var eventually = harness.Eventually

// random returns n bytes that the seed alone determines, and their hash.
func random(seed byte, n int) ([]byte, [32]byte) {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b, sha256.Sum256(b)
}

// lossy is a path to a UDP address that drops, repeats and delays a part of the
// datagrams both ways.
func lossy(t testing.TB, to string, part float64) string {
	t.Helper()
	front, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	var pumps sync.WaitGroup
	var mu sync.Mutex
	backs := make(map[netip.AddrPort]*net.UDPConn)
	rng := rand.New(rand.NewPCG(1, 2))
	// pass sends a datagram in one of the four ways.
	pass := func(d []byte, send func([]byte)) {
		mu.Lock()
		way := rng.Float64()
		mu.Unlock()
		switch {
		case way < part:
		case way < 2*part:
			send(d)
			send(d)
		case way < 3*part:
			late := append([]byte(nil), d...)
			pumps.Add(1)
			time.AfterFunc(20*time.Millisecond, func() { defer pumps.Done(); send(late) })
		default:
			send(d)
		}
	}
	pumps.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, source, err := front.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			mu.Lock()
			back := backs[source]
			mu.Unlock()
			if back == nil {
				c, err := net.Dial("udp", to)
				if err != nil {
					t.Error(err)
					return
				}
				back = c.(*net.UDPConn)
				mu.Lock()
				backs[source] = back
				mu.Unlock()
				pumps.Go(func() {
					buf := make([]byte, 2048)
					for {
						n, err := back.Read(buf)
						if err != nil {
							return
						}
						pass(buf[:n], func(d []byte) { front.WriteToUDPAddrPort(d, source) })
					}
				})
			}
			pass(buf[:n], func(d []byte) { back.Write(d) })
		}
	})
	t.Cleanup(func() {
		front.Close()
		mu.Lock()
		for _, back := range backs {
			back.Close()
		}
		mu.Unlock()
		pumps.Wait()
	})
	return front.LocalAddr().String()
}

// The package must leave nothing behind but kcp-go's own scheduler, which was
// there before.
func TestMain(m *testing.M) { harness.Main(m) }
