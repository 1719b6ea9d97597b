package protocols

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"gateway/internal/harness"
)

// With -send-proxy, a backend is told whose connection it gets before anything
// else. Another implementation reads here what the gateway writes.

// told is what a backend has been told of a client, and heard from it.
type told struct {
	version      byte
	source, dest netip.AddrPort
	id           string
	heard        string // all that came behind the header
	err          error
	family       proxyproto.AddressFamilyAndProtocol
}

// readTold reads a header, which must be there.
func readTold(r *bufio.Reader) (got told) {
	h, err := proxyproto.Read(r)
	if err != nil {
		return told{err: err}
	}
	got.version, got.family = h.Version, h.TransportProtocol
	if src, dst, ok := h.TCPAddrs(); ok {
		got.source, got.dest = harness.AddrPort(src), harness.AddrPort(dst)
	} else {
		got.err = fmt.Errorf("no addresses: %+v", h)
	}
	tlvs, err := h.TLVs()
	if err != nil {
		got.err = err
	}
	for _, tlv := range tlvs {
		if tlv.Type == proxyproto.PP2_TYPE_UNIQUE_ID {
			got.id += string(tlv.Value)
		}
	}
	return got
}

// startTold starts a backend that reads a header and then echoes, and reports
// each of its connections once the client has finished.
func startTold(t testing.TB) (addr string, conns <-chan told) {
	t.Helper()
	all := make(chan told, 1)
	return harness.StartBackend(t, func(b *net.TCPConn) {
		r := bufio.NewReader(b)
		got := readTold(r)
		var heard strings.Builder
		io.Copy(io.MultiWriter(b, &heard), r)
		got.heard = heard.String()
		b.CloseWrite()
		all <- got
	}), all
}

// way is one of the ways to a backend, with the status that it answers.
type way struct{ name, status string }

var ways = []way{
	{"sealed", "200"},
	{"sealed, in pieces", "200"},
	{"sealed, by name", "200"},
	{"forward", ""},
	{"forward, by name", ""},
}

// telling is a gateway that tells a backend of its clients, and listens on each of
// some addresses for sealed lines, and to forward to the backend and its name.
type telling struct {
	*harness.Process
	backend string
	at      map[string]string // where, by the address asked for and what for
}

// startTelling starts one. listen has addresses with port 0.
func startTelling(t testing.TB, backend string, flags []string, listen ...string) *telling {
	t.Helper()
	for _, addr := range listen {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Skipf("cannot listen on %s: %v", addr, err)
		}
		ln.Close()
		flags = append(flags, "-listen="+addr+"=sealed", "-listen="+addr+"=forward:"+backend,
			"-listen="+addr+"=forward:"+harness.ByName(backend))
	}
	g := &telling{harness.StartBare(t, []string{"GATEWAY_SECRET=" + harness.Secret}, flags...), backend, make(map[string]string)}
	for i, line := range g.Listeners(t, 3*len(listen)) {
		g.at[listen[i/3]+[]string{" sealed", " forward", " forward, by name"}[i%3]] = line["addr"].(string)
	}
	return g
}

// open connects a client to the backend by a listener of listen, and says early at
// once.
func (w way) open(t testing.TB, g *telling, listen, early string) *net.TCPConn {
	t.Helper()
	if strings.HasPrefix(w.name, "forward") {
		c := harness.Connect(t, g.at[listen+" "+w.name])
		harness.Send(t, c, early)
		return c
	}
	c := harness.Connect(t, g.at[listen+" sealed"])
	line := harness.Line(g.backend)
	if strings.Contains(w.name, "name") {
		line = harness.Line(harness.ByName(g.backend))
	}
	if strings.Contains(w.name, "pieces") {
		harness.Send(t, c, line[:9])
		harness.Delivered(t, c)
		time.Sleep(time.Millisecond) // most probably read apart; either will do
		line = line[9:]
	}
	harness.Send(t, c, line+early)
	harness.Expect(t, c, w.status)
	return c
}

// onProxyHeaders runs a test on every relay, with each version of the header.
// flags are what a gateway needs for that.
func onProxyHeaders(t *testing.T, test func(t *testing.T, flags []string, version byte)) {
	for _, version := range []byte{1, 2} {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			harness.EachRelay(t, func(t *testing.T, relay string) {
				test(t, []string{relay, fmt.Sprintf("-send-proxy=v%d", version)}, version)
			})
		})
	}
}

const anyIPv4, anyIPv6 = "127.0.0.1:0", "[::1]:0"

func TestABackendIsToldOfItsClientBeforeAnythingElse(t *testing.T) {
	t.Parallel()
	onProxyHeaders(t, func(t *testing.T, flags []string, version byte) {
		backend, conns := startTold(t)
		g := startTelling(t, backend, flags, anyIPv4, anyIPv6)
		n := 0
		for _, listen := range []string{anyIPv4, anyIPv6} {
			for _, w := range ways {
				for _, early := range []string{"", "early"} {
					c := w.open(t, g, listen, early)
					harness.Expect(t, c, early)
					harness.Echo(t, c, "and late")
					harness.Finish(t, c)
					n++
					got, line := <-conns, g.Log.WaitLine(t, "tunnel", n)
					if got.err != nil || got.version != version || got.heard != early+"and late" {
						t.Errorf("%s, early %q: the backend got %+v", w.name, early, got)
					}
					if got.source != harness.AddrPort(c.LocalAddr()) || got.dest != harness.AddrPort(c.RemoteAddr()) {
						t.Errorf("%s: told of %v → %v, it is %v → %v", w.name, got.source, got.dest, c.LocalAddr(), c.RemoteAddr())
					}
					if v4 := got.family == proxyproto.TCPv4; v4 != got.source.Addr().Is4() {
						t.Errorf("%s: %v as family %v", w.name, got.source, got.family)
					}
					if id, _ := line["id"].(string); id == "" || (id == got.id) != (version == 2) {
						t.Errorf("%s: id %q at the backend, %q in the log", w.name, got.id, id)
					}
					if bytes := float64(len(early + "and late")); line["up"] != bytes || line["down"] != bytes {
						t.Errorf("%s: up=%v down=%v, want %v", w.name, line["up"], line["down"], bytes)
					}
				}
			}
		}
	})
}

// A client of a wildcard listener may come by IPv4 and is told of as such.
func TestAnIPv4ClientOfADualStackListenerIsToldAsIPv4(t *testing.T) {
	t.Parallel()
	onProxyHeaders(t, func(t *testing.T, flags []string, version byte) {
		backend, conns := startTold(t)
		g := startTelling(t, backend, flags, ":0")
		c := harness.Connect(t, "127.0.0.1:"+harness.PortOf(g.at[":0 forward"]))
		harness.Echo(t, c, "hello")
		harness.Finish(t, c)
		if got := <-conns; got.source != harness.AddrPort(c.LocalAddr()) || got.dest != harness.AddrPort(c.RemoteAddr()) || got.family != proxyproto.TCPv4 {
			t.Errorf("told of %+v, it is %v → %v", got, c.LocalAddr(), c.RemoteAddr())
		}
	})
}

func TestABackendIsToldOfAClientThatSaysNothing(t *testing.T) {
	t.Parallel()
	onProxyHeaders(t, func(t *testing.T, flags []string, version byte) {
		greets := harness.StartBackend(t, func(b *net.TCPConn) {
			// It waits for the header, as one does that greets by address.
			if got := readTold(bufio.NewReader(b)); got.err != nil {
				t.Error(got.err)
			} else {
				fmt.Fprintf(b, "hello %v", got.source)
			}
		})
		g := startTelling(t, greets, flags, anyIPv4)
		for i, w := range ways {
			c := w.open(t, g, anyIPv4, "")
			harness.ExpectAll(t, c, fmt.Sprintf("hello %v", c.LocalAddr()))
			c.Close()
			if line := g.Log.WaitLine(t, "tunnel", i+1); line["up"] != 0.0 {
				t.Errorf("%s: up=%v of a client that said nothing", w.name, line["up"])
			}
		}
	})
}

func TestALargeUploadComesWholeBehindTheHeader(t *testing.T) {
	t.Parallel()
	onProxyHeaders(t, func(t *testing.T, flags []string, version byte) {
		backend, conns := startTold(t)
		g := startTelling(t, backend, flags, anyIPv4)
		want := string(harness.Noise(1, 1<<20))
		for i, w := range []way{{"sealed", "200"}, {"forward", ""}} {
			c := w.open(t, g, anyIPv4, "")
			go func() {
				io.WriteString(c, want)
				c.CloseWrite()
			}()
			harness.ExpectAll(t, c, want)
			if got := <-conns; got.err != nil || got.heard != want {
				t.Errorf("%s: %d of %d bytes, or others (%v)", w.name, len(got.heard), len(want), got.err)
			}
			if line := g.Log.WaitLine(t, "tunnel", i+1); line["up"] != float64(len(want)) {
				t.Errorf("%s: up=%v, want %d", w.name, line["up"], len(want))
			}
		}
	})
}

// The header may find the backend gone: it is not the client's, and nothing
// else may come of it.
func TestABackendThatClosesAtOnceDoesNotMindTheHeader(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	onProxyHeaders(t, func(t *testing.T, flags []string, version byte) {
		for name, backend := range map[string]string{
			"close": harness.StartBackend(t, func(b *net.TCPConn) {}),
			"reset": harness.StartBackend(t, func(b *net.TCPConn) { b.SetLinger(0) }),
		} {
			g := startTelling(t, backend, flags, anyIPv4)
			for range 20 {
				c := harness.Connect(t, g.at[anyIPv4+" forward"])
				harness.ExpectAll(t, c, "")
				c.Close()
				c = harness.Connect(t, g.at[anyIPv4+" sealed"])
				harness.Send(t, c, harness.Line(backend))
				got, err := io.ReadAll(c)
				// A dial that net makes may find the reset first.
				if s := string(got); s != "200" && !(name == "reset" && s == "502") || err != nil {
					t.Errorf("%s: read %q, %v", name, got, err)
				}
				c.Close()
			}
			harness.Eventually(t, "each has its line in the log", func() bool {
				return len(g.Log.Lines("tunnel"))+len(g.Log.Lines("refused")) == 2*20
			})
			for _, line := range g.Log.Lines("tunnel") {
				if line["up"] != 0.0 || line["down"] != 0.0 {
					t.Errorf("account: %v", line)
				}
			}
		}
	})
}

func TestThousandsOfTunnelsHaveAnIDEach(t *testing.T) {
	harness.Long(t)
	const tunnels, atOnce = 1500, 50
	harness.BothWays(t, func(t *testing.T, way string) {
		var mu sync.Mutex
		ids := make(map[string]netip.AddrPort)
		backend := harness.StartBackend(t, func(b *net.TCPConn) {
			got := readTold(bufio.NewReader(b))
			mu.Lock()
			defer mu.Unlock()
			if other, taken := ids[got.id]; taken || got.id == "" || got.err != nil {
				t.Errorf("%v has the id %q of %v (%v)", got.source, got.id, other, got.err)
			}
			ids[got.id] = got.source
		})
		g := startTelling(t, backend, []string{way, "-send-proxy=v2"}, anyIPv4)
		line := harness.Line(backend)
		var clients sync.WaitGroup
		turns := make(chan struct{}, atOnce)
		for i := range tunnels {
			turns <- struct{}{}
			clients.Go(func() {
				defer func() { <-turns }()
				addr, answer := g.at[anyIPv4+" forward"], ""
				if i%2 == 0 {
					addr, answer = g.at[anyIPv4+" sealed"], "200"
				}
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(harness.Patience))
				if i%2 == 0 {
					io.WriteString(c, line)
				}
				if got, err := io.ReadAll(c); string(got) != answer || err != nil {
					t.Errorf("tunnel %d: read %q, %v", i, got, err)
				}
			})
		}
		clients.Wait()
		g.Log.WaitLine(t, "tunnel", tunnels)
		mu.Lock()
		defer mu.Unlock()
		for _, line := range g.Log.Lines("tunnel") {
			if id := line["id"].(string); ids[id].String() != line["client"] {
				t.Errorf("the log says that %v is %s, the backend was told that %v is", line["client"], id, ids[id])
			}
		}
		if len(ids) != tunnels {
			t.Errorf("%d ids for %d tunnels", len(ids), tunnels)
		}
	})
}

func TestNoHeaderIsSentUnlessAskedFor(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	backend := harness.StartBackend(t, func(b *net.TCPConn) {
		b.CloseWrite()
		if got, _ := io.ReadAll(b); string(got) != "hello" {
			t.Errorf("the backend read %q", got)
		}
	})
	for _, args := range [][]string{nil, {"-send-proxy=off"}} {
		p := harness.Start(t, append(args, "-listen=127.0.0.1:0=forward:"+backend)...)
		c, plain := harness.OpenTunnel(t, p.Addr, backend), harness.Connect(t, p.Listeners(t, 2)[1]["addr"].(string))
		for _, c := range []*net.TCPConn{c, plain} {
			harness.Send(t, c, "hello")
			harness.Finish(t, c)
		}
		if line := p.Log.WaitLine(t, "tunnel", 2); line["id"] == nil || line["up"] != 5.0 {
			t.Errorf("account: %v", line)
		}
		p.End(t)
	}
}

// Several gateways may stand before one backend, and behind one port.
func TestNoTwoGatewaysGiveOneID(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	backend, conns := startTold(t)
	ids := make(map[string]bool)
	for range 3 {
		p := harness.Start(t, "-send-proxy=v2", "-forward="+backend)
		c := harness.Connect(t, p.Addr)
		harness.Echo(t, c, "hello")
		harness.Finish(t, c)
		got := <-conns
		if line := p.Log.WaitLine(t, "tunnel", 1); line["id"] != got.id || got.source != harness.AddrPort(c.LocalAddr()) {
			t.Errorf("told %+v, logged %v", got, line)
		}
		ids[got.id] = true
		p.End(t)
	}
	if len(ids) != 3 {
		t.Errorf("ids: %v", ids)
	}
}
