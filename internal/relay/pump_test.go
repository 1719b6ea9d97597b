package relay

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
			if err := NewPump(1<<14).Run(&got, src); !errors.Is(err, end) || got.Len() != want {
				t.Errorf("of %v and %v: %d bytes and %v", sizes, end, got.Len(), err)
			}
		}
	}
}

func TestThePumpHoldsALargeBufferOnlyForBursts(t *testing.T) {
	p := NewPump(1 << 16)
	small, large := &pieces{sizes: []int{100, 100}, err: io.EOF}, &pieces{sizes: []int{restBuffer, 100, 100}, err: io.EOF}
	p.Run(struct{ io.Writer }{io.Discard}, small) // which would read by itself
	p.Run(struct{ io.Writer }{io.Discard}, large)
	if small.largest != restBuffer || large.largest != 1<<16 {
		t.Errorf("messages are read into %d bytes, bursts into %d", small.largest, large.largest)
	}
}

func TestThePumpEndsWithItsReceiver(t *testing.T) {
	for _, size := range []int{1, 1 << 20} {
		r, w := io.Pipe()
		r.CloseWithError(io.ErrClosedPipe)
		err := NewPump(1<<14).Run(struct{ io.Writer }{w}, &pieces{sizes: []int{size}, err: io.EOF})
		if !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}
