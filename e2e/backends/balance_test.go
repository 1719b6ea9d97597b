package backends

import (
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/harness"
)

// -balance, as clients see it: which target they meet.

// sequence returns the names that n clients meet, one after the other.
func (w *wayIn) sequence(t testing.TB, route string, n int) string {
	t.Helper()
	var names strings.Builder
	for range n {
		name, err := w.visit(t, route)
		if err != nil {
			t.Fatal(err)
		}
		names.WriteString(name)
	}
	return names.String()
}

// crowd has n clients come, some at a time, and counts whom they meet. from
// returns a client's IP address; nil is any.
func (w *wayIn) crowd(t testing.TB, route string, n int, from func(i int) string) map[string]int {
	t.Helper()
	met := make(map[string]int)
	var mu sync.Mutex
	var next atomic.Int64
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				addr, line := w.enter(t, route)
				ip := ""
				if from != nil {
					ip = from(i)
				}
				name, err := meet(ip, addr, line)
				if err != nil {
					t.Errorf("client %d: %v", i, err)
				}
				mu.Lock()
				met[name]++
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	return met
}

func TestFirstTakesThemInOrder(t *testing.T) {
	t.Parallel()
	onEachWayIn(t, nil, func(t *testing.T, w *wayIn) {
		all := startTargets(t, "abc")
		route := all[2].addr + "," + all[0].addr + "*256," + all[1].addr // weights say nothing here
		if got := w.sequence(t, route, 5); got != "ccccc" {
			t.Errorf("clients met %s", got)
		}
	})
}

func TestRoundRobinIsSmooth(t *testing.T) {
	t.Parallel()
	onEachWayIn(t, []string{"-balance=roundrobin"}, func(t *testing.T, w *wayIn) {
		all := startTargets(t, "abc")
		a, b, c := all[0].addr, all[1].addr, all[2].addr
		for route, want := range map[string]string{
			a + "*5," + b + "," + c:                "aabacaaaabacaa",
			a + "," + b + "," + c:                  "abcabc",
			a + "*2," + b + "*2":                   "abab",
			a + "," + a + "," + b:                  "aabaab", // a target that is written twice is two
			a + "*3,tcp://" + b:                    "aabaaaba",
			strings.Repeat(a+",", 15) + b:          strings.Repeat("a", 15) + "b",
			a + "*256," + b + "*256," + c + "*128": "abcababcab",
		} {
			if got := w.sequence(t, route, len(want)); got != want {
				t.Errorf("weights of %s: clients met %s, want %s", route, got, want)
			}
		}
	})
}

// The gateway tells its loops and goroutines apart no more than its clients.
func TestClientsAreSharedOutByWeight(t *testing.T) {
	t.Parallel()
	const n = 700
	weights := map[string]float64{"a": 5, "b": 1, "c": 1}
	for algorithm, from := range map[string]func(i int) string{
		"roundrobin": nil,
		"random":     nil,
		"source":     func(i int) string { return fmt.Sprintf("127.1.%d.%d", i>>8, i&255) },
	} {
		t.Run(algorithm, func(t *testing.T) {
			most := 3 // ways in
			if algorithm != "roundrobin" {
				most = 1
			}
			if from != nil {
				needSources(t)
			}
			onSomeWaysIn(t, most, []string{"-balance=" + algorithm}, func(t *testing.T, w *wayIn) {
				all := startTargets(t, "abc")
				met := w.crowd(t, all[0].addr+"*5,"+all[1].addr+","+all[2].addr, n, from)
				for name, weight := range weights {
					share := weight / 7
					// Chance may take it five standard deviations off. Turns leave
					// nothing to chance: each is taken once.
					most := 5 * math.Sqrt(share*(1-share)*n)
					if algorithm == "roundrobin" {
						most = .5
					}
					if off := float64(met[name]) - share*n; math.Abs(off) > most {
						t.Errorf("%s was met by %d of %d clients, want %.0f±%.0f", name, met[name], n, share*n, most)
					}
				}
			})
		})
	}
}

// needSources skips a test where clients cannot come from all of 127.0.0.0/8.
func needSources(t testing.TB) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.1.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	ln.Close()
}

func TestLeastConnEvensOutLiveTunnels(t *testing.T) {
	t.Parallel()
	onEachWayIn(t, []string{"-balance=leastconn"}, func(t *testing.T, w *wayIn) {
		all := startTargets(t, "abc")
		route := all[0].addr + "*5," + all[1].addr + "," + all[2].addr
		live := make(map[string][]*net.TCPConn)
		for range 28 {
			c, name := w.open(t, route)
			live[name] = append(live[name], c)
		}
		if a, b, c := len(live["a"]), len(live["b"]), len(live["c"]); a != 20 || b != 4 || c != 4 {
			t.Errorf("%d, %d and %d tunnels, want 20, 4 and 4", a, b, c)
		}
		// Whose clients leave gets the next ones.
		for _, c := range live["b"] {
			harness.Finish(t, c)
		}
		w.waitLine(t, "tunnel", len(live["b"]))
		for range live["b"] {
			if _, name := w.open(t, route); name != "b" {
				t.Errorf("a client met %s, want b", name)
			}
		}
	})
}

// endings are the ways in which a tunnel may end, and what the log says of it.
var endings = []struct {
	name, by, how string
	end           func(c *net.TCPConn, target *target)
}{
	{"client's FIN", "client", "fin", func(c *net.TCPConn, _ *target) { c.CloseWrite() }},
	{"client's close", "client", "fin", func(c *net.TCPConn, _ *target) { c.Close() }},
	{"client's reset", "client", "reset", func(c *net.TCPConn, _ *target) { c.SetLinger(0); c.Close() }},
	{"target's FIN", "backend", "fin", func(c *net.TCPConn, b *target) { b.finish(); io.ReadAll(c); c.Close() }},
	{"target's reset", "backend", "reset", func(c *net.TCPConn, b *target) { b.cut(); io.ReadAll(c); c.Close() }},
}

// finish has a target end its tunnels.
func (b *target) finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		c.(*net.TCPConn).CloseWrite()
	}
}

// occupy has a client stay on the first target of a route.
func (w *wayIn) occupy(t testing.TB, route, first string) *net.TCPConn {
	t.Helper()
	c, name := w.open(t, route)
	if name != first {
		t.Fatalf("the first client of %s met %s", route, name)
	}
	return c
}

// openOn connects a client that stays, on a target that is to be the next. (A client
// that has just left may still count.)
func (w *wayIn) openOn(t testing.TB, route, target string) (c *net.TCPConn) {
	t.Helper()
	harness.Eventually(t, "a client meets "+target, func() bool {
		var name string
		if c, name = w.open(t, route); name != target {
			c.Close()
		}
		return name == target
	})
	return c
}

// wantIdle waits until nothing counts against the second target of a route whose
// first is occupied. (The log is written a moment before.) Of equals, two clients in
// a row would meet different ones.
func (w *wayIn) wantIdle(t testing.TB, route, second string) {
	t.Helper()
	harness.Eventually(t, second+" has no connection", func() bool {
		for range 2 {
			if name, err := w.visit(t, route); err != nil {
				t.Fatal(err)
			} else if name != second {
				return false
			}
		}
		return true
	})
}

// Whatever ends a tunnel, its target has one less.
func TestLeastConnForgetsATunnelHoweverItEnds(t *testing.T) {
	t.Parallel()
	onEachWayIn(t, []string{"-balance=leastconn"}, func(t *testing.T, w *wayIn) {
		a, b := startTarget(t, "a"), startTarget(t, "b")
		route := routeTo(a, b)
		w.occupy(t, route, "a")
		for _, tt := range endings {
			c := w.openOn(t, route, "b")
			tt.end(c, b)
			if line := w.waitClient(t, "tunnel", c); line["ended_by"] != tt.by || line["how"] != tt.how {
				t.Errorf("%s: logged %v", tt.name, line)
			}
			w.wantIdle(t, route, "b")
		}
	})
}

func TestLeastConnForgetsASilentTunnelThatIsCut(t *testing.T) {
	t.Parallel()
	onEachWayIn(t, []string{"-balance=leastconn", "-idle-timeout=3s"}, func(t *testing.T, w *wayIn) {
		a, b := startTarget(t, "a"), startTarget(t, "b")
		route := routeTo(a, b)
		stays := w.occupy(t, route, "a")
		var talking sync.WaitGroup
		talking.Go(func() {
			for {
				if _, err := stays.Write([]byte("still here")); err != nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
		defer talking.Wait()
		defer stays.Close()
		c := w.openOn(t, route, "b")
		if _, err := io.ReadAll(c); err != nil && !harness.IsReset(err) {
			t.Error(err)
		}
		w.wantIdle(t, route, "b")
	})
}

// A dial counts as long as it lasts. One that is refused makes the target one
// that is skipped, for a second.
func TestLeastConnForgetsADialThatIsRefused(t *testing.T) {
	t.Parallel()
	onSomeWaysIn(t, 2, []string{"-balance=leastconn"}, func(t *testing.T, w *wayIn) {
		a, b := startTarget(t, "a"), startTarget(t, "b")
		route := routeTo(a, b)
		w.occupy(t, route, "a")
		b.kill()
		for range 3 {
			w.wantVisit(t, route, "a")
		}
		b.comeBack(t)
		w.wantIdle(t, route, "b")
	})
}

func TestSourceSendsAClientToTheSameTargetThroughAnyGateway(t *testing.T) {
	t.Parallel()
	needSources(t)
	targets := startTargets(t, "abcde")
	route := routeTo(targets...)
	line := harness.Line(route)
	gateways := map[string]string{
		"loops":      harness.Start(t, "-balance=source").Addr,
		"goroutines": harness.Start(t, "-balance=source", "-loops=-1").Addr,
		"forward":    harness.Start(t, "-balance=source", "-forward="+route).Addr,
	}
	met := make(map[string]int)
	for i := range 20 {
		from := fmt.Sprintf("127.1.2.%d", i)
		first := ""
		for kind, gateway := range gateways {
			for range 2 { // from two ports
				line := line
				if kind == "forward" {
					line = ""
				}
				name, err := meet(from, gateway, line)
				if err != nil {
					t.Fatal(err)
				}
				if first == "" {
					first = name
					met[name]++
				}
				if name != first {
					t.Errorf("%s met %s first, and then %s by %s", from, first, name, kind)
				}
			}
		}
	}
	if len(met) < 3 {
		t.Errorf("20 clients met only %v", met)
	}
}

func TestSourceMovesOnlyTheClientsOfADeadTarget(t *testing.T) {
	t.Parallel()
	needSources(t)
	onSomeWaysIn(t, 3, []string{"-balance=source"}, func(t *testing.T, w *wayIn) {
		const clients = 40
		targets := startTargets(t, "abcd")
		addr, line := w.enter(t, routeTo(targets...))
		meetings := func() (met [clients]string) {
			for i := range met {
				var err error
				if met[i], err = meet(fmt.Sprintf("127.1.3.%d", i), addr, line); err != nil {
					t.Fatal(err)
				}
			}
			return met
		}
		before := meetings()
		dead := before[0]
		if !slices.ContainsFunc(before[:], func(name string) bool { return name != dead }) {
			t.Fatalf("all clients met %s", dead)
		}
		targets[strings.Index("abcd", dead)].kill()
		for i, name := range meetings() {
			if (before[i] == dead) == (before[i] == name) {
				t.Errorf("client %d met %s before and %s after the death of %s", i, before[i], name, dead)
			}
		}
	})
}

// It is the client's address that counts, not that of the proxy in front.
func TestSourceBelievesTrustedProxies(t *testing.T) {
	t.Parallel()
	needSources(t)
	onEachWayIn(t, []string{"-balance=source", "-trusted-proxies=127.0.0.1/32"}, func(t *testing.T, w *wayIn) {
		addr, line := w.enter(t, routeTo(startTargets(t, "abcde")...))
		met := make(map[string]bool)
		for i := range 20 {
			from := fmt.Sprintf("127.1.4.%d", i)
			direct, err := meet(from, addr, line)
			if err != nil {
				t.Fatal(err)
			}
			header := fmt.Sprintf("PROXY TCP4 %s 127.0.0.1 %d 80\r\n", from, 1000+i)
			c := harness.Connect(t, addr) // from 127.0.0.1
			harness.Send(t, c, header+line)
			if line != "" {
				harness.Expect(t, c, "200")
			}
			harness.Expect(t, c, direct)
			c.Close()
			met[direct] = true
		}
		if len(met) < 2 {
			t.Errorf("all clients met %v", met)
		}
	})
}
