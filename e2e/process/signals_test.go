package process

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
)

// Signals: what an operator ends goes on for its clients.

var endSignals = []os.Signal{syscall.SIGTERM, os.Interrupt}

func TestASignalEndsListeningAtOnceAndTunnelsGoOn(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		for _, sig := range endSignals {
			t.Run(sig.String(), func(t *testing.T) {
				p := harness.Start(t, "-drain=1h", way)
				c := harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))
				p.Signal(t, sig)
				harness.WaitRefused(t, p.Addr)
				for range 3 {
					harness.Echo(t, c, "still here")
				}
				// More than a buffer, so that pipes are still to be had.
				bulk := strings.Repeat("bulk", 64<<10)
				go io.WriteString(c, bulk)
				harness.Expect(t, c, bulk)
				if !p.Runs() {
					t.Fatal("the gateway did not wait for its tunnel")
				}
				harness.Finish(t, c)
				if code := p.Wait(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
				if last := p.Log.WaitLine(t, "stopped", 1); last["cut"] != 0.0 {
					t.Errorf("logged: %v", last)
				}
				if last := p.Log.WaitLine(t, "tunnel", 1); last["how"] != "fin" {
					t.Errorf("logged: %v", last)
				}
			})
		}
	})
}

func TestTheEndOfTheDrainCutsTunnels(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		for _, drain := range []time.Duration{0, 300 * time.Millisecond} {
			t.Run(drain.String(), func(t *testing.T) {
				p := harness.Start(t, "-drain="+drain.String(), way)
				backend := harness.StartEcho(t)
				const tunnels = 3
				for range tunnels {
					c := harness.OpenTunnel(t, p.Addr, backend)
					harness.Echo(t, c, "hello")
				}
				harness.Finish(t, harness.OpenTunnel(t, p.Addr, backend)) // not one of those that are cut
				p.Log.WaitLine(t, "tunnel", 1)
				start := time.Now()
				p.Signal(t, syscall.SIGTERM)
				if code := p.Wait(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
				if d := time.Since(start); d < drain {
					t.Errorf("ended after %v, before the drain of %v was over", d, drain)
				}
				for _, line := range p.Log.Lines("tunnel")[1:] {
					if line["ended_by"] != "gateway" || line["how"] != "shutdown" || line["up"] != 5.0 || line["down"] != 5.0 {
						t.Errorf("logged: %v", line)
					}
				}
				if n := len(p.Log.Lines("tunnel")); n != 1+tunnels {
					t.Errorf("%d tunnels in the log, want %d", n, 1+tunnels)
				}
				if last := p.Log.WaitLine(t, "stopped", 1); last["cut"] != float64(tunnels) {
					t.Errorf("logged: %v", last)
				}
			})
		}
	})
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	for _, first := range endSignals {
		for _, second := range endSignals {
			t.Run(fmt.Sprint(first, " then ", second), func(t *testing.T) {
				cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-log-format=json", "-drain=1h")
				p := harness.StartCommand(t, cmd)
				c := harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))
				p.Signal(t, first)
				p.Log.WaitLine(t, "draining", 1)
				harness.Echo(t, c, "still here")
				if second == first {
					p.SignalAgain(t, second)
				} else {
					p.Signal(t, second)
				}
				if code := p.Wait(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
				if last := p.Log.WaitLine(t, "stopped", 1); last["cut"] != 1.0 {
					t.Errorf("logged: %v", last)
				}
				if left, err := os.ReadDir(cmd.Dir); err != nil || len(left) > 0 {
					t.Errorf("left behind: %v, %v", left, err)
				}
			})
		}
	}
}

func TestHandshakesUnderWayAtASignalAreServed(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-drain=1h", way)
		backend := harness.StartEcho(t)
		line := harness.Line(backend)
		silent, half := harness.Connect(t, p.Addr), harness.Connect(t, p.Addr)
		harness.Send(t, half, line[:20])
		// Connections are accepted in their order.
		harness.Finish(t, harness.OpenTunnel(t, p.Addr, backend))

		p.Signal(t, syscall.SIGTERM)
		harness.WaitRefused(t, p.Addr)
		harness.Send(t, silent, line)
		harness.Send(t, half, line[20:])
		for _, c := range []*net.TCPConn{silent, half} {
			harness.Expect(t, c, "200")
			harness.Echo(t, c, "hello")
			harness.Finish(t, c)
		}
		if code := p.Wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}
