package pending

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheOldestGivesWayToTheNewest(t *testing.T) {
	b := NewBudget(2, 2)
	var gave []string
	admit := func(name string) *Ticket { return b.Admit(netip.Addr{}, func() { gave = append(gave, name) }) }
	first, second := admit("first"), admit("second")
	second.Release() // has proven itself
	third := admit("third")
	if len(gave) != 0 || b.Len() != 2 {
		t.Fatalf("%v gave way, %d are pending", gave, b.Len())
	}
	admit("fourth")
	if !slices.Equal(gave, []string{"first"}) || !first.GaveWay() || third.GaveWay() || second.GaveWay() {
		t.Errorf("%v gave way, want the oldest", gave)
	}
	first.Release() // what gave way has no place to give up
	third.Release()
	third.Release()
	if b.Len() != 1 {
		t.Errorf("%d are pending, want 1", b.Len())
	}
}

func TestAnAddressDisplacesItself(t *testing.T) {
	b := NewBudget(10, 2)
	var gave []string
	admit := func(name, addr string) *Ticket {
		return b.Admit(netip.MustParseAddr(addr), func() { gave = append(gave, name) })
	}
	admit("other", "192.0.2.2")
	admit("first", "192.0.2.1")
	second := admit("second", "192.0.2.1")
	admit("third", "192.0.2.1")
	if !slices.Equal(gave, []string{"first"}) {
		t.Errorf("%v gave way, want the first of the address", gave)
	}
	second.Release()
	late := b.Admit(netip.Addr{}, func() { gave = append(gave, "late") })
	late.Of(netip.MustParseAddr("192.0.2.1"))
	late.Of(netip.MustParseAddr("192.0.2.2"))
	if len(gave) != 1 {
		t.Errorf("%v gave way where there was room", gave)
	}
	later := b.Admit(netip.Addr{}, func() { gave = append(gave, "later") })
	later.Of(netip.MustParseAddr("192.0.2.1"))
	if !slices.Equal(gave, []string{"first", "third"}) || b.Len() != 3 {
		t.Errorf("%v gave way, %d are left", gave, b.Len())
	}
	later.Release()
	late.Release()
	if len(b.lines) != 1 {
		t.Errorf("%d addresses are remembered, want 1", len(b.lines))
	}
}

// The model is a slice in the order of arrival.
func TestABudgetKeepsTheNewestInEverySchedule(t *testing.T) {
	type client struct{ number, addr int }
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		most := 1 + rnd.IntN(6)
		share := 1 + rnd.IntN(most)
		b := NewBudget(most, share)
		var model []client
		var gave []int
		tickets := make(map[int]*Ticket)
		addrOf := func(n int) netip.Addr {
			if n == 0 {
				return netip.Addr{}
			}
			return netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})
		}
		// room makes room for a client of an address, as the model would.
		room := func(addr int, inAll bool) (want []int) {
			at, n := -1, 0
			for i, c := range model {
				if addr != 0 && c.addr == addr {
					if n++; at < 0 {
						at = i
					}
				}
			}
			if n < share {
				if at = -1; inAll && len(model) >= most {
					at = 0
				}
			}
			if at >= 0 {
				want = append(want, model[at].number)
				model = slices.Delete(model, at, at+1)
			}
			return want
		}
		for i := range 300 {
			gave = nil
			var want []int
			switch n := rnd.IntN(i + 1); rnd.IntN(4) {
			case 0:
				if tickets[n] != nil {
					tickets[n].Release()
					model = slices.DeleteFunc(model, func(c client) bool { return c.number == n })
				}
			case 1:
				at := slices.IndexFunc(model, func(c client) bool { return c.number == n })
				if at >= 0 && model[at].addr == 0 {
					addr := 1 + rnd.IntN(3)
					want = room(addr, false)
					at = slices.IndexFunc(model, func(c client) bool { return c.number == n })
					// The last of its address from now on.
					c := client{n, addr}
					model[at] = c
					tickets[n].Of(addrOf(addr))
					order := slices.IndexFunc(model, func(o client) bool { return o.addr == addr })
					if order < at || slices.ContainsFunc(model[at+1:], func(o client) bool { return o.addr == addr }) {
						// The model has one order only: such clients leave.
						tickets[n].Release()
						model = slices.Delete(model, at, at+1)
					}
				} else if tickets[n] != nil && at >= 0 {
					tickets[n].Of(addrOf(3))
				}
			default:
				addr := rnd.IntN(4)
				want = room(addr, true)
				tickets[i] = b.Admit(addrOf(addr), func() { gave = append(gave, i) })
				model = append(model, client{i, addr})
			}
			if !slices.Equal(gave, want) {
				t.Fatalf("seed %d, step %d: %v gave way, want %v", seed, i, gave, want)
			}
			if b.Len() != len(model) {
				t.Fatalf("seed %d, step %d: %d are pending, want %v", seed, i, b.Len(), model)
			}
		}
	}
}

func TestTicketsComeAndGoFromManyGoroutines(t *testing.T) {
	b := NewBudget(10, 10)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				tk := b.Admit(netip.Addr{}, func() {})
				tk.GaveWay()
				tk.Release()
			}
		})
	}
	wg.Wait()
	if b.Len() != 0 {
		t.Errorf("%d stay", b.Len())
	}
}

func TestOnlyWhoHasHadItsTimeMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(100, 100)
		var gone []int
		admit := func(i int) *Ticket { return b.Admit(netip.Addr{}, func() { gone = append(gone, i) }) }
		admit(0)
		admit(1).Release()
		admit(2)
		if n := b.MakeRoom(5); n != 0 {
			t.Errorf("%d at once", n)
		}
		time.Sleep(Patience + 1)
		admit(3)
		admit(4)
		if n := b.MakeRoom(1); n != 1 || !slices.Equal(gone, []int{0}) {
			t.Errorf("%d, %v", n, gone)
		}
		if n := b.MakeRoom(5); n != 1 || !slices.Equal(gone, []int{0, 2}) {
			t.Errorf("%d, %v", n, gone)
		}
		if b.Len() != 2 {
			t.Errorf("%d are left", b.Len())
		}
	})
}
