package resolve

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"gateway/internal/address"
)

func TestAliasesAreFollowed(t *testing.T) {
	chain := func(n int) []string {
		zone := []string{fmt.Sprintf("c%d.test. 60 A 127.0.0.1", n)}
		for i := range n {
			zone = append(zone, fmt.Sprintf("c%d.test. 60 CNAME C%d.test.", i, i+1))
		}
		return zone
	}
	for _, tt := range []struct {
		name  string
		zone  []string
		found bool
	}{
		{"one", chain(1), true},
		{"as many as there may be", chain(maxChain - 1), true},
		{"to nowhere", []string{"c0.test. 60 CNAME c1.test."}, false},
		{"to another type", []string{"c0.test. 60 CNAME c1.test.", "c1.test. 60 SRV 1 1 1 a.test."}, false},
		{"to itself", []string{"c0.test. 60 CNAME c0.test."}, false},
		{"in a circle", []string{"c0.test. 60 CNAME c1.test.", "c1.test. 60 CNAME c0.test."}, false},
		{"to the root", []string{"c0.test. 60 CNAME ."}, false},
		{"too many", chain(100), false},
	} {
		for _, whole := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, whole %v", tt.name, whole), func(t *testing.T) {
				s := serve(t, tt.zone...)
				if !whole { // only the first record: where it leads must be asked for
					s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
						m := s.reply(q)
						m.Answer = m.Answer[:min(1, len(m.Answer))]
						w.WriteMsg(m)
					})
				}
				r, _ := start(t, Options{Server: s.addr})
				ips, err := r.Addresses(t.Context(), "c0.test")
				if got := err == nil && join(ips) == "127.0.0.1"; got != tt.found {
					t.Errorf("%v, %v", ips, err)
				}
				if n := s.queries(""); n > 2*maxChain || whole && tt.found && n > 3 { // AAAA without an SOA is asked for again
					t.Errorf("%d questions", n)
				}
			})
		}
	}
}

func TestThatAnAliasLeadsNowhereIsBelieved(t *testing.T) {
	s := serve(t, "a.test. 60 CNAME b.test.", "b.test. 60 A 127.0.0.1")
	s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
		m := s.reply(q)
		m.Answer = m.Answer[:1]
		soa, _ := dns.NewRR("test. 60 SOA a. b. 1 2 3 4 60")
		m.Ns = append(m.Ns, soa)
		w.WriteMsg(m)
	})
	r, _ := start(t, Options{Server: s.addr})
	if ips, err := r.Addresses(t.Context(), "a.test"); !isNotFound(err) {
		t.Errorf("%v, %v", ips, err)
	}
	want(t, "questions", s.queries("b.test."), 0)
}

func TestRecordsOfOtherNamesAreNotUsed(t *testing.T) {
	s := serve(t)
	s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		for _, line := range []string{"b.test. 60 A 127.6.6.6", "a.test. 60 CH A 127.6.6.6", "A.Test. 60 A 127.0.0.1", "a.test. 60 TXT x"} {
			rr, _ := dns.NewRR(line)
			m.Answer = append(m.Answer, rr)
		}
		w.WriteMsg(m)
	})
	r, _ := start(t, Options{Server: s.addr})
	want(t, "the address", lookup(t, r, "a.test"), "127.0.0.1")
}

func TestOneFamilyIsEnough(t *testing.T) {
	s := serve(t, "a.test. 60 A 127.0.0.1", "a.test. 60 AAAA ::1")
	for _, fault := range []uint16{dns.TypeA, dns.TypeAAAA} {
		s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
			if q.Question[0].Qtype == fault {
				fails(dns.RcodeServerFailure)(w, q)
				return
			}
			s.answer(w, q)
		})
		r, clock := start(t, Options{Server: s.addr})
		want(t, "one family", lookup(t, r, "a.test"), map[uint16]string{dns.TypeA: "::1", dns.TypeAAAA: "127.0.0.1"}[fault])
		s.behave(nil)
		clock.forward(partialTTL)
		want(t, "soon both", lookup(t, r, "a.test"), "127.0.0.1 ::1")

		s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
			if q.Question[0].Qtype == fault {
				fails(dns.RcodeServerFailure)(w, q)
				return
			}
			fails(dns.RcodeSuccess)(w, q)
		})
		if ips, err := r.Addresses(t.Context(), "b.test"); err == nil || isNotFound(err) {
			t.Errorf("nobody knows whether there is none: %v, %v", ips, err)
		}
	}
}

func TestServicesComeByPriority(t *testing.T) {
	s := serve(t,
		"_g._tcp.test. 60 SRV 20 0 4000 spare.test.", "_g._tcp.test. 60 SRV 10 5 4001 B.test.",
		"_g._tcp.test. 60 SRV 10 65535 65535 a.test.", "_g._tcp.test. 60 SRV 10 7 4000 b.test.",
		"alias.test. 60 CNAME _g._tcp.test.")
	r, _ := start(t, Options{Server: s.addr})
	for _, name := range []string{"_g._tcp.test", "_G._TCP.test.", "alias.test"} {
		services, got := list(t, r, name)
		wantList(t, got, "10 65535 a.test:65535", "10 7 b.test:4000", "10 5 b.test:4001", "20 0 spare.test:4000")
		want(t, "the host", services[1].Addr, address.Address{Host: "b.test", Port: 4000})
		if again, err := r.Services(t.Context(), name); err != nil || &again[0] != &services[0] {
			t.Errorf("again: %v, %v", again, err)
		}
	}
}

func TestServicesThatDidNotChangeAreTheSameSlice(t *testing.T) {
	zone := []string{"s.test. 60 SRV 1 1 1 a.test.", "s.test. 60 SRV 1 1 1 b.test.", "s.test. 60 SRV 2 1 1 c.test."}
	s := serve(t, zone...)
	r, clock := start(t, Options{Server: s.addr})
	first, _ := list(t, r, "s.test")
	for range 10 {
		rand.Shuffle(len(zone), func(i, j int) { zone[i], zone[j] = zone[j], zone[i] })
		s.set(t, zone...)
		clock.forward(time.Minute)
		if again, _ := list(t, r, "s.test"); &again[0] != &first[0] {
			t.Fatal("another slice of the same services")
		}
	}
	want(t, "questions", s.queries("s.test."), 11)
	s.set(t, zone[:2]...)
	clock.forward(time.Minute)
	less, _ := list(t, r, "s.test")
	want(t, "services", len(less), 2)
}

func TestTargetsThatCannotBeDialedAreLeftOut(t *testing.T) {
	unusable := []string{
		"s.test. 60 SRV 1 1 1 .", "s.test. 60 SRV 1 1 0 a.test.", "s.test. 60 SRV 1 1 1 127.0.0.1.", "s.test. 60 SRV 1 1 1 127.1.",
		`s.test. 60 SRV 1 1 1 a\.b.test.`, `s.test. 60 SRV 1 1 1 a\032b.test.`, `s.test. 60 SRV 1 1 1 *.test.`, `s.test. 60 SRV 1 1 1 a\047b.`,
	}
	s := serve(t, append(unusable, "s.test. 60 SRV 1 1 1 a.test.", "s.test. 60 SRV 1 1 1 A.test.")...)
	r, clock := start(t, Options{Server: s.addr})
	_, got := list(t, r, "s.test")
	wantList(t, got, "1 1 a.test:1")
	for _, zone := range [][]string{unusable, unusable[:1]} {
		s.set(t, zone...)
		clock.forward(time.Minute)
		if list, err := r.Services(t.Context(), "s.test"); !isNotFound(err) {
			t.Errorf("%v, %v", list, err)
		}
	}
}

func TestThereMayBeTooManyRecords(t *testing.T) {
	var zone []string
	for i := range 2 * maxRecords {
		zone = append(zone, fmt.Sprintf("s.test. 60 SRV %d 1 1 a%d.test.", 1000-i, i), fmt.Sprintf("a.test. 60 A 127.1.%d.%d", i/256, i%256))
	}
	s := serve(t, zone...)
	s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
		m := s.reply(q)
		m.Compress = true
		if strings.HasPrefix(w.RemoteAddr().Network(), "udp") {
			m.Truncate(udpSize)
		}
		w.WriteMsg(m)
	})
	r, _ := start(t, Options{Server: s.addr})
	services, _ := list(t, r, "s.test")
	want(t, "services", len(services), maxRecords)
	want(t, "the best", services[0].Priority, uint16(1000-2*maxRecords+1))
	ips, err := r.Addresses(t.Context(), "a.test")
	want(t, "addresses", fmt.Sprint(len(ips), err), fmt.Sprint(maxRecords, " <nil>"))
}

// additional makes a server add records to its answers for services.
func additional(s *server, authoritative bool, lines ...string) {
	s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
		m := s.reply(q)
		m.Authoritative = authoritative
		if q.Question[0].Qtype == dns.TypeSRV {
			for _, line := range lines {
				rr, _ := dns.NewRR(line)
				m.Extra = append(m.Extra, rr)
			}
		}
		w.WriteMsg(m)
	})
}

func TestAddressesOfTargetsComeAlong(t *testing.T) {
	for _, tt := range []struct {
		name, service, target string
		authoritative         bool
		extra                 []string
		want                  string
	}{
		{"below the domain", "_g._tcp.test", "a.test", false, []string{"A.test. 60 AAAA ::1", "a.test. 60 A 127.0.0.1"}, "127.0.0.1 ::1"},
		{"the domain itself", "_g._tcp.test", "test", false, []string{"test. 60 A 127.0.0.1"}, "127.0.0.1"},
		{"without underscores", "g.test", "a.g.test", false, []string{"a.g.test. 60 A 127.0.0.1"}, "127.0.0.1"},
		{"elsewhere, from the authority", "g.service.test", "a.node.test", true, []string{"a.node.test. 60 A 127.0.0.1"}, "127.0.0.1"},
		{"elsewhere", "_g._tcp.x.test", "a.test", false, []string{"a.test. 60 A 127.0.0.1"}, "none"},
		{"a name that ends alike", "_g._tcp.a.test", "xa.test", false, []string{"xa.test. 60 A 127.0.0.1"}, "none"},
		{"no domain", "_g._tcp", "a.test", false, []string{"a.test. 60 A 127.0.0.1"}, "none"},
		{"another class", "_g._tcp.test", "a.test", false, []string{"a.test. 60 CH A 127.0.0.1"}, "none"},
		{"no target", "_g._tcp.test", "a.test", true, []string{"b.test. 60 A 127.0.0.1"}, "none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, tt.service+". 60 SRV 1 1 1 "+tt.target+".")
			additional(s, tt.authoritative, tt.extra...)
			r, _ := start(t, Options{Server: s.addr})
			list(t, r, tt.service)
			want(t, "at hand", cached(r, tt.target), tt.want)
			want(t, "another name's", cached(r, "b.test"), "none")
		})
	}
}

func TestWhatWasAskedForIsWorthMoreThanWhatComesAlong(t *testing.T) {
	s := serve(t, "s.test. 1 SRV 1 1 1 a.s.test.", "a.s.test. 60 A 127.0.0.1")
	additional(s, true, "a.s.test. 60 A 127.0.0.2")
	r, clock := start(t, Options{Server: s.addr})
	lookup(t, r, "a.s.test")
	list(t, r, "s.test")
	want(t, "while it is good", cached(r, "a.s.test"), "127.0.0.1")
	clock.forward(time.Minute)
	list(t, r, "s.test")
	want(t, "behind its time", cached(r, "a.s.test"), "127.0.0.2")
	additional(s, true, "a.s.test. 60 A 127.0.0.3")
	clock.forward(2 * time.Second)
	list(t, r, "s.test")
	want(t, "of two that came along, the newer", cached(r, "a.s.test"), "127.0.0.3")
}

func FuzzWhatIsReadInAMessageIsSafe(f *testing.F) {
	for _, lines := range [][]string{
		{"s.test. 60 SRV 1 2 3 a.test.", "s.test. 0 SRV 1 2 3 A.s.test.", "a.test. 60 A 127.0.0.1"},
		{"s.test. 60 CNAME t.test.", "t.test. 4294967295 A 127.0.0.1", "s.test. 1 AAAA ::1"},
		{"s.test. 60 SOA a. b. 1 2 3 4 5", "s.test. 1 CNAME s.test."},
	} {
		m := new(dns.Msg).SetQuestion("s.test.", dns.TypeSRV)
		for _, line := range lines {
			rr, err := dns.NewRR(line)
			if err != nil {
				f.Fatal(err)
			}
			m.Answer, m.Ns, m.Extra = append(m.Answer, rr), append(m.Ns, rr), append(m.Extra, rr)
		}
		packet, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		m := new(dns.Msg)
		if m.Unpack(packet) != nil {
			return
		}
		if ttl, _ := negativeTTL(m); ttl < 0 {
			t.Fatalf("negative TTL %v", ttl)
		}
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV} {
			records, last, ttl := pick(m, "s.test.", qtype)
			if ttl < 0 || ttl > maxTTL || last == "" {
				t.Fatalf("TTL %v, alias %q", ttl, last)
			}
			for _, ip := range addresses(records) {
				if !ip.IsValid() || ip.Is4In6() || ip.Zone() != "" {
					t.Fatalf("address %v", ip)
				}
			}
			list := services(records)
			for _, s := range list {
				if a, err := address.Parse(s.Addr.String()); err != nil || a != s.Addr || a.IP.IsValid() || !isName(a.Host) {
					t.Fatalf("target %+v: %v", s.Addr, err)
				}
			}
			if len(list) > maxRecords || !slices.IsSortedFunc(list, func(a, b Service) int { return int(a.Priority) - int(b.Priority) }) {
				t.Fatalf("%d services: %v", len(list), list)
			}
			for _, h := range hints(m, "s.test", list) {
				if len(h.ips) == 0 || h.ttl < 0 || !slices.ContainsFunc(list, func(s Service) bool { return s.Addr.Host == h.name }) {
					t.Fatalf("%+v comes along", h)
				}
				if !m.Authoritative && h.name != "s.test" && !strings.HasSuffix(h.name, ".s.test") {
					t.Fatalf("%q lies elsewhere", h.name)
				}
			}
		}
	})
}
