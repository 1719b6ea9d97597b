package process

import (
	"fmt"
	"net"
	"testing"

	"gateway/internal/harness"
)

// Two gateways that forward to each other, by mistake.

// startCircle starts them. Each has a listener for sealed lines too.
func startCircle(t *testing.T, flags ...string) (circle [2]*harness.Process, sealed [2]string) {
	t.Helper()
	addrs := [2]string{harness.ClosedPort(t), harness.ClosedPort(t)}
	for i := range circle {
		cmd := harness.Command(t, nil, append([]string{"-secret=" + harness.Secret, "-pidfile=", "-log-format=json",
			"-addr=" + addrs[i], "-forward=" + addrs[1-i], "-listen=127.0.0.1:0=sealed"}, flags...)...)
		cmd.Args = append([]string{"sh", "-c", `ulimit -n 1000 && exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
		circle[i] = harness.StartCommand(t, cmd)
		sealed[i] = circle[i].Listeners(t, 2)[1]["addr"].(string)
	}
	return circle, sealed
}

// refusedLoops counts the lines that say so.
func refusedLoops(circle [2]*harness.Process) (n int) {
	for _, p := range circle {
		for _, line := range p.Log.Lines("refused") {
			if line["reason"] == "forward_loop" && harness.Status(line) == "502" {
				n++
			}
		}
	}
	return n
}

func TestHopsAreCountedWherePROXYHeadersGoWithThem(t *testing.T) {
	t.Parallel()
	harness.BothWays(t, func(t *testing.T, way string) {
		circle, _ := startCircle(t, way, "-send-proxy=v2", "-trusted-proxies=127.0.0.0/8")
		const clients, maxHops = 5, 8
		for i := range clients {
			c := harness.Connect(t, circle[i%2].Addr)
			harness.Send(t, c, "PROXY UNKNOWN\r\nhello")
			harness.ExpectCut(t, c)
			c.Close()
		}
		harness.Eventually(t, "each loop is refused", func() bool { return refusedLoops(circle) == clients })
		harness.Eventually(t, "each hop is accounted for", func() bool {
			return len(circle[0].Log.Lines("tunnel"))+len(circle[1].Log.Lines("tunnel")) >= clients*maxHops
		})
		if n := len(circle[0].Log.Lines("tunnel")) + len(circle[1].Log.Lines("tunnel")); n != clients*maxHops {
			t.Errorf("%d clients made %d hops, want %d each", clients, n, maxHops)
		}
	})
}

// Without headers only descriptors bound it, and then it is broken: one client
// more or less, whether it stays or leaves, must not take the gateways from all
// others.
func TestACircleIsBrokenWhenAGatewayIsFullOfIt(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(*net.TCPConn){
		"stays":   func(*net.TCPConn) {},
		"speaks":  func(c *net.TCPConn) { fmt.Fprint(c, "hello") },
		"ends":    func(c *net.TCPConn) { c.CloseWrite() },
		"is gone": func(c *net.TCPConn) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			circle, sealed := startCircle(t, "-half-close-timeout=2s", "-drain=1h")
			echo := harness.StartEcho(t)
			var tunnels [2]*net.TCPConn
			var before [2]int
			for i, p := range circle {
				tunnels[i] = harness.OpenTunnel(t, sealed[i], echo)
				harness.Echo(t, tunnels[i], "before")
				before[i] = harness.Descriptors(p.PID())
			}
			// The first that comes may be reset on its way round, and not fill them.
			harness.Eventually(t, "the circle is found", func() bool {
				leave(harness.Connect(t, circle[0].Addr))
				return refusedLoops(circle) > 0
			})
			for i, p := range circle {
				harness.Echo(t, tunnels[i], "meanwhile")
				harness.Eventually(t, "the descriptors are given back", func() bool {
					return harness.Descriptors(p.PID()) <= before[i]+8
				})
				harness.Finish(t, harness.OpenTunnel(t, sealed[i], echo))
				harness.Finish(t, tunnels[i])
			}
			for _, p := range circle {
				p.End(t)
			}
		})
	}
}

// Who waits long for an answer, on a host that has the backend too, is no circle.
func TestSilentClientsOfTheBackendsHostAreLeftAlone(t *testing.T) {
	t.Parallel()
	silent := harness.StartBackendProcess(t, harness.RoleEcho)
	p := startForward(t, "-loops=1", silent)
	var clients []*net.TCPConn
	for range 50 {
		clients = append(clients, harness.Connect(t, p.Addr))
	}
	for _, c := range clients {
		harness.Echo(t, c, "hello")
	}
	// With one descriptor left each would be accepted, and refused: none to reach
	// the backend by.
	full := harness.Descriptors(p.PID())
	harness.Eventually(t, "there is none to accept by", func() bool {
		setLimit(t, p.PID(), uint64(full-len(clients)%2))
		clients = append(clients, harness.Connect(t, p.Addr)) // in the queue
		return len(p.Log.Lines("cannot accept, trying again")) > 0
	})
	for _, c := range clients[:50] {
		harness.Echo(t, c, "hello again")
	}
}
