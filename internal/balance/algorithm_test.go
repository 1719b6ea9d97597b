package balance

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestAlgorithmsHaveHAProxysNames(t *testing.T) {
	for a, name := range map[Algorithm]string{
		First: "first", RoundRobin: "roundrobin", Random: "random", LeastConn: "leastconn", Source: "source",
	} {
		if got, err := ParseAlgorithm(name); got != a || err != nil || a.String() != name {
			t.Errorf("%q is %v, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "First", "rr", "round-robin", "source "} {
		if a, err := ParseAlgorithm(name); err != ErrAlgorithm {
			t.Errorf("%q is %v, %v", name, a, err)
		}
	}
}

// The number of picks puts 2 % more than seven standard deviations away.
const manyPicks = 40_000

func TestEachTargetHasTheShareOfItsWeight(t *testing.T) {
	weights := map[string]float64{"a": 5, "b": 1, "c": 3, "d": 11}
	for _, tt := range []struct {
		algorithm Algorithm
		tolerance float64 // of the law by which it picks
	}{{RoundRobin, 0}, {Random, .02}, {LeastConn, 0}, {Source, .02}} {
		t.Run(tt.algorithm.String(), func(t *testing.T) {
			g := newTestGroup(t, tt.algorithm, "a*5,b*1,c*3,d*11")
			got := make(map[string]int)
			clients(manyPicks, func(ip netip.Addr) {
				a := g.Start(ip)
				got[next(&a, noon)]++
				a.Succeeded(noon)
				a.Release()
			})
			checkShares(t, got, weights, tt.tolerance)
		})
	}
}

func TestEachTargetHasItsShareOfWhatASkippedOneLeaves(t *testing.T) {
	for _, tt := range []struct {
		algorithm Algorithm
		tolerance float64
	}{{RoundRobin, .0002}, {Random, .02}, {LeastConn, .0002}, {Source, .02}} {
		t.Run(tt.algorithm.String(), func(t *testing.T) {
			g := newTestGroup(t, tt.algorithm, "a*2,b*2,c*2,d")
			breakTarget(t, g, "c")
			got := make(map[string]int)
			clients(manyPicks, func(ip netip.Addr) {
				a := g.Start(ip)
				got[next(&a, noon)]++
				a.Release()
			})
			checkShares(t, got, map[string]float64{"a": 2, "b": 2, "d": 1}, tt.tolerance)
		})
	}
}

// breakTarget has one target fail.
func breakTarget(t testing.TB, g *Group, name string) {
	t.Helper()
	a := g.Start(anyone)
	for got := next(&a, noon); got != name; got = next(&a, noon) {
		if got == "" {
			t.Fatalf("%s never came", name)
		}
	}
	a.Failed(noon)
}

func TestFirstTakesWrittenTargetsInOrder(t *testing.T) {
	g := newTestGroup(t, First, "c,a*256,b*2")
	for range 100 {
		if got := order(g, noon); got != "c a b" {
			t.Fatalf("got %s", got)
		}
	}
}

func TestRoundRobinIsSmooth(t *testing.T) {
	for targets, want := range map[string]string{
		"a*5,b,c":       "a a b a c a a a a b a c a a", // the example of nginx's commit 52327e0627f4
		"a,b,c":         "a b c a b c",
		"a*2,b*2":       "a b a b",
		"a*256,b*128":   "a b a a b a",
		"a*4,b*3,c*2,d": "a b c a b d a c b a a b c",
		"a*7":           "a a a",
	} {
		g := newTestGroup(t, RoundRobin, targets)
		var got []string
		for range strings.Fields(want) {
			got = append(got, first(g, noon))
		}
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: got %v, want %s", targets, got, want)
		}
	}
}

func TestRoundRobinOfWeightsOfDNSKeepsTheirShares(t *testing.T) {
	g := newService(t, RoundRobin, target("a", 1, 65535), target("b", 1, 32768), target("c", 1, 1))
	got := make(map[string]int)
	for range manyPicks {
		got[first(g, noon)]++
	}
	checkShares(t, got, map[string]float64{"a": 65535, "b": 32768, "c": 1}, .001)
	if got["c"] == 0 {
		t.Error("the least weight never had its turn")
	}
	if turns := len(g.list.Load().levels[0].turns); turns > maxTurns+MaxTargets {
		t.Errorf("a period of %d turns", turns)
	}
}

func TestLeastConnFillsWhoHasFewestForItsWeight(t *testing.T) {
	g := newTestGroup(t, LeastConn, "a*4,b*2,c")
	held := make(map[string][]*Attempt)
	take := func() string {
		a := g.Start(anyone)
		name := next(&a, noon)
		held[name] = append(held[name], &a)
		return name
	}
	for range 700 {
		take()
	}
	if len(held["a"]) != 400 || len(held["b"]) != 200 || len(held["c"]) != 100 {
		t.Fatalf("a has %d, b %d, c %d", len(held["a"]), len(held["b"]), len(held["c"]))
	}
	for _, a := range held["b"][:50] {
		a.Succeeded(noon)
		a.Release()
		a.Release() // once more does no harm
	}
	for range 50 {
		if name := take(); name != "b" {
			t.Fatalf("%s was taken while b had less to do", name)
		}
	}
	for _, attempts := range held {
		for _, a := range attempts {
			a.Failed(noon)
			a.Release()
		}
	}
	for _, m := range g.list.Load().levels[0].members {
		if n := m.server.live.Load(); n != 0 {
			t.Errorf("%s has %d connections, none of which is left", m.server.addr.Host, n)
		}
	}
}

func pickFor(g *Group, ip netip.Addr) string {
	a := g.Start(ip)
	defer a.Release()
	return next(&a, noon)
}

// No chance is in a hash: these clients are the same in every run.
const someClients = 8000

func TestSourceMovesOnlyTheClientsOfATargetThatLeavesOrIsSkipped(t *testing.T) {
	for _, n := range []int{2, 3, 8, 16} {
		var all []Target
		for i := range n {
			all = append(all, target(fmt.Sprintf("t%d", i), 1, 1))
		}
		before := newService(t, Source, all...)
		left := newService(t, Source, all...)
		left.Update(all[1:])
		skipped := newService(t, Source, all...)
		breakTarget(t, skipped, "t0")
		back := newService(t, Source, all[1:]...)
		back.Update(slices.Clone(all))

		moved := 0
		clients(someClients, func(ip netip.Addr) {
			was, is := pickFor(before, ip), pickFor(left, ip)
			if was != is {
				moved++
			}
			if was == is != (was != "t0") {
				t.Fatalf("%d targets: %v moves from %s to %s when t0 leaves", n, ip, was, is)
			}
			if got := pickFor(skipped, ip); got != is {
				t.Fatalf("%d targets: %v goes to %s while t0 is skipped, to %s when it is gone", n, ip, got, is)
			}
			if got := pickFor(back, ip); got != was {
				t.Fatalf("%d targets: %v goes to %s when t0 is back, was at %s", n, ip, got, was)
			}
		})
		if share := float64(moved) / someClients; share > 1/float64(n)+.05 {
			t.Errorf("%d targets: %.1f %% of the clients moved", n, 100*share)
		}
	}
}

func TestSourceWithWeightsMovesOnlyTheClientsOfATargetThatLeaves(t *testing.T) {
	all := []Target{target("a", 1, 3), target("b", 1, 7), target("c", 1, 1), target("d", 1, 9)}
	before, after := newService(t, Source, all...), newService(t, Source, all[1:]...)
	clients(someClients, func(ip netip.Addr) {
		if was, is := pickFor(before, ip), pickFor(after, ip); was != is && was != "a" {
			t.Fatalf("%v moves from %s to %s when a leaves", ip, was, is)
		}
	})
}

func TestSourceHashesAlikeInEveryGateway(t *testing.T) {
	// Worked out by another program. They must never change: gateways of two
	// versions may serve the same clients.
	g := newTestGroup(t, Source, "a,b,c,d*2")
	for ip, want := range map[string]string{
		"192.0.2.1": "d", "192.0.2.2": "c", "192.0.2.3": "d", "192.0.2.4": "b",
		"192.0.2.9": "a", "2001:db8::1": "d", "2001:db8:0:1::1": "c",
	} {
		if got := pickFor(g, netip.MustParseAddr(ip)); got != want {
			t.Errorf("%s goes to %s, want %s", ip, got, want)
		}
	}
}

func TestSourceTakesAnIPv6NetworkAndAMappedIPv4AddressForOneClient(t *testing.T) {
	g := newTestGroup(t, Source, "a,b,c,d,e,f,g,h")
	one := func(want bool, a, b string) {
		t.Helper()
		var ga, gb []string
		for i := range byte(64) { // so many that chance does not make them alike
			x, y := netip.MustParseAddr(a), netip.MustParseAddr(b)
			ga = append(ga, pickFor(g, plus(x, i)))
			gb = append(gb, pickFor(g, plus(y, i)))
		}
		if slices.Equal(ga, gb) != want {
			t.Errorf("%s and %s are one client: %t", a, b, !want)
		}
	}
	one(true, "192.0.2.0", "::ffff:192.0.2.0")
	one(true, "2001:db8:0:1::", "2001:db8:0:1:ffff:1234:5678:9abc")
	one(false, "2001:db8:0:1::", "2001:db8:1:1::")
	one(false, "192.0.2.0", "192.0.3.0")
	pickFor(g, netip.Addr{}) // is as good as any
}

// plus changes the byte that ends an IPv4 address or an IPv6 /64.
func plus(ip netip.Addr, n byte) netip.Addr {
	if b := ip.As16(); !ip.Unmap().Is4() {
		b[7] += n
		return netip.AddrFrom16(b)
	}
	b := ip.As16()
	b[15] += n
	if ip.Is4In6() {
		return netip.AddrFrom16(b)
	}
	return netip.AddrFrom16(b).Unmap()
}

func TestATargetThatIsListedTwiceHasTwoShares(t *testing.T) {
	for _, algorithm := range []Algorithm{RoundRobin, Random, LeastConn, Source} {
		written := newTestGroup(t, algorithm, "a,b,a")
		service := newService(t, algorithm, target("a", 1, 1), target("a", 1, 1), target("b", 1, 1))
		service.Update([]Target{target("a", 1, 1), target("b", 1, 1), target("a", 1, 1)})
		for _, g := range []*Group{written, service} {
			got := make(map[string]int)
			clients(manyPicks, func(ip netip.Addr) { got[pickFor(g, ip)]++ })
			checkShares(t, got, map[string]float64{"a": 2, "b": 1}, .02)
		}
	}
}
