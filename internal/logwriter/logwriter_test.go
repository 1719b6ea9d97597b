package logwriter

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// gate is a writer that can be stuck.
type gate struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	writes int
	stuck  chan struct{} // nil: not stuck
}

func (g *gate) Write(p []byte) (int, error) {
	if g.stuck != nil {
		<-g.stuck
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.writes++
	return g.buf.Write(p)
}

func notice(dropped int) []byte { return fmt.Appendf(nil, "dropped %d\n", dropped) }

func TestManyLinesArriveWholeInOrderAndInFewWrites(t *testing.T) {
	g := &gate{}
	lw := New(g, notice)
	var want strings.Builder
	for i := range 10000 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		lw.Write([]byte(line))
	}
	lw.Close(20 * time.Second)
	if g.buf.String() != want.String() {
		t.Error("other lines came out than went in")
	}
	if g.writes > 100 {
		t.Errorf("10000 lines took %d writes", g.writes)
	}
}

func TestAFirstLineDoesNotWaitForTheNext(t *testing.T) {
	g := &gate{}
	lw := New(g, notice)
	lw.Write([]byte("listening\n"))
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		g.mu.Lock()
		got := g.buf.String()
		g.mu.Unlock()
		if got != "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it never came")
		}
	}
	lw.Close(20 * time.Second)
}

func TestAStuckReaderHoldsNobodyUpAndLinesAreDroppedWhole(t *testing.T) {
	g := &gate{stuck: make(chan struct{})}
	lw := New(g, notice)
	line := bytes.Repeat([]byte("x"), 1023)
	line = append(line, '\n')
	for range 2*Limit/len(line) + 100 {
		lw.Write(line)
	}
	lw.Close(time.Millisecond) // returns
	close(g.stuck)
	lw.Close(20 * time.Second)
	whole := bytes.Count(g.buf.Bytes(), line)
	var dropped, rest int
	for l := range strings.Lines(g.buf.String()) {
		if n, _ := fmt.Sscanf(l, "dropped %d", &rest); n == 1 {
			dropped += rest
		} else if l != string(line) {
			t.Fatalf("a broken line: %.20q", l)
		}
	}
	if n := lw.Dropped(); n != int64(dropped) {
		t.Errorf("%d lines are counted as dropped, %d are said to be", n, dropped)
	}
	if all := 2*Limit/len(line) + 100; dropped == 0 || whole+dropped != all {
		t.Errorf("%d lines came out and %d are said to be dropped, of %d", whole, dropped, all)
	}
}
