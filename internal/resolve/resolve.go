// Package resolve finds the addresses of a name, and the targets of a service,
// in DNS. It is a stub resolver with a cache: the name servers that it asks do
// the walk through the zones.
//
// What was found is kept for its time to live. A name in use is looked up again
// before that ends, so that nobody waits for it. While no server answers, what
// was found last stays in use (RFC 8767). Lookups of one name at one time are
// one lookup.
package resolve

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"gateway/internal/address"
)

const (
	// defaultTimeout is the Timeout of Options that set none.
	defaultTimeout = 2 * time.Second
	// defaultMaxEntries is the MaxEntries of Options that set none.
	defaultMaxEntries = 4096
)

// Options are the settings of a Resolver. The zero value asks the system.
type Options struct {
	// Server is the HOST:PORT of the name server to ask, by UDP and TCP; see
	// [CheckServer]. A HOST that is a name is looked up by the system for each
	// question. Names are fully qualified: no search domain is ever appended.
	//
	// If it is empty, addresses are found by the system's resolver, with its
	// hosts file and search domains, and kept for 5 seconds, since it does not
	// tell for how long it may be. Services are asked of the name servers in
	// /etc/resolv.conf, by their full names; systems without that file need a
	// Server for them.
	Server string
	// Timeout bounds one lookup in all: repeated questions, further servers
	// and the change to TCP included. Zero is defaultTimeout.
	Timeout time.Duration
	// MaxEntries is how many names with addresses are remembered, and how many
	// services. Zero is defaultMaxEntries.
	MaxEntries int
	// System finds addresses when there is no Server. Nil is
	// net.DefaultResolver.
	System *net.Resolver
	// Log is told, now and then, of names that stay in use although they
	// cannot be looked up. Nil is silence.
	Log *slog.Logger
}

// Resolver looks up names. Its methods are safe for concurrent use. Names are
// host names by the grammar of package address; a dot at their end, and the
// case of their letters, mean nothing. (One thing: the system's resolver
// appends no search domain to a name with a dot at its end.)
//
// Slices that are returned belong to the Resolver and must not be changed.
type Resolver struct {
	client    client
	system    *net.Resolver // nil: ask the client's server
	addresses *cache[netip.Addr]
	services  *cache[Service]
}

// LookupKey says what a lookup was for and what came of it.
type LookupKey struct {
	Type   string // address or service
	Result string // ok, not_found or failed
}

// Lookups returns how many lookups there have been.
func (r *Resolver) Lookups() map[LookupKey]int64 {
	all := make(map[LookupKey]int64)
	count := func(kind string, results *[3]atomic.Int64) {
		for i, result := range [3]string{"ok", "not_found", "failed"} {
			all[LookupKey{kind, result}] = results[i].Load()
		}
	}
	count("address", &r.addresses.results)
	count("service", &r.services.results)
	return all
}

// Stale returns for how long the oldest answer that stays in use, since it cannot be
// looked up again, has been out of date; 0 if there is none.
func (r *Resolver) Stale() time.Duration { return max(r.addresses.oldest(), r.services.oldest()) }

// Service is a target that DNS lists under the name of a service (RFC 2782).
type Service struct {
	// Addr has the target's name in lower case, without a dot at its end, and
	// its port. It has no scheme, and is never an IP literal.
	Addr address.Address
	// Weight is a share next to the other targets' of the same priority.
	Weight uint16
	// Priority is better if it is lower.
	Priority uint16
}

// CheckServer tells whether nobody can be asked at the HOST:PORT of a Server: it
// wants an IP address, brackets around it if it is IPv6, or a host name, and a
// port from 1 to 65535. Names are not looked up.
func CheckServer(server string) error {
	host, port, err := net.SplitHostPort(server)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 {
		return fmt.Errorf("%q is no name server: want HOST:PORT with a port from 1 to 65535, as 127.0.0.1:53", server)
	}
	ip, err := netip.ParseAddr(host)
	if err != nil && !isName(host) || ip.IsMulticast() {
		return fmt.Errorf("%q is no name server: want an IP address or a host name before the port, as 127.0.0.1:53", server)
	}
	return nil
}

// New returns a Resolver, which the caller closes. Nothing runs in the
// background until something is asked. If Server is faulty, every lookup fails
// with the error of CheckServer.
func New(o Options) *Resolver {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = defaultMaxEntries
	}
	if o.System == nil {
		o.System = net.DefaultResolver
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Resolver{}
	if o.Server != "" {
		err := CheckServer(o.Server)
		r.client.servers = func() ([]string, error) { return []string{o.Server}, err }
		r.addresses = newCache(o, r.lookupAddresses)
	} else {
		r.client.servers = func() ([]string, error) { return systemServers("/etc/resolv.conf") }
		r.system = o.System
		r.addresses = newCache(o, r.lookupSystem)
	}
	r.services = newCache(o, r.lookupServices)
	return r
}

// Close ends all lookups and waits for their goroutines. Those who wait for
// them get an error. What is cached is still found.
func (r *Resolver) Close() {
	r.addresses.close()
	r.services.close()
}

// Addresses returns the IP addresses of a name, at least one. A Server's come
// IPv4 first, within a family as answered; the system's come as it sorts them.
// Addresses of one family are returned alone if the other's are not there 50 ms
// later; see [Resolver.AddressesAndLate].
//
// Every error is a *net.DNSError: IsNotFound if the name does not exist or has
// no address, IsTimeout if no server answered in time or ctx's deadline passed,
// and otherwise IsTemporary if a server failed. When ctx ends, only this call
// does: the lookup goes on for others, and for the cache.
func (r *Resolver) Addresses(ctx context.Context, name string) ([]netip.Addr, error) {
	ips, _, err := r.addresses.get(ctx, r.addressKey(name))
	return ips, err
}

// AddressesAndLate is Addresses for a caller that can begin with a part of the
// addresses: late brings the others when the lookup has found them, in one slice,
// and is closed when it is over. Nobody needs to receive from it. It is nil if no
// more will come.
//
// It is a channel, and not a second call or an iterator, because a dial that has
// begun waits for several things at once.
func (r *Resolver) AddressesAndLate(ctx context.Context, name string) (ips []netip.Addr, late <-chan []netip.Addr, err error) {
	ips, f, err := r.addresses.get(ctx, r.addressKey(name))
	if f != nil {
		late = r.addresses.rest(f)
	}
	return ips, late, err
}

// Services returns the targets that DNS lists under a name, at least one, by
// priority; more than 256 are cut. It is the same slice as long as the answers
// do not change, whatever their order. Errors are those of Addresses; that a
// service is "decidedly not available" (RFC 2782, a target of ".") and that no
// target can be used are IsNotFound.
func (r *Resolver) Services(ctx context.Context, name string) ([]Service, error) {
	list, _, err := r.services.get(ctx, fold(name))
	return list, err
}

// addressKey returns the name under which addresses are cached.
func (r *Resolver) addressKey(name string) string {
	if r.system != nil { // a dot at the end matters to it
		return strings.ToLower(name)
	}
	return fold(name)
}

// fold returns the one spelling of a name. It allocates for capitals only.
func fold(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// isName tells whether a name is a host name by the grammar of addresses.
func isName(name string) bool {
	a, err := address.Parse(strings.TrimSuffix(name, ".") + ":1")
	return err == nil && !a.IP.IsValid() && a.Scheme == ""
}
