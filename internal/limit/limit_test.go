package limit

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func rate(t testing.TB, s string) Rate {
	t.Helper()
	r, err := ParseRate(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAddressesAreCountedByWhatAHouseholdHas(t *testing.T) {
	for _, c := range []struct {
		client string
		bits   int
		want   string
	}{
		{"192.0.2.1", 0, "192.0.2.1"},
		{"::ffff:192.0.2.1", 0, "192.0.2.1"},
		{"2001:db8:1:2:3:4:5:6", 0, "2001:db8:1:2::"},
		{"2001:db8:1:2:ffff::1", 64, "2001:db8:1:2::"},
		{"2001:db8:1:2ff::1", 56, "2001:db8:1:200::"},
		{"2001:db8::1", 128, "2001:db8::1"},
		{"fe80::1%eth0", 128, "fe80::1"},
	} {
		if got := Fold(ip(c.client), c.bits); got != ip(c.want) {
			t.Errorf("%s by %d bits is %v, want %s", c.client, c.bits, got, c.want)
		}
	}
}

func TestAnAddressHasOnlySoManyConnections(t *testing.T) {
	l := New(nil)
	l.Set(Limits{ConnsPerIP: 2})
	now := time.Now()
	one, _ := l.Admit(ip("2001:db8::1"), now)
	two, _ := l.Admit(ip("2001:db8::2"), now)
	if _, why := l.Admit(ip("2001:db8::3"), now); why != TooMany {
		t.Errorf("the third of a network is %q", why)
	}
	if _, why := l.Admit(ip("2001:db8:0:1::"), now); why != None {
		t.Errorf("another network is %q", why)
	}
	one.Release()
	one.Release()
	if _, why := l.Admit(ip("2001:db8::3"), now); why != None {
		t.Errorf("where one has gone, one is %q", why)
	}
	two.Release()
	if n := l.Conns(ip("2001:db8::9")); n != 1 {
		t.Errorf("%d connections are left, want 1", n)
	}
	mapped := ip("::ffff:192.0.2.1")
	l.Hold(mapped)
	l.Hold(ip("192.0.2.1"))
	if _, why := l.Admit(mapped, now); why != TooMany {
		t.Errorf("a mapped address is %q", why)
	}
}

func TestAnAddressConnectsOnlySoFast(t *testing.T) {
	l := New(nil)
	l.Set(Limits{Rate: rate(t, "10/s,3")})
	now := time.Now()
	admit := func() Reason {
		p, why := l.Admit(ip("192.0.2.1"), now)
		p.Release()
		return why
	}
	for range 3 {
		if why := admit(); why != None {
			t.Fatalf("the burst is %q", why)
		}
	}
	for range 100 { // none of which makes it longer
		if why := admit(); why != TooFast {
			t.Fatalf("behind the burst is %q", why)
		}
	}
	now = now.Add(99 * time.Millisecond)
	if why := admit(); why != TooFast {
		t.Errorf("too early is %q", why)
	}
	now = now.Add(time.Millisecond)
	if why := admit(); why != None {
		t.Errorf("after a tenth of a second is %q", why)
	}
	if why := admit(); why != TooFast {
		t.Errorf("the next is %q", why)
	}
	now = now.Add(time.Hour)
	for i := range 4 {
		if why := admit(); (why == None) != (i < 3) {
			t.Errorf("after an hour number %d is %q", i, why)
		}
	}
}

// modelled is an address as the model has it: a bucket with tokens in it.
type modelled struct {
	conns  int
	tokens float64
	at     time.Duration
}

// The model has room for everything, and counts tokens.
func TestAdmissionIsThatOfAModelInEverySchedule(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		// Whole nanoseconds between two tokens.
		perSecond := []int{1, 2, 4, 5, 8, 10, 20}[rnd.IntN(7)]
		burst, most := 1+rnd.IntN(5), rnd.IntN(4)
		limits := Limits{ConnsPerIP: most}
		if rnd.IntN(4) > 0 {
			limits.Rate = rate(t, fmt.Sprintf("%d/s,%d", perSecond, burst))
		}
		l := New(nil)
		l.Set(limits)
		start := l.start
		now := time.Duration(0)
		model := make(map[netip.Addr]*modelled)
		type held struct {
			p    Place
			addr netip.Addr
		}
		var places []held
		for step := range 500 {
			switch rnd.IntN(5) {
			case 0:
				// Whole steps of the bucket, so that a float is exact enough.
				now += time.Duration(rnd.IntN(4)) * (time.Second / time.Duration(perSecond)) / 2
			case 1:
				if len(places) > 0 {
					i := rnd.IntN(len(places))
					model[places[i].addr].conns--
					places[i].p.Release()
					places = append(places[:i], places[i+1:]...)
				}
			default:
				addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(rnd.IntN(6))})
				m := model[addr]
				if m == nil {
					m = &modelled{tokens: float64(burst), at: now}
					model[addr] = m
				}
				m.tokens = min(float64(burst), m.tokens+(now-m.at).Seconds()*float64(perSecond))
				m.at = now
				want := None
				switch {
				case most > 0 && m.conns >= most:
					want = TooMany
				case limits.Rate.every > 0 && m.tokens < 1-1e-6:
					want = TooFast
				default:
					m.tokens--
				}
				p, why := l.Admit(addr, start.Add(now))
				if why != want {
					t.Fatalf("seed %d, step %d: %v is %q, want %q (%d connections, %.3f tokens)", seed, step, addr, why, want, m.conns, m.tokens)
				}
				if why == None {
					m.conns++
					places = append(places, held{p, addr})
				}
			}
			if most == 0 && limits.Rate.every == 0 {
				continue // nothing is counted
			}
			for addr, m := range model {
				if got := l.Conns(addr); got != m.conns {
					t.Fatalf("seed %d, step %d: %v has %d connections, want %d", seed, step, addr, got, m.conns)
				}
			}
		}
	}
}

func TestMemoryIsBoundedWhateverTheNumberOfAddresses(t *testing.T) {
	const room = 50
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		tb := newTable(room)
		slow := rate(t, "1/h,2")
		open := make(map[netip.Addr][]*entry)
		n := 0
		for step := range 3000 {
			addr := netip.AddrFrom4([4]byte{10, 0, byte(rnd.IntN(8)), byte(rnd.IntN(256))})
			if rnd.IntN(3) > 0 {
				if e, why := tb.admit(addr, 0, slow, time.Duration(step)); why == None {
					open[addr] = append(open[addr], e)
					n++
				}
			}
			for n > 20 {
				for a, list := range open {
					tb.release(list[0])
					if open[a] = list[1:]; len(open[a]) == 0 {
						delete(open, a)
					}
					n--
					break
				}
			}
			if len(tb.entries) > room+len(open) || tb.idle > room || tb.idle != len(tb.entries)-len(open) {
				t.Fatalf("seed %d, step %d: %d addresses, %d of them idle, %d with connections", seed, step, len(tb.entries), tb.idle, len(open))
			}
			for a, list := range open { // none of those is ever forgotten
				if got := tb.conns(a); got != len(list) {
					t.Fatalf("seed %d, step %d: %v has %d connections, want %d", seed, step, a, got, len(list))
				}
			}
		}
	}
}

func TestTheAddressThatRestsTheLongestIsForgottenFirst(t *testing.T) {
	tb := newTable(2)
	slow := rate(t, "1/h,1")
	for i := range byte(3) {
		e, _ := tb.admit(netip.AddrFrom4([4]byte{10, 0, 0, i}), 0, slow, 0)
		tb.release(e)
	}
	for i, want := range []Reason{2: TooFast, 1: TooFast, 0: None} { // 0 was forgotten, and asking brings it back
		if _, why := tb.admit(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 0, slow, 0); why != want {
			t.Errorf("address %d is %q, want %q", i, why, want)
		}
	}
}

func TestAFullBucketIsForgotten(t *testing.T) {
	tb := newTable(100)
	r := rate(t, "1/s,1")
	for i := range byte(10) {
		e, _ := tb.admit(netip.AddrFrom4([4]byte{10, 0, 0, i}), 0, r, time.Duration(i)*time.Second)
		tb.release(e)
	}
	if len(tb.entries) > 2 {
		t.Errorf("%d addresses are remembered", len(tb.entries))
	}
}

func TestLimitsChangeWhileConnectionsComeAndGo(t *testing.T) {
	var bans Bans
	bans.SetRule(BanRule{Bad: 3, Within: time.Minute, For: time.Millisecond})
	l := New(&bans)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 4))
			for i := range 2000 {
				addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(rnd.IntN(20))})
				switch {
				case i%500 == 0:
					l.Set(Limits{ConnsPerIP: rnd.IntN(5), Rate: Rate{every: time.Duration(rnd.IntN(1000)), burst: 5}})
				case i%100 == 0:
					bans.List(time.Now())
					bans.Lift(netip.PrefixFrom(addr, 32), time.Now())
				case i%10 == 0:
					bans.Strike(addr, 0, time.Now())
				}
				p, _ := l.Admit(addr, time.Now())
				p.Release()
			}
		})
	}
	wg.Wait()
	for i := range byte(20) {
		if n := l.Conns(netip.AddrFrom4([4]byte{10, 0, 0, i})); n != 0 {
			t.Errorf("%d connections stay", n)
		}
	}
}

func BenchmarkAdmit(b *testing.B) {
	l := New(new(Bans))
	l.Set(Limits{ConnsPerIP: 100, Rate: rate(b, "1000000/s,1000000")})
	now := time.Now()
	var addrs [256]netip.Addr
	for i := range addrs {
		addrs[i] = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
	}
	for i := 0; b.Loop(); i++ {
		p, _ := l.Admit(addrs[i%256], now)
		p.Release()
	}
}
