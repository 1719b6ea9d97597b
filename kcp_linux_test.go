package main

import (
	"testing"

	kcpgo "github.com/xtaci/kcp-go/v5"
)

// Linux gives all datagrams of one client to one of those that share a port.
func TestGatewaysThatShareAKCPPortAllGetSessions(t *testing.T) {
	backend := startEcho(t)
	a, addr := startKCPProcess(t, "-reuse=1", "-drain=0")
	b := startProcess(t, "-reuse=1", "-drain=0", "-addr="+a.addr, "-kcp="+addr)
	if got := kcpAddr(t, b); got != addr {
		t.Fatalf("listens on %s, want %s", got, addr)
	}
	var all []*kcpgo.UDPSession
	for range 30 {
		all = append(all, openKCP(t, addr, backend))
	}
	for _, s := range all {
		echo(t, s, "hello")
	}
	for _, p := range []*process{a, b} {
		p.end(t)
		if len(p.log.lines("tunnel")) == 0 {
			t.Error("one of the two has had no session")
		}
	}
}
