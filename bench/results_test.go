package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		list []float64
		want float64
	}{
		{nil, 0},
		{[]float64{7}, 7},
		{[]float64{1, 3}, 2},
		{[]float64{1, 3, 100}, 3},
		{[]float64{1, 3, 5, 100}, 4},
	} {
		if got := median(test.list); got != test.want {
			t.Errorf("median of %v: %v, want %v", test.list, got, test.want)
		}
	}
}

func TestBestIsTheLeastCostAndTheHighestRate(t *testing.T) {
	s := new(series)
	s.add(sample{Cost: 3, Rate: 20}, []uint32{100, 1})
	s.add(sample{Cost: 1, Rate: 30}, []uint32{50, 2})
	s.add(sample{Cost: 2, Rate: 10}, nil)
	if first(s.costs()) != 1 || median(s.costs()) != 2 || last(s.rates()) != 30 || median(s.rates()) != 20 {
		t.Errorf("costs %v, rates %v", s.costs(), s.rates())
	}
	if s.P50 != 50 || s.P99 != 100 {
		t.Errorf("50 %% of all rounds is %v and 99 %% %v, want 50ns and 100ns", s.P50, s.P99)
	}
}

func TestASeriesIsPrintedWithoutItsHistogram(t *testing.T) {
	tab := new(table)
	tab.cell("echo", "x").add(sample{Cost: 3}, []uint32{100, 1})
	for _, text := range []string{fmt.Sprintf("%+v", tab.cell("echo", "x")), fmt.Sprintf("%+v", tab.Results), fmt.Sprintf("%v", tab.at("none", "x"))} {
		if len(text) > 500 {
			t.Errorf("%d bytes: %.100s...", len(text), text)
		}
	}
}

func TestWhatWasNotMeasuredHasNoRatio(t *testing.T) {
	tab := new(table)
	if tab.at("echo", "x") != nil || len(tab.at("echo", "x").costs()) != 0 {
		t.Error("there is something")
	}
	if _, ok := ratio(first(tab.at("echo", "x").costs()), 1); ok {
		t.Error("there is a ratio to nothing")
	}
	if v, ok := ratio(1, 4); !ok || v != .25 {
		t.Errorf("1 to 4 is %v", v)
	}
}

func TestFailuresAreListed(t *testing.T) {
	tab := new(table)
	tab.cell("echo", "x").Failure = "it hung"
	tab.cell("echo", "y").add(sample{Cost: 1}, nil)
	if tab.cell("echo", "x") != tab.at("echo", "x") {
		t.Error("a cell is made twice")
	}
	if got := strings.Join(tab.failures(), "|"); got != "echo, x: it hung" {
		t.Errorf("got %q", got)
	}
}
