package resolve

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"gateway/internal/address"
)

const (
	// maxChain is how many CNAMEs are followed for one name.
	maxChain = 8
	// maxRecords is how many addresses or targets of one name are used.
	maxRecords = 256
)

// lookupServices asks for the targets of a service. Their addresses, if they
// come along, are remembered.
func (r *Resolver) lookupServices(ctx context.Context, name string, _ func([]Service)) ([]Service, time.Duration, error) {
	f := r.client.find(ctx, name, dns.TypeSRV)
	if f.err != nil {
		return nil, f.ttl, f.err
	}
	list := services(f.records)
	if len(list) == 0 {
		err := &net.DNSError{Err: "the service has no target", Name: name, IsNotFound: true}
		return nil, f.ttl, err
	}
	if r.system == nil { // which may find them elsewhere, in a hosts file for one
		for _, h := range hints(f.msg, name, list) {
			r.addresses.add(h.name, h.ips, h.ttl)
		}
	}
	return list, f.ttl, nil
}

// found is the outcome of a search for the records of one name and type.
type found struct {
	records []dns.RR // at least one, unless err is set
	ttl     time.Duration
	msg     *dns.Msg // with the records in it
	err     error    // a *net.DNSError
}

// find asks for records, and asks again where an alias leads out of the answer.
func (c *client) find(ctx context.Context, name string, qtype uint16) found {
	at, ttl := name, maxTTL
	for range maxChain {
		m, err := c.query(ctx, at, qtype)
		if err != nil {
			return found{err: err}
		}
		records, last, t := pick(m, dns.Fqdn(at), qtype)
		ttl = min(ttl, t)
		if len(records) > 0 {
			return found{records: records, ttl: ttl, msg: m}
		}
		t, known := negativeTTL(m)
		// A server that knows where the alias leads says with an SOA record
		// that there is nothing (RFC 2308 section 2.2).
		if m.Rcode == dns.RcodeNameError || known || strings.EqualFold(last, dns.Fqdn(at)) {
			return found{ttl: min(ttl, t), err: notFound(name)}
		}
		at = last
	}
	return found{err: &net.DNSError{Err: "too many aliases", Name: name, IsTemporary: true}}
}

// pick follows the aliases in a message from a name to records of a type. It
// returns those, the name at which they stand or should stand, and the least
// time to live on the way.
func pick(m *dns.Msg, name string, qtype uint16) (records []dns.RR, last string, ttl time.Duration) {
	ttl = maxTTL
	for range maxChain {
		var alias *dns.CNAME
		for _, rr := range m.Answer {
			h := rr.Header()
			if h.Class != dns.ClassINET || !strings.EqualFold(h.Name, name) {
				continue
			}
			if h.Rrtype == qtype {
				records = append(records, rr)
				ttl = min(ttl, seconds(h.Ttl))
			} else if a, ok := rr.(*dns.CNAME); ok {
				alias = a
			}
		}
		if len(records) > 0 || alias == nil || alias.Target == "" {
			break
		}
		name = alias.Target
		ttl = min(ttl, seconds(alias.Hdr.Ttl))
	}
	return records, name, ttl
}

// negativeTTL returns for how long it holds that there is nothing (RFC 2308
// section 5), and whether the message says so.
func negativeTTL(m *dns.Msg) (ttl time.Duration, known bool) {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return seconds(min(soa.Hdr.Ttl, soa.Minttl)), true
		}
	}
	return minTTL, false
}

// seconds returns a time to live. One with its first bit set is 0 (RFC 2181
// section 8).
func seconds(ttl uint32) time.Duration {
	if ttl >= 1<<31 {
		return 0
	}
	return time.Duration(ttl) * time.Second
}

// addresses returns the addresses in A and AAAA records, each once.
func addresses(records []dns.RR) []netip.Addr {
	var ips []netip.Addr
	for _, rr := range records {
		var b net.IP
		switch rr := rr.(type) {
		case *dns.A:
			b = rr.A.To4()
		case *dns.AAAA:
			b = rr.AAAA
		}
		ip, ok := netip.AddrFromSlice(b)
		ip = ip.Unmap()
		if ok && len(ips) < maxRecords && !slices.Contains(ips, ip) {
			ips = append(ips, ip)
		}
	}
	return ips
}

// services returns the targets in SRV records that can be dialed, sorted: name
// servers shuffle them.
func services(records []dns.RR) []Service {
	var list []Service
	for _, rr := range records {
		srv, ok := rr.(*dns.SRV)
		if !ok {
			continue
		}
		host := strings.ToLower(strings.TrimSuffix(srv.Target, "."))
		a, err := address.Parse(host + ":" + strconv.Itoa(int(srv.Port)))
		if err != nil || a.IP.IsValid() || a.Scheme != "" { // "." too
			continue
		}
		list = append(list, Service{Addr: a, Weight: srv.Weight, Priority: srv.Priority})
	}
	slices.SortFunc(list, func(a, b Service) int {
		return cmp.Or(
			cmp.Compare(a.Priority, b.Priority),
			strings.Compare(a.Addr.Host, b.Addr.Host),
			cmp.Compare(a.Addr.Port, b.Addr.Port),
			cmp.Compare(a.Weight, b.Weight),
		)
	})
	list = slices.Compact(list)
	return list[:min(len(list), maxRecords)]
}

// hint is what a message says of a name besides.
type hint struct {
	name string
	ips  []netip.Addr
	ttl  time.Duration
}

// hints returns the addresses of the targets of a service that are in the
// message with those. Only targets are believed, and of those only such as lie
// within the service's own domain, unless the server is the authority itself:
// else the owner of one zone could tell where the names of others lead, where a
// forwarder passes on all it gets.
func hints(m *dns.Msg, service string, list []Service) []hint {
	domain := dns.Fqdn(service)
	for strings.HasPrefix(domain, "_") { // _service._proto.
		_, domain, _ = strings.Cut(domain, ".")
	}
	known := make(map[string]*hint)
	for _, s := range list {
		if m.Authoritative || domain != "" && dns.IsSubDomain(domain, dns.Fqdn(s.Addr.Host)) {
			known[s.Addr.Host] = &hint{name: s.Addr.Host, ttl: maxTTL}
		}
	}
	// IPv4 comes first here too.
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		for _, rr := range m.Extra {
			h := rr.Header()
			k := known[fold(h.Name)]
			if k == nil || h.Rrtype != qtype || h.Class != dns.ClassINET || len(k.ips) == maxRecords {
				continue
			}
			if ips := addresses([]dns.RR{rr}); len(ips) > 0 && !slices.Contains(k.ips, ips[0]) {
				k.ips = append(k.ips, ips[0])
				k.ttl = min(k.ttl, seconds(h.Ttl))
			}
		}
	}
	var all []hint
	for _, k := range known {
		if len(k.ips) > 0 {
			all = append(all, *k)
		}
	}
	return all
}
