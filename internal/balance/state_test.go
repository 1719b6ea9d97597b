package balance

import (
	"encoding/json"
	"testing"
	"time"
)

func TestTargetsThatAreSkippedAreSkippedByTheNextProcess(t *testing.T) {
	old, fresh := NewTable(First), NewTable(First)
	for _, text := range []string{"a:1,b:1", "srv:games"} {
		route := parseRoute(t, text)
		g := old.Group(route, noon)
		if route.Service() != "" {
			g.Update([]Target{target("a", 0, 1), target("b", 1, 1)})
		}
		// Three failures in a row, the last at 10 seconds, are skipped for 4.
		h := g.list.Load().levels[0].members[0].server
		h.health.Store(int64(newHealth(3, noon+14*second)))
	}
	text, err := json.Marshal(old.Snapshot(noon + 11*second))
	if err != nil {
		t.Fatal(err)
	}
	var s State
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	s.Failing = append(s.Failing, Failing{Route: "nonsense", Target: "a:1", Failures: 1}, Failing{Route: "a:1,b:1", Target: "b:1", Failures: 99})
	const other = 5 * second // the next process has a clock of its own
	fresh.Restore(s, other)
	for _, text := range []string{"a:1,b:1", "srv:games"} {
		route := parseRoute(t, text)
		g := fresh.Group(route, other)
		if route.Service() != "" {
			g.Update([]Target{target("a", 0, 1), target("b", 1, 1)})
		}
		for at, want := range map[int64]string{other + 2*second: "b", other + 4*second: "a"} {
			a := g.Start(anyone)
			if got := next(&a, at); got != want {
				t.Errorf("%s, after %v: %s, want %s", text, time.Duration(at-other), got, want)
			}
			a.Release()
		}
	}
	if n := len(NewTable(First).Snapshot(noon).Failing); n != 0 {
		t.Errorf("%d targets fail of which nobody has heard", n)
	}
}
