package count

import (
	"maps"
	"sync"
	"testing"
)

func TestEachKeyHasACounterOfItsOwn(t *testing.T) {
	s := New(10, "other")
	s.Add("a", 1)
	s.Add("b", 2)
	s.Add("a", 3)
	got := maps.Collect(s.All())
	if want := map[string]int64{"a": 4, "b": 2}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if s.Of("a") != 4 || s.Of("c") != 0 || s.Total() != 6 {
		t.Errorf("a: %d, c: %d, in all: %d", s.Of("a"), s.Of("c"), s.Total())
	}
}

func TestWhatComesToAFullSetIsCountedTogether(t *testing.T) {
	s := New(2, "other")
	for _, k := range []string{"a", "b", "c", "d", "a", "c"} {
		s.Add(k, 1)
	}
	got := maps.Collect(s.All())
	if want := map[string]int64{"a": 2, "b": 1, "other": 3}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestNothingIsLostWhereManyCountAtOnce(t *testing.T) {
	s := New(50, -1)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 1000 {
				s.Add(i%100, 1)
			}
		})
	}
	wg.Wait()
	if s.Total() != 8000 {
		t.Errorf("%d were counted, want 8000", s.Total())
	}
	for k, n := range s.All() {
		if k >= 0 && n != 80 {
			t.Errorf("%d of %d, want 80", n, k)
		}
	}
}

func TestToCountAgainCostsNoAllocation(t *testing.T) {
	s := New(10, "other")
	s.Add("a", 1)
	if n := testing.AllocsPerRun(100, func() { s.Add("a", 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
