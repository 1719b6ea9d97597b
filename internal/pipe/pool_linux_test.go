package pipe

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestPipesAreFewAndNeverLentWithBytesInThem(t *testing.T) {
	const maxPipes, maxIdlePipes = 40, 10
	budget := &Budget{Max: maxPipes}
	pool := NewPool(budget, maxIdlePipes)
	before := openDescriptors(t)
	budget.made.Store(maxPipes - 2)
	a, b := pool.Get(), pool.Get()
	if a == nil || b == nil {
		t.Fatal("there are pipes left")
	}
	if c := pool.Get(); c != nil || budget.Made() != maxPipes {
		t.Errorf("one pipe too many, %d counted", budget.Made())
	}
	if a.Size < minSize || a.Size > wantedSize {
		t.Errorf("a pipe of %d bytes", a.Size)
	}
	unix.Write(a.W, []byte("another tunnel's"))
	pool.Put(a, false)
	if budget.Made() != maxPipes-1 || len(pool.idle) != 0 {
		t.Errorf("a pipe with bytes in it was kept: %d counted", budget.Made())
	}
	pool.Put(b, true)
	if got := pool.Get(); got != b {
		t.Error("an empty pipe is not lent again")
	}
	pool.Put(b, true)

	budget.made.Store(1)
	var lent []*Pipe
	for range maxIdlePipes + 3 {
		lent = append(lent, pool.Get())
	}
	for _, p := range lent {
		pool.Put(p, true)
	}
	if len(pool.idle) != maxIdlePipes || budget.Made() != maxIdlePipes {
		t.Errorf("%d pipes are kept, %d counted, want %d", len(pool.idle), budget.Made(), maxIdlePipes)
	}
	pool.CloseIdle()
	if n := openDescriptors(t); budget.Made() != 0 || n != before {
		t.Errorf("%d pipes are counted, %d descriptors open, %d before", budget.Made(), n, before)
	}
}

func TestAPipeOfAnotherProcessCountsOrIsEmptied(t *testing.T) {
	before := openDescriptors(t)
	budget := &Budget{Max: 1}
	pool := NewPool(budget, 1)
	for _, adopted := range []bool{true, false} {
		p := open()
		unix.Write(p.W, []byte("hello"))
		got := pool.Adopt(p.R, p.W)
		if (got != nil) != adopted || budget.Made() != 1 {
			t.Fatalf("adopted: %+v, %d counted", got, budget.Made())
		}
		if adopted {
			if got.Size != p.Size {
				t.Errorf("its size is %d, not %d", got.Size, p.Size)
			}
			defer func() {
				pool.Put(got, false)
				if n := openDescriptors(t); n != before || budget.Made() != 0 {
					t.Errorf("%d descriptors, %d before; %d pipes counted", n, before, budget.Made())
				}
			}()
		} else if b := Empty(p.R, p.W, 5); string(b) != "hello" {
			t.Errorf("it held %q", b)
		}
	}
}
