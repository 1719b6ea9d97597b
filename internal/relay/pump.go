package relay

import (
	"io"
	"sync"
)

// How bytes move where they cannot be spliced: between layers of any kind, and
// on systems other than Linux.

// Pump moves bytes by io.CopyBuffer. It is for many connections at once.
type Pump struct {
	size    int       // of a large buffer, in bytes
	buffers sync.Pool // of *[]byte, large
}

// NewPump returns a pump with large buffers of size bytes.
func NewPump(size int) *Pump {
	p := &Pump{size: size}
	p.buffers.New = func() any {
		b := make([]byte, size)
		return &b
	}
	return p
}

// restBuffer is the size of the buffer that a direction holds while it rests,
// in bytes: enough for the messages of most games.
const restBuffer = 2 << 10

// Run moves bytes from src to dst until src ends or one of them fails. The
// error is io.EOF at src's end. It holds a large buffer only as long as reads fill
// it: many tunnels that had a burst may rest.
func (p *Pump) Run(dst io.Writer, src io.Reader) error {
	small := make([]byte, min(restBuffer, p.size))
	for {
		n, err := src.Read(small)
		if n > 0 {
			if _, err := dst.Write(small[:n]); err != nil {
				return err
			}
		}
		if err == nil && n == len(small) {
			err = p.burst(dst, src)
		}
		if err != nil {
			return err
		}
	}
}

// burst moves bytes through a large buffer up to the first read that does not
// fill it.
func (p *Pump) burst(dst io.Writer, src io.Reader) error {
	buf := p.buffers.Get().(*[]byte)
	defer p.buffers.Put(buf)
	b := &burst{src: src}
	if _, err := io.CopyBuffer(dst, b, *buf); err != nil {
		return err
	}
	return b.err
}

// burst is a source that ends with the first read that does not fill the buffer.
type burst struct {
	src  io.Reader
	over bool
	err  error // of src
}

func (b *burst) Read(buf []byte) (int, error) {
	if b.over {
		return 0, io.EOF
	}
	n, err := b.src.Read(buf)
	b.over, b.err = err != nil || n < len(buf), err
	return n, nil
}
