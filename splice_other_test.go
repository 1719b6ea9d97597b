package main

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// pieces is a source whose reads bring pieces of the given sizes, as far as the
// buffer has room, and then err.
type pieces struct {
	sizes   []int
	err     error
	largest int // buffer that was offered
}

func (p *pieces) Read(b []byte) (int, error) {
	p.largest = max(p.largest, len(b))
	if len(p.sizes) == 0 {
		return 0, p.err
	}
	n := min(p.sizes[0], len(b))
	if p.sizes[0] -= n; p.sizes[0] == 0 {
		p.sizes = p.sizes[1:]
	}
	return n, nil
}

func TestThePumpMovesPiecesOfEverySize(t *testing.T) {
	broken := errors.New("broken")
	for _, sizes := range [][]int{{}, {1}, {restBuffer}, {restBuffer - 1, restBuffer + 1}, {1, 1 << 20, 1}, {1 << 14, 1 << 14}} {
		for _, end := range []error{io.EOF, broken} {
			want := 0
			for _, n := range sizes {
				want += n
			}
			var got bytes.Buffer
			src := &pieces{sizes: append([]int(nil), sizes...), err: end}
			if err := newPump(1<<14).run(&got, src); !errors.Is(err, end) || got.Len() != want {
				t.Errorf("of %v and %v: %d bytes and %v", sizes, end, got.Len(), err)
			}
		}
	}
}

func TestThePumpHoldsALargeBufferOnlyForBursts(t *testing.T) {
	p := newPump(1 << 16)
	small, large := &pieces{sizes: []int{100, 100}, err: io.EOF}, &pieces{sizes: []int{restBuffer, 100, 100}, err: io.EOF}
	p.run(struct{ io.Writer }{io.Discard}, small) // which would read by itself
	p.run(struct{ io.Writer }{io.Discard}, large)
	if small.largest != restBuffer || large.largest != 1<<16 {
		t.Errorf("messages are read into %d bytes, bursts into %d", small.largest, large.largest)
	}
}

func TestThePumpEndsWithItsReceiver(t *testing.T) {
	for _, size := range []int{1, 1 << 20} {
		r, w := io.Pipe()
		r.CloseWithError(io.ErrClosedPipe)
		err := newPump(1<<14).run(struct{ io.Writer }{w}, &pieces{sizes: []int{size}, err: io.EOF})
		if !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// writes counts them.
type writes struct{ n int }

func (w *writes) Write(b []byte) (int, error) { w.n++; return len(b), nil }

func TestRecordsThatDoNotFillTheLargeBufferAreOneWriteEach(t *testing.T) {
	p := newPump(1 << 14)
	const records, size = 100, 15 << 10
	sizes := make([]int, records)
	for i := range sizes {
		sizes[i] = size
	}
	count := func() int {
		var w writes
		if err := p.run(&w, &pieces{sizes: append([]int(nil), sizes...), err: io.EOF}); err != io.EOF {
			t.Fatal(err)
		}
		return w.n
	}
	if n := count(); n > records+1 { // the first is read into the small buffer
		t.Errorf("%d writes for %d records", n, records)
	}
	p.bursts.Add(maxLasting) // that many rest with a large buffer
	if n := count(); n != 2*records {
		t.Errorf("%d writes for %d records, beside many that rest", n, records)
	}
}
