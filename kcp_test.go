package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"testing"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"

	"gateway/internal/layer"
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

// openKCP connects to a backend through a gateway, as kcp-go's users do, and reads
// the 200. The session is closed at the end of the test.
func openKCP(t testing.TB, gateway, backend string) *kcpgo.UDPSession {
	t.Helper()
	s, err := kcpgo.DialWithOptions(gateway, nil, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.SetStreamMode(true) //lint:ignore SA1019 kcp-go's own clients call it
	s.SetNoDelay(1, 10, 2, 1)
	s.SetWindowSize(1024, 1024)
	s.SetDeadline(time.Now().Add(2 * patience))
	send(t, s, sealed(t, backend))
	expect(t, s, "200")
	return s
}

// There is nobody to wait for when all is cut.
func TestAKCPSessionThatBeginsWhenTunnelsAreCutDoesNotLinger(t *testing.T) {
	t.Parallel()
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

// segment is a datagram of KCP with data, the sn-th of its conversation.
func segment(conv, sn uint32, text string) []byte {
	d := make([]byte, 24, 24+len(text))
	binary.LittleEndian.PutUint32(d, conv)
	d[4], d[6] = 81, 128 // IKCP_CMD_PUSH, a window of 128
	binary.LittleEndian.PutUint32(d[12:], sn)
	binary.LittleEndian.PutUint32(d[20:], uint32(len(text)))
	return append(d, text...)
}
