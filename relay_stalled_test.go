package main

import (
	"crypto/tls"
	"runtime"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
	"gateway/internal/layer"
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
