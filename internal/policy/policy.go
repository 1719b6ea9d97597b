// Package policy decides whether the gateway may connect to an IP address and
// port. It judges the address that is about to be dialed, not the name that was
// asked for, so that no DNS answer goes round it. From the first that applies:
//
//  1. What is no address, and port 0, is denied.
//  2. Never: unspecified, multicast and broadcast addresses, and what the
//     gateway itself listens on. No rule opens these.
//  3. Link-local addresses and the clouds' metadata services are denied unless
//     an allow rule names them, which is a rule that lies wholly within the
//     range at hand: 0.0.0.0/0 does not open 169.254.169.254, but
//     169.254.0.0/16 does, and so does 169.254.169.254:80 for its port.
//  4. What a deny rule covers is denied.
//  5. Where there are allow rules, what none of them covers is denied.
//
// All else is allowed, loopback included.
//
// An IPv4-mapped IPv6 address (::ffff:a.b.c.d) is its IPv4 address, and zones
// count for nothing. An IPv6 address that carries an IPv4 address to a
// translator or through a tunnel, or several (see carriers), must pass steps 2
// to 4 as each of them, and step 5 as IPv6.
//
// What lies behind another machine is out of sight: a port that a router or a
// container's host forwards back to the gateway needs a deny rule.
package policy

import (
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
)

// Why a connection is denied; see [Denial].
var (
	ErrInvalid   = errors.New("no address with a port")
	ErrNever     = errors.New("never allowed")
	ErrOwn       = errors.New("the gateway itself listens there")
	ErrUnknown   = errors.New("cannot tell whether the gateway itself listens there")
	ErrSensitive = errors.New("only an allow rule within the range opens it")
	ErrDenied    = errors.New("a deny rule covers it")
	ErrUnlisted  = errors.New("no allow rule covers it")
)

// Denial is the error that [Policy.Check] returns. Its text is for the
// operator's log: a client that reads it learns where addresses lead.
type Denial struct {
	// Addr is what Check was asked about.
	Addr netip.AddrPort
	// Carried is the IPv4 address within Addr that is to blame; it is invalid
	// (netip.Addr.IsValid) if Addr itself is.
	Carried netip.Addr
	// Why is one of the package's Err values; errors.Is finds it.
	Why error
	// By is what forbids it: a range, a rule, the address listened on, or what
	// went wrong (ErrUnknown); empty for ErrInvalid and ErrUnlisted.
	By string
}

func (d *Denial) Error() string {
	s := d.Addr.String()
	if d.Carried.IsValid() {
		s += ", which stands for " + d.Carried.String()
	}
	s += ": " + d.Why.Error()
	if d.By != "" {
		s += ": " + d.By
	}
	return s
}

func (d *Denial) Unwrap() error { return d.Why }

// Policy is a set of rules and the addresses that the gateway listens on. The
// zero value has none of either. Its methods are safe for concurrent use.
type Policy struct {
	allow, deny []Rule
	// own is replaced, never changed, so that Check needs no lock.
	own   atomic.Pointer[[]netip.AddrPort]
	local localCache
}

// New returns a policy with these rules. Without allow rules everything is
// allowed that the package's other steps leave.
func New(allow, deny []Rule) *Policy {
	return &Policy{allow: slices.Clone(allow), deny: slices.Clone(deny)}
}

// Own adds an address that the gateway listens on. An unspecified address
// stands for every address of this machine: 0.0.0.0 for IPv4, :: for both
// families, since listeners are dual-stack; an invalid address is taken for ::,
// as package net takes a nil IP. Port 0, which nobody can connect to, is
// ignored.
func (p *Policy) Own(ap netip.AddrPort) {
	ip := plain(ap.Addr())
	if !ip.IsValid() {
		ip = netip.IPv6Unspecified()
	}
	ap = netip.AddrPortFrom(ip, ap.Port())
	if ap.Port() == 0 {
		return
	}
	for {
		old := p.own.Load()
		var list []netip.AddrPort
		if old != nil {
			list = *old
		}
		if slices.Contains(list, ap) {
			return
		}
		list = append(slices.Clip(list), ap) // a copy
		if p.own.CompareAndSwap(old, &list) {
			return
		}
	}
}

// Check returns nil if a connection to ap is allowed, and otherwise a *[Denial].
// An allowed address costs no allocation and no system call, unless ap's port is
// one that the gateway listens on at an unspecified address: then the system is
// asked once a second whether the address is this machine's.
func (p *Policy) Check(ap netip.AddrPort) error {
	ip, port := plain(ap.Addr()), ap.Port()
	if !ip.IsValid() || port == 0 {
		return &Denial{Addr: ap, Why: ErrInvalid}
	}
	if by, why := p.forbids(ip, port); why != nil {
		return &Denial{Addr: ap, Why: why, By: by}
	}
	list, n := carried(ip)
	for _, v4 := range list[:n] {
		if by, why := p.forbids(v4, port); why != nil {
			return &Denial{Addr: ap, Carried: v4, Why: why, By: by}
		}
	}
	if len(p.allow) == 0 {
		return nil
	}
	for i := range p.allow {
		if p.allow[i].covers(ip, port) {
			return nil
		}
	}
	return &Denial{Addr: ap, Why: ErrUnlisted}
}

// CheckBroadcast returns a *[Denial] if ap is the broadcast address of a network
// that this machine is in. Only the system knows those, and asking takes some
// microseconds, so Check leaves them to whoever dials: the kernel connects no
// TCP there, but UDP would reach every machine of the network.
func (p *Policy) CheckBroadcast(ap netip.AddrPort) error {
	switch broadcast, err := isBroadcast(plain(ap.Addr())); {
	case err != nil:
		return &Denial{Addr: ap, Why: ErrUnknown, By: err.Error()}
	case broadcast:
		return &Denial{Addr: ap, Why: ErrNever, By: "a network's broadcast address"}
	}
	return nil
}

// forbids takes the steps 2 to 4. It returns what forbids ip and port and why,
// or nil.
func (p *Policy) forbids(ip netip.Addr, port uint16) (by string, why error) {
	for i := range never {
		if never[i].prefix.Contains(ip) {
			return never[i].String(), ErrNever
		}
	}
	if by, why := p.owns(ip, port); why != nil {
		return by, why
	}
	for i := range sensitive {
		if sensitive[i].prefix.Contains(ip) && !p.names(sensitive[i].prefix, ip, port) {
			return sensitive[i].String(), ErrSensitive
		}
	}
	for i := range p.deny {
		if p.deny[i].covers(ip, port) {
			return p.deny[i].String(), ErrDenied
		}
	}
	return "", nil
}

// owns is the part of step 2 about ip and port being one of our own listeners',
// or perhaps being so, if the system does not tell.
func (p *Policy) owns(ip netip.Addr, port uint16) (by string, why error) {
	list := p.own.Load()
	if list == nil {
		return "", nil
	}
	for _, own := range *list {
		if own.Port() != port {
			continue
		}
		if own.Addr() == ip {
			return own.String(), ErrOwn
		}
		if !own.Addr().IsUnspecified() || own.Addr().Is4() && !ip.Is4() {
			continue
		}
		local, err := p.local.isLocal(ip, askSystem)
		if err != nil {
			return err.Error(), ErrUnknown
		}
		if local {
			return own.String(), ErrOwn
		}
	}
	return "", nil
}

// names tells whether an allow rule that lies within the range, which holds ip,
// covers ip and port.
func (p *Policy) names(within netip.Prefix, ip netip.Addr, port uint16) bool {
	for i := range p.allow {
		if r := &p.allow[i]; r.prefix.Bits() >= within.Bits() && r.covers(ip, port) {
			return true
		}
	}
	return false
}

// plain returns the one form in which addresses are compared: IPv4 where it is
// IPv4, and no zone.
func plain(ip netip.Addr) netip.Addr { return ip.Unmap().WithZone("") }
