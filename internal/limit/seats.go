package limit

import "sync"

// Seats count how many of each kind are taken. They remember those kinds only of
// which some are. The zero value is ready for use. Its methods are safe for
// concurrent use.
type Seats[K comparable] struct {
	mu    sync.Mutex
	taken map[K]int
}

// Take takes one of a kind, unless most are taken.
func (s *Seats[K]) Take(kind K, most int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken[kind] >= most {
		return false
	}
	if s.taken == nil {
		s.taken = make(map[K]int)
	}
	s.taken[kind]++
	return true
}

// Give gives one back.
func (s *Seats[K]) Give(kind K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken[kind]--; s.taken[kind] <= 0 {
		delete(s.taken, kind)
	}
}

// Taken returns how many of a kind are.
func (s *Seats[K]) Taken(kind K) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken[kind]
}
