package balance

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"gateway/internal/address"
)

// One pick is what one connection costs: the look-up of the group, the start,
// the pick and its outcome.

func routeOf(tb testing.TB, targets int, weight func(i int) int) address.Route {
	words := make([]string, targets)
	for i := range words {
		words[i] = fmt.Sprintf("10.0.0.%d:4000*%d", i+1, weight(i))
	}
	return parseRoute(tb, strings.Join(words, ","))
}

func pickOnce(tb testing.TB, table *Table, r address.Route, client netip.Addr, now int64) {
	a := table.Group(r, now).Start(client)
	if _, ok := a.Next(now); !ok {
		tb.Error("no target")
	}
	a.Succeeded(now)
	a.Release()
}

func BenchmarkPick(b *testing.B) {
	client := netip.MustParseAddr("192.0.2.7")
	for alg := range algorithms {
		for _, targets := range []int{3, 16} {
			for name, weight := range map[string]func(int) int{
				"equal":    func(int) int { return 1 },
				"weighted": func(i int) int { return 1 + i*13 },
			} {
				table := NewTable(Algorithm(alg))
				r := routeOf(b, targets, weight)
				what := fmt.Sprintf("%v/%d/%s", Algorithm(alg), targets, name)
				b.Run(what, func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						pickOnce(b, table, r, client, 5e9)
					}
				})
				b.Run(what+"/parallel", func(b *testing.B) {
					b.ReportAllocs()
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							pickOnce(b, table, r, client, 5e9)
						}
					})
				})
			}
		}
	}
}

func BenchmarkNewGroup(b *testing.B) {
	r := routeOf(b, 16, func(i int) int { return 241 + i })
	for b.Loop() {
		newGroup(RoundRobin, r)
	}
}
