package main

import (
	"crypto/tls"
	"net"
	"testing"
)

func TestDescriptorsAreDividedSoThatTheySuffice(t *testing.T) {
	for _, limit := range []uint64{0, 64, 256, 1024, 4096, 20000, 1 << 20, 1 << 30, 1<<64 - 1} {
		conns, pipes := budget(limit)
		if conns < 16 || pipes < 0 || pipes > maxPipes {
			t.Errorf("of %d: %d connections, %d pipes", limit, conns, pipes)
		}
		if need := uint64(2*(int64(conns)+int64(pipes)) + 100); limit >= 256 && need > limit {
			t.Errorf("of %d: %d connections and %d pipes take %d", limit, conns, pipes, need)
		}
	}
}

func TestConnectionsThatGoroutinesServeCountAsWell(t *testing.T) {
	certFile, keyFile, trusting := tlsFiles(t)
	g := startConfigured(t, func(cfg *Config) { cfg.TLSCert, cfg.TLSKey = certFile, keyFile },
		func(g *Gateway) { g.loops.crew.maxConns = 2 })
	ls := g.loops

	web := connect(t, g.addr)
	send(t, web, "GET / HTTP/1.1\r\nHost: game.test\r\n\r\n")
	expect(t, web, "HTTP/1.1 400 ")
	inside := tls.Client(connect(t, g.addr), trusting)
	send(t, inside, sealed(t, startEcho(t)))
	expect(t, inside, "200")
	if !ls.crew.full() {
		t.Error("an HTTP client and a tunnel over TLS count for less than two connections")
	}
	for _, c := range []net.Conn{web, inside} {
		c.Close()
	}
	eventually(t, "both are gone", func() bool { return ls.crew.away.Load() == 0 && !ls.crew.full() })
}
