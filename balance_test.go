package main

import (
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/balance"
)

// -balance, as clients see it: which target they meet.

// sequence returns the names that n clients meet, one after the other.
func (e *entrance) sequence(t testing.TB, route string, n int) string {
	t.Helper()
	var names strings.Builder
	for range n {
		name, err := e.visit(t, route)
		if err != nil {
			t.Fatal(err)
		}
		names.WriteString(name)
	}
	return names.String()
}

// crowd has n clients come, some at a time, and counts whom they meet. from
// returns a client's IP address; nil is any.
func (e *entrance) crowd(t testing.TB, route string, n int, from func(i int) string) map[string]int {
	t.Helper()
	met := make(map[string]int)
	var mu sync.Mutex
	var next atomic.Int64
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				addr, line := e.enter(t, route)
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
	onEntrances(t, nil, func(t *testing.T, e *entrance) {
		all := startTargets(t, "abc")
		route := all[2].addr + "," + all[0].addr + "*256," + all[1].addr // weights say nothing here
		if got := e.sequence(t, route, 5); got != "ccccc" {
			t.Errorf("clients met %s", got)
		}
	})
}

func TestRoundRobinIsSmooth(t *testing.T) {
	onEntrances(t, balancing("roundrobin"), func(t *testing.T, e *entrance) {
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
			if got := e.sequence(t, route, len(want)); got != want {
				t.Errorf("weights of %s: clients met %s, want %s", route, got, want)
			}
		}
	})
}

// The gateway tells its loops and goroutines apart no more than its clients.
func TestClientsAreSharedOutByWeight(t *testing.T) {
	const n = 700
	weights := map[string]float64{"a": 5, "b": 1, "c": 1}
	for algorithm, from := range map[string]func(i int) string{
		"roundrobin": nil,
		"random":     nil,
		"source":     func(i int) string { return fmt.Sprintf("127.1.%d.%d", i>>8, i&255) },
	} {
		t.Run(algorithm, func(t *testing.T) {
			most := 3 // entrances
			if algorithm != "roundrobin" {
				most = 1
			}
			if from != nil {
				needSources(t)
			}
			onSomeEntrances(t, most, balancing(algorithm), func(t *testing.T, e *entrance) {
				all := startTargets(t, "abc")
				met := e.crowd(t, all[0].addr+"*5,"+all[1].addr+","+all[2].addr, n, from)
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
	onEntrances(t, balancing("leastconn"), func(t *testing.T, e *entrance) {
		all := startTargets(t, "abc")
		route := all[0].addr + "*5," + all[1].addr + "," + all[2].addr
		live := make(map[string][]*net.TCPConn)
		for range 28 {
			c, name := e.open(t, route)
			live[name] = append(live[name], c)
		}
		if a, b, c := len(live["a"]), len(live["b"]), len(live["c"]); a != 20 || b != 4 || c != 4 {
			t.Errorf("%d, %d and %d tunnels, want 20, 4 and 4", a, b, c)
		}
		// Whose clients leave gets the next ones.
		for _, c := range live["b"] {
			finish(t, c)
		}
		e.log.waitLine(t, "tunnel", len(live["b"]))
		for range live["b"] {
			if _, name := e.open(t, route); name != "b" {
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

// occupy puts a connection's weight on the first target of a route until the test
// ends, and returns the route's group.
func occupy(t testing.TB, g *testGateway, route string) *balance.Group {
	t.Helper()
	group := g.rules.Load().routes.Group(parseRoute(t, route), balanceClock())
	attempt := group.Start(netip.Addr{})
	if addr, _ := attempt.Next(balanceClock()); !strings.HasPrefix(route, addr.String()) {
		t.Fatalf("the first pick of %s is %s", route, addr)
	}
	t.Cleanup(attempt.Release)
	return group
}

// picks returns the port of the target that a client would get.
func picks(group *balance.Group) string {
	attempt := group.Start(netip.Addr{})
	defer attempt.Release()
	addr, _ := attempt.Next(balanceClock())
	return portOf(addr.HostPort())
}

// wantIdle waits until nothing counts against the second target of a route
// whose first is occupied. (The log is written a moment before.) Of equals, two
// picks in a row would be different ones.
func wantIdle(t testing.TB, group *balance.Group, second string) {
	t.Helper()
	port := portOf(second)
	eventually(t, second+" has no connection", func() bool {
		one, next := picks(group), picks(group)
		return one == port && next == port
	})
}

// Whatever ends a tunnel, its target has one less.
func TestLeastConnForgetsATunnelHoweverItEnds(t *testing.T) {
	onEntrances(t, balancing("leastconn"), func(t *testing.T, e *entrance) {
		a, b := startTarget(t, "a"), startTarget(t, "b")
		route := e.spell(routeTo(a, b))
		group := occupy(t, e.testGateway, route)
		for i, tt := range endings {
			c, name := e.open(t, route)
			if name != "b" {
				t.Fatalf("%s: a client met %s, which has a tunnel more", tt.name, name)
			}
			tt.end(c, b)
			if line := e.log.waitLine(t, "tunnel", i+1); line["ended_by"] != tt.by || line["how"] != tt.how {
				t.Errorf("%s: logged %v", tt.name, line)
			}
			wantIdle(t, group, b.addr)
		}
	})
}

func TestLeastConnForgetsASilentTunnelThatIsCut(t *testing.T) {
	onEntrances(t, func(cfg *Config) {
		balancing("leastconn")(cfg)
		cfg.IdleTimeout = 100 * time.Millisecond
	}, func(t *testing.T, e *entrance) {
		a, b := startTarget(t, "a"), startTarget(t, "b")
		route := e.spell(routeTo(a, b))
		group := occupy(t, e.testGateway, route)
		c, name := e.open(t, route)
		if name != "b" {
			t.Errorf("met %s", name)
		}
		if _, err := io.ReadAll(c); err != nil && !isReset(err) {
			t.Error(err)
		}
		wantIdle(t, group, b.addr)
	})
}

// A dial counts as long as it lasts. One that is refused makes the target one
// that is skipped, for a second.
func TestLeastConnForgetsADialThatIsRefused(t *testing.T) {
	onSomeEntrances(t, 2, balancing("leastconn"), func(t *testing.T, e *entrance) {
		a, b := startTarget(t, "a"), startTarget(t, "b")
		route := e.spell(routeTo(a, b))
		group := occupy(t, e.testGateway, route)
		b.kill()
		for range 3 {
			e.wantVisit(t, route, "a")
		}
		b.comeBack(t)
		wantIdle(t, group, b.addr)
	})
}

func TestSourceSendsAClientToTheSameTargetThroughAnyGateway(t *testing.T) {
	needSources(t)
	targets := startTargets(t, "abcde")
	route := routeTo(targets...)
	line := sealedRoute(t, route)
	gateways := map[string]string{
		"loops":      startProcess(t, "-balance=source").addr,
		"goroutines": startProcess(t, "-balance=source", "-loops=-1").addr,
		"forward":    startProcess(t, "-balance=source", "-forward="+route).addr,
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
	needSources(t)
	onSomeEntrances(t, 3, balancing("source"), func(t *testing.T, e *entrance) {
		const clients = 40
		targets := startTargets(t, "abcd")
		addr, line := e.enter(t, routeTo(targets...))
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
	needSources(t)
	onEntrances(t, func(cfg *Config) {
		balancing("source")(cfg)
		cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	}, func(t *testing.T, e *entrance) {
		addr, line := e.enter(t, routeTo(startTargets(t, "abcde")...))
		met := make(map[string]bool)
		for i := range 20 {
			from := fmt.Sprintf("127.1.4.%d", i)
			direct, err := meet(from, addr, line)
			if err != nil {
				t.Fatal(err)
			}
			header := fmt.Sprintf("PROXY TCP4 %s 127.0.0.1 %d 80\r\n", from, 1000+i)
			c := connect(t, addr) // from 127.0.0.1
			send(t, c, header+line)
			if line != "" {
				expect(t, c, "200")
			}
			expect(t, c, direct)
			c.Close()
			met[direct] = true
		}
		if len(met) < 2 {
			t.Errorf("all clients met %v", met)
		}
	})
}

func TestASingleTargetCostsNoTableEntry(t *testing.T) {
	g := startConfigured(t, balancing("leastconn"), nil)
	entries := func() (n int) {
		buckets := reflect.ValueOf(g.rules.Load().routes).Elem().FieldByName("buckets")
		for i := range buckets.Len() {
			for j := range buckets.Index(i).Len() {
				if !buckets.Index(i).Index(j).FieldByName("v").IsNil() {
					n++
				}
			}
		}
		return n
	}
	for route, want := range map[string]int{"127.0.0.1:4000": 0, "game.test:4000": 0, "127.0.0.1:4000*7": 0, "http://game.test:4000": 0,
		"127.0.0.1:4000,127.0.0.1:4001": 1} {
		r := parseRoute(t, route)
		s, u := session{}, upstream{}
		before := entries()
		if err := u.choose(t.Context(), g.rules.Load(), &s, r); err != nil || u.backend != r.Target(0).Addr {
			t.Errorf("%s: chose %s, %v", route, u.backend, err)
		}
		u.release()
		if got := entries() - before; got != want {
			t.Errorf("%s: %d entries, want %d", route, got, want)
		}
		if allocs := testing.AllocsPerRun(100, func() { u.choose(t.Context(), g.rules.Load(), &s, r) }); want == 0 && allocs > 0 {
			t.Errorf("%s: %v allocations", route, allocs)
		}
	}
}
