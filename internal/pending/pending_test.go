package pending

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

func TestTheOldestGivesWayToTheNewest(t *testing.T) {
	b := NewBudget(2)
	var gave []string
	admit := func(name string) *Ticket { return b.Admit(func() { gave = append(gave, name) }) }
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

// The model is a slice in the order of arrival.
func TestABudgetKeepsTheNewestInEverySchedule(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		most := 1 + rnd.IntN(5)
		b := NewBudget(most)
		var model, gave []int
		tickets := make(map[int]*Ticket)
		for i := range 200 {
			if rnd.IntN(3) > 0 {
				var want []int
				if len(model) == most {
					want, model = model[:1:1], model[1:]
				}
				gave = nil
				tickets[i] = b.Admit(func() { gave = append(gave, i) })
				// The one that gave way says its own number.
				if len(want) > 0 && !tickets[want[0]].GaveWay() {
					t.Fatalf("seed %d: %d did not give way", seed, want[0])
				}
				model = append(model, i)
			} else if n := rnd.IntN(i + 1); tickets[n] != nil {
				tickets[n].Release()
				model = slices.DeleteFunc(model, func(m int) bool { return m == n })
			}
			if b.Len() != len(model) {
				t.Fatalf("seed %d: %d are pending, want %v", seed, b.Len(), model)
			}
		}
	}
}

func TestTicketsComeAndGoFromManyGoroutines(t *testing.T) {
	b := NewBudget(10)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				tk := b.Admit(func() {})
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
