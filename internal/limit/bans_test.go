package limit

import (
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

func TestBansAreParsedAndNothingElse(t *testing.T) {
	for text, want := range map[string]BanRule{
		"20/1m:10m":   {20, time.Minute, 10 * time.Minute, "20/1m:10m"},
		"1/1:1":       {1, time.Second, time.Second, "1/1:1"},
		"5/1.5:500ms": {5, 1500 * time.Millisecond, 500 * time.Millisecond, "5/1.5:500ms"},
		"":            {},
		"0":           {},
	} {
		if got, err := ParseBan(text); err != nil || got != want {
			t.Errorf("%q is %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"20", "20/1m", "20/1m:", "/1m:1m", "0/1m:1m", "-1/1m:1m", "1001/1m:1m", "x/1m:1m", "20/0:1m",
		"20/1m:0", "20/1m:-1s", "20/1m:10000h", "20:1m/1m", "20/1m:1m:1m", "20/1ns:1m"} {
		if _, err := ParseBan(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestRatesAreParsedAndNothingElse(t *testing.T) {
	for text, want := range map[string]Rate{
		"5/s":    {every: time.Second / 5, burst: 5},
		"5/s,20": {every: time.Second / 5, burst: 20},
		"12/m":   {every: 5 * time.Second, burst: 12},
		"60/h,1": {every: time.Minute, burst: 1},
		"":       {},
		"0":      {},
	} {
		got, err := ParseRate(text)
		if got.text = ""; err != nil || got != want {
			t.Errorf("%q is %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"5", "5/", "/s", "0/s", "-1/s", "5/d", "5/s,", "5/s,0", "5/s,x", "5/s,1,2", "1000001/s", "5/s,1000001", "5 /s", "1.5/s"} {
		if _, err := ParseRate(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestABanEndsByItsTimeWhateverItsAddressTries(t *testing.T) {
	var b Bans
	b.SetRule(BanRule{Bad: 3, Within: time.Minute, For: 10 * time.Minute})
	now := time.Now()
	client := ip("192.0.2.1")
	for i := range 3 {
		if b.Banned(client, now) {
			t.Fatalf("banned after %d", i)
		}
		if earned := b.Strike(client, 0, now); earned != (i == 2) {
			t.Fatalf("strike %d: %v", i, earned)
		}
		now = now.Add(time.Second)
	}
	ends := now.Add(10*time.Minute - time.Second)
	for now.Before(ends) {
		if !b.Banned(client, now) || !b.Banned(ip("::ffff:192.0.2.1"), now) {
			t.Fatalf("not banned %v before its end", ends.Sub(now))
		}
		b.Strike(client, 0, now)
		now = now.Add(7 * time.Second)
	}
	if b.Banned(client, ends) {
		t.Error("still banned")
	}
	if b.Strike(client, 0, ends) {
		t.Error("what was before the ban counts after it")
	}
}

func TestABanIsOfAWholeNetwork(t *testing.T) {
	var b Bans
	b.SetRule(BanRule{Bad: 2, Within: time.Minute, For: time.Minute})
	now := time.Now()
	b.Strike(ip("2001:db8::1"), 0, now)
	if !b.Strike(ip("2001:db8::2"), 0, now) || !b.Banned(ip("2001:db8::3"), now) || b.Banned(ip("2001:db8:0:1::1"), now) {
		t.Errorf("banned are %v", b.List(now))
	}
}

// The model keeps every bad request and every ban.
func TestBansAreThoseOfAModelInEverySchedule(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		rule := BanRule{Bad: 1 + rnd.IntN(5), Within: time.Duration(1+rnd.IntN(20)) * time.Second, For: time.Duration(1+rnd.IntN(20)) * time.Second}
		var b Bans
		b.SetRule(rule)
		now := time.Now()
		bad := make(map[netip.Addr][]time.Time)
		until := make(map[netip.Addr]time.Time)
		for step := range 500 {
			now = now.Add(time.Duration(rnd.IntN(1500)) * time.Millisecond)
			addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(rnd.IntN(5))})
			network := netip.PrefixFrom(addr, 32)
			switch rnd.IntN(8) {
			case 0:
				span := time.Duration(1+rnd.IntN(20)) * time.Second
				if err := b.Add(network, span, now); err != nil {
					t.Fatal(err)
				}
				until[addr] = now.Add(span)
			case 1:
				if got, want := b.Lift(network, now), now.Before(until[addr]); got != want {
					t.Fatalf("seed %d, step %d: lifting says %v", seed, step, got)
				}
				delete(until, addr)
				delete(bad, addr)
			case 2: // another process goes on
				var s State
				b.Snapshot(&s, now)
				text, err := json.Marshal(s)
				if err != nil {
					t.Fatal(err)
				}
				var read State
				if err := json.Unmarshal(text, &read); err != nil {
					t.Fatal(err)
				}
				b = Bans{}
				b.SetRule(rule)
				b.Restore(read, now)
			default:
				want := false
				if !now.Before(until[addr]) {
					var recent []time.Time
					for _, at := range bad[addr] {
						if now.Sub(at) < rule.Within {
							recent = append(recent, at)
						}
					}
					bad[addr] = append(recent, now)
					if want = len(bad[addr]) >= rule.Bad; want {
						until[addr] = now.Add(rule.For)
						delete(bad, addr)
					}
				}
				if got := b.Strike(addr, 0, now); got != want {
					t.Fatalf("seed %d, step %d: a strike of %v earns %v", seed, step, addr, got)
				}
			}
			n := 0
			for i := range byte(5) {
				a := netip.AddrFrom4([4]byte{192, 0, 2, i})
				want := now.Before(until[a])
				if want {
					n++
				}
				if got := b.Banned(a, now); got != want {
					t.Fatalf("seed %d, step %d: %v banned: %v", seed, step, a, got)
				}
			}
			if list := b.List(now); len(list) != n {
				t.Fatalf("seed %d, step %d: %d bans, want %d: %v", seed, step, len(list), n, list)
			}
		}
	}
}

func TestBansAndBadRequestsAreBounded(t *testing.T) {
	var b Bans
	now := time.Now()
	b.SetRule(BanRule{Bad: 1, Within: time.Hour, For: time.Hour})
	if err := b.Add(netip.MustParsePrefix("203.0.113.0/24"), time.Hour, now); err != nil {
		t.Fatal(err)
	}
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for i := range MaxBans + 10 {
		b.Strike(addr(i), 0, now)
	}
	if n := b.Len(now); n != MaxBans+1 {
		t.Errorf("%d bans, want %d", n, MaxBans+1)
	}
	if b.Banned(addr(9), now) || !b.Banned(addr(10), now) || !b.Banned(ip("203.0.113.9"), now) {
		t.Error("not the oldest were forgotten")
	}
	b.SetRule(BanRule{Bad: 3, Within: time.Hour, For: time.Hour})
	for i := range MaxStrikes + 10 {
		b.Strike(addr(1<<20+i), 0, now)
	}
	if b.remember != MaxStrikes || len(b.bad) != MaxStrikes {
		t.Errorf("%d bad requests of %d addresses are remembered", b.remember, len(b.bad))
	}
	for i := range MaxAdded {
		err := b.Add(netip.PrefixFrom(addr(1<<21+i), 32), time.Hour, now)
		if (err != nil) != (i == MaxAdded-1) { // one was there
			t.Fatalf("ban %d: %v", i, err)
		}
	}
}

func TestWhatIsNoNetworkIsNotBanned(t *testing.T) {
	var b Bans
	for _, p := range []netip.Prefix{{}, netip.MustParsePrefix("10.0.0.1/8"), netip.MustParsePrefix("::ffff:10.0.0.0/104")} {
		if b.Add(p, time.Minute, time.Now()) == nil {
			t.Errorf("%v is banned", p)
		}
	}
	for _, span := range []time.Duration{0, -1, 400 * 24 * time.Hour} {
		if b.Add(netip.MustParsePrefix("10.0.0.0/8"), span, time.Now()) == nil {
			t.Errorf("banned for %v", span)
		}
	}
}

func TestTheNextProcessGoesOnWithTheBuckets(t *testing.T) {
	now := time.Now()
	old, next := New(nil), New(nil)
	limits := Limits{Rate: rate(t, "1/s,2")}
	old.Set(limits)
	next.Set(limits)
	client := ip("192.0.2.1")
	for range 2 {
		old.Admit(client, now)
	}
	var s, read State
	old.Snapshot(&s, now)
	text, _ := json.Marshal(s)
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	next.Restore(read, now)
	if _, why := next.Admit(client, now.Add(900*time.Millisecond)); why != TooFast {
		t.Errorf("the third is %q", why)
	}
	if _, why := next.Admit(client, now.Add(1100*time.Millisecond)); why != None {
		t.Errorf("after a second it is %q", why)
	}
}
