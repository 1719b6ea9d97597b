package protocols

import (
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"gateway/internal/harness"
)

// Whatever clients do and however they end, the counters of -admin add up, and bytes
// are what clients and backends counted.

// books are what the test knows of its connections.
type books struct {
	connections, tunnels, refused, http, open atomic.Int64
	up, down, bodies                          atomic.Int64 // bytes
	backendGot, backendSent                   atomic.Int64

	mu   sync.Mutex
	kept []net.Conn // of tunnels that stay open
}

// counting starts a backend that sends back what it gets and counts both. After limit
// bytes, if that is more than 0, it ends the connection.
func (b *books) counting(t testing.TB, limit int64, end func(*net.TCPConn)) string {
	return harness.StartBackend(t, func(c *net.TCPConn) {
		buf := make([]byte, 32<<10)
		for total := int64(0); limit == 0 || total < limit; {
			n, err := c.Read(buf)
			if err != nil {
				break
			}
			m, _ := c.Write(buf[:n])
			b.backendGot.Add(int64(n))
			b.backendSent.Add(int64(m))
			total += int64(n)
		}
		end(c)
	})
}

// guest makes connections of one kind after the other.
type guest struct {
	*books
	t       *testing.T
	whole   *testing.T // the test for which connections stay open
	rand    *rand.Rand
	gateway *harness.Process
	forward string // a listener that forwards to an echo
	refuses string // one that forwards to nobody
	config  *tls.Config
	hello   string

	echo, closer, resetter, answers, nobody string
}

func (v *guest) connect(addr string, config *tls.Config) net.Conn {
	v.connections.Add(1)
	return harness.ConnectWith(v.whole, addr, config)
}

// some is one form, inside TLS or not.
func (v *guest) some() (harness.Form, *tls.Config) {
	forms := harness.Forms()
	config := v.config
	if v.rand.IntN(2) == 0 {
		config = nil
	}
	return forms[v.rand.IntN(len(forms))], config
}

// visit makes one connection.
func (v *guest) visit() {
	switch v.rand.IntN(10) {
	case 0:
		v.beforeTheRequest()
	case 1, 2:
		v.refusal()
	case 3:
		c := v.connect(v.refuses, nil)
		harness.ExpectEnd(v.t, c)
		v.refused.Add(1)
	case 4:
		c := v.connect(v.forward, nil)
		v.tunnels.Add(1)
		v.echoOnce(c, 5) // who leaves before that has no tunnel yet
		v.echoStream(c)
		v.leave(c)
	default:
		v.tunnel()
	}
}

// beforeTheRequest leaves before there is all of a request.
func (v *guest) beforeTheRequest() {
	v.refused.Add(1)
	var c net.Conn
	switch v.rand.IntN(4) {
	case 0:
		c = v.connect(v.gateway.Addr, nil) // says nothing
	case 1:
		c = v.connect(v.gateway.Addr, nil)
		harness.Send(v.t, c, "U2Fsd")
	case 2:
		c = v.connect(v.gateway.Addr, nil) // within its ClientHello
		harness.Send(v.t, c, v.hello[:len(v.hello)/2])
	default:
		c = v.connect(v.gateway.Addr, v.config)
		harness.Send(v.t, c, "U2Fsd")
	}
	v.leave(c)
}

// refusal asks for what is not to be had.
func (v *guest) refusal() {
	form, config := v.some()
	c := v.connect(v.gateway.Addr, config)
	switch v.rand.IntN(3) {
	case 0:
		harness.Send(v.t, c, form.Wrong)
	case 1:
		harness.Send(v.t, c, form.Ask(harness.Seal("sha256", "another secret", form.Scheme+"127.0.0.1:1")))
	default:
		harness.Send(v.t, c, form.Text(v.nobody))
	}
	if form.HTTP || form.IsWebSocket() {
		v.http.Add(1)
	} else {
		v.refused.Add(1)
	}
	io.Copy(io.Discard, c)
	c.Close()
}

// tunnel makes a tunnel, or an exchange of HTTP, and ends it in some way.
func (v *guest) tunnel() {
	form, config := v.some()
	c := v.connect(v.gateway.Addr, config)
	switch {
	case form.HTTP:
		v.http.Add(1)
		harness.Send(v.t, c, form.Text(v.answers)+form.Say)
		form.ExpectHello(v.t, c)
		v.bodies.Add(int64(len("hello")))
		v.leave(c)
		return
	case form.IsWebSocket():
		v.tunnels.Add(1)
		harness.Send(v.t, c, form.Text(v.echo))
		harness.ExpectAnswer(v.t, c, form.Welcome)
		for range v.rand.IntN(5) {
			harness.Send(v.t, c, form.Say)
			harness.Expect(v.t, c, form.Hear)
			v.up.Add(int64(len("hello")))
			v.down.Add(int64(len("hello")))
		}
		v.leave(c)
		return
	}
	v.tunnels.Add(1)
	switch v.rand.IntN(4) {
	case 0, 1: // the backend ends it
		backend := []string{v.closer, v.resetter}[v.rand.IntN(2)]
		harness.Send(v.t, c, form.Text(backend)+form.Say) // right behind the request
		form.ExpectHello(v.t, c)
		v.up.Add(int64(len("hello")))
		v.down.Add(int64(len("hello")))
		harness.ExpectEnd(v.t, c)
		c.Close()
	default:
		harness.Send(v.t, c, form.Text(v.echo))
		harness.ExpectAnswer(v.t, c, form.Welcome)
		v.echoStream(c)
		if v.rand.IntN(8) == 0 {
			v.open.Add(1)
			v.mu.Lock()
			v.kept = append(v.kept, c)
			v.mu.Unlock()
			return
		}
		v.leave(c)
	}
}

// echoStream sends some bytes, few or many, and reads them back.
func (v *guest) echoStream(c net.Conn) {
	for range v.rand.IntN(4) {
		n := 1 + v.rand.IntN(100)
		if v.rand.IntN(4) == 0 {
			n = v.rand.IntN(1 << 20)
		}
		v.echoOnce(c, n)
	}
}

func (v *guest) echoOnce(c net.Conn, n int) {
	text := harness.Noise(v.rand.Uint64(), n)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(text)
		sent <- err
	}()
	harness.Expect(v.t, c, string(text))
	if err := <-sent; err != nil {
		v.t.Fatal(err)
	}
	v.up.Add(int64(n))
	v.down.Add(int64(n))
}

// leave ends a connection: by FIN or by a reset, with nothing under way.
func (v *guest) leave(c net.Conn) {
	if v.rand.IntN(2) == 0 {
		harness.Reset(c)
	} else {
		harness.Socket(c).Close()
	}
}

func TestCountersAddUp(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv("STRESS_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("STRESS_SEED=%d", seed)
	harness.BothWays(t, func(t *testing.T, way string) {
		b := &books{}
		finish := func(c *net.TCPConn) { c.CloseWrite() }
		echo := b.counting(t, 0, finish)
		nobody := harness.ClosedPort(t)
		admin := harness.NewAdmin(t)
		p := harness.Start(t, append(flags, way, admin.Flag, "-half-close-timeout=1h",
			"-listen=127.0.0.1:0=forward:"+echo, "-listen=127.0.0.1:0=forward:"+nobody, "-addr=127.0.0.1:0")...)
		var addrs []string
		for _, line := range p.Listeners(t, 3) {
			addrs = append(addrs, line["addr"].(string))
		}
		guests := guest{books: b, whole: t, gateway: p, config: trusting, hello: clientHello(t, trusting),
			forward: addrs[1], refuses: addrs[2], echo: echo, nobody: nobody,
			closer:   b.counting(t, int64(len("hello")), finish),
			resetter: b.counting(t, int64(len("hello")), func(c *net.TCPConn) { harness.Delivered(t, c); harness.Reset(c) }),
			answers: harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				w.Header()["Content-Type"] = nil
				w.Header().Set("X-Backend", "game")
				w.Header().Set("Connection", "close")
				w.Write(body)
			}),
		}
		stop := make(chan struct{})
		var looking sync.WaitGroup
		defer looking.Wait()
		defer sync.OnceFunc(func() { close(stop) })()
		looking.Go(func() { // all the time
			for before := (harness.Metrics)(nil); ; {
				now := admin.Metrics(t)
				if n := now.Unaccounted(); n != 0 {
					t.Errorf("%v connections are in none of the sums", n)
					return
				}
				if fell := now.Fell(before); len(fell) > 0 {
					t.Errorf("counters fell: %q", fell)
					return
				}
				before = now
				select {
				case <-stop:
					return
				default:
				}
			}
		})
		t.Run("guests", func(t *testing.T) {
			for i := range 16 {
				t.Run(fmt.Sprint(i), func(t *testing.T) {
					t.Parallel()
					v := guests
					v.t, v.rand = t, rand.New(rand.NewPCG(seed, uint64(i)))
					for range 40 {
						v.visit()
					}
				})
			}
		})
		if t.Failed() {
			return
		}
		// Some of those that are left are cut, by the one way or the other.
		cut := int64(min(2, len(b.kept)))
		for _, c := range b.kept[:cut] {
			var answer struct{ Cut int }
			admin.JSON(t, "POST", "/api/tunnels/cut", fmt.Sprintf(`{"id":%q}`, idOf(t, admin, c)), &answer)
			if answer.Cut != 1 {
				t.Errorf("%d were cut, want 1", answer.Cut)
			}
		}
		open := b.open.Load() - cut
		equal := func(what string, got float64, want int64) bool {
			if got != float64(want) {
				t.Errorf("%s: %v, want %d", what, got, want)
			}
			return got == float64(want)
		}
		var m harness.Metrics
		harness.Eventually(t, "all has come to its end", func() bool {
			m = admin.Metrics(t)
			return m["gateway_tunnels_active"] == float64(open) && m["gateway_connections_pending"] == 0 &&
				m.Sum("gateway_accepted_total") == float64(b.connections.Load())
		})
		refusals, byHTTP := m.Sum("gateway_refusals_total"), 0.0
		for key, n := range m {
			if strings.HasPrefix(key, "gateway_connections_total{") && (strings.Contains(key, `form="http`)) {
				byHTTP += n
			}
		}
		equal("connections", m.Sum("gateway_connections_total"), b.connections.Load())
		equal("tunnels, refusals, HTTP and what is open", m.Sum("gateway_tunnels_ended_total")+refusals+byHTTP+m["gateway_tunnels_active"], b.connections.Load())
		equal("tunnels", m["gateway_tunnels_opened_total"], b.tunnels.Load())
		equal("refusals", refusals, b.refused.Load())
		equal("connections of HTTP", byHTTP, b.http.Load())
		equal("cut", m.Sum("gateway_tunnels_ended_total", `how="cut"`), cut)
		equal("up", m.Sum("gateway_bytes_total", `direction="up"`)-m.Sum("gateway_bytes_total", `path="http"`, `direction="up"`), b.up.Load())
		equal("down", m.Sum("gateway_bytes_total", `direction="down"`)-m.Sum("gateway_bytes_total", `path="http"`, `direction="down"`), b.down.Load())
		equal("to backends", m.Sum("gateway_bytes_total", `direction="up"`)-m.Sum("gateway_bytes_total", `path="http"`, `direction="up"`), b.backendGot.Load())
		equal("from backends", m.Sum("gateway_bytes_total", `direction="down"`)-m.Sum("gateway_bytes_total", `path="http"`, `direction="down"`), b.backendSent.Load())
		if got, least := m.Sum("gateway_bytes_total", `path="http"`, `direction="up"`), b.bodies.Load(); got < float64(least) {
			t.Errorf("bodies: %v, want at least %d", got, least)
		}
		equal("to the backend that is forwarded to", m.Sum("gateway_backend_failures_total", fmt.Sprintf(`backend=%q`, nobody)),
			int64(m.Sum("gateway_accepted_total", fmt.Sprintf(`listener=%q`, addrs[2]))))
		for _, c := range b.kept {
			c.Close()
		}
		harness.Eventually(t, "nothing is open", func() bool { return admin.Metrics(t)["gateway_tunnels_active"] == 0 })
	})
}

// idOf returns the id of a client's tunnel.
func idOf(t testing.TB, admin *harness.Admin, c net.Conn) string {
	t.Helper()
	var list struct{ Tunnels []struct{ ID, Client string } }
	admin.JSON(t, "GET", "/api/tunnels?limit=10000", "", &list)
	for _, tun := range list.Tunnels {
		if tun.Client == harness.Socket(c).LocalAddr().String() {
			return tun.ID
		}
	}
	t.Fatalf("the tunnel of %s is not listed", c.LocalAddr())
	return ""
}
