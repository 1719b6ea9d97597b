package roaming

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"gateway/clients/go/tunnel"
	"gateway/internal/harness"
	"gateway/internal/proxyheader"
)

// startPeers starts gateways that know each other.
func startPeers(t testing.TB, n int, args ...string) (list []*harness.Process) {
	for range n {
		list = append(list, harness.Start(t, append([]string{
			"-resume=1", "-resume-peer=" + harness.ClosedPort(t), "-resume-peers=127.0.0.0/8"}, args...)...))
	}
	return list
}

// inTurn has a client that comes back go to the next gateway.
func inTurn(list []*harness.Process) *tunnel.Dialer {
	d := through(list[0])
	w := new(ways)
	for _, g := range list {
		w.dials = append(w.dials, overTCP(g.Addr))
	}
	d.DialContext = w.dial
	return d
}

func TestAnyGatewayTakesATunnelBack(t *testing.T) {
	harness.BothWays(t, func(t *testing.T, way string) {
		list := startPeers(t, 3, way)
		b := startCounted(t, echo)
		c, _ := open(t, inTurn(list), b.addr)
		for i := range 8 {
			both(t, c, uint64(i), 1_000_000)
			reconnect(t, c)
		}
		c.CloseWrite()
		harness.ExpectAll(t, c, "")
		<-c.Done()
		if n := b.conns.Load(); n != 1 {
			t.Errorf("the backend saw %d connections", n)
		}
		list[0].Log.WaitLine(t, "tunnel", 1)
		resumed := list[0].Log.Lines("resumed")
		if len(resumed) != 8 {
			t.Errorf("%d resumes logged", len(resumed))
		}
		// The address is the client's own, whichever gateway it came by.
		for i, line := range resumed[1:] {
			if line["before"] != resumed[i]["client"] {
				t.Errorf("logged %v behind %v", line, resumed[i])
			}
		}
	})
}

func TestAnOwnerThatDrainsIsReachedThroughAnother(t *testing.T) {
	list := startPeers(t, 2, "-drain=20s")
	c, _ := open(t, inTurn(list), harness.StartEcho(t))
	both(t, c, 1, 100_000)
	list[0].Signal(t, syscall.SIGTERM)
	list[0].Log.WaitLine(t, "draining", 1)
	harness.WaitRefused(t, list[0].Addr)
	for range 3 {
		reconnect(t, c)
		both(t, c, 2, 100_000)
	}
	c.CloseWrite()
	harness.ExpectAll(t, c, "")
	if code := list[0].Wait(t); code != harness.ExitOK {
		t.Errorf("exit code %d", code)
	}
}

func TestTheCutOfADrainIsTold(t *testing.T) {
	list := startPeers(t, 1, "-drain=100ms")
	c, _ := open(t, through(list...), harness.StartEcho(t))
	harness.Echo(t, c, "x")
	list[0].Signal(t, syscall.SIGTERM)
	if _, err := c.Read(make([]byte, 1)); err == nil || err.Error() != "the peer has closed the session: drain" {
		t.Errorf("read ended with %v", err)
	}
	if code := list[0].Wait(t); code != harness.ExitOK {
		t.Errorf("exit code %d", code)
	}
}

func TestAnOwnerThatIsGoneIsToldAtOnce(t *testing.T) {
	list := startPeers(t, 2)
	d := inTurn(list)
	d.Hold = 300 * time.Millisecond
	c, _ := open(t, d, harness.StartEcho(t))
	harness.Echo(t, c, "x")
	start := time.Now()
	list[0].Kill()
	_, err := c.Read(make([]byte, 1))
	if !errors.Is(err, tunnel.ErrLost) {
		t.Errorf("read ended with %v", err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
	list[1].Log.WaitLine(t, "refused", 1)
	if line := list[1].Log.Lines("refused")[0]; harness.Status(line) != "502" {
		t.Errorf("logged %v", line)
	}
}

func TestThePeerPortTakesNothingElse(t *testing.T) {
	peer := harness.ClosedPort(t)
	g := harness.Start(t, "-resume=1", "-resume-peer="+peer, "-resume-peers=127.0.0.1")
	echo := harness.StartEcho(t)
	header, err := proxyheader.Append(nil, 2, proxyheader.Header{Source: netip.MustParseAddrPort("192.0.2.1:1"), Destination: netip.MustParseAddrPort("192.0.2.2:2")})
	if err != nil {
		t.Fatal(err)
	}
	for request, want := range map[string]string{
		harness.Line(echo):                         "400", // no header
		string(header) + harness.Line(echo):        "401",
		string(header) + "~1N - " + echo + "\n":    "401",
		string(header) + "GET / HTTP/1.1\r\n\r\n":  "401",
		string(header) + "\x16\x03\x01\x02\x00\n":  "401",
		string(header) + "~1R AAAA 1 0 0 AAAA\n":   "401",
		string(header) + "\x2c\x00\x00\x00U2Fsd\n": "401",
	} {
		c := harness.Connect(t, peer)
		harness.Send(t, c, request)
		if got, err := io.ReadAll(c); string(got) != want {
			t.Errorf("%.60q: %q, %v; want %s", request, got, err, want)
		}
	}
	// Nobody else is listened to, and no client gets there.
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	if c, err := d.Dial("tcp", peer); err == nil {
		c.SetDeadline(time.Now().Add(harness.Patience))
		harness.ExpectCut(t, c)
		c.Close()
	}
	c := harness.Connect(t, g.Addr)
	harness.Send(t, c, harness.Line(peer))
	harness.ExpectAll(t, c, "502")
}

func TestATicketLeadsOnlyToPeers(t *testing.T) {
	list := startPeers(t, 1, "-resume-hold=500ms")
	other := harness.Start(t, "-resume=1", "-resume-peers=192.0.2.0/24")
	alone := harness.Start(t, "-resume=1", "-secret=another secret of the tests")
	c, _ := open(t, inTurn([]*harness.Process{list[0], other, other, list[0]}), harness.StartEcho(t))
	harness.Echo(t, c, "x")
	c.Reconnect()
	harness.Echo(t, c, "y")
	if line := other.Log.Lines("refused")[0]; harness.Status(line) != "502" || line["reason"] != "foreign_owner" {
		t.Errorf("logged %v", line)
	}
	c, _ = open(t, inTurn([]*harness.Process{list[0], alone}), harness.StartEcho(t))
	harness.Echo(t, c, "x")
	c.Reconnect()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, tunnel.ErrUnauthorized) {
		t.Errorf("by a gateway of another secret, read ended with %v", err)
	}
}
