package reactor

import (
	"sync/atomic"
	"time"
)

// Meter tells how much of a reactor's time is work. It reads the clock once in a
// turn, and once more after a sleep; then there is time for that.
type Meter struct {
	began  int64        // when this turn did, by the reactor's clock
	worked int64        // nanoseconds; the reactor's own
	busy   atomic.Int64 // the same, published

	// The longest turn of this minute and of the one before, by its parity.
	minutes [2]atomic.Int64 // which minute that is, from 1 on
	longest [2]atomic.Int64 // nanoseconds
}

// Woke notes that a turn begins after a sleep.
func (m *Meter) Woke(r *Reactor) {
	r.Tick()
	m.began = r.Now
}

// Turned notes the end of a turn. The next one begins now, unless the reactor sleeps.
func (m *Meter) Turned(r *Reactor) {
	r.Tick()
	took := r.Now - m.began
	m.began = r.Now
	m.worked += took
	m.busy.Store(m.worked)
	minute := minuteOf(r.Now)
	i := minute & 1
	if m.minutes[i].Load() != minute {
		m.longest[i].Store(0)
		m.minutes[i].Store(minute)
	}
	if took > m.longest[i].Load() {
		m.longest[i].Store(took)
	}
}

func minuteOf(now int64) int64 { return now/int64(time.Minute) + 1 }

// Read returns how long the reactor has worked, and its longest turn of this minute
// and the one before. now is the reactor's Age. It may be called from any thread.
func (m *Meter) Read(now time.Duration) (busy, longest time.Duration) {
	minute := minuteOf(int64(now))
	for i := range m.minutes {
		if m.minutes[i].Load() >= minute-1 {
			longest = max(longest, time.Duration(m.longest[i].Load()))
		}
	}
	return time.Duration(m.busy.Load()), longest
}
