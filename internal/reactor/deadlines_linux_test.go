package reactor

import (
	"fmt"
	"testing"
)

// waiter is what has a deadline.
type waiter struct {
	name  int
	stage uint64
}

func (w *waiter) Stage() uint64 { return w.stage }

func TestDeadlinesExpireInOrderAndOnlyWhileTheyHold(t *testing.T) {
	d := Deadlines[*waiter]{After: 100}
	waiters := make([]*waiter, 5)
	for i := range waiters {
		waiters[i] = &waiter{name: i}
		if at := d.Push(waiters[i], int64(i*10)); at != int64(i*10+100) {
			t.Errorf("%d: at %d", i, at)
		}
	}
	waiters[1].stage++ // moved on
	waiters[3].stage += 2
	if at, ok := d.Next(); !ok || at != 100 {
		t.Errorf("next at %d, %v", at, ok)
	}
	var got []string
	for now := int64(0); now <= 200; now++ {
		for {
			w, at := d.Due(now)
			if w == nil {
				break
			}
			got = append(got, fmt.Sprint(w.name, " at ", now))
			if at != now {
				t.Errorf("%d: due at %d, not at %d", w.name, now, at)
			}
		}
	}
	if want := "[0 at 100 2 at 120 4 at 140]"; fmt.Sprint(got) != want {
		t.Errorf("due: %v, want %v", got, want)
	}
	if _, ok := d.Next(); ok {
		t.Errorf("%d entries stay", len(d.queue))
	}
}

func TestADeadlineThatIsSetAgainStandsBesideTheFirst(t *testing.T) {
	d := Deadlines[*waiter]{After: 100}
	w := new(waiter)
	d.Push(w, 0)
	second := d.Push(w, 50)
	if due, at := d.Due(100); due != w || at == second {
		t.Errorf("the first entry: %v at %d", due, at)
	}
	if due, at := d.Due(149); due != nil {
		t.Errorf("due at %d already", at)
	}
	if due, at := d.Due(150); due != w || at != second {
		t.Errorf("the second entry: %v at %d", due, at)
	}
}

func TestDeadlinesThatDoNotHoldTakeNoMemory(t *testing.T) {
	d := Deadlines[*waiter]{After: 3e9}
	w := new(waiter)
	for now := range int64(1e6) {
		d.Push(w, now)
		w.stage++
		if len(d.queue) > 1 || cap(d.queue) > 64 {
			t.Fatalf("%d entries in an array of %d after %d connections", len(d.queue), cap(d.queue), now+1)
		}
	}
}
