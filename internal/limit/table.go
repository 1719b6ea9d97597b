package limit

import (
	"net/netip"
	"sync"
	"time"
)

// Room is how many addresses without connections a Limiter remembers.
const Room = 1 << 16

// table knows how many connections each address has, and how full its bucket is.
// Its methods are safe for concurrent use: one lock is held for as long as a look
// into a map takes, once for a connection that comes and once for one that goes.
type table struct {
	room int

	mu      sync.Mutex
	entries map[netip.Addr]*entry
	now     time.Duration // of the last admission
	idle    int           // entries without connections; a list, in the order in which they came to it
	oldest  *entry
	newest  *entry
}

// entry is what is known of an address.
type entry struct {
	addr         netip.Addr
	conns        int
	full         time.Duration // when the bucket is
	older, newer *entry        // among the idle
}

func newTable(room int) table {
	return table{room: room, entries: make(map[netip.Addr]*entry)}
}

// admit counts one more connection of an address, unless there is a reason not to.
// Zero limits are none.
func (t *table) admit(addr netip.Addr, most int, rate Rate, now time.Duration) (*entry, Reason) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now = max(t.now, now)
	e := t.entries[addr]
	if e == nil {
		e = &entry{addr: addr} // which nothing speaks against
		t.entries[addr] = e
		t.rest(e)
	}
	if most > 0 && e.conns >= most {
		return nil, TooMany
	}
	if rate.every > 0 {
		full, ok := rate.take(e.full, t.now)
		if !ok {
			return nil, TooFast
		}
		e.full = full
	}
	t.join(e)
	return e, None
}

// hold counts one more connection of an address.
func (t *table) hold(addr netip.Addr) *entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[addr]
	if e == nil {
		e = &entry{addr: addr}
		t.entries[addr] = e
		t.rest(e)
	}
	t.join(e)
	return e
}

// release counts one connection less.
func (t *table) release(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.conns--; e.conns == 0 {
		t.rest(e)
		t.forget()
	}
}

func (t *table) conns(addr netip.Addr) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[addr]; e != nil {
		return e.conns
	}
	return 0
}

// join gives an address one more connection. The lock is held.
func (t *table) join(e *entry) {
	if e.conns++; e.conns == 1 {
		t.unlink(e)
	}
}

// forget forgets the idle that are as if they had never come, as far as they are the
// oldest, and those for which there is no room. The lock is held.
func (t *table) forget() {
	for e := t.oldest; e != nil && (e.full <= t.now || t.idle > t.room); e = t.oldest {
		t.unlink(e)
		delete(t.entries, e.addr)
	}
}

// rest makes an entry the newest of the idle. The lock is held.
func (t *table) rest(e *entry) {
	e.older = t.newest
	if e.older != nil {
		e.older.newer = e
	} else {
		t.oldest = e
	}
	t.newest = e
	t.idle++
}

// unlink takes an entry out of the idle. The lock is held.
func (t *table) unlink(e *entry) {
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		t.oldest = e.newer
	}
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		t.newest = e.older
	}
	e.older, e.newer = nil, nil
	t.idle--
}
