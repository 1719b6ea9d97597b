package main

import (
	"math"
	"math/bits"
)

// histogram counts durations in nanoseconds with a resolution of about 1 %:
// exactly below 128, then 64 buckets for each power of two. Adding costs the
// load generator no more than an increment.
type histogram struct {
	counts [maxBucket + 1]uint32
	n      uint64
}

// maxBucket is that of 2^40 ns, some 18 minutes.
const maxBucket = 33*64 + 127

func bucketOf(ns int64) int {
	v := uint64(max(ns, 0))
	if v < 128 {
		return int(v)
	}
	k := bits.Len64(v) - 7
	return min(k*64+int(v>>k), maxBucket)
}

// middleOf is the value that stands for all in a bucket.
func middleOf(bucket int) int64 {
	if bucket < 128 {
		return int64(bucket)
	}
	k := bucket/64 - 1
	return int64(bucket-k*64)<<k + int64(1)<<k/2
}

func (h *histogram) add(ns int64) {
	h.counts[bucketOf(ns)]++
	h.n++
}

// percentile returns the value under or at which p (0 to 100) percent of the
// durations lie, by nearest rank; 0 if there are none.
func (h *histogram) percentile(p float64) int64 {
	if h.n == 0 {
		return 0
	}
	rank := max(uint64(math.Ceil(p/100*float64(h.n))), 1)
	for bucket, count := range h.counts {
		if uint64(count) >= rank {
			return middleOf(bucket)
		}
		rank -= uint64(count)
	}
	return middleOf(maxBucket)
}

// pairs returns what is counted as bucket and count in turn, the form in which
// a histogram travels between processes.
func (h *histogram) pairs() []uint32 {
	var list []uint32
	for bucket, count := range h.counts {
		if count > 0 {
			list = append(list, uint32(bucket), count)
		}
	}
	return list
}

// addPairs adds what pairs returned.
func (h *histogram) addPairs(list []uint32) {
	for i := 0; i+1 < len(list); i += 2 {
		bucket := min(list[i], maxBucket)
		h.counts[bucket] += list[i+1]
		h.n += uint64(list[i+1])
	}
}
