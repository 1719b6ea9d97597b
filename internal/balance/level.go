package balance

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
)

// level is the targets of one priority, and picks one of them. Sets of its
// members are bits by their index.
type level struct {
	algorithm Algorithm
	priority  uint16
	members   []member

	// turns is one period of the smooth weighted round robin, for those
	// algorithms that take turns; the next is turns[turn%len(turns)].
	turns []uint8
	turn  atomic.Uint32
}

type member struct {
	server *server
	weight uint32 // relative to the others; see relative
}

// newLevel takes the members with weights from 0 to 65535.
func newLevel(a Algorithm, priority uint16, members []member) *level {
	relative(members)
	lv := &level{algorithm: a, priority: priority, members: members}
	if a == RoundRobin || a == LeastConn {
		lv.turns = smooth(members)
	}
	return lv
}

// all is the set of all members.
func (lv *level) all() uint64 { return 1<<len(lv.members) - 1 }

// usable returns those of a set that are not skipped.
func (lv *level) usable(set uint64, now int64) uint64 {
	for rest := set; rest != 0; rest &= rest - 1 {
		i := bits.TrailingZeros64(rest)
		if health(lv.members[i].server.health.Load()).skipped(now) {
			set &^= 1 << i
		}
	}
	return set
}

// pick returns one of a set, which is not empty. client is its hash.
func (lv *level) pick(set, client uint64) int {
	if set&(set-1) == 0 {
		return bits.TrailingZeros64(set)
	}
	switch lv.algorithm {
	case RoundRobin:
		return lv.next(set)
	case LeastConn:
		return lv.next(lv.leastLoaded(set))
	case Source:
		return lv.nearest(set, client)
	}
	return lv.draw(set)
}

// next takes the next turn of one in the set, over the heads of the others.
// Turns are taken and passed over by all callers together, so what is left of a
// period without some members is still fair to the rest.
func (lv *level) next(set uint64) int {
	if set&(set-1) == 0 {
		return bits.TrailingZeros64(set)
	}
	for {
		turn := lv.turn.Load()
		at := int(turn % uint32(len(lv.turns)))
		for set>>lv.turns[at]&1 == 0 {
			at = (at + 1) % len(lv.turns) // every member has a turn
		}
		if lv.turn.CompareAndSwap(turn, uint32((at+1)%len(lv.turns))) {
			return int(lv.turns[at])
		}
	}
}

// leastLoaded returns those of a set with the fewest connections by weight.
func (lv *level) leastLoaded(set uint64) uint64 {
	least := uint64(0)
	var load, weight int64 // of those
	for rest := set; rest != 0; rest &= rest - 1 {
		i := bits.TrailingZeros64(rest)
		l, w := lv.members[i].server.live.Load(), int64(lv.members[i].weight)
		switch {
		case least == 0 || l*weight < load*w:
			least, load, weight = 1<<i, l, w
		case l*weight == load*w:
			least |= 1 << i
		}
	}
	return least
}

// nearest is weighted rendezvous hashing: everyone in the set draws a number
// that only he and the client determine, and the best wins. Who comes or goes
// changes nobody else's number. The score ln(u)/weight makes the chance to win
// proportional to the weight (Schindelhauer and Schomaker, "Weighted
// Distributed Hash Tables", 2005).
func (lv *level) nearest(set, client uint64) int {
	best, bestDraw, bestWeight, bestScore := -1, uint64(0), uint32(0), 0.
	for ; set != 0; set &= set - 1 {
		i := bits.TrailingZeros64(set)
		m := &lv.members[i]
		draw := mix(client ^ m.server.hash)
		if best >= 0 && draw <= bestDraw && m.weight <= bestWeight {
			continue // without the logarithm
		}
		score := math.Log((float64(draw)+.5)/(1<<64)) / float64(m.weight)
		if best < 0 || score > bestScore {
			best, bestDraw, bestWeight, bestScore = i, draw, m.weight, score
		}
	}
	return best
}

// draw returns one of a set at random by weight.
func (lv *level) draw(set uint64) int {
	total := uint32(0)
	for rest := set; rest != 0; rest &= rest - 1 {
		total += lv.members[bits.TrailingZeros64(rest)].weight
	}
	n := rand.Uint32N(total)
	for ; ; set &= set - 1 {
		i := bits.TrailingZeros64(set)
		if n < lv.members[i].weight {
			return i
		}
		n -= lv.members[i].weight
	}
}

// relative brings weights into lowest terms. Next to others, a weight of zero
// counts as a 256th of one: a target that has it is to have "a very small
// chance of being selected" (RFC 2782).
func relative(members []member) {
	divisor := uint32(0)
	for i := range members {
		w := &members[i].weight
		*w = max(1, *w<<8)
		divisor = gcd(divisor, *w)
	}
	for i := range members {
		members[i].weight /= divisor
	}
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// maxTurns is about how long a period may be. It holds every written route: 16
// targets of weight 256.
const maxTurns = 4096

// smooth returns a period of nginx's smooth weighted round robin
// (ngx_http_upstream_round_robin.c): at each turn everyone gains his weight, and
// who has most is picked and pays the sum of all. After a sum of turns all are
// back at nought, so it can be worked out once.
func smooth(members []member) []uint8 {
	weights := make([]int, len(members))
	total := 0
	for _, m := range members {
		total += int(m.weight)
	}
	period := 0
	for i, m := range members {
		weights[i] = int(m.weight)
		if total > maxTurns { // weights of DNS; each keeps one turn at least
			weights[i] = max(1, int(uint64(m.weight)*maxTurns/uint64(total)))
		}
		period += weights[i]
	}
	turns := make([]uint8, period)
	have := make([]int, len(members))
	for t := range turns {
		best := 0
		for i := range have {
			if have[i] += weights[i]; have[i] > have[best] {
				best = i
			}
		}
		have[best] -= period
		turns[t] = uint8(best)
	}
	return turns
}
