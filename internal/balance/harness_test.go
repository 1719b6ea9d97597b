package balance

import (
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gateway/internal/address"
)

const (
	second = int64(time.Second)
	noon   = 12 * 3600 * second // a time at which nothing has happened yet
)

var anyone = netip.MustParseAddr("192.0.2.1")

func parseRoute(t testing.TB, s string) address.Route {
	t.Helper()
	r, err := address.ParseRoute(s)
	if err != nil {
		t.Fatalf("ParseRoute(%q): %v", s, err)
	}
	return r
}

// newTestGroup returns the group of targets like "a,b*5"; all have port 1.
func newTestGroup(t testing.TB, a Algorithm, targets string) *Group {
	t.Helper()
	words := strings.Split(targets, ",")
	for i, word := range words {
		name, weight, weighted := strings.Cut(word, "*")
		if words[i] = name + ":1"; weighted {
			words[i] += "*" + weight
		}
	}
	return newGroup(a, parseRoute(t, strings.Join(words, ",")))
}

// target returns a target of DNS.
func target(name string, priority, weight uint16) Target {
	return Target{Addr: address.Address{Host: name, Port: 1}, Weight: weight, Priority: priority}
}

// newService returns a group of targets of DNS.
func newService(t testing.TB, a Algorithm, targets ...Target) *Group {
	t.Helper()
	g := newGroup(a, parseRoute(t, "srv:"+t.Name()[:4]))
	g.Update(targets)
	return g
}

// next returns the name of the attempt's next target, or "" for none.
func next(a *Attempt, now int64) string {
	addr, ok := a.Next(now)
	if ok != (addr.Host != "") {
		panic("Next returned a target or none, and said the other")
	}
	return addr.Host
}

// order returns the targets that fail one client in turn.
func order(g *Group, now int64) string {
	var names []string
	a := g.Start(anyone)
	for name := next(&a, now); name != ""; name = next(&a, now) {
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

// fail has a client reach the wanted targets in turn, in vain.
func fail(t testing.TB, g *Group, now int64, want ...string) {
	t.Helper()
	a := g.Start(anyone)
	for _, want := range want {
		if name := next(&a, now); name != want {
			t.Fatalf("at %v the client got %q, want %q", time.Duration(now-noon), name, want)
		}
		a.Failed(now)
	}
}

// first returns the first target of a client that does not wait for an answer.
func first(g *Group, now int64) string {
	a := g.Start(anyone)
	defer a.Release()
	return next(&a, now)
}

// clients calls f with n different addresses.
func clients(n int, f func(netip.Addr)) {
	for i := range n {
		f(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
}

// checkShares compares how often each target was taken with weights.
func checkShares(t testing.TB, got map[string]int, weights map[string]float64, tolerance float64) {
	t.Helper()
	all, sum := 0., 0.
	for _, n := range got {
		all += float64(n)
	}
	for _, w := range weights {
		sum += w
	}
	for name := range got {
		if _, ok := weights[name]; !ok {
			t.Errorf("%d times %q, which has no share", got[name], name)
		}
	}
	for name, w := range weights {
		if is, want := float64(got[name])/all, w/sum; math.Abs(is-want) > tolerance {
			t.Errorf("%s has %.2f %% of %v, want %.2f %%", name, 100*is, all, 100*want)
		}
	}
}
