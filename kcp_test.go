package main

import (
	"fmt"
	"gateway/internal/layer"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"
)

// KCP clients of a gateway inside the test process.

// kcpGateway is a gateway inside the test process with a port for KCP too.
type kcpGateway struct {
	*testGateway
	kcpListener
	kcp string // its address
}

func startKCP(t testing.TB, configure func(*Config)) *kcpGateway {
	t.Helper()
	var cfg *Config
	g := &kcpGateway{testGateway: startConfigured(t, func(c *Config) {
		c.KCP = "127.0.0.1:0"
		if configure != nil {
			configure(c)
		}
		cfg = c
	}, nil)}
	ln, err := listenKCP(cfg, cfg.KCP)
	if err != nil {
		t.Fatal(err)
	}
	g.kcpListener, g.kcp = ln.(kcpListener), fmt.Sprint("127.0.0.1:", layer.AddrPort(ln.Addr()).Port())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ln) }()
	t.Cleanup(func() {
		g.testGateway.Close()
		if err := <-served; err != ErrGatewayClosed {
			t.Errorf("Serve returned %v", err)
		}
	})
	return g
}

// forgotten waits until no session is left.
func (g *kcpGateway) forgotten(t testing.TB) {
	t.Helper()
	eventually(t, "the gateway forgets every session", func() bool { return g.Stats().Sessions == 0 })
}

// kcpCode is what both ends must agree on.
type kcpCode struct {
	key          []byte // of AES, nil: none
	data, parity int
}

func (c kcpCode) block(t testing.TB) kcpgo.BlockCrypt {
	if c.key == nil {
		return nil
	}
	block, err := kcpgo.NewAESBlockCrypt(c.key)
	if err != nil {
		t.Fatal(err)
	}
	return block
}

// tune is what kcp-go's users write behind a dial or an accept.
func tune(s *kcpgo.UDPSession) *kcpgo.UDPSession {
	s.SetStreamMode(true) //lint:ignore SA1019 kcp-go's own clients call it
	s.SetNoDelay(1, 10, 2, 1)
	s.SetWindowSize(1024, 1024)
	s.SetDeadline(time.Now().Add(2 * patience))
	return s
}

// dialKCP begins a session, which is closed at the end of the test.
func dialKCP(t testing.TB, addr string, code kcpCode) *kcpgo.UDPSession {
	t.Helper()
	s, err := kcpgo.DialWithOptions(addr, code.block(t), code.data, code.parity)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return tune(s)
}

// openKCP connects to a backend through a gateway and reads the 200.
func openKCP(t testing.TB, gateway, backend string) *kcpgo.UDPSession {
	t.Helper()
	s := dialKCP(t, gateway, kcpCode{})
	send(t, s, sealed(t, backend))
	expect(t, s, "200")
	return s
}

// startKCPBackend runs kcp-go's server on a free port, and serve for each of
// its sessions. It returns the address to be sealed. Like every backend of KCP
// clients it is to be started before the gateway: it hears of their end when
// that closes.
func startKCPBackend(t testing.TB, code kcpCode, serve func(*kcpgo.UDPSession)) string {
	t.Helper()
	ln, err := kcpgo.ListenWithOptions("127.0.0.1:0", code.block(t), code.data, code.parity)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			s, err := ln.AcceptKCP()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer s.Close()
				serve(tune(s))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close() // which ends the reads of its sessions
		serving.Wait()
	})
	return "kcp://" + ln.Addr().String()
}

func kcpEcho(s *kcpgo.UDPSession) { io.Copy(s, s) }

// There is nobody to wait for when all is cut.
func TestAKCPSessionThatBeginsWhenTunnelsAreCutDoesNotLinger(t *testing.T) {
	backend := startEcho(t)
	g := startKCP(t, nil)
	g.relay.Close()
	c, err := net.Dial("udp", g.kcp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write(segment(1, 0, sealed(t, backend))) // and acknowledges nothing
	line := g.log.waitLine(t, "tunnel", 1)
	if line["how"] != "shutdown" || line["duration_ms"].(float64) > 1500 {
		t.Errorf("logged as %v", line)
	}
}
