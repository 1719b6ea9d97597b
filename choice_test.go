package main

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"gateway/internal/balance"
)

// What a choice of target leaves behind: nothing.

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

func TestASingleTargetCostsNoTableEntry(t *testing.T) {
	g := startConfigured(t, func(cfg *Config) { cfg.Balance = balance.LeastConn }, nil)
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
