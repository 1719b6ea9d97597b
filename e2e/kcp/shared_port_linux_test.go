package kcp

import (
	"testing"

	"gateway/internal/harness"
)

// Linux gives all datagrams of one client to one of those that share a port.
func TestGatewaysThatShareAKCPPortAllGetSessions(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	a := startKCP(t, "-reuse=1", "-drain=0")
	addr := a.kcp
	b := harness.Start(t, "-reuse=1", "-drain=0", "-addr="+a.Addr, "-kcp="+addr)
	if got := kcpAddr(t, b); got != addr {
		t.Fatalf("listens on %s, want %s", got, addr)
	}
	var all []*session
	for range 30 {
		all = append(all, openKCP(t, addr, backend))
	}
	for _, s := range all {
		harness.Echo(t, s, "hello")
	}
	for _, p := range []*harness.Process{a.Process, b} {
		p.End(t)
		if len(p.Log.Lines("tunnel")) == 0 {
			t.Error("one of the two has had no session")
		}
	}
}
