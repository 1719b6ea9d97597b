package limit

import (
	"sync"
	"testing"
)

func TestThereIsNeverMoreThanThereMayBe(t *testing.T) {
	var o Occupancy
	o.Bound(5)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			for range 1000 {
				if o.Take() {
					o.Give()
				}
			}
		})
	}
	all.Wait()
	taken := 0
	for range 10 {
		if o.Take() {
			taken++
		}
	}
	if n, most := o.Count(); taken != 5 || n != 5 || most != 5 || !o.Full() {
		t.Errorf("%d were taken; %d of %d", taken, n, most)
	}
}

func TestWhatIsThereStaysWhateverTheBoundBecomes(t *testing.T) {
	var o Occupancy
	for range 3 {
		if !o.Take() {
			t.Fatal("there is a bound where none was set")
		}
	}
	o.Force()
	o.Bound(2)
	if n, _ := o.Count(); n != 4 || !o.Full() || o.Take() {
		t.Errorf("%d", n)
	}
	for range 3 {
		o.Give()
	}
	if o.Full() || !o.Take() || o.Take() {
		t.Error("there is not room for one")
	}
	if o.Bound(0); o.Full() || !o.Take() {
		t.Error("the bound is still there")
	}
}
