package resolve

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// resolutionDelay is for how long one family's addresses wait for those of
	// the other (RFC 8305 section 3). A server or a firewall that drops the
	// questions of one type must not hold up the other type's answer.
	resolutionDelay = 50 * time.Millisecond
	// systemTTL is for how long the system's answers are used: as long as Go
	// trusts what it has read of a hosts file.
	systemTTL = 5 * time.Second
	// partialTTL bounds the time to live of one family's addresses, if the
	// server failed to answer for the other.
	partialTTL = 5 * time.Second
)

// family is what was found of the addresses of one family, or of both.
type family struct {
	ips []netip.Addr // at least one, unless err is set
	ttl time.Duration
	err error // a *net.DNSError
}

// lookupAddresses asks for the addresses of both families at once.
func (r *Resolver) lookupAddresses(ctx context.Context, name string, early func([]netip.Addr)) ([]netip.Addr, time.Duration, error) {
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		// Name servers know nothing of it (RFC 6761 section 6.3).
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, maxTTL, nil
	}
	ask := func(qtype uint16) func() family {
		return func() family {
			f := r.client.find(ctx, name, qtype)
			ips := addresses(f.records)
			if f.err == nil && len(ips) == 0 {
				f.err = notFound(name)
			}
			return family{ips, f.ttl, f.err}
		}
	}
	both := union(name, lookupBoth(ask(dns.TypeA), ask(dns.TypeAAAA), early))
	return both.ips, both.ttl, both.err
}

// lookupBoth runs the lookups of both families side by side. It returns when
// both are over; but when one of them has found addresses, and the other is
// slow, it calls early with those.
func lookupBoth(v4, v6 func() family, early func([]netip.Addr)) (both [2]family) {
	var done [2]chan struct{}
	for i, lookup := range []func() family{v4, v6} {
		done[i] = make(chan struct{})
		go func() {
			defer close(done[i])
			both[i] = lookup()
		}()
	}
	first := 0
	select {
	case <-done[0]:
	case <-done[1]:
		first = 1
	}
	if len(both[first].ips) > 0 {
		t := time.NewTimer(resolutionDelay)
		defer t.Stop()
		select {
		case <-done[1-first]:
		case <-t.C:
			early(both[first].ips)
		}
	}
	<-done[0]
	<-done[1]
	return both
}

// union returns what is known of a name by the answers for both families. IPv4
// comes first.
func union(name string, both [2]family) family {
	v4, v6 := both[0], both[1]
	ips := slices.Clone(v4.ips)
	for _, ip := range v6.ips {
		if len(ips) < maxRecords && !slices.Contains(ips, ip) {
			ips = append(ips, ip)
		}
	}
	if len(ips) == 0 {
		// What one of them failed to tell might have been an address.
		if isNotFound(v4.err) && v6.err != nil {
			v4.err = v6.err
		}
		return family{nil, min(v4.ttl, v6.ttl), v4.err}
	}
	ttl := maxTTL
	for _, f := range both {
		switch {
		case f.err == nil:
			ttl = min(ttl, f.ttl)
		case !isNotFound(f.err):
			ttl = min(ttl, partialTTL)
		}
	}
	return family{ips, ttl, nil}
}

// lookupSystem finds addresses as the system does. The system waits for both
// families. If that takes long, it is asked for each of them besides: not at
// once, since by a hosts file or search domains the answers may be about two
// hosts, and the questions are twice as many.
func (r *Resolver) lookupSystem(ctx context.Context, name string, early func([]netip.Addr)) ([]netip.Addr, time.Duration, error) {
	var asking sync.WaitGroup
	defer asking.Wait() // early must not be called any more
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	whole, parts := make(chan family, 1), make(chan family, 1)
	asking.Go(func() { whole <- r.askSystem(ctx, "ip", name) })
	t := time.NewTimer(resolutionDelay)
	defer t.Stop()
	select {
	case f := <-whole:
		return f.ips, f.ttl, f.err
	case <-t.C:
	}
	ask := func(network string) func() family {
		return func() family { return r.askSystem(ctx, network, name) }
	}
	asking.Go(func() { parts <- union(name, lookupBoth(ask("ip4"), ask("ip6"), early)) })
	var f family
	for range 2 {
		select {
		case f = <-whole:
			if f.err == nil || isNotFound(f.err) {
				return f.ips, f.ttl, f.err
			}
		case p := <-parts:
			if p.err == nil {
				return p.ips, p.ttl, nil
			}
		}
	}
	return nil, 0, f.err
}

// askSystem asks the system for addresses of a network: ip, ip4 or ip6.
func (r *Resolver) askSystem(ctx context.Context, network, name string) family {
	ips, err := r.system.LookupNetIP(ctx, network, name)
	if err != nil {
		return family{err: err}
	}
	for i, ip := range ips {
		ips[i] = ip.Unmap()
	}
	return family{ips[:min(len(ips), maxRecords)], systemTTL, nil}
}
