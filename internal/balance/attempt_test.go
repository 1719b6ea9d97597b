package balance

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNoTargetComesTwiceInOneAttempt(t *testing.T) {
	for a := range algorithms {
		g := newTestGroup(t, Algorithm(a), "a*9,b,c*3,d,e*200")
		for range 50 {
			names := strings.Fields(order(g, noon))
			slices.Sort(names)
			if got := strings.Join(names, " "); got != "a b c d e" {
				t.Fatalf("%v: got %s", Algorithm(a), got)
			}
		}
	}
}

func TestAClientWhoseServerDiedGoesOnAtOnceAndTheNextOnesDoNotAskIt(t *testing.T) {
	g := newTestGroup(t, First, "a,b,c")
	a := g.Start(anyone)
	for _, want := range []string{"a", "b"} {
		if got := next(&a, noon); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
		a.Failed(noon)
	}
	if got := next(&a, noon); got != "c" {
		t.Fatalf("got %s", got)
	}
	a.Succeeded(noon)
	for range 10 {
		if got := first(g, noon+second/2); got != "c" {
			t.Fatalf("the next client was sent to %s", got)
		}
	}
}

func TestThePenaltyGrowsFromOneSecondToSixty(t *testing.T) {
	g := newTestGroup(t, First, "a,b")
	now := noon
	for _, want := range []int64{1, 2, 4, 8, 16, 32, 60, 60, 60} {
		fail(t, g, now, "a")
		if got := first(g, now+want*second-int64(time.Millisecond)); got != "b" {
			t.Fatalf("%s was picked before %d s were over", got, want)
		}
		now += want * second
	}
	if got := first(g, now); got != "a" {
		t.Fatalf("%s was picked after the last penalty", got)
	}
}

func TestThePenaltyCountsFromTheFailureNotFromTheDial(t *testing.T) {
	g := newTestGroup(t, First, "a,b")
	a := g.Start(anyone)
	next(&a, noon)
	a.Failed(noon + 3*second)
	if got := first(g, noon+3*second+second/2); got != "b" {
		t.Errorf("got %s within a second of the failure", got)
	}
	if got := first(g, noon+4*second); got != "a" {
		t.Errorf("got %s after it", got)
	}
}

func TestOneSuccessClearsThePenalty(t *testing.T) {
	g := newTestGroup(t, First, "a,b")
	for _, at := range []int64{0, 1, 3, 7} {
		fail(t, g, noon+at*second, "a")
	}
	now := noon + 15*second
	a := g.Start(anyone)
	next(&a, now)
	a.Succeeded(now)
	for range 10 {
		if got := first(g, now); got != "a" {
			t.Fatalf("got %s after a success", got)
		}
	}
	fail(t, g, now, "a")
	if got := first(g, now+second); got != "a" {
		t.Errorf("got %s a second after the first failure that follows a success", got)
	}
}

func TestManyFailuresOfOneOutageCountAsOne(t *testing.T) {
	g := newTestGroup(t, First, "a,b")
	dials := make([]Attempt, 1000)
	for i := range dials {
		dials[i] = g.Start(anyone)
		if got := next(&dials[i], noon); got != "a" {
			t.Fatalf("got %s", got)
		}
	}
	for i := range dials { // within a second, and long after the first's penalty
		dials[i].Failed(noon + int64(i)*10*int64(time.Millisecond))
	}
	if got := first(g, noon+second-1000); got != "b" {
		t.Errorf("got %s within the penalty", got)
	}
	if got := first(g, noon+second); got != "a" {
		t.Errorf("got %s: the failures were counted one by one", got)
	}
}

func TestAFailureFromBeforeASuccessDoesNotCount(t *testing.T) {
	g := newTestGroup(t, First, "a,b")
	old := g.Start(anyone)
	next(&old, noon)
	fail(t, g, noon+second, "a")
	a := g.Start(anyone)
	next(&a, noon+2*second)
	a.Succeeded(noon + 2*second)
	old.Failed(noon + 3*second) // it began to wait in the outage
	if got := first(g, noon+3*second); got != "a" {
		t.Errorf("got %s", got)
	}
}

func TestAfterThePenaltyOneClientTries(t *testing.T) {
	g := newTestGroup(t, First, "a,b")
	fail(t, g, noon, "a")
	now := noon + second
	probe := g.Start(anyone)
	if got := next(&probe, now); got != "a" {
		t.Fatalf("got %s", got)
	}
	for range 10 {
		if got := first(g, now+2*second); got != "b" {
			t.Fatalf("%s was tried by two clients at once", got)
		}
	}
	probe.Failed(now + 3*second)
	if got := first(g, now+5*second-1000); got != "b" {
		t.Errorf("got %s within the second penalty", got)
	}
	if got := first(g, now+5*second); got != "a" {
		t.Errorf("got %s after it", got)
	}
}

func TestOfClientsThatSeeThePenaltyOverOneTries(t *testing.T) {
	g := newTestGroup(t, First, "a,b")
	fail(t, g, noon, "a")
	server := g.list.Load().levels[0].members[0].server
	seen, now := health(server.health.Load()), noon+second
	one, another := g.Start(anyone), g.Start(anyone)
	if !one.hold(server, seen, now) || another.hold(server, seen, now) {
		t.Fatal("both may try or none")
	}
	if n := server.live.Load(); n != 1 {
		t.Errorf("%d clients are on their way", n)
	}
	one.Release()
	if !another.hold(server, health(server.health.Load()), now) {
		t.Error("the first gave up and the next may not try")
	}
}

func TestAClientThatGivesUpLeavesTheTrialToTheNext(t *testing.T) {
	g := newTestGroup(t, First, "a,b")
	fail(t, g, noon, "a")
	now := noon + second
	for range 3 {
		a := g.Start(anyone)
		if got := next(&a, now); got != "a" {
			t.Fatalf("got %s", got)
		}
		a.Release()
	}
	fail(t, g, now, "a") // the second failure in a row
	if got := first(g, now+2*second-1000); got != "b" {
		t.Errorf("got %s: the trials were taken for successes", got)
	}
}

func TestATrialThatNobodyEndsDoesNotLastForEver(t *testing.T) {
	g := newTestGroup(t, First, "a,b")
	fail(t, g, noon, "a")
	lost := g.Start(anyone)
	next(&lost, noon+second)
	if got := first(g, noon+second+probeTime); got != "a" {
		t.Errorf("got %s", got)
	}
}

func TestWhenAllTargetsAreSkippedAllAreTried(t *testing.T) {
	g := newTestGroup(t, First, "a,b,c")
	fail(t, g, noon, "a", "b", "c")
	if got := order(g, noon+second/2); got != "a b c" {
		t.Fatalf("got %s", got)
	}
	// What fails then is no news, and lengthens no penalty.
	for range 10 {
		fail(t, g, noon+second/2, "a", "b", "c")
	}
	fail(t, g, noon+second, "a")
	if got := first(g, noon+3*second); got != "a" {
		t.Errorf("got %s after the second penalty", got)
	}
	// But what succeeds is.
	fail(t, g, noon+3*second, "a", "b", "c")
	a := g.Start(anyone)
	next(&a, noon+3*second)
	if got := next(&a, noon+3*second); got != "b" {
		t.Fatalf("got %s", got)
	}
	a.Succeeded(noon + 3*second)
	for range 3 {
		if got := first(g, noon+3*second); got != "b" {
			t.Errorf("got %s, want the one that is back", got)
		}
	}
}

func TestSkippedTargetsComeAfterTheOthers(t *testing.T) {
	g := newTestGroup(t, First, "a,b,c")
	fail(t, g, noon, "a")
	if got := order(g, noon); got != "b c a" {
		t.Errorf("got %s", got)
	}
}

func TestARollingRestartFailsNobody(t *testing.T) {
	for a := range algorithms {
		g := newTestGroup(t, Algorithm(a), "a,b,c")
		for tick := range int64(400) { // 40 s; each target in turn is down for 5 s
			now := noon + tick*second/10
			down := map[int64]string{1: "a", 2: "b", 3: "c"}[tick/50]
			attempt := g.Start(anyone)
			tries := 0
			for {
				name := next(&attempt, now)
				if name == "" {
					t.Fatalf("%v: %s is down, and a client finds no target", Algorithm(a), down)
				}
				if tries++; name != down {
					attempt.Succeeded(now)
					break
				}
				attempt.Failed(now)
			}
			attempt.Release()
			if tries > 2 {
				t.Errorf("%v: one target is down, and a client tries %d", Algorithm(a), tries)
			}
		}
	}
}

func TestAnAttemptThatHoldsNothingMayBeToldAnything(t *testing.T) {
	g := newTestGroup(t, LeastConn, "a")
	a := g.Start(anyone)
	a.Failed(noon)
	a.Succeeded(noon)
	a.Release()
	next(&a, noon)
	if got := next(&a, noon); got != "" { // gives a up
		t.Fatalf("got %s", got)
	}
	a.Failed(noon)
	if s := g.list.Load().levels[0].members[0].server; s.live.Load() != 0 || s.health.Load() != 0 {
		t.Errorf("%d connections, state %d", s.live.Load(), s.health.Load())
	}
}
