// Package count counts events by what they were, from many goroutines at once.
// What is counted once costs a look-up in a map and one atomic addition; it is
// meant for what happens to a connection, not to a message.
package count

import (
	"iter"
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
