package limit

import "sync/atomic"

// Occupancy counts what there is of something, and how much there may be at a time. The
// zero value has nothing, and no bound.
type Occupancy struct{ n, most atomic.Int32 }

// Bound sets how much there may be from now on; 0 is any number. What is there stays.
func (o *Occupancy) Bound(most int) { o.most.Store(int32(most)) }

// Take counts one more, and reports whether there may be; if not, it does not count.
// Who gets true calls Give, once.
func (o *Occupancy) Take() bool {
	if most := o.most.Load(); o.n.Add(1) > most && most > 0 {
		o.n.Add(-1)
		return false
	}
	return true
}

// Force is Take for what is there already, whatever the bound.
func (o *Occupancy) Force() { o.n.Add(1) }

// Give undoes Take or Force.
func (o *Occupancy) Give() { o.n.Add(-1) }

// Full tells whether there may be no more.
func (o *Occupancy) Full() bool {
	most := o.most.Load()
	return most > 0 && o.n.Load() >= most
}

// Count returns how much there is, and how much there may be; 0 is any number.
func (o *Occupancy) Count() (n, most int) { return int(o.n.Load()), int(o.most.Load()) }
