package reactor

import (
	"testing"
	"time"
)

func newReactor(t *testing.T) *Reactor {
	t.Helper()
	r, err := New(false)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestWhatIsPostedRunsInItsOrder posts from another thread while the reactor sleeps.
func TestWhatIsPostedRunsInItsOrder(t *testing.T) {
	r := newReactor(t)
	defer r.Close()
	var ran []int
	go func() {
		for i := range 3 {
			if !r.Post(func() { ran = append(ran, i) }) {
				t.Error("it did not take what was posted")
			}
		}
	}()
	for len(ran) < 3 {
		for _, ev := range r.Events[:r.Sleep(10_000)] {
			if ev.Fd != WakeEvent {
				t.Fatalf("an event of descriptor %d, of which it knows nothing", ev.Fd)
			}
			r.ReadInbox()
		}
		for f := r.Next(); f != nil; f = r.Next() {
			f()
		}
	}
	if ran[0] != 0 || ran[1] != 1 || ran[2] != 2 {
		t.Errorf("ran %v", ran)
	}
	if r.Busy() || r.Backlog() != 0 || !r.Slept {
		t.Errorf("busy %v, backlog %d, slept %v", r.Busy(), r.Backlog(), r.Slept)
	}
}

func TestAReactorEndsOnlyOnceNothingIsLeft(t *testing.T) {
	r := newReactor(t)
	r.Post(func() {})
	if r.Backlog() != 1 || r.End() {
		t.Fatal("it ended with something in its inbox")
	}
	r.ReadInbox()
	if !r.Busy() || r.End() {
		t.Fatal("it ended with something to run")
	}
	r.Next()
	if !r.End() {
		t.Fatal("it does not end")
	}
	if r.Post(func() {}) {
		t.Fatal("it takes something after its end")
	}
}

func TestTheMeterTellsWorkFromSleep(t *testing.T) {
	r := newReactor(t)
	defer r.Close()
	var m Meter
	r.Sleep(30)
	m.Woke(r)
	woke := r.Now
	for r.Now-woke < int64(5*time.Millisecond) { // work
		r.Tick()
	}
	m.Turned(r)
	worked := time.Duration(r.Now - woke)
	if busy, longest := m.Read(r.Age()); busy != worked || longest != worked {
		t.Errorf("busy %v, longest turn %v; it has worked for %v of %v", busy, longest, worked, r.Age())
	}
	if _, longest := m.Read(r.Age() + 2*time.Minute); longest != 0 {
		t.Errorf("the longest turn of two minutes later is %v", longest)
	}
}
