// Package pending bounds how many clients are served before they have proven
// anything. Where there is no room for another one, the oldest gives way: an
// honest client proves itself within a round trip or two, and a flood of others
// only displaces itself. An address has a share of the room, within which its own
// oldest gives way, so that one address does not displace all others.
package pending

import (
	"net/netip"
	"sync"
	"time"
)

// Budget is a bound on pending clients. Its methods are safe for concurrent use.
type Budget struct {
	max, share int

	mu    sync.Mutex
	all   line
	lines map[netip.Addr]*line // of addresses that have clients here
}

// line is clients in the order in which they came. Each stands in two: in that of all
// (0), and in that of its address (1), if it has one.
type line struct {
	n              int
	oldest, newest *Ticket
}

// NewBudget returns a budget of max clients, at least one, of which an address has
// share at most.
func NewBudget(max, share int) *Budget {
	return &Budget{max: max, share: share, lines: make(map[netip.Addr]*line)}
}

// Ticket is a client's place in a Budget. Its methods are safe for concurrent
// use.
type Ticket struct {
	budget  *Budget
	giveWay func()
	addr    netip.Addr
	since   time.Time
	next    [2]struct{ older, newer *Ticket }
	held    bool
	gaveWay bool
}

// Admit gives a place to a client until it is released. If the client becomes the
// oldest of too many, or MakeRoom wants its place, giveWay is called, once, from the
// goroutine of whoever comes then: it must not wait, nor call the Budget. The zero addr has no share.
func (b *Budget) Admit(addr netip.Addr, giveWay func()) *Ticket {
	t := &Ticket{budget: b, giveWay: giveWay, held: true, since: time.Now()}
	b.mu.Lock()
	displaced := b.join(t, addr)
	if displaced == nil && b.all.n >= b.max {
		displaced = b.all.oldest
		b.displace(displaced)
	}
	b.all.add(0, t)
	b.mu.Unlock()
	if displaced != nil {
		displaced.giveWay()
	}
	return t
}

// Patience is how long a client has its place for certain while there is room for it
// here: a round trip or two.
const Patience = 100 * time.Millisecond

// MakeRoom has up to n clients give way that have been here for longer than Patience, the
// oldest first, since there is no room elsewhere: no descriptors, for instance. It returns
// how many. Their giveWay is called as by Admit.
func (b *Budget) MakeRoom(n int) (made int) {
	before := time.Now().Add(-Patience)
	for ; made < n; made++ {
		b.mu.Lock()
		oldest := b.all.oldest
		if oldest == nil || !oldest.since.Before(before) {
			b.mu.Unlock()
			return made
		}
		b.displace(oldest)
		b.mu.Unlock()
		oldest.giveWay()
	}
	return made
}

// Of says whose client it is that was admitted without an address. Only the first
// call counts.
func (t *Ticket) Of(addr netip.Addr) {
	if t == nil {
		return
	}
	b := t.budget
	b.mu.Lock()
	var displaced *Ticket
	if t.held && !t.addr.IsValid() {
		displaced = b.join(t, addr)
	}
	b.mu.Unlock()
	if displaced != nil {
		displaced.giveWay()
	}
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
	return b.all.n
}

// join puts a ticket into the line of its address, and returns the one that gives way
// there. The lock is held, as it is for all below.
func (b *Budget) join(t *Ticket, addr netip.Addr) (displaced *Ticket) {
	if !addr.IsValid() {
		return nil
	}
	if l := b.lines[addr]; l != nil && l.n >= b.share {
		displaced = l.oldest
		b.displace(displaced)
	}
	l := b.lines[addr] // which the last to go takes away
	if l == nil {
		l = &line{}
		b.lines[addr] = l
	}
	t.addr = addr
	l.add(1, t)
	return displaced
}

func (b *Budget) displace(t *Ticket) {
	t.gaveWay = true
	b.remove(t)
}

// remove takes a ticket that is held out of its lines.
func (b *Budget) remove(t *Ticket) {
	t.held = false
	b.all.remove(0, t)
	if t.addr.IsValid() {
		l := b.lines[t.addr]
		if l.remove(1, t); l.n == 0 {
			delete(b.lines, t.addr)
		}
	}
}

func (l *line) add(which int, t *Ticket) {
	if t.next[which].older = l.newest; l.newest != nil {
		l.newest.next[which].newer = t
	} else {
		l.oldest = t
	}
	l.newest = t
	l.n++
}

func (l *line) remove(which int, t *Ticket) {
	at := &t.next[which]
	if at.older != nil {
		at.older.next[which].newer = at.newer
	} else {
		l.oldest = at.newer
	}
	if at.newer != nil {
		at.newer.next[which].older = at.older
	} else {
		l.newest = at.older
	}
	at.older, at.newer = nil, nil
	l.n--
}
