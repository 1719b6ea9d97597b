package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Signals: what an operator ends goes on for its clients.

var endSignals = []os.Signal{syscall.SIGTERM, os.Interrupt}

func TestASignalEndsListeningAtOnceAndTunnelsGoOn(t *testing.T) {
	needSignals(t)
	bothWays(t, func(t *testing.T, way string) {
		for _, sig := range endSignals {
			t.Run(sig.String(), func(t *testing.T) {
				p := startProcess(t, "-drain=1h", way)
				c := openTunnel(t, p.addr, startEcho(t))
				p.signal(t, sig)
				waitRefused(t, p.addr)
				for range 3 {
					echo(t, c, "still here")
				}
				// More than a buffer, so that pipes are still to be had.
				bulk := strings.Repeat("bulk", 64<<10)
				go io.WriteString(c, bulk)
				expect(t, c, bulk)
				if !p.runs() {
					t.Fatal("the gateway did not wait for its tunnel")
				}
				finish(t, c)
				if code := p.wait(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
				if last := p.log.waitLine(t, "stopped", 1); last["cut"] != 0.0 {
					t.Errorf("logged: %v", last)
				}
				if last := p.log.waitLine(t, "tunnel", 1); last["how"] != "fin" {
					t.Errorf("logged: %v", last)
				}
			})
		}
	})
}

func TestTheEndOfTheDrainCutsTunnels(t *testing.T) {
	needSignals(t)
	bothWays(t, func(t *testing.T, way string) {
		for _, drain := range []time.Duration{0, 300 * time.Millisecond} {
			t.Run(drain.String(), func(t *testing.T) {
				p := startProcess(t, "-drain="+drain.String(), way)
				backend := startEcho(t)
				const tunnels = 3
				for range tunnels {
					c := openTunnel(t, p.addr, backend)
					echo(t, c, "hello")
				}
				finish(t, openTunnel(t, p.addr, backend)) // not one of those that are cut
				p.log.waitLine(t, "tunnel", 1)
				start := time.Now()
				p.signal(t, syscall.SIGTERM)
				if code := p.wait(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
				if d := time.Since(start); d < drain {
					t.Errorf("ended after %v, before the drain of %v was over", d, drain)
				}
				for _, line := range p.log.lines("tunnel")[1:] {
					if line["ended_by"] != "gateway" || line["how"] != "shutdown" || line["up"] != 5.0 || line["down"] != 5.0 {
						t.Errorf("logged: %v", line)
					}
				}
				if n := len(p.log.lines("tunnel")); n != 1+tunnels {
					t.Errorf("%d tunnels in the log, want %d", n, 1+tunnels)
				}
				if last := p.log.waitLine(t, "stopped", 1); last["cut"] != float64(tunnels) {
					t.Errorf("logged: %v", last)
				}
			})
		}
	})
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	needSignals(t)
	for _, first := range endSignals {
		for _, second := range endSignals {
			t.Run(fmt.Sprint(first, " then ", second), func(t *testing.T) {
				cmd := gatewayCommand(t, nil, "-secret="+testSecret, "-addr=127.0.0.1:0", "-log-format=json", "-drain=1h")
				p := startCommand(t, cmd)
				c := openTunnel(t, p.addr, startEcho(t))
				p.signal(t, first)
				p.log.waitLine(t, "draining", 1)
				echo(t, c, "still here")
				p.signal(t, second)
				if code := p.wait(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
				if last := p.log.waitLine(t, "stopped", 1); last["cut"] != 1.0 {
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
	needSignals(t)
	bothWays(t, func(t *testing.T, way string) {
		p := startProcess(t, "-drain=1h", way)
		backend := startEcho(t)
		line := sealed(t, backend)
		silent, half := connect(t, p.addr), connect(t, p.addr)
		send(t, half, line[:20])
		// Connections are accepted in their order.
		finish(t, openTunnel(t, p.addr, backend))

		p.signal(t, syscall.SIGTERM)
		waitRefused(t, p.addr)
		send(t, silent, line)
		send(t, half, line[20:])
		for _, c := range []*net.TCPConn{silent, half} {
			expect(t, c, "200")
			echo(t, c, "hello")
			finish(t, c)
		}
		if code := p.wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}
