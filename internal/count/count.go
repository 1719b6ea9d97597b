// Package count counts events by what they were, from many goroutines at once.
// What is counted once costs a look-up in a map and one atomic addition; it is
// meant for what happens to a connection, not to a message.
package count

import (
	"iter"
	"maps"
	"sync"
	"sync/atomic"
)

// Set is a set of counters by their keys. It holds a bounded number of them: what
// comes when it is full is counted under one key for all others, so whoever may
// choose keys cannot choose how much memory they take. Its methods are safe for
// concurrent use.
type Set[K comparable] struct {
	most  int
	other K

	mu  sync.Mutex                          // held to add a key
	all atomic.Pointer[map[K]*atomic.Int64] // replaced, never changed
}

// New returns a set of at most most keys, and other for the rest.
func New[K comparable](most int, other K) *Set[K] {
	s := &Set[K]{most: most, other: other}
	s.all.Store(&map[K]*atomic.Int64{})
	return s
}

// Add adds n to the counter of a key.
func (s *Set[K]) Add(k K, n int64) {
	c := (*s.all.Load())[k]
	if c == nil {
		c = s.make(k)
	}
	c.Add(n)
}

// make returns the counter of a key that seems to have none.
func (s *Set[K]) make(k K) *atomic.Int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.all.Load()
	if len(old) >= s.most && old[k] == nil {
		k = s.other
	}
	if c := old[k]; c != nil {
		return c
	}
	grown := make(map[K]*atomic.Int64, len(old)+1)
	for key, c := range old {
		grown[key] = c
	}
	c := new(atomic.Int64)
	grown[k] = c
	s.all.Store(&grown)
	return c
}

// Of returns what was counted under a key.
func (s *Set[K]) Of(k K) int64 {
	if c := (*s.all.Load())[k]; c != nil {
		return c.Load()
	}
	return 0
}

// All returns the keys with what was counted under them, in any order. What is
// counted meanwhile may be in it or not.
func (s *Set[K]) All() iter.Seq2[K, int64] {
	return func(yield func(K, int64) bool) {
		for k, c := range *s.all.Load() {
			if !yield(k, c.Load()) {
				return
			}
		}
	}
}

// Total returns what was counted under all keys.
func (s *Set[K]) Total() (n int64) {
	for _, c := range s.All() {
		n += c
	}
	return n
}

// Table holds a bounded number of values by their keys, which are never forgotten;
// keys that come when it is full share one value. Its methods are safe for concurrent
// use.
type Table[K comparable, V any] struct {
	most int
	rest V

	mu  sync.RWMutex
	all map[K]*V
}

// NewTable returns a table of at most most keys.
func NewTable[K comparable, V any](most int) *Table[K, V] {
	return &Table[K, V]{most: most, all: make(map[K]*V)}
}

// Of returns the value of a key, the same each time, and whether it is its own.
func (t *Table[K, V]) Of(k K) (v *V, own bool) {
	t.mu.RLock()
	v, full := t.all[k], len(t.all) >= t.most
	t.mu.RUnlock()
	switch {
	case v != nil:
		return v, true
	case full: // as it will be for ever
		return &t.rest, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if v = t.all[k]; v != nil {
		return v, true
	}
	if len(t.all) >= t.most {
		return &t.rest, false
	}
	v = new(V)
	t.all[k] = v
	return v, true
}

// All returns the keys with their values, in any order.
func (t *Table[K, V]) All() iter.Seq2[K, *V] {
	t.mu.RLock()
	all := maps.Clone(t.all)
	t.mu.RUnlock()
	return maps.All(all)
}

// Rest returns the value of the keys that have none of their own, or nil if there is
// room yet.
func (t *Table[K, V]) Rest() *V {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if len(t.all) < t.most {
		return nil
	}
	return &t.rest
}

// Latest keeps the last few things that have happened. Its methods are safe for
// concurrent use; a nil one keeps nothing.
type Latest[T any] struct {
	mu   sync.Mutex
	ring []T
	n    int // of things that have happened
}

// NewLatest returns one that keeps most things.
func NewLatest[T any](most int) *Latest[T] { return &Latest[T]{ring: make([]T, most)} }

// Add adds a thing, in place of the oldest if there is no room.
func (l *Latest[T]) Add(v T) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ring[l.n%len(l.ring)] = v
	l.n++
}

// All returns what is kept, the newest first.
func (l *Latest[T]) All() (list []T) {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := l.n - 1; i >= max(0, l.n-len(l.ring)); i-- {
		list = append(list, l.ring[i%len(l.ring)])
	}
	return list
}

// Rising is a figure that never falls, though what it is made of is read at several times:
// a counter that fell would look as if it had begun anew. The zero value has told of 0. It
// is safe for concurrent use.
type Rising struct{ told atomic.Int64 }

// Tell returns n, or what it has told before if that is more.
func (r *Rising) Tell(n int64) int64 {
	for {
		told := r.told.Load()
		if n <= told {
			return told
		}
		if r.told.CompareAndSwap(told, n) {
			return n
		}
	}
}
