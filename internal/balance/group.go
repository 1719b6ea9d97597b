package balance

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"gateway/internal/address"
)

// MaxTargets is how many targets a group uses: of more, those of the best
// priorities, and of one priority the same in every gateway.
const MaxTargets = 64

// Target is a target that was found in DNS.
type Target struct {
	// Addr says which target it is. Names should be in lower case.
	Addr address.Address
	// Weight is a share next to the other targets' of the same priority. Zero
	// is the share of a target that should hardly be used, if others have more.
	Weight uint16
	// Priority is better if it is lower. Worse targets are used only when all
	// better ones are skipped or have failed the client.
	Priority uint16
}

// Group is the targets of one route. Its methods are safe for concurrent use.
// It stays usable when the table has forgotten it.
type Group struct {
	algorithm Algorithm
	key       string
	used      atomic.Uint32 // when it was last asked for; see Table

	list atomic.Pointer[list]
	mu   sync.Mutex // held to replace the list
}

// list is the targets of a group at one time. It is replaced, never changed.
type list struct {
	source []Target  // what it was made from
	levels []*level  // the best first
	known  []*server // others, of which connections are known; see Join
}

// newGroup makes a group of the targets that stand in the route's text.
func newGroup(a Algorithm, r address.Route) *Group {
	g := &Group{algorithm: a, key: r.String()}
	targets := make([]Target, r.Len())
	for i := range targets {
		t := r.Target(i)
		targets[i] = Target{Addr: t.Addr, Weight: t.Weight}
		if a == First { // in order
			targets[i].Priority = uint16(i)
		}
	}
	g.list.Store(g.newList(&list{}, targets))
	return g
}

// Update replaces the targets. What is known of those that stay is kept, and
// attempts go on with the targets that they began with. The group keeps the
// slice, which must not change any more; the same slice again costs nothing, so
// Update may be called for each connection with what a cache holds.
func (g *Group) Update(targets []Target) {
	if same(g.list.Load().source, targets) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.list.Load()
	if same(old.source, targets) {
		return
	}
	// Name servers shuffle their answers. In order they mean the same thing to
	// all gateways, and a level that did not change is told for one.
	sorted := slices.Clone(targets)
	slices.SortStableFunc(sorted, func(a, b Target) int {
		if c := cmp.Compare(a.Priority, b.Priority); c != 0 {
			return c
		}
		return strings.Compare(a.Addr.String(), b.Addr.String())
	})
	l := g.newList(old, sorted[:min(len(sorted), MaxTargets)])
	l.source = targets
	g.list.Store(l)
}

// same tells whether two slices are one.
func same(a, b []Target) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// newList makes a list of targets, which come by priority, with the servers and
// the unchanged levels of the old list.
func (g *Group) newList(old *list, targets []Target) *list {
	servers := make([]*server, len(targets))
	for i, t := range targets {
		nth := 0
		for _, before := range targets[:i] {
			if before.Addr == t.Addr {
				nth++
			}
		}
		if servers[i] = old.server(t.Addr, nth); servers[i] == nil {
			servers[i] = &server{addr: t.Addr, hash: hashTarget(t.Addr, nth)}
		}
	}
	l := &list{}
	for from := 0; from < len(targets); {
		priority := targets[from].Priority
		var members []member
		for to := from; to < len(targets) && targets[to].Priority == priority; to++ {
			members = append(members, member{servers[to], uint32(targets[to].Weight)})
		}
		lv := newLevel(g.algorithm, priority, members)
		if i := slices.IndexFunc(old.levels, func(o *level) bool { return o.priority == priority }); i >= 0 {
			if slices.Equal(old.levels[i].members, lv.members) {
				lv = old.levels[i]
			} else {
				lv.turn.Store(old.levels[i].turn.Load())
			}
		}
		l.levels = append(l.levels, lv)
		from += len(members)
	}
	return l
}

// server returns the nth server with an address, or nil.
func (l *list) server(a address.Address, nth int) *server {
	for _, lv := range l.levels {
		for _, m := range lv.members {
			if m.server.addr != a {
				continue
			}
			if nth == 0 {
				return m.server
			}
			nth--
		}
	}
	for _, s := range l.known {
		if s.addr == a && nth == 0 {
			return s
		}
	}
	return nil
}

// Route returns the text of the group's route.
func (g *Group) Route() string { return g.key }

// Join returns an attempt that holds a target, for a connection to it that was made
// elsewhere. The target need not be one of the group's: that of a service may have
// none yet. It is not counted if there are too many of those.
func (g *Group) Join(a address.Address) Attempt {
	attempt := Attempt{list: g.list.Load()}
	if s := g.known(a); s != nil {
		attempt.take(s, health(0))
	}
	return attempt
}

// known returns the server with an address, which the group will know by it from here
// on, or nil if there are too many that are none of its targets.
func (g *Group) known(a address.Address) *server {
	if s := g.list.Load().server(a, 0); s != nil {
		return s
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.list.Load()
	if s := l.server(a, 0); s != nil || len(l.known) >= MaxTargets {
		return s
	}
	s := &server{addr: a, hash: hashTarget(a, 0)}
	more := *l
	more.known = append(slices.Clone(l.known), s)
	g.list.Store(&more)
	return s
}

// Len returns the number of targets.
func (g *Group) Len() int {
	n := 0
	for _, lv := range g.list.Load().levels {
		n += len(lv.members)
	}
	return n
}

// Each calls f for each target, and tells whether it is skipped, now.
func (g *Group) Each(now int64, f func(a address.Address, skipped bool)) {
	for _, lv := range g.list.Load().levels {
		for _, m := range lv.members {
			f(m.server.addr, health(m.server.health.Load()).skipped(now))
		}
	}
}

// Start begins an attempt for a client, whose address matters to Source only.
func (g *Group) Start(client netip.Addr) Attempt {
	a := Attempt{list: g.list.Load()}
	if g.algorithm == Source {
		a.client = hashClient(client)
	}
	return a
}
