// Package pending bounds how many clients are served before they have proven
// anything. Where there is no room for another one, the oldest gives way: an
// honest client proves itself within a round trip or two, and a flood of others
// only displaces itself.
package pending

import "sync"

// Budget is a bound on pending clients. Its methods are safe for concurrent use.
type Budget struct {
	max int

	mu     sync.Mutex
	n      int
	oldest *Ticket
	newest *Ticket
}

// NewBudget returns a budget of max clients, at least one.
func NewBudget(max int) *Budget { return &Budget{max: max} }

// Ticket is a client's place in a Budget. Its methods are safe for concurrent
// use.
type Ticket struct {
	budget       *Budget
	giveWay      func()
	older, newer *Ticket
	held         bool
	gaveWay      bool
}

// Admit gives a place to a client until it is released. If the client becomes the
// oldest of too many, giveWay is called, once, from the goroutine of whoever comes
// then: it must not wait, nor call the Budget.
func (b *Budget) Admit(giveWay func()) *Ticket {
	t := &Ticket{budget: b, giveWay: giveWay, held: true}
	b.mu.Lock()
	var displaced *Ticket
	if b.n >= b.max {
		displaced = b.oldest
		displaced.gaveWay = true
		b.remove(displaced)
	}
	t.older = b.newest
	if t.older != nil {
		t.older.newer = t
	} else {
		b.oldest = t
	}
	b.newest = t
	b.n++
	b.mu.Unlock()
	if displaced != nil {
		displaced.giveWay()
	}
	return t
}

// Release gives the place up: the client has proven itself, or is gone. Only the
// first call counts. A nil Ticket has no place.
func (t *Ticket) Release() {
	if t == nil {
		return
	}
	t.budget.mu.Lock()
	defer t.budget.mu.Unlock()
	if t.held {
		t.budget.remove(t)
	}
}

// GaveWay tells whether the client has lost its place to another one.
func (t *Ticket) GaveWay() bool {
	t.budget.mu.Lock()
	defer t.budget.mu.Unlock()
	return t.gaveWay
}

// Len returns how many clients are pending.
func (b *Budget) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.n
}

// remove takes a ticket that is held out of the list. The lock is held.
func (b *Budget) remove(t *Ticket) {
	if t.older != nil {
		t.older.newer = t.newer
	} else {
		b.oldest = t.newer
	}
	if t.newer != nil {
		t.newer.older = t.older
	} else {
		b.newest = t.older
	}
	t.older, t.newer, t.held = nil, nil, false
	b.n--
}
