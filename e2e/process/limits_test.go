package process

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

// expectReset waits for the reset of a client that is turned away: there is not a
// byte before it.
func expectReset(t *testing.T, addr, text string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		if !harness.IsReset(err) {
			t.Fatal(err)
		}
		return
	}
	defer c.Close()
	if _, err := c.Write([]byte(text)); err != nil { // which tells of the reset, and no read will
		return
	}
	c.SetDeadline(time.Now().Add(harness.Patience))
	if n, err := c.Read(make([]byte, 100)); n > 0 || !harness.IsReset(err) {
		t.Errorf("read %d bytes, %v; want a reset", n, err)
	}
}

// eventuallyServed waits until a client is served.
func eventuallyServed(t *testing.T, addr, text string) net.Conn {
	t.Helper()
	var served net.Conn
	harness.Eventually(t, "a client is served", func() bool {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		c.SetDeadline(time.Now().Add(harness.Patience))
		c.Write([]byte(text))
		buf := make([]byte, 3)
		if n, _ := c.Read(buf); string(buf[:n]) == "200" {
			served = c
			return true
		}
		c.Close()
		return false
	})
	t.Cleanup(func() { served.Close() })
	return served
}

// behind returns what a trusted proxy sends for a client that opens a tunnel.
func behind(client, backend string) string {
	return fmt.Sprintf("PROXY TCP4 %s 198.51.100.7 4321 443\r\n%s", client, harness.Line(backend))
}

func TestAnAddressHasOnlySoManyConnections(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-max-conns-per-ip=2", way)
		first := harness.OpenTunnel(t, p.Addr, backend)
		harness.OpenTunnel(t, p.Addr, backend)
		for range 5 {
			expectReset(t, p.Addr, harness.Line(backend))
		}
		line := p.Log.WaitLine(t, "clients were turned away", 1)
		if line["conns_per_ip"] != 5. && line["conns_per_ip"] == nil || line["client"] != "127.0.0.1" {
			t.Errorf("the log says %v", line)
		}
		first.Close()
		eventuallyServed(t, p.Addr, harness.Line(backend))
		if n := len(p.Log.Lines("refused")); n > 0 {
			t.Errorf("there are %d lines of refused clients", n)
		}
	})
}

func TestAnAddressConnectsOnlySoFast(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-rate-per-ip=1/h,3", way)
		for range 3 {
			harness.OpenTunnel(t, p.Addr, backend).Close()
		}
		for range 100 {
			expectReset(t, p.Addr, harness.Line(backend))
		}
		p.Log.WaitLine(t, "clients were turned away", 1)
		p.End(t)
		var told float64
		for _, line := range p.Log.Lines("clients were turned away") {
			n, _ := line["rate_per_ip"].(float64)
			told += n
		}
		if n := len(p.Log.Lines("clients were turned away")); told != 100 || n > 3 {
			t.Errorf("%v are told of in %d lines, want 100", told, n)
		}
	})
}

func TestListsSayWhichClientsAreServed(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		for _, args := range [][]string{{"-deny-clients=127.0.0.0/8"}, {"-allow-clients=10.0.0.0/8"}, {"-allow-clients=127.0.0.0/8", "-deny-clients=127.0.0.1"}} {
			p := harness.Start(t, append(args, way)...)
			expectReset(t, p.Addr, harness.Line(backend))
		}
		p := harness.Start(t, "-allow-clients=127.0.0.1,10.0.0.0/8", "-deny-clients=127.0.0.2", way)
		harness.OpenTunnel(t, p.Addr, backend)
	})
}

func TestAListOfClientsIsReadAgainAndABadOneKeepsTheOld(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		file := filepath.Join(t.TempDir(), "denied")
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("10.0.0.0/8 # nobody here\n")
		p := harness.Start(t, "-deny-clients=@"+file, way)
		stays := harness.OpenTunnel(t, p.Addr, backend)
		write("127.0.0.1\n")
		harness.Eventually(t, "the new list", func() bool {
			c, err := net.Dial("tcp", p.Addr)
			if err != nil {
				return true
			}
			defer c.Close()
			c.Write([]byte(harness.Line(backend)))
			c.SetDeadline(time.Now().Add(harness.Patience))
			_, err = c.Read(make([]byte, 3))
			return harness.IsReset(err)
		})
		harness.Echo(t, stays, "still here") // lists are for who comes
		write("10.0.0.0/8\nnonsense\n")
		harness.Eventually(t, "a complaint", func() bool {
			expectReset(t, p.Addr, harness.Line(backend))
			return len(p.Log.Lines("cannot use the changed list of clients, the old one stays")) > 0
		})
		write("10.0.0.0/8\n")
		eventuallyServed(t, p.Addr, harness.Line(backend))
	})
}

func TestLimitsAreForTheAddressThatATrustedProxyTells(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-trusted-proxies=127.0.0.1", "-max-conns-per-ip=1", "-deny-clients=192.0.2.66,127.0.0.1", way)
		for _, client := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"} {
			eventuallyServed(t, p.Addr, behind(client, backend))
		}
		expectReset(t, p.Addr, behind("192.0.2.2", backend))
		expectReset(t, p.Addr, behind("192.0.2.66", backend))
		// The proxy itself is nobody's client.
		for range 3 {
			eventuallyServed(t, p.Addr, "PROXY UNKNOWN\r\n"+harness.Line(backend))
		}
	})
}

func TestAcceptingPausesAtTheMostConnections(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-max-conns=2", way)
		first := harness.OpenTunnel(t, p.Addr, backend)
		second := harness.OpenTunnel(t, p.Addr, backend)
		waits := harness.Connect(t, p.Addr)
		harness.Send(t, waits, harness.Line(backend))
		waits.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if n, err := waits.Read(make([]byte, 3)); !os.IsTimeout(err) {
			t.Fatalf("the third gets %d bytes, %v; want it to wait", n, err)
		}
		harness.Echo(t, second, "undisturbed")
		waits.SetReadDeadline(time.Now().Add(harness.Patience))
		first.Close()
		harness.Expect(t, waits, "200")
		harness.Echo(t, waits, "served")
		line := p.Log.WaitLine(t, "cannot accept, trying again", 1)
		if err, _ := line["err"].(string); !strings.Contains(err, "-max-conns") {
			t.Errorf("the log says %v", line)
		}
	})
}

func TestAListenerMayHaveLimitsOfItsOwn(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-max-conns-per-ip=1", "-addr=127.0.0.1:0",
			"-listen=127.0.0.1:0=sealed;max-conns-per-ip=2",
			"-listen=127.0.0.1:0=forward:"+backend+";deny-clients=127.0.0.1",
			"-listen=127.0.0.1:0=sealed;max-conns=1;max-conns-per-ip=0", way)
		addrs := make([]string, 4)
		for i, line := range p.Listeners(t, 4) {
			addrs[i] = line["addr"].(string)
		}
		harness.OpenTunnel(t, addrs[0], backend)
		expectReset(t, addrs[0], harness.Line(backend))
		harness.OpenTunnel(t, addrs[1], backend)
		harness.OpenTunnel(t, addrs[1], backend)
		expectReset(t, addrs[1], harness.Line(backend))
		expectReset(t, addrs[2], "hello")
		first := harness.OpenTunnel(t, addrs[3], backend)
		waits := harness.Connect(t, addrs[3])
		harness.Send(t, waits, harness.Line(backend))
		first.Close()
		harness.Expect(t, waits, "200")
	})
}

func TestBadRequestsEarnABan(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-trusted-proxies=127.0.0.1", "-ban=3/1m:2s", way)
		bad := func(client, text, want string) {
			t.Helper()
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, "PROXY TCP4 "+client+" 198.51.100.7 4321 443\r\n"+text)
			harness.Expect(t, c, want)
			io.Copy(io.Discard, c)
		}
		stays := eventuallyServed(t, p.Addr, behind("192.0.2.1", backend))
		bad("192.0.2.1", "nonsense\n", "401")
		bad("192.0.2.1", strings.Repeat("x", 2000)+"\n", "400")
		eventuallyServed(t, p.Addr, behind("192.0.2.1", backend))
		bad("192.0.2.1", "GET / HTTP/1.0\r\nX-Sealed: no\r\n\r\n", "HTTP/1.0 400 ")
		p.Log.WaitLine(t, "client banned", 1)
		began := time.Now()
		expectReset(t, p.Addr, behind("192.0.2.1", backend))
		harness.Echo(t, stays, "tunnels go on")
		eventuallyServed(t, p.Addr, behind("192.0.2.2", backend))
		eventuallyServed(t, p.Addr, behind("192.0.2.1", backend)) // however often it tries meanwhile
		if took := time.Since(began); took > 12*time.Second {
			t.Errorf("the ban lasted %v", took)
		}
	})
}

func TestTheNewNamesOfTheRulesForBackendsAndTheOldOnesAreOne(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	for _, flag := range []string{"-deny=127.0.0.0/8", "-deny-backends=127.0.0.0/8", "-allow=10.0.0.0/8", "-allow-backends=10.0.0.0/8"} {
		p := harness.Start(t, flag)
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, harness.Line(backend))
		harness.ExpectAll(t, c, "502")
	}
	p := harness.Start(t, "-allow=10.0.0.0/8", "-allow-backends=127.0.0.0/8")
	harness.OpenTunnel(t, p.Addr, backend)
}

func TestABadListOfClientsIsAUsageErrorThatNamesFlagAndFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(file, []byte("10.0.0.0/8\n10.0.0.1/8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{"-allow-clients=@" + file, "-deny-clients=@" + file, "-listen=127.0.0.1:0=sealed;deny-clients=@" + file} {
		_, stderr, code := harness.Run(t, nil, "-secret=0123456789abcdef", "-check", flag)
		name, _, _ := strings.Cut(flag, "=")
		if code != 2 || !strings.Contains(stderr, name) || !strings.Contains(stderr, file) || !strings.Contains(stderr, "line 2") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: code %d, %q", flag, code, stderr)
		}
	}
}

func TestBansAreListedAddedAndLiftedByTheAdminAddress(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	p, a := startAdmin(t, "-trusted-proxies=127.0.0.1", "-ban=1/1m:1h")
	var list struct {
		Bans []struct {
			Network, By string
			Until       time.Time
		}
	}
	a.Do(t, "POST", "/api/bans", `{"network":"192.0.2.0/24","for":"1h"}`)
	expectReset(t, p.Addr, behind("192.0.2.7", backend))
	c := harness.Connect(t, p.Addr)
	harness.Send(t, c, "PROXY TCP4 198.51.100.1 198.51.100.7 4321 443\r\nnonsense\n")
	harness.ExpectAll(t, c, "401")
	expectReset(t, p.Addr, behind("198.51.100.1", backend))
	a.JSON(t, "GET", "/api/bans", "", &list)
	if len(list.Bans) != 2 || list.Bans[0].Network != "192.0.2.0/24" || list.Bans[0].By != "admin" || list.Bans[1].By != "rule" {
		t.Errorf("the bans are %+v", list)
	}
	a.Do(t, "POST", "/api/bans/lift", `{"network":"198.51.100.1"}`)
	eventuallyServed(t, p.Addr, behind("198.51.100.1", backend))
	if n := a.Metrics(t).Sum("gateway_refusals_total", `reason="banned"`); n != 2 {
		t.Errorf("%v are counted as banned, want 2", n)
	}
}
