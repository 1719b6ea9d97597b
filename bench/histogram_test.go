package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestPercentilesAreThoseOfTheSortedList(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 3, 10, 100, 999, 10_000} {
		h := new(histogram)
		var list []int64
		for range n {
			v := int64(math.Exp(random.Float64() * 24)) // up to 26 s
			h.add(v)
			list = append(list, v)
		}
		slices.Sort(list)
		for _, p := range []float64{0, 1, 50, 90, 99, 99.9, 100} {
			rank := max(int(math.Ceil(p/100*float64(n))), 1)
			got, want := float64(h.percentile(p)), float64(list[rank-1])
			if math.Abs(got-want) > max(want/100, 1) {
				t.Errorf("%v %% of %d values: %v, want %v", p, n, got, want)
			}
		}
	}
}

func TestBucketsAreNarrowAndInOrder(t *testing.T) {
	was := -1
	for v := int64(0); v < 1<<40; v += 1 + v/1000 {
		bucket := bucketOf(v)
		if bucket < was || bucket > was+1 {
			t.Fatalf("%d falls into bucket %d, behind %d", v, bucket, was)
		}
		was = bucket
		if m := middleOf(bucket); math.Abs(float64(m-v)) > max(float64(v)/100, 0) && m != v {
			t.Fatalf("%d stands for %d", m, v)
		}
	}
	if was != maxBucket {
		t.Errorf("the last bucket is %d, not %d", was, maxBucket)
	}
}

func TestNoTimeIsOutOfRange(t *testing.T) {
	h := new(histogram)
	h.add(-1)
	h.add(math.MaxInt64)
	if h.n != 2 || h.percentile(1) != 0 || h.percentile(100) != middleOf(maxBucket) {
		t.Errorf("%d values from %d to %d", h.n, h.percentile(1), h.percentile(100))
	}
}

func TestNoValuesHaveNoPercentile(t *testing.T) {
	if got := new(histogram).percentile(50); got != 0 {
		t.Errorf("got %d", got)
	}
}

func TestAHistogramTravels(t *testing.T) {
	h, sum := new(histogram), new(histogram)
	for v := range int64(5000) {
		h.add(v * v)
	}
	sum.addPairs(h.pairs())
	if *sum != *h {
		t.Error("it came otherwise than it left")
	}
	sum.addPairs(h.pairs())
	if sum.n != 2*h.n || sum.percentile(99) != h.percentile(99) {
		t.Error("twice the same is not the same twice")
	}
}
