package balance

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"gateway/internal/address"
)

// MaxGroups is how many groups a table holds at most.
const MaxGroups = buckets * ways

const (
	buckets = 512
	ways    = 8
)

// Table holds the groups of the routes that were used last. Its methods are
// safe for concurrent use.
//
// It is a set-associative cache, as processors have: a text belongs to one
// bucket and may stand in any of its ways. That bounds it, needs no lock to
// find a group, and no list of who was used last. A table far from full may
// still forget a group when nine meet in one bucket; what is lost is how often
// its targets failed and whose turn it was.
type Table struct {
	algorithm Algorithm
	seed      maphash.Seed
	mu        sync.Mutex // held to add a group
	buckets   [buckets]bucket
}

type bucket [ways]atomic.Pointer[Group]

// NewTable returns an empty table for groups that pick by an algorithm.
func NewTable(a Algorithm) *Table {
	return &Table{algorithm: a, seed: maphash.MakeSeed()}
}

// Group returns the group of a route: the same for the same text, as long as
// the table remembers it. That of a service has no targets until its first
// Update.
func (t *Table) Group(r address.Route, now int64) *Group {
	b := &t.buckets[maphash.String(t.seed, r.String())%buckets]
	g := b.find(r.String())
	used := uint32(now >> 30) // about seconds, so that few uses write
	if g == nil {
		g = t.add(b, r, used)
	}
	if g.used.Load() != used {
		g.used.Store(used)
	}
	return g
}

func (b *bucket) find(key string) *Group {
	for i := range b {
		if g := b[i].Load(); g != nil && g.key == key {
			return g
		}
	}
	return nil
}

// add puts a new group into a free way, or in place of the group that was not
// asked for the longest.
func (t *Table) add(b *bucket, r address.Route, used uint32) *Group {
	t.mu.Lock()
	defer t.mu.Unlock()
	if g := b.find(r.String()); g != nil { // somebody was quicker
		return g
	}
	way := 0
	for i := range b {
		g := b[i].Load()
		if g == nil {
			way = i
			break
		}
		if g.used.Load() < b[way].Load().used.Load() {
			way = i
		}
	}
	g := newGroup(t.algorithm, r)
	g.used.Store(used)
	b[way].Store(g)
	return g
}
