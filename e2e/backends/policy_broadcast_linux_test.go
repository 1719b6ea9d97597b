package backends

import (
	"net"
	"testing"
	"time"

	"gateway/internal/harness"
)

// Which addresses are broadcast, the system's routes say: 127.255.255.255 is the
// one that every Linux has.
func TestANetworksBroadcastAddressIsDenied(t *testing.T) {
	t.Parallel()
	harness.EachRelay(t, func(t *testing.T, relay string) {
		g := harness.Start(t, relay)
		everywhere, err := net.ListenUDP("udp4", &net.UDPAddr{})
		if err != nil {
			t.Fatal(err)
		}
		defer everywhere.Close()
		port := harness.PortOf(everywhere.LocalAddr().String())
		for i, host := range []string{
			"127.255.255.255", "[::ffff:127.255.255.255]", "kcp://127.255.255.255", "kcp://[::ffff:7fff:ffff]"} {
			c := harness.Connect(t, g.Addr)
			harness.Send(t, c, harness.Line(host+":"+port))
			harness.ExpectAll(t, c, "502")
			if line := g.Log.WaitLine(t, "refused", i+1); line["reason"] != "denied" {
				t.Errorf("%s: logged %v", host, line)
			}
		}
		g.End(t)
		if n := g.Log.WaitLine(t, "stopped", 1)["denied"]; n != 4.0 {
			t.Errorf("%v denied, want 4", n)
		}
		everywhere.SetReadDeadline(time.Now().Add(time.Millisecond))
		if n, from, err := everywhere.ReadFrom(make([]byte, 1)); err == nil {
			t.Errorf("a datagram of at least %d bytes came from %v", n, from)
		}
	})
}
