package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gateway/internal/layer"
	"gateway/internal/sockopt"
)

// tunnel is one client joined to one backend.
type tunnel struct {
	relay           *Relay
	who             any // see Relay.RunAs
	client, backend net.Conn
	up, down        direction

	mu       sync.Mutex
	end      End
	upDone   bool // client to backend has ended
	downDone bool // backend to client has ended
	finSent  bool // the client has had its FIN, or is about to
	deaf     bool // the backend takes no more: what the client sends is dropped

	firstByte time.Duration // see End; of runDown until that has ended

	measured atomic.Int64 // nanoseconds without a byte, in the end; 0: not measured

	began int64 // by the relay's clock
	rest  Rest  // the sweeper's alone
}

// direction is what a direction has moved.
type direction struct {
	moved atomic.Int64 // bytes
	holds atomic.Bool  // something was read that its receiver has not taken
}

// receiver is where a direction leads: a connection whose writes are counted,
// and whose failure is told from the source's. It hides the connection's type,
// which would have io.CopyBuffer pass by the counting.
type receiver struct {
	net.Conn
	*direction
	first   func() // called for the first byte; nil: nobody is
	drops   dropper
	dropped int64 // as drops knows
	err     error
}

// dropper is a client that has finished, and that a backend may write to for a while: what
// it drops nobody gets.
type dropper interface {
	// Dropped returns how many of the bytes are dropped that Write has taken.
	Dropped() int64
}

func (w *receiver) Write(b []byte) (int, error) {
	w.holds.Store(true)
	n, err := w.Conn.Write(b)
	moved := int64(n)
	if w.drops != nil {
		all := w.drops.Dropped()
		moved, w.dropped = moved-(all-w.dropped), all
	}
	if w.moved.Add(moved) == moved && moved > 0 && w.first != nil {
		w.first()
	}
	if w.err = err; err == nil {
		w.holds.Store(false)
	}
	return n, err
}

// pump moves bytes from src to dst until src ends. Both errors are nil at src's
// FIN; else the one that is not tells which side failed.
func (t *tunnel) pump(dst, src net.Conn, d *direction, early []byte) (readErr, writeErr error) {
	to := &receiver{Conn: dst, direction: d}
	if to.drops, _ = dst.(dropper); to.drops != nil {
		to.dropped = to.drops.Dropped()
	}
	if d == &t.down {
		to.first = func() {
			t.firstByte = time.Duration(t.relay.now() - t.began)
			if t.relay.FirstByte != nil {
				t.relay.FirstByte(t.firstByte)
			}
		}
	}
	if len(early) > 0 {
		if _, err := to.Write(early); err != nil {
			return nil, err
		}
	}
	err := t.relay.Pump(to, struct{ io.Reader }{src})
	switch {
	case to.err != nil:
		return nil, to.err
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
		// TLS clients often leave by a FIN alone.
		return nil, nil
	}
	return err, nil
}

// runUp carries what the client sends.
func (t *tunnel) runUp(early []byte) {
	defer t.survive()
	readErr, writeErr := t.pump(t.backend, t.client, &t.up, early)
	switch {
	case writeErr != nil:
		// The backend is gone, but what it sent before may still be on its way
		// to the client, so this direction only turns deaf.
		t.note(Backend, HowOf(writeErr))
		t.discard()
	case errors.Is(readErr, os.ErrDeadlineExceeded):
		t.discard() // runDown called: the backend is gone
	case readErr != nil:
		t.note(Client, HowOf(readErr))
		t.reset()
	case t.clientBroke():
		t.note(Client, Reset)
		t.reset()
	default:
		t.note(Client, FIN)
		layer.CloseWrite(t.backend)
	}
	t.mu.Lock()
	t.upDone = true
	t.mu.Unlock()
}

// runDown carries what the backend sends.
func (t *tunnel) runDown() {
	defer t.survive()
	readErr, writeErr := t.pump(t.client, t.backend, &t.down, nil)
	switch {
	case writeErr != nil:
		t.note(Client, HowOf(writeErr))
		t.reset()
	case readErr != nil:
		// A reset says that the backend takes no more, not that what it sent
		// is void: the client gets a FIN after the data.
		t.note(Backend, HowOf(readErr))
		layer.FailWrite(t.client)
		t.client.SetReadDeadline(time.Unix(1, 0)) // call runUp
	default:
		t.note(Backend, FIN)
		t.mu.Lock()
		t.finSent = true
		t.mu.Unlock()
		layer.CloseWrite(t.client)
	}
	t.mu.Lock()
	t.downDone = true
	t.mu.Unlock()
}

// clientBroke tells a reset from the FIN that it looks like: the kernel tells
// of a reset once, and when it has told the other direction's write, a read
// just ends. A reset leaves the socket without a peer; so does the end of both
// directions, which is no reset. Layers on top of TCP tell for themselves.
func (t *tunnel) clientBroke() bool {
	if _, ok := t.client.(*net.TCPConn); !ok || sockopt.HasPeer(layer.RawConn(t.client)) {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.finSent
}

// discard drops what the client sends to a backend that is gone. Closing the
// client at once instead would reset it (RFC 2525 section 2.17) and could
// destroy what it has not yet received. It ends when the client ends; or the
// sweeper ends it once the client's kernel has everything.
func (t *tunnel) discard() {
	t.mu.Lock()
	t.deaf = true
	t.mu.Unlock()
	for {
		t.client.SetReadDeadline(time.Time{})
		// Hiding the connection's type keeps io.Copy from splicing it.
		_, err := io.Copy(io.Discard, struct{ io.Reader }{t.client})
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

func (t *tunnel) note(by Side, how How) {
	limit := NoLimit
	if how == Timeout && by != Gateway {
		limit = t.kernelLimit(by)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.end.Ending
	if t.end.Note(by, how); t.end.Ending != before {
		t.end.Limit = limit
	}
}

// measure asks the kernel for how long nothing has moved, as long as the backend's socket
// is open: it knows to a few milliseconds, and costs nothing until then. What a layer on
// the client's socket says by itself does not count.
func (t *tunnel) measure() {
	raw := layer.RawConn(t.backend)
	if raw == nil || t.measured.Load() > 0 {
		return
	}
	if idle, ok := sockopt.Rested(raw); ok {
		t.measured.CompareAndSwap(0, max(1, idle.Nanoseconds()))
	}
}

// clientGone is called by a client that knows that it is broken while nobody reads it.
func (t *tunnel) clientGone(err error) {
	t.note(Client, HowOf(err))
	t.reset()
}

// reset ends the tunnel with a reset to the backend.
func (t *tunnel) reset() {
	layer.ResetOnClose(t.backend)
	t.abort()
}

// cut ends the tunnel from outside of its two directions.
func (t *tunnel) cut(how How) {
	t.note(Gateway, how)
	t.mu.Lock()
	if t.end.Limit == NoLimit {
		t.end.Limit = t.end.LimitOf(t.upDone || t.downDone || t.deaf)
	}
	t.mu.Unlock()
	if t.up.holds.Load() {
		layer.ResetOnClose(t.backend) // a FIN would call what the backend got complete
	}
	t.abort()
}

// isCut tells whether the tunnel ends because Visit was told so.
func (t *tunnel) isCut() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.end.How == Cut
}

// kernelLimit returns the limit that a peer came to whom the kernel has given up. Its
// socket is still open.
func (t *tunnel) kernelLimit(by Side) Limit {
	c := t.client
	if by == Backend {
		c = t.backend
	}
	raw := layer.RawConn(c)
	if raw == nil {
		return NoLimit
	}
	unacked, ok := sockopt.Unacked(raw)
	if !ok {
		return NoLimit
	}
	return KernelLimit(unacked)
}

// abort ends both directions. It may be called again, and never waits.
func (t *tunnel) abort() {
	t.measure()
	layer.Abort(t.client)
	layer.Abort(t.backend)
}

// pulse tells what can be seen of the tunnel, of its rest as of the last sweep. The
// relay's lock is held.
func (t *tunnel) pulse(now int64) Pulse {
	p := Pulse{Up: t.up.moved.Load(), Down: t.down.moved.Load()}
	if p.Up+p.Down == t.rest.progress {
		p.Idle = time.Duration(now - t.rest.since)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p.HalfClosed = t.upDone || t.downDone || t.deaf
	return p
}

// sweep ends the tunnel if it has rested for too long, or has nothing left to
// wait for. The relay's lock is held.
func (t *tunnel) sweep(now int64) {
	t.mu.Lock()
	half := t.upDone || t.downDone || t.deaf
	lingering := t.deaf && t.downDone
	unread := t.up.holds.Load() && !t.upDone && !t.deaf && !t.finSent
	t.mu.Unlock()

	// While a backend takes nothing, nobody reads from its client, and so
	// nobody would learn that it is gone.
	if unread {
		if err := layer.Broken(t.client); err != nil {
			t.note(Client, HowOf(err))
			t.reset()
			return
		}
	}

	progress := t.up.moved.Load() + t.down.moved.Load()
	if lingering {
		// All was written, and the client is to acknowledge it.
		if raw := layer.RawConn(t.client); raw != nil {
			unacked, ok := sockopt.Unacked(raw)
			if ok && unacked == 0 {
				t.abort() // whoever ended it is noted already
				return
			}
			progress -= int64(unacked)
		}
	}
	if t.rest.TooLong(t.relay.Bounds, progress, half, now) {
		t.cut(Timeout)
	}
}
