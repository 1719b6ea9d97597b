package limit

import (
	"net/netip"
	"time"
)

// Tries bounds what clients may try that costs somebody else's work, by their address:
// who succeeds pays nothing, and who fails has so many tries at once, and one more
// every so often. The zero value is not usable. Its methods are safe for concurrent use.
//
// As of a Limiter, what is remembered is bounded: at most [Room] addresses, of which the
// one that has tried the longest time ago is forgotten first.
type Tries struct {
	rate  Rate
	start time.Time
	table table
}

// NewTries returns tries at a rate.
func NewTries(rate Rate) *Tries {
	return &Tries{rate: rate, start: time.Now(), table: newTable(Room)}
}

// Begin takes a try from an address, as Fold returns it, and reports whether it had
// one. now is from time.Now. The Try must be ended.
func (t *Tries) Begin(addr netip.Addr, now time.Time) (Try, bool) {
	e, why := t.table.admit(addr, 0, t.rate, now.Sub(t.start))
	return Try{t, e}, why == None
}

// Try is one that has begun.
type Try struct {
	tries *Tries
	entry *entry
}

// End ends the try: one that has succeeded is given back.
func (t Try) End(succeeded bool) {
	if succeeded {
		t.tries.table.refund(t.entry, t.tries.rate)
	}
	t.tries.table.release(t.entry)
}

// refund puts a token back that was taken.
func (t *table) refund(e *entry, rate Rate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.full -= rate.every
}
