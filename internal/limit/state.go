package limit

import (
	"net/netip"
	"time"
)

// State is what a process may tell the next one: of connections nothing, since the
// next one holds those that it gets (Limiter.Hold). Times are by the wall clock, which
// two processes of a machine share.
type State struct {
	Bans    []Ban                      `json:",omitempty"`
	Buckets map[netip.Addr]time.Time   `json:",omitempty"` // when each is full
	Bad     map[netip.Addr][]time.Time `json:",omitempty"` // requests, the oldest first
}

// Snapshot adds to a state when the buckets are full that are not.
func (l *Limiter) Snapshot(s *State, now time.Time) {
	since := now.Sub(l.start)
	l.table.mu.Lock()
	defer l.table.mu.Unlock()
	for addr, e := range l.table.entries {
		if e.full > since {
			if s.Buckets == nil {
				s.Buckets = make(map[netip.Addr]time.Time)
			}
			s.Buckets[addr] = now.Add(e.full - since).Round(0)
		}
	}
}

// Restore takes up the buckets of a state.
func (l *Limiter) Restore(s State, now time.Time) {
	since := now.Sub(l.start)
	l.table.mu.Lock()
	defer l.table.mu.Unlock()
	for addr, at := range s.Buckets {
		left := at.Sub(now.Round(0))
		if left <= 0 || left > maxTime {
			continue
		}
		e := l.table.entries[addr]
		if e == nil {
			e = &entry{addr: addr}
			l.table.entries[addr] = e
			l.table.rest(e)
		}
		e.full = max(e.full, since+left)
	}
	l.table.forget()
}

// Snapshot adds the bans to a state, and what addresses have done.
func (b *Bans) Snapshot(s *State, now time.Time) {
	for _, ban := range b.List(now) {
		ban.Until = ban.Until.Round(0)
		s.Bans = append(s.Bans, ban)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for o := b.first; o != nil; o = o.newer {
		if s.Bad == nil {
			s.Bad = make(map[netip.Addr][]time.Time)
		}
		for _, at := range o.at {
			s.Bad[o.addr] = append(s.Bad[o.addr], at.Round(0))
		}
	}
}

// Restore takes up the bans of a state and what addresses have done. Bans that have
// ended meanwhile are left out, and so are more than there may be.
func (b *Bans) Restore(s State, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ban := range s.Bans {
		n := ban.Network
		left := ban.Until.Sub(now.Round(0))
		if !n.IsValid() || n != n.Masked() || n.Addr().Is4In6() || left <= 0 || left > maxTime ||
			ban.Added && b.added >= MaxAdded {
			continue
		}
		ban.Until = now.Add(left)
		b.put(ban, now)
	}
	for addr, times := range s.Bad {
		if b.bad[addr] != nil || len(times) == 0 || len(times) > MaxBad || b.remember+len(times) > MaxStrikes {
			continue
		}
		o := &offender{addr: addr}
		for _, at := range times {
			o.at = append(o.at, now.Add(-max(0, now.Round(0).Sub(at))))
		}
		if b.bad == nil {
			b.bad = make(map[netip.Addr]*offender)
		}
		b.bad[addr] = o
		b.remember += len(o.at)
		b.link(o)
	}
}
