package relay

import "time"

// Bounds are how long a tunnel may rest. They are for inactivity, not for age:
// a tunnel through which bytes move lives as long as they do.
type Bounds struct {
	Idle       time.Duration // 0: for ever
	HalfClosed time.Duration // of which one side has finished; more than 0
}

// SweepPeriod is the grain of the bounds: a tenth of the shortest, within 10 ms
// and 1 s. Sweeping all tunnels now and then spares a timer for each message.
func (b Bounds) SweepPeriod() time.Duration {
	shortest := b.HalfClosed
	if b.Idle > 0 {
		shortest = min(shortest, b.Idle)
	}
	return min(max(shortest/10, 10*time.Millisecond), time.Second)
}

// Of returns the bound of a tunnel of which one side has finished, or of a whole
// one; 0 for none.
func (b Bounds) Of(halfClosed bool) time.Duration {
	if halfClosed {
		return b.HalfClosed
	}
	return b.Idle
}

// Rest is what a sweep remembers of a tunnel.
type Rest struct {
	progress int64 // bytes that had moved
	since    int64 // when progress or half last changed; the sweeper's clock
	half     bool
}

// Begin has a tunnel rest from now on, in nanoseconds of the sweeper's clock.
func (r *Rest) Begin(progress, now int64) { r.progress, r.since = progress, now }

// Rested returns for how long a tunnel has rested, as far as a sweep has seen it.
func (r *Rest) Rested(progress int64, halfClosed bool, now int64) time.Duration {
	if progress != r.progress || halfClosed != r.half {
		return 0
	}
	return time.Duration(max(0, now-r.since))
}

// Resume has a tunnel go on to rest that has rested elsewhere.
func (r *Rest) Resume(progress int64, halfClosed bool, rested time.Duration, now int64) {
	*r = Rest{progress, now - rested.Nanoseconds(), halfClosed}
}

// TooLong tells, from what a sweep sees of a tunnel, whether it has rested for
// longer than its bound.
func (r *Rest) TooLong(b Bounds, progress int64, halfClosed bool, now int64) bool {
	if progress != r.progress || halfClosed != r.half {
		*r = Rest{progress, now, halfClosed}
		return false
	}
	bound := b.Of(halfClosed)
	return bound > 0 && now-r.since >= bound.Nanoseconds()
}

// Pulse is what can be seen of a living tunnel.
type Pulse struct {
	Up, Down   int64         // bytes from client to backend, and back
	Idle       time.Duration // since anything has moved
	HalfClosed bool          // one side has finished
}
