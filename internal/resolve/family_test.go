package resolve

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func TestTheSecondFamilyIsWaitedForBriefly(t *testing.T) {
	const ms = time.Millisecond
	four, six := []netip.Addr{netip.MustParseAddr("127.0.0.1")}, []netip.Addr{netip.IPv6Loopback()}
	none, fails := notFound("a.test"), &net.DNSError{Err: "server misbehaving", IsTemporary: true}
	for _, tt := range []struct {
		name    string
		v4, v6  family
		t4, t6  time.Duration
		early   time.Duration // 0: never
		ips     string
		err     error
		perhaps bool // the answer is not for long
	}{
		{name: "both at once", v4: family{ips: four}, v6: family{ips: six}, t4: ms, t6: ms, ips: "127.0.0.1 ::1"},
		{name: "IPv6 a little later", v4: family{ips: four}, v6: family{ips: six}, t4: 100 * ms, t6: 149 * ms, ips: "127.0.0.1 ::1"},
		{name: "IPv6 later", v4: family{ips: four}, v6: family{ips: six}, t4: 100 * ms, t6: 151 * ms, early: 150 * ms, ips: "127.0.0.1 ::1"},
		{name: "IPv4 later", v4: family{ips: four}, v6: family{ips: six}, t4: time.Minute, t6: ms, early: 51 * ms, ips: "127.0.0.1 ::1"},
		{name: "IPv6 never", v4: family{ips: four}, v6: family{err: fails}, t4: ms, t6: time.Hour, early: 51 * ms, ips: "127.0.0.1", perhaps: true},
		{name: "IPv4 never", v4: family{err: fails}, v6: family{ips: six}, t4: time.Hour, t6: ms, early: 51 * ms, ips: "::1", perhaps: true},
		{name: "IPv6 fails", v4: family{ips: four}, v6: family{err: fails}, t4: 2 * ms, t6: ms, ips: "127.0.0.1", perhaps: true},
		{name: "IPv6 is not there", v4: family{ips: four}, v6: family{err: none}, t4: 10 * ms, t6: ms, ips: "127.0.0.1"},
		{name: "that one is not there is no answer", v4: family{ips: four}, v6: family{err: none}, t4: time.Minute, t6: ms, ips: "127.0.0.1"},
		{name: "a failure is no answer", v4: family{ips: four}, v6: family{err: fails}, t4: time.Minute, t6: ms, ips: "127.0.0.1", perhaps: true},
		{name: "neither", v4: family{err: none}, v6: family{err: none}, t4: ms, t6: time.Second, err: none},
		{name: "neither, perhaps", v4: family{err: none}, v6: family{err: fails}, t4: ms, t6: time.Hour, err: fails},
		{name: "perhaps, neither", v4: family{err: fails}, v6: family{err: none}, t4: time.Hour, t6: ms, err: fails},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				after := func(d time.Duration, f family) func() family {
					f.ttl = time.Hour
					return func() family { time.Sleep(d); return f }
				}
				start, early := time.Now(), time.Duration(0)
				got := union("a.test", lookupBoth(after(tt.t4, tt.v4), after(tt.t6, tt.v6), func(part []netip.Addr) {
					early = time.Since(start)
					if first := tt.v4.ips; tt.t4 < tt.t6 && !slices.Equal(part, first) || tt.t4 > tt.t6 && !slices.Equal(part, tt.v6.ips) {
						t.Errorf("a part of %v", part)
					}
				}))
				want(t, "early", early, tt.early)
				want(t, "over", time.Since(start), max(tt.t4, tt.t6))
				want(t, "addresses", join(got.ips), tt.ips)
				want(t, "error", got.err, tt.err)
				if tt.err == nil {
					want(t, "time to live", got.ttl, map[bool]time.Duration{true: partialTTL, false: time.Hour}[tt.perhaps])
				}
			})
		})
	}
}

// both is a zone with two families.
var both = []string{"a.test. 60 A 127.0.0.1", "a.test. 60 AAAA ::1"}

// without makes a server hold back the responses of one type, until release is
// called.
func without(t *testing.T, s *server, qtype uint16) (release func()) {
	t.Helper()
	gate := make(chan struct{})
	s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
		if q.Question[0].Qtype == qtype {
			<-gate
		}
		s.answer(w, q)
	})
	var released bool
	release = func() {
		if !released {
			released = true
			close(gate)
		}
	}
	t.Cleanup(release)
	return release
}

// wayOf makes a resolver that asks a server: as its own, or by the system.
var wayOf = map[string]func(t *testing.T, s *server) *Resolver{
	"server": func(t *testing.T, s *server) *Resolver {
		r, _ := start(t, Options{Server: s.addr})
		return r
	},
	"system": func(t *testing.T, s *server) *Resolver {
		system := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, s.addr)
		}}
		r, _ := start(t, Options{System: system})
		return r
	},
}

func TestADroppedQuestionOfOneFamilyHoldsUpNobody(t *testing.T) {
	for way, resolver := range wayOf {
		for qtype, first := range map[uint16]string{dns.TypeA: "::1", dns.TypeAAAA: "127.0.0.1"} {
			t.Run(way+" "+dns.TypeToString[qtype], func(t *testing.T) {
				s := serve(t, both...)
				release := without(t, s, qtype)
				r := resolver(t, s)
				began := time.Now()
				ips, late, err := r.AddressesAndLate(t.Context(), "a.test.")
				if err != nil || join(ips) != first || late == nil {
					t.Fatalf("%v, %v, %v", ips, late, err)
				}
				if took := time.Since(began); took >= patient || took < resolutionDelay {
					t.Errorf("took %v", took)
				}
				// Another client need not wait even so long, and need not take
				// the late ones.
				want(t, "another client", lookup(t, r, "a.test."), first)
				want(t, "cached", cached(r, "a.test."), "none")
				release()
				want(t, "late", join(<-late), map[string]string{"::1": "127.0.0.1", "127.0.0.1": "::1"}[first])
				if more, open := <-late; open {
					t.Errorf("more: %v", more)
				}
				got := cached(r, "a.test.")
				if got != "127.0.0.1 ::1" && got != "::1 127.0.0.1" {
					t.Errorf("cached: %s", got)
				}
				ips, late, err = r.AddressesAndLate(t.Context(), "a.test.")
				if len(ips) != 2 || late != nil || err != nil {
					t.Errorf("then: %v, %v, %v", ips, late, err)
				}
			})
		}
	}
}

func TestNobodyIsToldOfLateAddressesThatDoNotCome(t *testing.T) {
	s := serve(t, both[0])
	release := without(t, s, dns.TypeAAAA)
	r, _ := start(t, Options{Server: s.addr})
	_, late, err := r.AddressesAndLate(t.Context(), "a.test")
	if err != nil {
		t.Fatal(err)
	}
	release()
	if more, open := <-late; open {
		t.Errorf("late: %v", more)
	}
}

func TestWhenBothFamiliesAreDroppedTheTimeOutStands(t *testing.T) {
	for _, other := range []func(dns.ResponseWriter, *dns.Msg){
		silence, fails(dns.RcodeNameError), fails(dns.RcodeSuccess), fails(dns.RcodeServerFailure),
	} {
		s := serve(t, both...)
		s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
			if q.Question[0].Qtype == dns.TypeAAAA {
				other(w, q)
			}
		})
		const timeout = 300 * time.Millisecond
		r, _ := start(t, Options{Server: s.addr, Timeout: timeout})
		began := time.Now()
		_, err := r.Addresses(t.Context(), "a.test")
		var e *net.DNSError
		if took := time.Since(began); took < timeout || !errors.As(err, &e) || !e.IsTimeout {
			t.Errorf("%v after %v, want a time-out after %v", err, took, timeout)
		}
	}
}

// A family that never answers must not make clients wait again when the other's
// answer runs out.
func TestAFamilyThatIsAlwaysDroppedCostsNobodyAnything(t *testing.T) {
	s := serve(t, both...)
	without(t, s, dns.TypeAAAA)
	r, clock := start(t, Options{Server: s.addr, Timeout: 200 * time.Millisecond})
	want(t, "first", lookup(t, r, "a.test"), "127.0.0.1")
	eventually(t, "the end of the lookup", func() bool { return cached(r, "a.test") == "127.0.0.1" })
	clock.forward(partialTTL)
	want(t, "expired", cached(r, "a.test"), "none")
	r.addresses.timeout = time.Hour
	want(t, "then", lookup(t, r, "a.test"), "127.0.0.1")
}

// In an outage a client looks up a service, and then its targets.
func TestAClientHasOnePatience(t *testing.T) {
	for _, tt := range []struct {
		name    string
		patient bool
		timeout time.Duration
		want    time.Duration
	}{
		{"one client", true, time.Hour, patience},
		{"others", false, time.Hour, 3 * patience},
		{"one in a hurry", true, 400 * time.Millisecond, (200 + 100 + 50) * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				down := false
				find := func(ctx context.Context, name string, _ func([]int)) ([]int, time.Duration, error) {
					if down {
						<-ctx.Done()
						return nil, 0, ended(ctx, name)
					}
					return []int{len(name)}, time.Minute, nil
				}
				c := newCache(Options{Timeout: time.Minute, MaxEntries: 9}, find)
				defer c.close()
				names := []string{"a.test", "bb.test", "ccc.test"}
				for _, name := range names {
					if _, _, err := c.get(t.Context(), name); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Hour)
				down = true
				ctx, cancel := context.WithTimeout(t.Context(), tt.timeout)
				defer cancel()
				if tt.patient {
					ctx = WithPatience(ctx)
				}
				began := time.Now()
				for _, name := range names {
					if v, _, err := c.get(ctx, name); err != nil || v[0] != len(name) {
						t.Errorf("%s: %v, %v", name, v, err)
					}
				}
				want(t, "waited", time.Since(began), tt.want)
			})
		})
	}
}
