package balance

import (
	"time"

	"gateway/internal/address"
)

// State is what a process may tell the next one: which targets are skipped. Of
// connections it has nothing, since the next process holds those that it gets; see
// Group.Join.
type State struct {
	Failing []Failing `json:",omitempty"`
}

// Failing is a target of a route that has failed, so often in a row.
type Failing struct {
	Route    string
	Target   string // HOST:PORT, with its scheme
	Failures int
	Skipped  time.Duration // for so long from now on
}

// Snapshot returns which targets are skipped, or will be tried by one client at
// first.
func (t *Table) Snapshot(now int64) (s State) {
	for i := range t.buckets {
		for j := range t.buckets[i] {
			g := t.buckets[i][j].Load()
			if g == nil {
				continue
			}
			for _, lv := range g.list.Load().levels {
				for _, m := range lv.members {
					h := health(m.server.health.Load())
					if h.failures() == 0 {
						continue
					}
					// A client that goes to see may find out only here.
					left := min(max(0, h.until()-now), penalties[h.failures()])
					s.Failing = append(s.Failing, Failing{g.key, m.server.addr.String(), int(h.failures()), time.Duration(left)})
				}
			}
		}
	}
	return s
}

// Restore has targets skipped that another process skips. What it does not understand
// is left out.
func (t *Table) Restore(s State, now int64) {
	for _, f := range s.Failing {
		route, err := address.ParseRoute(f.Route)
		addr, aerr := address.Parse(f.Target)
		if err != nil || aerr != nil || f.Failures < 1 || f.Failures > failuresMask {
			continue
		}
		left := min(max(0, f.Skipped.Nanoseconds()), penalties[f.Failures])
		if server := t.Group(route, now).known(addr); server != nil {
			// Nothing, if this process knows better by now.
			server.health.CompareAndSwap(0, int64(newHealth(int64(f.Failures), now+left)))
		}
	}
}
