package backends

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"gateway/internal/harness"
)

// An administrator may change at any time from which ports the kernel picks one
// for a connect. Where it picks the one that is dialed, and nobody listens there,
// it joins the socket to itself (TCP's simultaneous open).
func TestNobodyIsConnectedToItselfWhereLocalPortsAreAddedLater(t *testing.T) {
	harness.BothWays(t, func(t *testing.T, way string) {
		inNetwork(t, func(t *testing.T, n *network) {
			p := harness.Start(t, way, "-listen=127.0.0.1:0=forward:127.0.0.1:20001")
			forwarding := p.Listeners(t, 2)[1]["addr"].(string)
			visit := func(client int, gateway, text string) string {
				// The client's own port is not one of those.
				from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(client / 200)}), uint16(40000+client))
				d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Timeout: harness.Patience}
				c, err := d.Dial("tcp", gateway)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(harness.Patience))
				harness.Send(t, c, text)
				answer := make([]byte, 3)
				got, _ := c.Read(answer)
				return string(answer[:got])
			}
			if got := visit(0, p.Addr, harness.Line("127.0.0.1:20001")); got != "502" {
				t.Fatalf("nobody listens there, and the answer is %q", got)
			}
			if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("20000 20007"), 0o644); err != nil {
				t.Skip(err)
			}
			for i := range 200 {
				if got := visit(1+i, p.Addr, harness.Line(fmt.Sprint("127.0.0.1:", 20000+i%8))); got != "502" {
					t.Errorf("client %d read %q", i, got)
				}
				if got := visit(1001+i, forwarding, "me?"); got != "" {
					t.Errorf("forwarded client %d read %q", i, got)
				}
			}
			for _, line := range p.Log.Lines("tunnel") {
				t.Errorf("a tunnel to nowhere: %v", line)
			}
		})
	})
}
