package limit

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The bounds of Bans.
const (
	MaxBans    = 1 << 16 // that were earned
	MaxAdded   = 1 << 12 // that were added
	MaxStrikes = 1 << 18 // bad requests that are remembered
)

// Ban is a network whose clients are turned away.
type Ban struct {
	Network netip.Prefix
	Until   time.Time
	// Added tells that an operator has, and not bad requests.
	Added bool
}

// Bans are networks whose clients are turned away until a time, and what addresses
// do to earn that. A ban ends by its time: no try makes it longer. The zero value is
// ready for use, with no rule; a nil Bans bans nobody. Its methods are safe for
// concurrent use.
type Bans struct {
	rule  atomic.Pointer[BanRule]
	count atomic.Int32 // of bans, the ended ones too; 0: nothing to look up

	mu     sync.Mutex
	bans   networks[Ban]
	earned []Ban // in the order in which they were; some have been lifted or replaced
	added  int

	bad      map[netip.Addr]*offender
	first    *offender // whose last bad request is the oldest
	last     *offender
	remember int // bad requests in all
}

// offender is an address that has brought bad requests.
type offender struct {
	addr         netip.Addr
	at           []time.Time // the oldest first
	older, newer *offender
}

// SetRule replaces the rule. What addresses have done counts under the new one.
func (b *Bans) SetRule(r BanRule) { b.rule.Store(&r) }

// Rule returns the rule.
func (b *Bans) Rule() BanRule {
	if r := b.rule.Load(); r != nil {
		return *r
	}
	return BanRule{}
}

// Banned tells whether a client is.
func (b *Bans) Banned(client netip.Addr, now time.Time) bool {
	if b == nil || b.count.Load() == 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.banned(client.Unmap().WithZone(""), now)
}

// banned is Banned with the lock held.
func (b *Bans) banned(client netip.Addr, now time.Time) bool {
	banned := false
	b.bans.find(client, func(network netip.Prefix, ban Ban) bool {
		if banned = now.Before(ban.Until); !banned {
			b.drop(network)
		}
		return !banned
	})
	return banned
}

// Strike says that a client has brought a bad request, and reports whether that has
// earned it a ban. bits6 is for Fold.
func (b *Bans) Strike(client netip.Addr, bits6 int, now time.Time) bool {
	rule := b.Rule()
	if rule.Bad == 0 {
		return false
	}
	addr := Fold(client, bits6)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.banned(client.Unmap().WithZone(""), now) {
		return false // from a connection of before
	}
	o := b.bad[addr]
	if o == nil {
		o = &offender{addr: addr}
		if b.bad == nil {
			b.bad = make(map[netip.Addr]*offender)
		}
		b.bad[addr] = o
	} else {
		b.unlink(o)
	}
	old := 0
	for old < len(o.at) && (len(o.at)-old >= rule.Bad || now.Sub(o.at[old]) >= rule.Within) {
		old++
	}
	o.at = append(slices.Delete(o.at, 0, old), now)
	b.remember += 1 - old
	b.link(o)
	earned := len(o.at) >= rule.Bad
	if earned {
		bits := addr.BitLen()
		if addr.Is6() {
			bits = cmp.Or(bits6, 64)
		}
		b.forget(o)
		b.put(Ban{Network: netip.PrefixFrom(addr, bits), Until: now.Add(rule.For)}, now)
	}
	for b.first != nil && (b.remember > MaxStrikes || now.Sub(b.first.at[len(b.first.at)-1]) >= rule.Within) {
		b.forget(b.first)
	}
	return earned
}

// Add bans a network for a time, which replaces an earlier ban of the same network.
func (b *Bans) Add(network netip.Prefix, span time.Duration, now time.Time) error {
	if !network.IsValid() || network != network.Masked() || network.Addr().Is4In6() {
		return fmt.Errorf("%v is no network, or has bits beyond its prefix", network)
	}
	if span <= 0 || span > maxTime {
		return fmt.Errorf("%v: want more than 0, and at most a year", span)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.added >= MaxAdded {
		b.end(now)
	}
	if old, known := b.bans.all[network]; b.added >= MaxAdded && !(known && old.Added) {
		return fmt.Errorf("there are %d bans that were added: lift some, or use -deny-clients", b.added)
	}
	b.put(Ban{Network: network, Until: now.Add(span), Added: true}, now)
	return nil
}

// Lift ends the ban of a network, and forgets its bad requests. It reports whether
// there was one.
func (b *Bans) Lift(network netip.Prefix, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	ban, known := b.bans.all[network]
	b.drop(network)
	if o := b.bad[network.Addr()]; o != nil {
		b.forget(o)
	}
	return known && now.Before(ban.Until)
}

// List returns all bans, by their end.
func (b *Bans) List(now time.Time) []Ban {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.end(now)
	list := make([]Ban, 0, len(b.bans.all))
	for _, ban := range b.bans.all {
		list = append(list, ban)
	}
	slices.SortFunc(list, func(x, y Ban) int {
		return cmp.Or(x.Until.Compare(y.Until), x.Network.Addr().Compare(y.Network.Addr()), x.Network.Bits()-y.Network.Bits())
	})
	return list
}

// Len returns how many bans there are.
func (b *Bans) Len(now time.Time) int { return len(b.List(now)) }

// put adds a ban or replaces one. The lock is held, as it is for all below.
func (b *Bans) put(ban Ban, now time.Time) {
	b.drop(ban.Network)
	b.bans.put(ban.Network, ban)
	if ban.Added {
		b.added++
	} else {
		b.earned = append(b.earned, ban)
		for len(b.earned) > MaxBans || !now.Before(b.earned[0].Until) {
			b.forgetEarned()
		}
	}
	b.count.Store(int32(len(b.bans.all)))
}

// end forgets bans that have ended, as well as what was lifted or replaced.
func (b *Bans) end(now time.Time) {
	for network, ban := range b.bans.all {
		if !now.Before(ban.Until) {
			b.drop(network)
		}
	}
	b.earned = slices.DeleteFunc(b.earned, func(e Ban) bool { return b.bans.all[e.Network] != e })
}

// forgetEarned forgets the oldest that was earned.
func (b *Bans) forgetEarned() {
	if e := b.earned[0]; b.bans.all[e.Network] == e {
		b.drop(e.Network)
	}
	b.earned = b.earned[1:]
}

func (b *Bans) drop(network netip.Prefix) {
	if b.bans.all[network].Added {
		b.added--
	}
	b.bans.remove(network)
	b.count.Store(int32(len(b.bans.all)))
}

// forget forgets an address's bad requests.
func (b *Bans) forget(o *offender) {
	b.unlink(o)
	b.remember -= len(o.at)
	delete(b.bad, o.addr)
}

func (b *Bans) link(o *offender) {
	o.older = b.last
	if o.older != nil {
		o.older.newer = o
	} else {
		b.first = o
	}
	b.last = o
}

func (b *Bans) unlink(o *offender) {
	if o.older != nil {
		o.older.newer = o.newer
	} else {
		b.first = o.newer
	}
	if o.newer != nil {
		o.newer.older = o.older
	} else {
		b.last = o.older
	}
	o.older, o.newer = nil, nil
}
