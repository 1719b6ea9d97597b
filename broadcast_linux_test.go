package main

import (
	"net"
	"testing"
	"time"
)

// Which addresses are broadcast, the system's routes say: 127.255.255.255 is the
// one that every Linux has.
func TestANetworksBroadcastAddressIsDenied(t *testing.T) {
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		everywhere, err := net.ListenUDP("udp4", &net.UDPAddr{})
		if err != nil {
			t.Fatal(err)
		}
		defer everywhere.Close()
		port := portOf(everywhere.LocalAddr().String())
		for i, host := range []string{
			"127.255.255.255", "[::ffff:127.255.255.255]", "kcp://127.255.255.255", "kcp://[::ffff:7fff:ffff]"} {
			c := connect(t, g.addr)
			send(t, c, sealed(t, host+":"+port))
			expectAll(t, c, "502")
			if line := g.log.waitLine(t, "refused", i+1); line["reason"] != "denied" {
				t.Errorf("%s: logged %v", host, line)
			}
		}
		if n := g.ledger.denied.Load(); n != 4 {
			t.Errorf("%d denied, want 4", n)
		}
		everywhere.SetReadDeadline(time.Now().Add(time.Millisecond))
		if n, from, err := everywhere.ReadFrom(make([]byte, 1)); err == nil {
			t.Errorf("a datagram of at least %d bytes came from %v", n, from)
		}
	})
}
