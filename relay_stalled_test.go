package main

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"

	"gateway/internal/harness"
	"gateway/internal/layer"
	"gateway/internal/listen"
)

// Backends that take nothing, and clients that leave them. Nobody reads from
// such a client, so that its end has to be noticed in another way.

func TestAResetReachesABackendThatDoesNotRead(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("the system is not asked")
	}
	certFile, keyFile, trusting := tlsFiles(t)
	for _, way := range []struct {
		name   string
		loops  int
		tongue string
		config *tls.Config
	}{
		{"loops", 0, "line", nil},
		{"goroutines", -1, "line", nil},
		{"TLS", 0, "line", trusting},
		{"a WebSocket", 0, "WebSocket query", nil},
		{"a WebSocket inside TLS", 0, "WebSocket query", trusting},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			backend, release, end := harness.StartStalled(t)
			g := startConfigured(t, func(cfg *Config) {
				cfg.Loops, cfg.TLSCert, cfg.TLSKey = way.loops, certFile, keyFile
			}, nil)
			c := connectWith(t, g.addr, way.config)
			for _, v := range tongues() {
				if v.name == way.tongue {
					send(t, c, v.text(t, backend))
					expectAnswer(t, c, v.welcome)
				}
			}
			if strings.HasPrefix(way.tongue, "WebSocket") {
				send(t, c, frameHead(binaryFrame, 16<<20, 0x80)+"mask") // the largest message
			}
			harness.Fill(c)
			layer.ResetOnClose(c)
			layer.Socket(c).Close()
			line := g.log.waitLine(t, "tunnel", 1)
			if line["ended_by"] != "client" || line["how"] != "reset" {
				t.Errorf("logged as %v", line)
			}
			release()
			if err := <-end; !isReset(err) {
				t.Errorf("the backend read %v, want a reset", err)
			}
		})
	}
}

func TestTheBodyOfAClientThatIsGoneEndsBeforeABackendThatDoesNotRead(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("the system is not asked")
	}
	certFile, keyFile, trusting := tlsFiles(t)
	for name, config := range map[string]*tls.Config{"HTTP": nil, "HTTPS": trusting} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			backend, release, end := harness.StartStalled(t)
			g := startConfigured(t, func(cfg *Config) { cfg.TLSCert, cfg.TLSKey = certFile, keyFile }, nil)
			c := connectWith(t, g.addr, config)
			send(t, c, "POST / HTTP/1.1\r\nHost: game.test\r\nContent-Length: 1000000000\r\nX-Cipher-Origin: "+
				strings.TrimSpace(sealed(t, backend))+"\r\n\r\n")
			harness.Fill(c)
			layer.ResetOnClose(c)
			layer.Socket(c).Close()
			line := g.log.waitLine(t, "request", 1)
			if line["status"] != 0.0 || line["reason"] != "client_gone" {
				t.Errorf("logged as %v", line)
			}
			release()
			<-end
		})
	}
}

func TestAKCPClientThatVanishesBeforeABackendThatDoesNotReadIsForgotten(t *testing.T) {
	t.Parallel()
	const idle = 300 * time.Millisecond
	backend, release, end := harness.StartStalled(t)
	g := startKCP(t, func(cfg *Config) { cfg.KCPIdleTimeout = idle })
	s := openKCP(t, g.kcp, backend)
	harness.Fill(s)
	gone := time.Now()
	s.Close()
	line := g.log.waitLine(t, "tunnel", 1)
	if took := time.Since(gone); took > idle+3*time.Second {
		t.Errorf("it took %v", took)
	}
	if line["ended_by"] != "client" || line["how"] != "timeout" {
		t.Errorf("logged as %v", line)
	}
	g.forgotten(t)
	release()
	if err := <-end; !isReset(err) {
		t.Errorf("the backend read %v, want a reset", err)
	}
}

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
	ln, err := listen.Open(listen.Address{Addr: cfg.KCP, KCP: true}, howToListen(cfg))
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
