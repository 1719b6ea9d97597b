package main

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gateway/internal/sockopt"
)

// A relayer pumps bytes through tunnels. It keeps what TCP promises its two
// ends as if they had spoken directly:
//
//   - Each direction ends by itself: a FIN is passed on, and the other
//     direction goes on until it ends too.
//   - What was read is delivered: a backend that closes or resets right after
//     its last byte still has every byte delivered, then the client sees FIN.
//   - A client's reset reaches the backend as a reset.
//   - Backpressure: at most one buffer or one pipe of a direction is read
//     ahead of what its receiver takes.
//   - A tunnel of which one side has finished is bounded by inactivity; a
//     whole one too, if so configured.
//
// There are two: relay, the portable reference with two goroutines a tunnel,
// which joins connections of every kind, and on Linux the loops (loop_linux.go)
// for TCP to TCP. Where a transport has no half-close, closeWrite is the end.
type relayer interface {
	// run joins a client and a backend, both connected, and owns both from
	// here on. early is what the client has already sent for the backend; it
	// may be kept until the end. The session is accounted for once, after
	// both are closed. run may return before that or block until then.
	run(s *session, client, backend net.Conn, early []byte)

	// moved returns how many bytes were spliced, and how many were copied.
	moved() (spliced, copied int64)

	// close cuts all tunnels and lets no new one in. It does not wait for
	// their accounts.
	close()
}

// relayConfig is what both relayers are told.
type relayConfig struct {
	bufferSize       int           // bytes of a copy
	idleTimeout      time.Duration // 0: never
	halfCloseTimeout time.Duration
	liveness         sockopt.Liveness
	log              *slog.Logger
	account          func(*session, tunnelEnd)
}

// sweepPeriod is the grain of the inactivity bounds: a tenth of the shortest,
// within 10 ms and 1 s. Sweeping all tunnels now and then spares a timer for
// each message.
func (c *relayConfig) sweepPeriod() time.Duration {
	shortest := c.halfCloseTimeout
	if c.idleTimeout > 0 {
		shortest = min(shortest, c.idleTimeout)
	}
	return min(max(shortest/10, 10*time.Millisecond), time.Second)
}

// tunnelEnd is the account of a finished tunnel.
type tunnelEnd struct {
	up, down int64 // bytes from client to backend, and back
	ending
}

// ending tells who ended a tunnel, a by… constant; and how, a how… constant.
type ending struct{ by, how string }

const (
	byClient  = "client"
	byBackend = "backend"
	byGateway = "gateway"

	howFIN      = "fin"      // it finished, and so did the other side
	howReset    = "reset"    // it broke the connection
	howTimeout  = "timeout"  // silent for too long, or its host is gone
	howShutdown = "shutdown" // cut at the end of -drain
	howError    = "error"    // anything else
)

// note records who ended the tunnel and how. The first reset, time-out or cut
// tells more than a FIN, before or after it.
func (e *ending) note(by, how string) {
	if e.how == "" || e.how == howFIN && how != howFIN {
		e.by, e.how = by, how
	}
}

func howOf(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return howReset
	case errors.Is(err, syscall.ETIMEDOUT), isTimeout(err),
		// What the network said last, and the kernel says when it gives up.
		errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return howTimeout // keepalive, retransmission or KCP gave up
	default:
		return howError
	}
}

// relay is the portable relayer: one goroutine for each direction. Its methods
// are safe for concurrent use.
type relay struct {
	relayConfig
	buffers sync.Pool    // of *[]byte with bufferSize bytes
	copied  atomic.Int64 // by finished tunnels

	mu       sync.Mutex
	tunnels  map[*pair]struct{}
	sweeping bool // a sweep is due
	closed   bool
}

func newRelay(cfg relayConfig) *relay {
	r := &relay{relayConfig: cfg, tunnels: make(map[*pair]struct{})}
	r.buffers.New = func() any {
		b := make([]byte, cfg.bufferSize)
		return &b
	}
	return r
}

// pair is one client joined to one backend.
type pair struct {
	relay           *relay
	client, backend net.Conn
	up, down        direction

	mu       sync.Mutex
	end      tunnelEnd
	upDone   bool // client to backend has ended
	downDone bool // backend to client has ended
	finSent  bool // the client has had its FIN, or is about to
	deaf     bool // the backend takes no more: what the client sends is dropped

	// For the sweeper alone.
	progress int64     // what it saw moved the last time
	half     bool      // what it saw of the two directions
	since    time.Time // when either last changed
}

// direction is what a direction has moved.
type direction struct {
	moved atomic.Int64 // bytes
	holds atomic.Bool  // something was read that its receiver has not taken
}

// write moves bytes that were read.
func (d *direction) write(dst net.Conn, b []byte) error {
	d.holds.Store(true)
	n, err := dst.Write(b)
	d.moved.Add(int64(n))
	if err == nil {
		d.holds.Store(false)
	}
	return err
}

func (r *relay) run(s *session, client, backend net.Conn, early []byte) {
	p := &pair{relay: r, client: client, backend: backend, since: time.Now()}
	if r.add(p) {
		var both sync.WaitGroup
		both.Go(p.runDown)
		p.runUp(early)
		both.Wait()
	} else {
		p.cut(byGateway, howShutdown)
	}
	p.close()
	r.remove(p)
	p.end.up, p.end.down = p.up.moved.Load(), p.down.moved.Load()
	r.copied.Add(p.end.up + p.end.down)
	r.account(s, p.end)
}

func (r *relay) moved() (spliced, copied int64) { return 0, r.copied.Load() }

// runUp carries what the client sends.
func (p *pair) runUp(early []byte) {
	defer p.recover()
	var readErr error
	var writeErr error
	if len(early) > 0 {
		writeErr = p.up.write(p.backend, early)
	}
	if writeErr == nil {
		readErr, writeErr = p.relay.copy(p.backend, p.client, &p.up)
	}
	switch {
	case writeErr != nil:
		// The backend is gone, but what it sent before may still be on its way
		// to the client, so this direction only turns deaf.
		p.note(byBackend, howOf(writeErr))
		p.discard()
	case errors.Is(readErr, os.ErrDeadlineExceeded):
		p.discard() // runDown called: the backend is gone
	case readErr != nil:
		p.note(byClient, howOf(readErr))
		p.reset()
	case p.clientBroke():
		p.note(byClient, howReset)
		p.reset()
	default:
		p.note(byClient, howFIN)
		closeWrite(p.backend)
	}
	p.mu.Lock()
	p.upDone = true
	p.mu.Unlock()
}

// runDown carries what the backend sends.
func (p *pair) runDown() {
	defer p.recover()
	readErr, writeErr := p.relay.copy(p.client, p.backend, &p.down)
	switch {
	case writeErr != nil:
		p.note(byClient, howOf(writeErr))
		p.reset()
	case readErr != nil:
		// A reset says that the backend takes no more, not that what it sent
		// is void: the client gets a FIN after the data.
		p.note(byBackend, howOf(readErr))
		failWrite(p.client)
		p.client.SetReadDeadline(time.Unix(1, 0)) // call runUp
	default:
		p.note(byBackend, howFIN)
		p.mu.Lock()
		p.finSent = true
		p.mu.Unlock()
		closeWrite(p.client)
	}
	p.mu.Lock()
	p.downDone = true
	p.mu.Unlock()
}

// clientBroke tells a reset from the FIN that it looks like: the kernel tells
// of a reset once, and when it has told the other direction's write, a read
// just ends. A reset leaves the socket without a peer; so does the end of both
// directions, which is no reset. Layers on top of TCP tell for themselves.
func (p *pair) clientBroke() bool {
	if _, ok := p.client.(*net.TCPConn); !ok || sockopt.HasPeer(rawConn(p.client)) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.finSent
}

// restBuffer is the size of the buffer that a direction holds while it rests,
// in bytes: enough for the messages of most games.
const restBuffer = 2 << 10

// copy moves bytes from src to dst until src ends, and accounts for each chunk
// in d. Both errors are nil at src's FIN; else the one that is not tells which
// side failed. It holds a buffer of the full size only as long as reads fill it:
// many tunnels that had a burst may rest.
func (r *relay) copy(dst, src net.Conn, d *direction) (readErr, writeErr error) {
	small := make([]byte, min(restBuffer, r.bufferSize))
	var large *[]byte
	defer func() {
		if large != nil {
			r.buffers.Put(large)
		}
	}()
	for {
		buf := small
		if large != nil {
			buf = *large
		}
		n, readErr := src.Read(buf)
		if n > 0 {
			if err := d.write(dst, buf[:n]); err != nil {
				return nil, err
			}
		}
		switch {
		case readErr == io.EOF, errors.Is(readErr, io.ErrUnexpectedEOF):
			// TLS clients often leave by a FIN alone.
			return nil, nil
		case readErr != nil:
			return readErr, nil
		case large == nil && n == len(small):
			large = r.buffers.Get().(*[]byte)
		case large != nil && n < len(*large):
			r.buffers.Put(large)
			large = nil
		}
	}
}

// discard drops what the client sends to a backend that is gone. Closing the
// client at once instead would reset it (RFC 2525 section 2.17) and could
// destroy what it has not yet received. It ends when the client ends; or the
// sweeper ends it once the client's kernel has everything.
func (p *pair) discard() {
	p.mu.Lock()
	p.deaf = true
	p.mu.Unlock()
	for {
		p.client.SetReadDeadline(time.Time{})
		// Hiding the connection's type keeps io.Copy from splicing it.
		_, err := io.Copy(io.Discard, struct{ io.Reader }{p.client})
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

func (p *pair) note(by, how string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end.note(by, how)
}

// reset ends the tunnel with a reset to the backend.
func (p *pair) reset() {
	resetOnClose(p.backend)
	p.abort()
}

// cut ends the tunnel from outside of its two directions.
func (p *pair) cut(by, how string) {
	p.note(by, how)
	if p.up.holds.Load() {
		resetOnClose(p.backend) // a FIN would call what the backend got complete
	}
	p.abort()
}

// abort ends both directions. It may be called again, and never waits.
func (p *pair) abort() {
	abort(p.client)
	abort(p.backend)
}

// close closes both connections, of which both directions have ended. What is
// still under way arrives. A TLS client has had its close_notify by then.
func (p *pair) close() {
	socketOf(p.client).Close()
	socketOf(p.backend).Close()
}

// recover keeps a bug in one tunnel from ending all the others.
func (p *pair) recover() {
	if v := recover(); v != nil {
		logPanic(p.relay.log, v)
		p.cut(byGateway, howError)
	}
}

// add registers a tunnel; false means that the relay is closed.
func (r *relay) add(p *pair) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.tunnels[p] = struct{}{}
	if !r.sweeping {
		r.sweeping = true
		time.AfterFunc(r.sweepPeriod(), r.sweep)
	}
	return true
}

func (r *relay) remove(p *pair) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tunnels, p)
}

// sweep cuts the tunnels that rest too long, and calls itself again as long
// as there are tunnels.
func (r *relay) sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for p := range r.tunnels {
		p.sweep(now)
	}
	if r.sweeping = len(r.tunnels) > 0; r.sweeping {
		time.AfterFunc(r.sweepPeriod(), r.sweep)
	}
}

func (p *pair) sweep(now time.Time) {
	p.mu.Lock()
	half := p.upDone || p.downDone || p.deaf
	lingering := p.deaf && p.downDone
	unread := p.up.holds.Load() && !p.upDone && !p.deaf && !p.finSent
	p.mu.Unlock()

	// While a backend takes nothing, nobody reads from its client, and so
	// nobody would learn that it is gone.
	if unread {
		if err := broken(p.client); err != nil {
			p.note(byClient, howOf(err))
			p.reset()
			return
		}
	}

	progress := p.up.moved.Load() + p.down.moved.Load()
	if lingering {
		// All was written, and the client is to acknowledge it.
		if raw := rawConn(p.client); raw != nil {
			unacked, ok := sockopt.Unacked(raw)
			if ok && unacked == 0 {
				p.abort() // whoever ended it is noted already
				return
			}
			progress -= int64(unacked)
		}
	}
	bound := p.relay.idleTimeout
	if half {
		bound = p.relay.halfCloseTimeout
	}
	if progress != p.progress || half != p.half || bound == 0 {
		p.progress, p.half, p.since = progress, half, now
	} else if now.Sub(p.since) >= bound {
		p.cut(byGateway, howTimeout)
	}
}

func (r *relay) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for p := range r.tunnels {
		p.cut(byGateway, howShutdown)
	}
}
