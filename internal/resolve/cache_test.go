package resolve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"gateway/internal/layer"
)

func TestAnAnswerIsUsedForItsTimeToLive(t *testing.T) {
	s := serve(t, "a.test. 60 A 127.0.0.1")
	r, clock := start(t, Options{Server: s.addr})
	want(t, "before", cached(r, "a.test"), "none")
	want(t, "first", lookup(t, r, "a.test"), "127.0.0.1")
	s.set(t, "a.test. 60 A 127.0.0.2")
	for _, name := range []string{"a.test", "A.Test", "a.test.", "a.TEST."} {
		want(t, name, lookup(t, r, name), "127.0.0.1")
		want(t, "cached "+name, cached(r, name), "127.0.0.1")
	}
	clock.forward(44 * time.Second)
	want(t, "later", lookup(t, r, "a.test"), "127.0.0.1")
	want(t, "questions", s.queries("a.test. A"), 2) // A and AAAA
	clock.forward(16 * time.Second)
	want(t, "behind its time to live", cached(r, "a.test"), "none")
	want(t, "anew", lookup(t, r, "a.test"), "127.0.0.2")
	want(t, "questions", s.queries("a.test. A"), 4)
}

func TestTimesToLiveHaveBounds(t *testing.T) {
	for _, tt := range []struct {
		ttl  uint32
		want time.Duration
	}{
		{0, time.Second}, {1, time.Second}, {2, 2 * time.Second}, {3600, time.Hour},
		{3601, time.Hour}, {1<<31 - 1, time.Hour}, {1 << 31, time.Second}, {1<<32 - 1, time.Second},
	} {
		s := serve(t, fmt.Sprintf("a.test. %d A 127.0.0.1", tt.ttl))
		r, clock := start(t, Options{Server: s.addr})
		lookup(t, r, "a.test")
		a := r.addresses.answers["a.test"]
		if a.expires != tt.want || a.refresh != tt.want*3/4 {
			t.Errorf("TTL %d: refreshed from %v, expires at %v, want %v", tt.ttl, a.refresh, a.expires, tt.want)
		}
		clock.forward(tt.want)
		want(t, fmt.Sprintf("TTL %d: behind it", tt.ttl), cached(r, "a.test"), "none")
	}
}

func TestTheLeastTimeToLiveOfAnAnswerCounts(t *testing.T) {
	s := serve(t, "a.test. 60 CNAME b.test.", "b.test. 30 A 127.0.0.1", "b.test. 50 A 127.0.0.2", "b.test. 40 AAAA ::1")
	r, _ := start(t, Options{Server: s.addr})
	lookup(t, r, "a.test")
	want(t, "expires", r.addresses.answers["a.test"].expires, 30*time.Second)
}

func TestANameInUseIsLookedUpBeforeItExpires(t *testing.T) {
	s := serve(t, "a.test. 60 A 127.0.0.1")
	r, clock := start(t, Options{Server: s.addr})
	lookup(t, r, "a.test")
	s.set(t, "a.test. 60 A 127.0.0.2")
	clock.forward(45 * time.Second)
	for range 10 { // nobody waits, and one refresh is enough
		if cached(r, "a.test") == "none" {
			t.Fatal("not cached while it is refreshed")
		}
	}
	eventually(t, "the refresh", func() bool { return cached(r, "a.test") == "127.0.0.2" })
	clock.forward(44 * time.Second)
	want(t, "behind the first time to live", lookup(t, r, "a.test"), "127.0.0.2")
	want(t, "questions", s.queries("a.test. A"), 4)
}

func TestAnUnusedNameIsNotLookedUpAgain(t *testing.T) {
	s := serve(t, "a.test. 60 A 127.0.0.1", "b.test. 60 A 127.0.0.1")
	r, clock := start(t, Options{Server: s.addr})
	lookup(t, r, "a.test")
	for range 10 {
		clock.forward(45 * time.Second)
		lookup(t, r, "b.test")
	}
	want(t, "questions", s.queries("a.test. A"), 2)
}

func TestWhatWasFoundStaysInUseWhileNoServerAnswers(t *testing.T) {
	for name, down := range map[string]func(dns.ResponseWriter, *dns.Msg){
		"SERVFAIL": fails(dns.RcodeServerFailure),
		"REFUSED":  fails(dns.RcodeRefused),
		"silence":  silence,
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			s := serve(t, "a.test. 60 A 127.0.0.1", "_g._tcp.test. 60 SRV 1 2 3 a.test.")
			r, clock := start(t, Options{Server: s.addr, Log: slog.New(slog.NewTextHandler(&log, nil))})
			lookup(t, r, "a.test")
			before, _ := list(t, r, "_g._tcp.test")

			r.addresses.timeout, r.services.timeout = 100*time.Millisecond, 100*time.Millisecond
			s.behave(down)
			s.set(t, "a.test. 60 A 127.0.0.2")
			clock.forward(10 * time.Hour)
			want(t, "down", lookup(t, r, "a.test"), "127.0.0.1")
			during, _ := list(t, r, "_g._tcp.test")
			if &before[0] != &during[0] {
				t.Error("another slice of the same services")
			}
			// From now on nobody waits.
			asked := s.queries("a.test. A ")
			for range 5 {
				clock.forward(failureTTL)
				want(t, "still down", cached(r, "a.test"), "127.0.0.1")
				eventually(t, "another try", func() bool {
					r.addresses.mu.RLock()
					defer r.addresses.mu.RUnlock()
					a := r.addresses.answers["a.test"]
					return len(r.addresses.flights) == 0 && a.failed && !a.called.Load()
				})
			}
			eventually(t, "5 questions", func() bool { return s.queries("a.test. A ") >= asked+5 })
			if n := s.queries("a.test. A ") - asked; n > 5*rounds {
				t.Errorf("%d questions", n)
			}

			s.behave(nil)
			eventually(t, "recovery", func() bool {
				clock.forward(failureTTL)
				return lookup(t, r, "a.test") == "127.0.0.2"
			})
			r.Close() // so that nothing is logged any more
			if lines := strings.Count(log.String(), "\n"); lines != 2 || !strings.Contains(log.String(), "name=a.test") {
				t.Errorf("want a line for addresses and one for services, got\n%s", log.String())
			}
		})
	}
}

func TestNobodyTrustsAnOldFailure(t *testing.T) {
	s := serve(t, "a.test. 60 A 127.0.0.1")
	r, clock := start(t, Options{Server: s.addr})
	lookup(t, r, "a.test")
	clock.forward(time.Minute)
	s.behave(fails(dns.RcodeServerFailure))
	lookup(t, r, "a.test")
	s.behave(nil)
	s.set(t, "a.test. 60 A 127.0.0.2")
	clock.forward(staleUse)
	want(t, "hours after a failure", lookup(t, r, "a.test"), "127.0.0.2")
}

func TestWhatWasFoundIsNotUsedForEver(t *testing.T) {
	s := serve(t, "a.test. 60 A 127.0.0.1")
	r, clock := start(t, Options{Server: s.addr})
	lookup(t, r, "a.test")
	s.behave(fails(dns.RcodeServerFailure))
	clock.forward(time.Minute + maxStale - time.Second)
	want(t, "nearly a day later", lookup(t, r, "a.test"), "127.0.0.1")
	clock.forward(time.Second)
	if ips, err := r.Addresses(t.Context(), "a.test"); err == nil {
		t.Errorf("a day later: %v", ips)
	}
}

func TestThatANameIsGoneIsBelieved(t *testing.T) {
	s := serve(t, "a.test. 60 A 127.0.0.1")
	r, clock := start(t, Options{Server: s.addr})
	lookup(t, r, "a.test")
	s.set(t)
	clock.forward(time.Minute)
	if ips, err := r.Addresses(t.Context(), "a.test"); !isNotFound(err) {
		t.Errorf("%v, %v", ips, err)
	}
}

func TestNobodyWaitsLongIfThereIsAnOldAnswer(t *testing.T) {
	s := serve(t, "a.test. 60 A 127.0.0.1")
	r, clock := start(t, Options{Server: s.addr, Timeout: time.Hour})
	lookup(t, r, "a.test")
	s.behave(silence)
	clock.forward(time.Minute)
	began := time.Now()
	want(t, "while the server is silent", lookup(t, r, "a.test"), "127.0.0.1")
	if d := time.Since(began); d < patience || d > patient {
		t.Errorf("took %v", d)
	}
	// The lookup has had its time: the next need not wait at all.
	eventually(t, "an answer at once", func() bool {
		began := time.Now()
		lookup(t, r, "a.test")
		return time.Since(began) < patience/2
	})
	want(t, "questions", s.queries("a.test. A "), 2)
}

func TestNegativeAnswersAreKeptBriefly(t *testing.T) {
	soa := func(ttl, minimum int) func(dns.ResponseWriter, *dns.Msg) {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg).SetRcode(q, dns.RcodeNameError)
			rr, _ := dns.NewRR(fmt.Sprintf("test. %d SOA a. b. 1 2 3 4 %d", ttl, minimum))
			m.Ns = append(m.Ns, rr)
			w.WriteMsg(m)
		}
	}
	for _, tt := range []struct {
		name    string
		respond func(dns.ResponseWriter, *dns.Msg)
		want    time.Duration
	}{
		{"the minimum of the SOA", soa(60, 3), 3 * time.Second},
		{"the TTL of the SOA", soa(2, 60), 2 * time.Second},
		{"at most", soa(3600, 3600), maxNegative},
		{"at least", soa(0, 0), time.Second},
		{"no SOA", fails(dns.RcodeNameError), time.Second},
		{"SERVFAIL", fails(dns.RcodeServerFailure), time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t)
			s.behave(tt.respond)
			r, clock := start(t, Options{Server: s.addr})
			for range 3 {
				if ips, err := r.Addresses(t.Context(), "a.test"); err == nil {
					t.Fatal(ips)
				}
			}
			want(t, "cached", cached(r, "a.test"), "none")
			clock.forward(tt.want - 1)
			r.Addresses(t.Context(), "a.test")
			want(t, "questions", s.queries("a.test. A "), 1)
			clock.forward(1)
			r.Addresses(t.Context(), "a.test")
			want(t, "questions later", s.queries("a.test. A "), 2)
		})
	}
}

func TestLookupsOfOneNameAtOneTimeAreOneLookup(t *testing.T) {
	s := serve(t, "_g._tcp.test. 0 SRV 1 1 1 a.test.")
	release := s.hold(t)
	r, _ := start(t, Options{Server: s.addr})
	const callers = 50
	var wg sync.WaitGroup
	var asking sync.WaitGroup
	asking.Add(callers)
	for range callers {
		wg.Go(func() {
			asking.Done()
			if _, err := r.Services(context.Background(), "_g._tcp.test"); err != nil {
				t.Error(err)
			}
		})
	}
	asking.Wait()
	eventually(t, "the question", func() bool { return s.queries("_g._tcp.test.") > 0 })
	release()
	wg.Wait()
	want(t, "questions", s.queries("_g._tcp.test."), 1)
}

func TestTheEndOfACallerIsNotTheEndOfTheLookup(t *testing.T) {
	s := serve(t, "a.test. 60 A 127.0.0.1")
	release := s.hold(t)
	r, _ := start(t, Options{Server: s.addr})
	ctx, cancel := context.WithCancelCause(t.Context())
	failed := make(chan error)
	go func() {
		_, err := r.Addresses(ctx, "a.test")
		failed <- err
	}()
	eventually(t, "the question", func() bool { return s.queries("a.test. A") == 2 })
	gone := errors.New("the client is gone")
	cancel(gone)
	if err := <-failed; !errors.Is(err, gone) || layer.IsTimeout(err) || isNotFound(err) {
		t.Errorf("cancelled: %v", err)
	}
	late, cancelLate := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancelLate()
	if _, err := r.Addresses(late, "a.test"); !layer.IsTimeout(err) {
		t.Errorf("past its deadline: %v", err)
	}
	release()
	want(t, "another caller", lookup(t, r, "a.test"), "127.0.0.1")
	want(t, "questions", s.queries("a.test. A"), 2)

	if _, err := r.Addresses(ctx, "b.test"); !errors.Is(err, gone) {
		t.Errorf("cancelled before: %v", err)
	}
	want(t, "questions of one who is gone", s.queries("b.test. A"), 0)
	if _, err := r.Addresses(ctx, "a.test"); err != nil {
		t.Errorf("what is at hand needs no time: %v", err)
	}
}

func TestTheCacheIsBounded(t *testing.T) {
	var zone []string
	for i := range 200 {
		zone = append(zone, fmt.Sprintf("n%d.test. 600 A 127.0.0.1", i), fmt.Sprintf("s%d.test. 600 SRV 1 1 1 n%d.s%d.test.", i, i, i))
	}
	s := serve(t, zone...)
	r, clock := start(t, Options{Server: s.addr, MaxEntries: 5})
	for i := range 200 {
		clock.forward(time.Second)
		lookup(t, r, fmt.Sprintf("n%d.test", i))
		list(t, r, fmt.Sprintf("s%d.test", i))
		lookup(t, r, "n0.test") // in use, and never the oldest of the few
		if a, b := len(r.addresses.answers), len(r.services.answers); a > 5 || b > 5 {
			t.Fatalf("%d and %d entries", a, b)
		}
	}
	want(t, "questions for a name in use", s.queries("n0.test. A "), 1)
}

func TestCloseEndsLookups(t *testing.T) {
	s := serve(t, "a.test. 60 A 127.0.0.1")
	var log bytes.Buffer
	r, clock := start(t, Options{Server: s.addr, Timeout: time.Hour, Log: slog.New(slog.NewTextHandler(&log, nil))})
	lookup(t, r, "a.test")
	s.behave(silence)
	failed := make(chan error)
	go func() {
		_, err := r.Addresses(context.Background(), "b.test")
		failed <- err
	}()
	clock.forward(50 * time.Second)
	lookup(t, r, "a.test") // starts a refresh
	eventually(t, "the questions", func() bool { return s.queries("") == 6 })
	go r.Close()
	if err := <-failed; err == nil {
		t.Error("a lookup survives Close")
	}
	r.Close()
	want(t, "lookups", len(r.addresses.flights), 0)
	want(t, "logged", log.String(), "")
	if ips, err := r.Addresses(t.Context(), "c.test"); err == nil {
		t.Error("a closed resolver finds", ips)
	}
	want(t, "what is cached", lookup(t, r, "a.test"), "127.0.0.1")
}

func TestWhatIsCachedCostsNoAllocation(t *testing.T) {
	s := serve(t, "a.test. 60 A 127.0.0.1", "_g._tcp.test. 60 SRV 1 1 1 a.test.")
	r, _ := start(t, Options{Server: s.addr})
	lookup(t, r, "a.test")
	list(t, r, "_g._tcp.test")
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		r.Addresses(ctx, "a.test")
		r.Services(ctx, "_g._tcp.test")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestEverythingAtOnceIsFreeOfRaces(t *testing.T) {
	var zone []string
	for i := range 8 {
		zone = append(zone, fmt.Sprintf("n%d.test. %d A 127.0.0.%d", i, i, i+1), fmt.Sprintf("s%d.test. %d SRV 1 1 1 n.s%d.test.", i, i, i))
	}
	s := serve(t, zone...)
	s.behave(func(w dns.ResponseWriter, q *dns.Msg) {
		if rand.N(4) == 0 {
			fails(dns.RcodeServerFailure)(w, q)
			return
		}
		s.answer(w, q)
	})
	r, clock := start(t, Options{Server: s.addr, MaxEntries: 6})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				i := rand.N(8)
				clock.forward(100 * time.Millisecond)
				ips, err := r.Addresses(t.Context(), fmt.Sprintf("n%d.test", i))
				if err == nil && (len(ips) != 1 || ips[0] != netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)})) {
					t.Errorf("n%d.test has %v", i, ips)
				}
				list, err := r.Services(t.Context(), fmt.Sprintf("s%d.test", i))
				if err == nil && (len(list) != 1 || list[0].Addr.Host != fmt.Sprintf("n.s%d.test", i)) {
					t.Errorf("s%d.test has %v", i, list)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkAddressesThatAreCached(b *testing.B) {
	s := serve(b, "a.game.test. 3600 A 127.0.0.1")
	r := New(Options{Server: s.addr})
	defer r.Close()
	lookup(b, r, "a.game.test")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Addresses(b.Context(), "a.game.test"); err != nil {
			b.Fatal(err)
		}
	}
}
