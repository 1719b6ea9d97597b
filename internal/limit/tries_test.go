package limit

import (
	"net/netip"
	"testing"
	"time"
)

func TestWhoFailsHasSoManyTriesAndWhoSucceedsAnyNumber(t *testing.T) {
	rate, err := ParseRate("10/s,3")
	if err != nil {
		t.Fatal(err)
	}
	tries := NewTries(rate)
	now := tries.start
	bad, good := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for i := range 5 {
		try, ok := tries.Begin(bad, now)
		if ok != (i < 3) {
			t.Errorf("try %d: %v", i, ok)
		}
		if ok {
			try.End(false)
		}
	}
	for i := range 50 {
		try, ok := tries.Begin(good, now)
		if !ok {
			t.Fatalf("success %d has cost a try", i)
		}
		try.End(true)
	}
	if _, ok := tries.Begin(bad, now.Add(90*time.Millisecond)); ok {
		t.Error("a try has come back too early")
	}
	try, ok := tries.Begin(bad, now.Add(100*time.Millisecond))
	if !ok {
		t.Fatal("no try has come back")
	}
	try.End(false)
	// Those under way count: nobody has that many at a time.
	for i := range 4 {
		if _, ok := tries.Begin(good, now.Add(time.Second)); ok != (i < 3) {
			t.Errorf("try %d at a time: %v", i, ok)
		}
	}
}
