package main

import (
	"fmt"
	"slices"
	"time"
)

// sample is one measurement of one contender.
type sample struct {
	Round int

	// Cost is the contender's CPU time in nanoseconds per unit of work; of
	// idle workloads, its resident bytes per tunnel. None is known for direct.
	Cost float64
	Rate float64 // units per second

	P50, P99, P999 time.Duration `json:",omitzero"` // of echo and short

	Descriptors float64 `json:",omitzero"` // per idle tunnel
	Resident    float64 `json:",omitzero"` // bytes of the process with all its idle tunnels

	// What the load generator and the backend used, as Cost, to show that they
	// are cheap.
	LoadCost, BackendCost float64 `json:",omitzero"`
}

// series is all samples of one contender on one workload.
type series struct {
	Samples []sample
	Failure string `json:",omitempty"` // why there are no more

	// Percentiles over all rounds together.
	P50, P99, P999 time.Duration `json:",omitzero"`
	delays         histogram
}

// String leaves out the thousands of counts of the histogram, in which an error
// message would drown.
func (s *series) String() string {
	if s == nil {
		return "nothing"
	}
	return fmt.Sprintf("%d samples %+v, failure %q", len(s.Samples), s.Samples, s.Failure)
}

func (s *series) add(one sample, latencies []uint32) {
	s.Samples = append(s.Samples, one)
	s.delays.addPairs(latencies)
	s.P50 = time.Duration(s.delays.percentile(50))
	s.P99 = time.Duration(s.delays.percentile(99))
	s.P999 = time.Duration(s.delays.percentile(99.9))
}

// costs and rates are the samples' figures, in rising order.
func (s *series) costs() []float64 {
	return s.sorted(func(one sample) float64 { return one.Cost })
}

func (s *series) rates() []float64 {
	return s.sorted(func(one sample) float64 { return one.Rate })
}

func (s *series) descriptors() []float64 {
	return s.sorted(func(one sample) float64 { return one.Descriptors })
}

func (s *series) residents() []float64 {
	return s.sorted(func(one sample) float64 { return one.Resident })
}

func (s *series) sorted(figure func(sample) float64) []float64 {
	if s == nil {
		return nil
	}
	var list []float64
	for _, one := range s.Samples {
		list = append(list, figure(one))
	}
	slices.Sort(list)
	return list
}

// median returns the middle of a sorted list, 0 if it is empty.
func median(sorted []float64) float64 {
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// first and last return the ends of a sorted list, 0 if it is empty.
func first(sorted []float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[0]
}

func last(sorted []float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)-1]
}

// table is all that one way of running (pinned or not) has measured.
type table struct {
	Pinned     bool
	CPUs       int // that each contender may use
	Rounds     int
	Time       time.Duration // of each measurement
	Congestion string        // control in force on a client's socket while it was measured
	Contenders []string      // in the order of the columns
	Results    []*result
}

// result is one cell.
type result struct {
	Workload  string
	Contender string
	series
}

// at returns the cell of a workload and contender, nil if nothing was measured.
func (t *table) at(workload, contender string) *series {
	for _, r := range t.Results {
		if r.Workload == workload && r.Contender == contender {
			return &r.series
		}
	}
	return nil
}

// cell is at, and makes the cell if there is none.
func (t *table) cell(workload, contender string) *series {
	if s := t.at(workload, contender); s != nil {
		return s
	}
	r := &result{Workload: workload, Contender: contender}
	t.Results = append(t.Results, r)
	return &r.series
}

// ratio compares two contenders' figures; ok is false unless both are known.
func ratio(ours, theirs float64) (value float64, ok bool) {
	if ours <= 0 || theirs <= 0 {
		return 0, false
	}
	return ours / theirs, true
}

// failures lists what could not be measured.
func (t *table) failures() []string {
	var list []string
	for _, r := range t.Results {
		if r.Failure != "" {
			list = append(list, r.Workload+", "+r.Contender+": "+r.Failure)
		}
	}
	return list
}
