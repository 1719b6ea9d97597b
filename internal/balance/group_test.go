package balance

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"gateway/internal/address"
)

func TestAServiceHasNoTargetsBeforeItsFirstUpdate(t *testing.T) {
	g := newService(t, RoundRobin)
	if got := order(g, noon); got != "" || g.Len() != 0 {
		t.Errorf("got %s, %d targets", got, g.Len())
	}
	g.Update([]Target{target("a", 1, 1)})
	if got := order(g, noon); got != "a" || g.Len() != 1 {
		t.Errorf("got %s, %d targets", got, g.Len())
	}
	g.Update([]Target{})
	if got := order(g, noon); got != "" || g.Len() != 0 {
		t.Errorf("got %s, %d targets after the last one left", got, g.Len())
	}
}

func TestBetterPrioritiesComeFirst(t *testing.T) {
	for a := range algorithms {
		g := newService(t, Algorithm(a),
			target("worst", 65535, 60000), target("b1", 1, 1), target("a", 0, 0), target("b2", 1, 1))
		for range 20 {
			got := order(g, noon)
			if got != "a b1 b2 worst" && got != "a b2 b1 worst" {
				t.Fatalf("%v: got %s", Algorithm(a), got)
			}
		}
	}
}

func TestAWorsePriorityIsUsedWhileAllBetterOnesAreSkippedAndComesBeforeThem(t *testing.T) {
	g := newService(t, RoundRobin, target("a", 1, 1), target("b", 1, 1), target("spare", 2, 1))
	fail(t, g, noon, "a", "b")
	if got := order(g, noon); got != "spare a b" && got != "spare b a" {
		t.Errorf("got %s", got)
	}
	fail(t, g, noon+second, "a")
	if got := first(g, noon+second); got != "b" {
		t.Errorf("got %s, want the better target whose penalty is over", got)
	}
}

func TestFirstDrawsByWeightWithinAPriority(t *testing.T) {
	g := newService(t, First, target("a", 1, 1), target("b", 1, 4), target("c", 2, 1))
	got := make(map[string]int)
	for range manyPicks {
		got[first(g, noon)]++
	}
	checkShares(t, got, map[string]float64{"a": 1, "b": 4}, .02)
}

func TestAWeightOfZeroHasAVerySmallChanceNextToOthers(t *testing.T) {
	for _, algorithm := range []Algorithm{First, Random, RoundRobin} {
		g := newService(t, algorithm, target("a", 1, 1), target("b", 1, 0))
		got := make(map[string]int)
		for range manyPicks {
			got[first(g, noon)]++
		}
		checkShares(t, got, map[string]float64{"a": 1, "b": 0}, .02)
		if got["b"] == 0 {
			t.Errorf("%v: b has no chance", algorithm)
		}

		g = newService(t, algorithm, target("a", 1, 0), target("b", 1, 0))
		clear(got)
		for range manyPicks {
			got[first(g, noon)]++
		}
		checkShares(t, got, map[string]float64{"a": 1, "b": 1}, .02)
	}
}

func TestUpdateKeepsWhatIsKnownOfTheTargetsThatStay(t *testing.T) {
	g := newService(t, LeastConn, target("a", 1, 1), target("b", 1, 1), target("c", 1, 1))
	var held []*Attempt
	for range 30 {
		a := g.Start(anyone)
		next(&a, noon)
		held = append(held, &a)
	}
	breakTarget(t, g, "b")
	g.Update([]Target{target("d", 1, 1), target("b", 1, 9), target("c", 1, 1)})
	for range 10 { // b is skipped, c has ten already
		a := g.Start(anyone)
		if got := next(&a, noon); got != "d" {
			t.Fatalf("got %s", got)
		}
	}
	for _, a := range held { // those of a too
		a.Release()
	}
	if got := first(g, noon); got != "c" {
		t.Errorf("got %s, want the one that others left", got)
	}
	if got := first(g, noon+second); got != "b" {
		t.Errorf("got %s, want the one of weight 9 whose penalty is over", got)
	}
}

func TestAnAttemptGoesOnWithTheTargetsItBeganWith(t *testing.T) {
	g := newService(t, First, target("a", 1, 1), target("b", 2, 1))
	a := g.Start(anyone)
	next(&a, noon)
	g.Update([]Target{target("b", 1, 1), target("c", 2, 1)})
	a.Failed(noon)
	if got := next(&a, noon); got != "b" {
		t.Fatalf("got %s", got)
	}
	a.Failed(noon)
	if got := next(&a, noon); got != "" {
		t.Errorf("got %s, which was tried or came later", got)
	}
	if got := first(g, noon); got != "c" {
		t.Errorf("got %s: what the attempt learnt of b is lost", got)
	}
}

func TestTheOrderOfAnAnswerMeansNothing(t *testing.T) {
	a := []Target{target("a", 1, 5), target("b", 1, 1), target("c", 1, 1), target("z", 0, 1)}
	for _, algorithm := range []Algorithm{RoundRobin, LeastConn} {
		g := newService(t, algorithm, a...)
		breakTarget(t, g, "z")
		var got []string
		for i := range 14 {
			answer := append(slices.Clone(a[i%4:]), a[:i%4]...)
			g.Update(answer)
			got = append(got, first(g, noon))
		}
		if got := strings.Join(got, " "); got != "a a b a c a a a a b a c a a" {
			t.Errorf("%v: got %s", algorithm, got)
		}
	}
}

func TestRoundRobinGoesOnFromItsPlaceWhenTargetsChange(t *testing.T) {
	g := newService(t, RoundRobin, target("a", 1, 1), target("b", 1, 1), target("c", 1, 1))
	got := make(map[string]int)
	for i := range uint16(300) { // a change for each connection
		g.Update([]Target{target("a", 1, 1), target("b", 1, 1), target("c", 1, 1), target("spare", 2+i, 1)})
		got[first(g, noon)]++
		g.Update([]Target{target("a", 1, 2), target("b", 1, 2), target("c", 1, 2+i%2)})
	}
	checkShares(t, got, map[string]float64{"a": 1, "b": 1, "c": 1}, 0)
}

func TestTheSameAnswerAgainCostsNothing(t *testing.T) {
	targets := []Target{target("a", 1, 1), target("b", 1, 1)}
	g := newService(t, RoundRobin, targets...)
	g.Update(targets)
	l := g.list.Load()
	if n := testing.AllocsPerRun(100, func() { g.Update(targets) }); n != 0 || g.list.Load() != l {
		t.Errorf("%v allocations", n)
	}
}

func TestOfTooManyTargetsTheSameBestOnesAreUsed(t *testing.T) {
	var targets []Target
	for i := range 2 * MaxTargets {
		targets = append(targets, target(fmt.Sprintf("t%03d", i), uint16(i%4), 1))
	}
	g := newService(t, RoundRobin, targets...)
	names := strings.Fields(order(g, noon))
	if len(names) != MaxTargets || g.Len() != MaxTargets {
		t.Fatalf("%d targets of %d", len(names), g.Len())
	}
	slices.Reverse(targets)
	g = newService(t, RoundRobin, targets...)
	if again := strings.Fields(order(g, noon)); !slices.Equal(again, names) {
		t.Errorf("got %v, and in another order of the answer %v", names, again)
	}
	for _, name := range names {
		var n int
		if fmt.Sscanf(name, "t%d", &n); n%4 > 1 {
			t.Errorf("%s was used, whose priority is not among the best", name)
		}
	}

	var level []Target // as many as bits in one level
	for i := range MaxTargets {
		level = append(level, target(fmt.Sprintf("t%02d", i), 1, 1))
	}
	g = newService(t, RoundRobin, level...)
	if names := strings.Fields(order(g, noon)); len(names) != MaxTargets {
		t.Errorf("%d of %d targets of one priority came", len(names), MaxTargets)
	}
}

func TestAConnectionThatWasMadeElsewhereCountsAsOneOfItsTarget(t *testing.T) {
	g := newTestGroup(t, LeastConn, "a,b")
	held := g.Join(address.Address{Host: "a", Port: 1})
	for range 3 {
		a := g.Start(anyone)
		if got := next(&a, noon); got != "b" {
			t.Errorf("the next client gets %s", got)
		}
		a.Release()
	}
	held.Release()
	held.Release()
	a := g.Start(anyone)
	defer a.Release()
	if got := next(&a, noon); got != "a" {
		t.Errorf("once it has ended, the next client gets %s", got)
	}
}

func TestAConnectionIsCountedBeforeItsServiceIsKnown(t *testing.T) {
	g := newGroup(LeastConn, parseRoute(t, "srv:games"))
	held := g.Join(target("a", 0, 1).Addr)
	defer held.Release()
	for i := range 2 * MaxTargets { // bounded, and no harm
		a := g.Join(address.Address{Host: "gone", Port: uint16(1 + i)})
		defer a.Release()
	}
	g.Update([]Target{target("a", 0, 1), target("b", 0, 1)})
	if n := g.Len(); n != 2 {
		t.Errorf("%d targets", n)
	}
	a := g.Start(anyone)
	defer a.Release()
	if got := next(&a, noon); got != "b" {
		t.Errorf("the next client gets %s", got)
	}
}
