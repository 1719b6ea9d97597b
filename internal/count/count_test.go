package count

import (
	"maps"
	"slices"
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

func TestATableKeepsItsValuesAndHasOneForTheRest(t *testing.T) {
	tb := NewTable[string, int](2)
	a, own := tb.Of("a")
	if !own || tb.Rest() != nil {
		t.Fatal("it is full already")
	}
	*a = 7
	if b, own := tb.Of("b"); !own || b == a {
		t.Error("b has no value of its own")
	}
	c, own := tb.Of("c")
	if d, _ := tb.Of("d"); own || d != c || tb.Rest() != c {
		t.Error("c and d do not share the rest")
	}
	if again, own := tb.Of("a"); again != a || !own {
		t.Error("a has another value now")
	}
	got := make(map[string]int)
	for k, v := range tb.All() {
		got[k] = *v
	}
	if want := map[string]int{"a": 7, "b": 0}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestTheLatestComeFirstAndTheOldestGo(t *testing.T) {
	l := NewLatest[int](3)
	for i, want := range [][]int{{}, {1}, {2, 1}, {3, 2, 1}, {4, 3, 2}, {5, 4, 3}} {
		if got := l.All(); !slices.Equal(got, want) {
			t.Errorf("after %d: %v, want %v", i, got, want)
		}
		l.Add(i + 1)
	}
	var none *Latest[int]
	if none.Add(1); none.All() != nil {
		t.Error("a nil one keeps something")
	}
}

func TestARisingFigureNeverFalls(t *testing.T) {
	var r Rising
	for _, step := range []struct{ n, want int64 }{{-3, 0}, {5, 5}, {4, 5}, {5, 5}, {9, 9}} {
		if got := r.Tell(step.n); got != step.want {
			t.Errorf("%d is told as %d, want %d", step.n, got, step.want)
		}
	}
}
