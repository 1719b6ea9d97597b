package main

import (
	"context"
	"errors"
	"gateway/internal/handover"
	"gateway/internal/relay"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// How bytes move where they cannot be spliced: between layers of any kind, and
// on systems other than Linux.

// pump moves bytes by io.CopyBuffer. It is for many connections at once.
type pump struct {
	size    int          // of a large buffer, in bytes
	buffers sync.Pool    // of *[]byte, large
	bursts  atomic.Int32 // directions that have one
}

// newPump returns a pump with large buffers of size bytes.
func newPump(size int) *pump {
	p := &pump{size: size}
	p.buffers.New = func() any {
		b := make([]byte, size)
		return &b
	}
	return p
}

// restBuffer is the size of the buffer that a direction holds while it rests,
// in bytes: enough for the messages of most games.
const restBuffer = 2 << 10

// maxLasting is how many directions may keep a large buffer although a read did not fill
// it. A record of TLS or a frame of a WebSocket does not, and yet the next one may be as
// large: in the small buffer it would become two writes. Since a direction may come to
// rest there, their number is bounded, and with it the memory: 1 MiB by default.
const maxLasting = 64

// run moves bytes from src to dst until src ends or one of them fails. The
// error is io.EOF at src's end. It holds a large buffer only as long as reads fill
// it, or are large and not many directions have one: many tunnels that had a burst may
// rest.
func (p *pump) run(dst io.Writer, src io.Reader) error {
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
// fill it, or that would have had room in the small one.
func (p *pump) burst(dst io.Writer, src io.Reader) error {
	buf := p.buffers.Get().(*[]byte)
	defer p.buffers.Put(buf)
	b := &burst{src: src, lasts: p.bursts.Add(1) <= maxLasting}
	defer p.bursts.Add(-1)
	if _, err := io.CopyBuffer(dst, b, *buf); err != nil {
		return err
	}
	return b.err
}

// burst is a source that ends with its first read that is not large.
type burst struct {
	src   io.Reader
	lasts bool // what does not fill the buffer may be large
	over  bool
	err   error // of src
}

func (b *burst) Read(buf []byte) (int, error) {
	if b.over {
		return 0, io.EOF
	}
	n, err := b.src.Read(buf)
	b.over, b.err = err != nil || n < len(buf) && (n <= restBuffer || !b.lasts), err
	return n, nil
}

// engine relays tunnels without a goroutine for each, and takes the plain case of a
// handshake: the event loops of Linux (loops). What it does not take, goroutines serve.
type engine interface {
	// kind says by what messages are relayed; empty: it takes nothing.
	kind() string
	// serve accepts from ln, which it owns, until stopping is closed.
	serve(ln *net.TCPListener, by *entrance, stopping <-chan struct{}, rules func() *rules) error
	// take takes a tunnel that was connected elsewhere; false leaves it to the caller.
	take(s *session, u *upstream, client, backend net.Conn, b beginning) bool
	// pair makes two local sockets, joined, the first of which take takes as a client.
	pair() (inner, outer net.Conn, err error)
	// visit calls look for each tunnel, and cuts those for which it returns true.
	visit(ctx context.Context, look func(*session, *upstream, relay.Pulse) (cut bool), between func()) error

	// retime takes up the times and sizes of another configuration.
	retime(cfg *Config)
	// answer returns whether it goes on with its work, or nil.
	answer(ctx context.Context) error
	work(tell func(busy, longest time.Duration, conns, awaiting int))
	pipeCount() (made, limit int)
	movedFrom() (spliced, copied [2]int64)

	// handOver sends all tunnels to another process, and takeOver takes those of one.
	handOver(ctx context.Context, conn *net.UnixConn, first time.Duration, state map[string][]byte, told func(tunnels int, took time.Duration)) error
	takeOver(conn *net.UnixConn, rules func() *rules, state func(string, []byte), idle func(bool)) (taken int, err error)

	// close cuts all tunnels. It does not wait for them.
	close()
}

// newEngine starts an engine. slowWay serves, in a goroutine of its own, an accepted
// client that the engine cannot serve without waiting; it owns the descriptor. Where there
// is no engine this is nil: loop_linux.go has one.
var newEngine func(cfg *Config, l *ledger, slowWay func(fd int, r *rules, s session, received []byte)) (engine, error)

// idle is an engine that takes nothing: that of other systems, and of -loops=-1.
type idle struct{}

func (idle) kind() string { return "" }
func (idle) serve(*net.TCPListener, *entrance, <-chan struct{}, func() *rules) error {
	panic("nothing is taken")
}
func (idle) take(*session, *upstream, net.Conn, net.Conn, beginning) bool { return false }
func (idle) pair() (inner, outer net.Conn, err error)                     { return nil, nil, errors.ErrUnsupported }
func (idle) visit(context.Context, func(*session, *upstream, relay.Pulse) bool, func()) error {
	return nil
}
func (idle) retime(*Config)                                              {}
func (idle) answer(context.Context) error                                { return nil }
func (idle) work(func(busy, longest time.Duration, conns, awaiting int)) {}
func (idle) pipeCount() (made, limit int)                                { return 0, 0 }
func (idle) movedFrom() (spliced, copied [2]int64)                       { return spliced, copied }
func (idle) close()                                                      {}

func (idle) handOver(_ context.Context, conn *net.UnixConn, _ time.Duration, _ map[string][]byte, _ func(int, time.Duration)) error {
	return conn.Close()
}

// takeOver leaves the other process what it has.
func (idle) takeOver(conn *net.UnixConn, _ func() *rules, _ func(string, []byte), _ func(bool)) (int, error) {
	handover.Refuse(conn, "it has no event loops (-loops)")
	return 0, nil
}
