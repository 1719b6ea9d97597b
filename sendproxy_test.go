package main

import (
	"bufio"
	"fmt"
	"gateway/internal/layer"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
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
		got.source, got.dest = layer.AddrPort(src), layer.AddrPort(dst)
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
	return startBackend(t, func(b *net.TCPConn) {
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

// open connects a client to a backend by way of a gateway that listens on
// listen, and says early at once.
func (w way) open(t testing.TB, g *testGateway, listen, backend, early string) *net.TCPConn {
	t.Helper()
	if strings.Contains(w.name, "name") {
		backend = byName(backend)
	}
	if strings.HasPrefix(w.name, "forward") {
		c := connect(t, alsoServe(t, g, listen, backend))
		send(t, c, early)
		return c
	}
	c := connect(t, alsoServe(t, g, listen, ""))
	line := sealed(t, backend)
	if strings.Contains(w.name, "pieces") {
		send(t, c, line[:9])
		delivered(t, c)
		time.Sleep(time.Millisecond) // most probably read apart; either will do
		line = line[9:]
	}
	send(t, c, line+early)
	expect(t, c, w.status)
	return c
}

// onProxyHeaders runs a test on every relay, with each version of the header.
func onProxyHeaders(t *testing.T, test func(t *testing.T, g *testGateway, version byte)) {
	for _, version := range []byte{1, 2} {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			onEveryRelayWith(t, func(cfg *Config) { cfg.SendProxy = fmt.Sprintf("v%d", version) }, func(t *testing.T, g *testGateway) {
				test(t, g, version)
			})
		})
	}
}

func TestABackendIsToldOfItsClientBeforeAnythingElse(t *testing.T) {
	onProxyHeaders(t, func(t *testing.T, g *testGateway, version byte) {
		backend, conns := startTold(t)
		n := 0
		for _, listen := range []string{"127.0.0.1:0", "[::1]:0"} {
			for _, w := range ways {
				for _, early := range []string{"", "early"} {
					c := w.open(t, g, listen, backend, early)
					expect(t, c, early)
					echo(t, c, "and late")
					finish(t, c)
					n++
					got, line := <-conns, g.log.waitLine(t, "tunnel", n)
					if got.err != nil || got.version != version || got.heard != early+"and late" {
						t.Errorf("%s, early %q: the backend got %+v", w.name, early, got)
					}
					if got.source != layer.AddrPort(c.LocalAddr()) || got.dest != layer.AddrPort(c.RemoteAddr()) {
						t.Errorf("%s: told of %v → %v, it is %v → %v", w.name, got.source, got.dest, c.LocalAddr(), c.RemoteAddr())
					}
					if v4 := got.family == proxyproto.TCPv4; v4 != got.source.Addr().Is4() {
						t.Errorf("%s: %v as family %v", w.name, got.source, got.family)
					}
					if id, _ := line["id"].(string); id != got.id || (id != "") != (version == 2) {
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
	onProxyHeaders(t, func(t *testing.T, g *testGateway, version byte) {
		backend, conns := startTold(t)
		at := alsoServe(t, g, ":0", backend)
		c := connect(t, "127.0.0.1:"+portOf(at))
		echo(t, c, "hello")
		finish(t, c)
		if got := <-conns; got.source != layer.AddrPort(c.LocalAddr()) || got.dest != layer.AddrPort(c.RemoteAddr()) || got.family != proxyproto.TCPv4 {
			t.Errorf("told of %+v, it is %v → %v", got, c.LocalAddr(), c.RemoteAddr())
		}
	})
}

func TestABackendIsToldOfAClientThatSaysNothing(t *testing.T) {
	onProxyHeaders(t, func(t *testing.T, g *testGateway, version byte) {
		greets := startBackend(t, func(b *net.TCPConn) {
			// It waits for the header, as one does that greets by address.
			if got := readTold(bufio.NewReader(b)); got.err != nil {
				t.Error(got.err)
			} else {
				fmt.Fprintf(b, "hello %v", got.source)
			}
		})
		for i, w := range ways {
			c := w.open(t, g, "127.0.0.1:0", greets, "")
			expectAll(t, c, fmt.Sprintf("hello %v", c.LocalAddr()))
			c.Close()
			if line := g.log.waitLine(t, "tunnel", i+1); line["up"] != 0.0 {
				t.Errorf("%s: up=%v of a client that said nothing", w.name, line["up"])
			}
		}
	})
}

func TestALargeUploadComesWholeBehindTheHeader(t *testing.T) {
	onProxyHeaders(t, func(t *testing.T, g *testGateway, version byte) {
		backend, conns := startTold(t)
		want := string(noise(1, 1<<20))
		for i, w := range []way{{"sealed", "200"}, {"forward", ""}} {
			c := w.open(t, g, "127.0.0.1:0", backend, "")
			go func() {
				io.WriteString(c, want)
				c.CloseWrite()
			}()
			expectAll(t, c, want)
			if got := <-conns; got.err != nil || got.heard != want {
				t.Errorf("%s: %d of %d bytes, or others (%v)", w.name, len(got.heard), len(want), got.err)
			}
			if line := g.log.waitLine(t, "tunnel", i+1); line["up"] != float64(len(want)) {
				t.Errorf("%s: up=%v, want %d", w.name, line["up"], len(want))
			}
		}
	})
}

// The header may find the backend gone: it is not the client's, and nothing
// else may come of it.
func TestABackendThatClosesAtOnceDoesNotMindTheHeader(t *testing.T) {
	onProxyHeaders(t, func(t *testing.T, g *testGateway, version byte) {
		for name, backend := range map[string]string{
			"close": startBackend(t, func(b *net.TCPConn) {}),
			"reset": startBackend(t, func(b *net.TCPConn) { b.SetLinger(0) }),
		} {
			sealedAt, forwardAt := alsoServe(t, g, "127.0.0.1:0", ""), forwardTo(t, g, backend)
			for range 20 {
				c := connect(t, forwardAt)
				expectAll(t, c, "")
				c.Close()
				c = connect(t, sealedAt)
				send(t, c, sealed(t, backend))
				got, err := io.ReadAll(c)
				// A dial that net makes may find the reset first.
				if s := string(got); s != "200" && !(name == "reset" && s == "502") || err != nil {
					t.Errorf("%s: read %q, %v", name, got, err)
				}
				c.Close()
			}
		}
		eventually(t, "each has its line in the log", func() bool {
			return len(g.log.lines("tunnel"))+len(g.log.lines("refused")) == 2*2*20
		})
		for _, line := range g.log.lines("tunnel") {
			if line["up"] != 0.0 || line["down"] != 0.0 {
				t.Errorf("account: %v", line)
			}
		}
	})
}

// A client that is refused has no tunnel, and no backend that could be told.
func TestOnlyATunnelHasAnID(t *testing.T) {
	onProxyHeaders(t, func(t *testing.T, g *testGateway, version byte) {
		expectAll(t, connect(t, forwardTo(t, g, closedPort(t))), "")
		if line := g.log.waitLine(t, "refused", 1); line["id"] != nil {
			t.Errorf("logged: %v", line)
		}
	})
}

func TestThousandsOfTunnelsHaveAnIDEach(t *testing.T) {
	const tunnels, atOnce = 1500, 50
	for name, loops := range map[string]int{"loops": 0, "goroutines": -1} {
		t.Run(name, func(t *testing.T) {
			g := startConfigured(t, func(cfg *Config) { cfg.Loops, cfg.SendProxy = loops, "v2" }, nil)
			var mu sync.Mutex
			ids := make(map[string]netip.AddrPort)
			backend := startBackend(t, func(b *net.TCPConn) {
				got := readTold(bufio.NewReader(b))
				mu.Lock()
				defer mu.Unlock()
				if other, taken := ids[got.id]; taken || got.id == "" || got.err != nil {
					t.Errorf("%v has the id %q of %v (%v)", got.source, got.id, other, got.err)
				}
				ids[got.id] = got.source
			})
			forward, line := forwardTo(t, g, backend), sealed(t, backend)
			var clients sync.WaitGroup
			turns := make(chan struct{}, atOnce)
			for i := range tunnels {
				turns <- struct{}{}
				clients.Go(func() {
					defer func() { <-turns }()
					addr, answer := forward, ""
					if i%2 == 0 {
						addr, answer = g.addr, "200"
					}
					c, err := net.Dial("tcp", addr)
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					c.SetDeadline(time.Now().Add(patience))
					if i%2 == 0 {
						io.WriteString(c, line)
					}
					if got, err := io.ReadAll(c); string(got) != answer || err != nil {
						t.Errorf("tunnel %d: read %q, %v", i, got, err)
					}
				})
			}
			clients.Wait()
			g.log.waitLine(t, "tunnel", tunnels)
			mu.Lock()
			defer mu.Unlock()
			for _, line := range g.log.lines("tunnel") {
				if id := line["id"].(string); ids[id].String() != line["client"] {
					t.Errorf("the log says that %v is %s, the backend was told that %v is", line["client"], id, ids[id])
				}
			}
			if len(ids) != tunnels {
				t.Errorf("%d ids for %d tunnels", len(ids), tunnels)
			}
		})
	}
}

func TestNoHeaderIsSentUnlessAskedFor(t *testing.T) {
	needSignals(t)
	backend := startBackend(t, func(b *net.TCPConn) {
		b.CloseWrite()
		if got, _ := io.ReadAll(b); string(got) != "hello" {
			t.Errorf("the backend read %q", got)
		}
	})
	for _, args := range [][]string{nil, {"-send-proxy=off"}} {
		p := startProcess(t, append(args, "-listen=127.0.0.1:0=forward:"+backend)...)
		c, plain := openTunnel(t, p.addr, backend), connect(t, p.listeners(t, 2)[1]["addr"].(string))
		for _, c := range []*net.TCPConn{c, plain} {
			send(t, c, "hello")
			finish(t, c)
		}
		if line := p.log.waitLine(t, "tunnel", 2); line["id"] != nil || line["up"] != 5.0 {
			t.Errorf("account: %v", line)
		}
		p.end(t)
	}
}

// Several gateways may stand before one backend, and behind one port.
func TestNoTwoGatewaysGiveOneID(t *testing.T) {
	needSignals(t)
	backend, conns := startTold(t)
	ids := make(map[string]bool)
	for range 3 {
		p := startProcess(t, "-send-proxy=v2", "-forward="+backend)
		c := connect(t, p.addr)
		echo(t, c, "hello")
		finish(t, c)
		got := <-conns
		if line := p.log.waitLine(t, "tunnel", 1); line["id"] != got.id || got.source != layer.AddrPort(c.LocalAddr()) {
			t.Errorf("told %+v, logged %v", got, line)
		}
		ids[got.id] = true
		p.end(t)
	}
	if len(ids) != 3 {
		t.Errorf("ids: %v", ids)
	}
}
