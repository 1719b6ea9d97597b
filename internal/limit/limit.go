// Package limit says which clients are turned away before anything is done for
// them: by lists of networks, by bans, by how many connections an address has, and
// by how fast it opens them.
//
// # Addresses
//
// What is counted is counted for an IPv4 address, or for an IPv6 network of
// Limits.Prefix6 bits, of which one household usually has a whole one. IPv4
// addresses that are written as IPv6 (::ffff:192.0.2.1) count as IPv4.
//
// # Memory
//
// All of it is bounded, whatever the number of addresses that come:
//
//   - An address that has connections is remembered as long as it has any; there
//     are no more of those than connections. It takes about 150 bytes.
//   - An address without connections is remembered until its bucket of tokens is
//     full again: then it is as one that never came. There are at most [Room] of
//     those. The one that had a connection the longest time ago is forgotten first,
//     and has a full bucket then.
//   - Of bad requests there are at most [MaxStrikes]; those of the address whose last
//     one is the oldest are forgotten first.
//   - Of bans that bad requests have earned there are at most [MaxBans]; the oldest
//     is forgotten first. Those that an operator adds are never forgotten, and there
//     are at most [MaxAdded].
package limit

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// Reason is why a client is turned away.
type Reason uint8

// The zero value is no reason.
const (
	None         Reason = iota
	NotAllowed          // by its address, which is in Limits.Deny or not in Limits.Allow
	Banned              // see Bans
	TooMany             // connections of its address
	TooFast             // connects of its address
	TooManyTries        // see Tries
	Elsewhere           // somebody who was asked says so
	numReasons
)

var reasonWords = [numReasons]string{"", "client_denied", "banned", "conns_per_ip", "rate_per_ip", "tickets_per_ip", "ask_limited"}

// String returns the word for the log and the counters.
func (r Reason) String() string { return reasonWords[r] }

// Reasons returns all of them.
func Reasons() []Reason {
	all := make([]Reason, 0, numReasons-1)
	for r := NotAllowed; r < numReasons; r++ {
		all = append(all, r)
	}
	return all
}

// Limits are what a Limiter holds clients to. The zero value of each field is no
// limit.
type Limits struct {
	// Allow, if it is not nil, has all networks of clients that are served; Deny has
	// those that are not, whatever Allow says.
	Allow, Deny *Clients
	// ConnsPerIP is how many connections an address may have at a time.
	ConnsPerIP int
	// Rate is how fast an address may open them.
	Rate Rate
	// Prefix6 is how many bits of an IPv6 address count, from 1 to 128; 0 is 64.
	Prefix6 int
}

// Fold returns what is counted for a client: its address, or the first of its IPv6
// network of bits6 bits; 0 is 64.
func Fold(client netip.Addr, bits6 int) netip.Addr {
	client = client.Unmap().WithZone("")
	if !client.Is6() {
		return client
	}
	if bits6 == 0 {
		bits6 = 64
	}
	p, err := client.Prefix(bits6)
	if err != nil {
		return client
	}
	return p.Addr()
}

// Limiter holds clients to limits, which may change. Its methods are safe for
// concurrent use.
type Limiter struct {
	limits atomic.Pointer[Limits]
	bans   *Bans
	start  time.Time
	table  table
}

// New returns a limiter without limits, but for those bans, which it may share with
// others; nil is none.
func New(bans *Bans) *Limiter {
	l := &Limiter{bans: bans, start: time.Now(), table: newTable(Room)}
	l.limits.Store(&Limits{})
	return l
}

// Set replaces the limits for clients to come. Connections that there are go on, and
// count, if they began under a limit of connections or of their rate.
func (l *Limiter) Set(limits Limits) { l.limits.Store(&limits) }

// Admit says whether a client may be served, and counts it until the Place is
// released. One that may not is not counted at all: to be turned away costs no
// tokens, and makes nothing longer. now is from time.Now.
func (l *Limiter) Admit(client netip.Addr, now time.Time) (Place, Reason) {
	limits := l.limits.Load()
	client = client.Unmap()
	if limits.Deny.contains(client) || limits.Allow != nil && !limits.Allow.contains(client) {
		return Place{}, NotAllowed
	}
	if l.bans.Banned(client, now) {
		return Place{}, Banned
	}
	if limits.ConnsPerIP == 0 && limits.Rate.every == 0 {
		return Place{}, None
	}
	e, why := l.table.admit(Fold(client, limits.Prefix6), limits.ConnsPerIP, limits.Rate, now.Sub(l.start))
	if why != None {
		return Place{}, why
	}
	return Place{&l.table, e}, None
}

// Counts tells whether anything that comes from an address is held against it later: its
// connections, how fast it opens them, or bad requests.
func (l *Limiter) Counts() bool {
	limits := l.limits.Load()
	return limits.ConnsPerIP > 0 || limits.Rate.every > 0 || l.bans != nil && l.bans.Rule().Bad > 0
}

// Strike says that a client has brought a bad request, and reports whether that has
// earned it a ban.
func (l *Limiter) Strike(client netip.Addr, now time.Time) bool {
	return l.bans != nil && l.bans.Strike(client, l.limits.Load().Prefix6, now)
}

// Fold returns what is counted for a client.
func (l *Limiter) Fold(client netip.Addr) netip.Addr { return Fold(client, l.limits.Load().Prefix6) }

// Hold counts a connection that was admitted elsewhere, where Admit would, whatever the
// limits, until the Place is released.
func (l *Limiter) Hold(client netip.Addr) Place {
	if limits := l.limits.Load(); limits.ConnsPerIP == 0 && limits.Rate.every == 0 {
		return Place{}
	}
	return Place{&l.table, l.table.hold(Fold(client, l.limits.Load().Prefix6))}
}

// Conns returns how many connections of a client's address are counted.
func (l *Limiter) Conns(client netip.Addr) int {
	return l.table.conns(Fold(client, l.limits.Load().Prefix6))
}

// Place is a connection's part in what is counted for its address. The zero value
// has none. Who copies it releases one of the copies.
type Place struct {
	table *table
	entry *entry
}

// Release gives the place up; once.
func (p *Place) Release() {
	if p.entry != nil {
		p.table.release(p.entry)
		p.entry = nil
	}
}
