package process

import (
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
)

// ask returns the status that a gateway answers to a request for a path.
func ask(t *testing.T, addr, path string) int {
	t.Helper()
	client := &http.Client{Timeout: harness.Patience, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://" + addr + path)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, r.Body)
	r.Body.Close()
	return r.StatusCode
}

func TestABackendThatIsFullGetsNoMoreTunnels(t *testing.T) {
	t.Parallel()
	one, other := harness.StartEcho(t), harness.StartEcho(t)
	byName := harness.ByName(one) // which a goroutine dials
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-max-tunnels-per-backend=2", way)
		for _, backend := range []string{one, byName} {
			first := harness.OpenTunnel(t, p.Addr, backend)
			harness.OpenTunnel(t, p.Addr, backend)
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, harness.Line(backend))
			harness.ExpectAll(t, c, "502")
			if line := p.Log.WaitClient(t, "refused", c.LocalAddr().String()); line["reason"] != "full" {
				t.Errorf("the log says %v", line)
			}
			first.Close()
			eventuallyServed(t, p.Addr, harness.Line(backend))
		}
		// Of several the next is taken; two are in use already.
		for range 2 {
			c := harness.OpenTunnel(t, p.Addr, one+","+other)
			harness.Echo(t, c, "hello")
		}
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, harness.Line(one+","+other))
		harness.ExpectAll(t, c, "502")
	})
}

func TestTheGatewaysHealthIsToldOnTheGamePort(t *testing.T) {
	t.Parallel()
	certFile, keyFile, trusting := harness.TLSFiles(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-health-path=/healthz", "-tls-cert="+certFile, "-tls-key="+keyFile, way)
		if got := ask(t, p.Addr, "/healthz"); got != 200 {
			t.Errorf("%d, want 200", got)
		}
		for _, path := range []string{"/", "/healthz/", "/healthzz"} {
			if got := ask(t, p.Addr, path); got != 400 {
				t.Errorf("%s: %d, want 400", path, got)
			}
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: trusting, DisableKeepAlives: true}}
		r, err := client.Head("https://" + p.Addr + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		if r.Body.Close(); r.StatusCode != 200 {
			t.Errorf("by TLS: %d", r.StatusCode)
		}
		p.End(t)
		for _, line := range p.Log.Lines("request") {
			if line["status"] == 200. {
				t.Errorf("the log has %v", line)
			}
		}
	})
}

func TestALameDuckServesAndTellsClientsToGoElsewhere(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	backend := harness.StartEcho(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-health-path=/healthz", "-drain-delay=3s", "-drain=1h", way)
		stays := harness.OpenTunnel(t, p.Addr, backend)
		began := time.Now()
		p.Signal(t, syscall.SIGTERM)
		p.Log.WaitLine(t, "lame duck: clients are served, and told to go elsewhere", 1)
		if got := ask(t, p.Addr, "/healthz"); got != 503 {
			t.Errorf("%d, want 503", got)
		}
		harness.OpenTunnel(t, p.Addr, backend).Close()
		p.Log.WaitLine(t, "draining", 1)
		if took := time.Since(began); took < 2900*time.Millisecond {
			t.Errorf("it drains after %v", took)
		}
		harness.WaitRefused(t, p.Addr)
		harness.Echo(t, stays, "still here")
		stays.Close()
		if code := p.Wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}

func TestASignalThatIsDeliveredTwiceIsOne(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	backend := harness.StartEcho(t)
	for _, args := range [][]string{{"-drain=1h"}, {"-drain=1h", "-drain-delay=1h"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			p := harness.Start(t, args...)
			stays := harness.OpenTunnel(t, p.Addr, backend)
			p.Signal(t, syscall.SIGTERM)
			p.Signal(t, syscall.SIGTERM)
			harness.Eventually(t, "the end of the first second, or of all", func() bool {
				return !p.Runs() || len(p.Log.Lines("draining"))+len(p.Log.Lines("lame duck: clients are served, and told to go elsewhere")) > 0
			})
			harness.Echo(t, stays, "still here")
			p.SignalAgain(t, syscall.SIGTERM)
			if code := p.Wait(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if line := p.Log.WaitLine(t, "ending at once", 1); line["signal"] != "terminated" {
				t.Errorf("the log says %v", line)
			}
		})
	}
}

func TestAnAddressHasAShareOfThePending(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		loops := "-loops=1"
		if way == "-loops=-1" {
			loops = way
		}
		// A share of an eighth: 10 of 80.
		p := harness.Start(t, "-trusted-proxies=127.0.0.1", "-max-pending=80", "-handshake-timeout=1h", loops)
		silent := func(client string) net.Conn {
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, "PROXY TCP4 "+client+" 198.51.100.7 4321 443\r\nU2FsdGVkX1")
			return c
		}
		honest := silent("192.0.2.2")
		for range 50 {
			silent("192.0.2.1")
		}
		harness.Eventually(t, "those that gave way", func() bool {
			n := 0
			for _, line := range p.Log.Lines("refused") {
				if line["reason"] == "gave_way" && strings.HasPrefix(line["client"].(string), "192.0.2.1:") {
					n++
				}
			}
			return n == 40
		})
		harness.Send(t, honest, strings.TrimPrefix(harness.Line(backend), "U2FsdGVkX1"))
		harness.Expect(t, honest, "200")
	})
}
