package balance

import (
	"sync/atomic"

	"gateway/internal/address"
)

// server is a target with what is known of it. It outlives the lists that it
// stands in.
type server struct {
	addr   address.Address
	hash   uint64 // of addr
	health atomic.Int64
	live   atomic.Int64 // connections and dials in progress
}

// health is whether a server is skipped: the time until then in nanoseconds,
// with the number of failures in a row in place of the lowest three bits. One
// word means that a reader sees one state, and that who compares and swaps
// changes the state that he saw or none.
//
// The word changes with every lesson: a failure, a success after one, a client
// that goes to see. A failure counts only if nothing was learnt since its dial
// began. So however many dials fail in one outage, they count as one failure,
// and those that began before a success say nothing about the time after it.
type health int64

const failuresMask = 7

// penalties are how long a server is skipped after so many failures in a row,
// in nanoseconds.
var penalties = [failuresMask + 1]int64{0, 1e9, 2e9, 4e9, 8e9, 16e9, 32e9, 60e9}

// probeTime is longer than any dial: a client that goes to see is waited for
// until it has an answer or gives up.
const probeTime = 300e9

func newHealth(failures, until int64) health { return health(until&^failuresMask | failures) }

func (h health) failures() int64 { return int64(h) & failuresMask }
func (h health) until() int64    { return int64(h) &^ failuresMask }

func (h health) skipped(now int64) bool { return h.failures() > 0 && now < h.until() }

// failed is the state after one more failure.
func (h health) failed(now int64) health {
	n := min(h.failures()+1, failuresMask)
	return newHealth(n, now+penalties[n])
}

// probed is the state while one client tries a server whose penalty is over.
func (h health) probed(now int64) health { return newHealth(h.failures(), now+probeTime) }

// unproved is the state after that client gave up: the next one may try.
func (h health) unproved() health { return newHealth(h.failures(), 0) }

// healthy is the state after a success. The time is there to tell it from that
// after another one.
func healthy(now int64) health { return newHealth(0, now) }
