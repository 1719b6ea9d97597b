package balance

import (
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"gateway/internal/address"
)

func TestOneTextIsOneGroup(t *testing.T) {
	table := NewTable(First)
	ab := table.Group(parseRoute(t, "a:1,b:1"), noon)
	if table.Group(parseRoute(t, "a:1,b:1"), noon+9*second) != ab {
		t.Error("two groups for one text")
	}
	if table.Group(parseRoute(t, "b:1,a:1"), noon) == ab {
		t.Error("one group for two texts")
	}
	if got := order(ab, noon); got != "a b" {
		t.Errorf("got %s", got)
	}
}

func (t *Table) len() int {
	n := 0
	for i := range t.buckets {
		for j := range t.buckets[i] {
			if t.buckets[i][j].Load() != nil {
				n++
			}
		}
	}
	return n
}

func routes(t testing.TB, n int) []address.Route {
	rs := make([]address.Route, n)
	for i := range rs {
		rs[i] = parseRoute(t, fmt.Sprintf("a:1,b%d:1", i))
	}
	return rs
}

func TestTheTableIsBoundedAndForgetsWhatWasNotUsedForLong(t *testing.T) {
	table := NewTable(First)
	busy := parseRoute(t, "busy:1,b:1")
	group := table.Group(busy, noon)
	fail(t, group, noon, "busy")

	rs := routes(t, 2*MaxGroups)
	forgotten := table.Group(rs[0], noon)
	held := forgotten.Start(anyone)
	next(&held, noon)
	for i, r := range rs {
		now := noon + int64(i)*second
		table.Group(r, now)
		if table.Group(busy, now) != group {
			t.Fatalf("the route in use was forgotten after %d others", i)
		}
	}
	if n := table.len(); n > MaxGroups || n < MaxGroups*9/10 {
		t.Errorf("%d groups in a table for %d", n, MaxGroups)
	}
	if table.Group(rs[0], noon) == forgotten {
		t.Error("the route that was not used for longest was kept")
	}
	held.Failed(noon) // who holds a forgotten group goes on with it
	if got := next(&held, noon); got != "b0" {
		t.Errorf("got %s", got)
	}
}

func TestAHundredRoutesInUseKeepTheirGroups(t *testing.T) {
	table := NewTable(First)
	rs := routes(t, 100)
	groups := make([]*Group, len(rs))
	for i, r := range rs {
		groups[i] = table.Group(r, noon)
	}
	for i, r := range rs {
		if table.Group(r, noon) != groups[i] {
			t.Errorf("%v has a new group", r)
		}
	}
}

func TestAPickAllocatesNothing(t *testing.T) {
	now := noon
	for a := range algorithms {
		table, r := NewTable(Algorithm(a)), parseRoute(t, "a:1*3,b:1,c:1*2")
		table.Group(r, now)
		if n := testing.AllocsPerRun(100, func() {
			attempt := table.Group(r, now).Start(anyone)
			attempt.Next(now)
			attempt.Failed(now)
			attempt.Next(now)
			attempt.Succeeded(now)
			attempt.Release()
			now += second
		}); n != 0 {
			t.Errorf("%v: %v allocations", Algorithm(a), n)
		}
	}
}

func TestManyLoopsMayPickFailAndUpdateAtOnce(t *testing.T) {
	const loops, picks = 8, 1000
	for alg := range algorithms {
		table := NewTable(Algorithm(alg))
		written := parseRoute(t, "a:1,b:1*5,c:1*2")
		service := parseRoute(t, "srv:game")
		answers := [][]Target{
			{target("a", 1, 1), target("b", 1, 2), target("c", 2, 0)},
			{target("b", 1, 2), target("c", 1, 1)},
			{target("c", 1, 1), target("a", 2, 1), target("d", 1, 7)},
		}
		groups := []*Group{table.Group(written, noon), table.Group(service, noon)}
		others := routes(t, 64)

		var wg sync.WaitGroup
		for loop := range loops {
			wg.Go(func() {
				for i := range picks {
					now := noon + int64(i)*second/100
					groups[1].Update(answers[(loop+i/7)%len(answers)])
					table.Group(others[(loop*31+i)%len(others)], now)
					client := netip.AddrFrom4([4]byte{10, 0, byte(loop), byte(i)})
					for n, g := range groups {
						a := g.Start(client)
						tried := 0
						for want := 1 + (loop+i)%4; tried < want; tried++ {
							if _, ok := a.Next(now); !ok {
								break
							}
							switch (loop + i + tried + n) % 4 {
							case 0:
								a.Failed(now)
							case 1:
								a.Succeeded(now)
							}
						}
						if tried == 0 || tried > 4 {
							t.Errorf("%v: %d targets tried", Algorithm(alg), tried)
						}
						a.Release()
					}
				}
			})
		}
		wg.Wait()
		for _, g := range groups {
			for _, answer := range answers {
				g.Update(answer)
				for _, lv := range g.list.Load().levels {
					for _, m := range lv.members {
						if n := m.server.live.Load(); n != 0 {
							t.Errorf("%v: %s has %d connections left", Algorithm(alg), m.server.addr.Host, n)
						}
					}
				}
			}
		}
	}
}

// atOnce runs f on n goroutines that wait for each other first.
func atOnce(n int, f func(i int)) {
	var ready atomic.Int32
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			ready.Add(1)
			for ready.Load() < int32(n) {
				runtime.Gosched()
			}
			f(i)
		})
	}
	wg.Wait()
}

func TestConcurrentRoundRobinIsExact(t *testing.T) {
	g := newTestGroup(t, RoundRobin, "a*5,b,c*2")
	const loops, picks = 4, 20_000
	got := make([]map[string]int, loops)
	atOnce(loops, func(i int) {
		got[i] = make(map[string]int)
		for range picks {
			got[i][first(g, noon)]++
		}
	})
	all := make(map[string]int)
	for _, own := range got {
		for name, n := range own {
			all[name] += n
		}
	}
	checkShares(t, all, map[string]float64{"a": 5, "b": 1, "c": 2}, 0)
}

func TestOneOfManyConcurrentClientsTriesATargetWhosePenaltyIsOver(t *testing.T) {
	g := newTestGroup(t, Source, "a,b,c") // all clients would go to one target
	favourite := pickFor(g, anyone)
	for now := noon; now < noon+200*60*second; now += 60 * second {
		fail(t, g, now, favourite)
		var attempts [4]Attempt
		var names [len(attempts)]string
		atOnce(len(attempts), func(i int) {
			attempts[i] = g.Start(anyone)
			names[i] = next(&attempts[i], now+60*second)
		})
		tries := 0
		for i := range attempts {
			if names[i] == favourite {
				tries++
			}
			attempts[i].Release()
		}
		if tries != 1 {
			t.Fatalf("%d clients tried %s at once", tries, favourite)
		}
	}
}
