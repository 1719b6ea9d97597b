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

// halfCloseTimeout is how long a tunnel whose one side has finished may rest
// without a byte moving in the other direction.
const halfCloseTimeout = 60 * time.Second

// sweepInterval is the grain of every inactivity bound: one timer looks after
// all tunnels, so that moving a message sets none.
const sweepInterval = time.Second

// relay pumps bytes through tunnels. It keeps what TCP promises its two ends
// as if they had spoken directly:
//
//   - Each direction ends by itself: a FIN is passed on, and the other
//     direction goes on until it ends too.
//   - What was read is delivered: a backend that closes or resets right after
//     its last byte still has every byte delivered, then the client sees FIN.
//   - A client's reset reaches the backend as a reset.
//   - Backpressure: at most one buffer or one pipe of a direction is read
//     ahead of what its receiver takes.
//
// A relay must be closed. Its methods are safe for concurrent use.
type relay struct {
	pump    pumpFunc
	log     *slog.Logger
	pipes   pipePool
	buffers sync.Pool // of *[]byte with bufferSize bytes

	bufferSize       int
	halfCloseTimeout time.Duration
	sweepInterval    time.Duration

	mu      sync.Mutex
	tunnels map[*tunnel]struct{}
	closed  bool
}

// pumpFunc moves bytes from src to dst until src ends, adding each chunk to
// moved once dst's kernel has taken it. Both errors are nil at src's FIN; else
// the one that is not tells which side failed. It closes neither.
type pumpFunc func(r *relay, dst, src *net.TCPConn, moved *atomic.Int64) (readErr, writeErr error)

// newRelay returns a relay whose copies use buffers of the given size in bytes.
func newRelay(bufferSize int, log *slog.Logger) *relay {
	r := &relay{
		pump:             defaultPump,
		log:              log,
		bufferSize:       bufferSize,
		halfCloseTimeout: halfCloseTimeout,
		sweepInterval:    sweepInterval,
		tunnels:          make(map[*tunnel]struct{}),
	}
	r.buffers.New = func() any {
		b := make([]byte, bufferSize)
		return &b
	}
	return r
}

// tunnelEnd is the account of a finished tunnel.
type tunnelEnd struct {
	up, down int64  // bytes from client to backend, and back
	by, how  string // who ended it: a by… constant; and how: a how… constant
}

const (
	byClient  = "client"
	byBackend = "backend"
	byGateway = "gateway"

	howFIN      = "fin"      // it finished, and so did the other side
	howReset    = "reset"    // it broke the connection
	howTimeout  = "timeout"  // half-closed and silent, or its host is gone
	howShutdown = "shutdown" // cut at the end of -drain
	howError    = "error"    // anything else
)

// tunnel is one client joined to one backend.
type tunnel struct {
	relay           *relay
	client, backend *net.TCPConn
	up, down        atomic.Int64 // bytes moved, see pumpFunc

	mu       sync.Mutex
	end      tunnelEnd
	upDone   bool // client to backend has ended
	downDone bool // backend to client has ended
	deaf     bool // the backend takes no more: what the client sends is dropped

	// For the sweeper alone.
	progress int64     // what it saw moved the last time
	since    time.Time // when that last changed
}

// run joins a client and a backend, both connected, and owns both from here
// on: it closes them. early is what the client has already sent for the
// backend; run may keep it until done is called. done is called once, after
// both are closed. run may return before that or block until then.
func (r *relay) run(client, backend *net.TCPConn, early []byte, done func(tunnelEnd)) {
	t := &tunnel{relay: r, client: client, backend: backend, since: time.Now()}
	if !r.add(t) {
		t.cut(byGateway, howShutdown)
		done(t.end)
		return
	}
	var both sync.WaitGroup
	both.Go(t.runDown)
	t.runUp(early)
	both.Wait()

	t.close()
	r.remove(t)
	t.end.up, t.end.down = t.up.Load(), t.down.Load()
	done(t.end)
}

// runUp carries what the client sends.
func (t *tunnel) runUp(early []byte) {
	defer t.recover()
	var readErr error
	n, writeErr := t.backend.Write(early)
	t.up.Add(int64(n))
	if writeErr == nil {
		early = nil // an idle tunnel need not keep it
		readErr, writeErr = t.relay.pump(t.relay, t.backend, t.client, &t.up)
	}
	switch {
	case writeErr != nil:
		// The backend is gone, but what it sent before may still be on its way
		// to the client, so this direction only turns deaf.
		t.note(byBackend, howOf(writeErr))
		t.discard()
	case errors.Is(readErr, os.ErrDeadlineExceeded):
		t.discard() // runDown called: the backend is gone
	case readErr != nil:
		t.note(byClient, howOf(readErr))
		t.reset()
	default:
		t.note(byClient, howFIN)
		t.backend.CloseWrite()
	}
	t.mu.Lock()
	t.upDone = true
	t.mu.Unlock()
}

// runDown carries what the backend sends.
func (t *tunnel) runDown() {
	defer t.recover()
	readErr, writeErr := t.relay.pump(t.relay, t.client, t.backend, &t.down)
	switch {
	case writeErr != nil:
		t.note(byClient, howOf(writeErr))
		t.reset()
	case readErr != nil:
		// A reset says that the backend takes no more, not that what it sent
		// is void: the client gets a FIN after the data.
		t.note(byBackend, howOf(readErr))
		t.client.CloseWrite()
		t.client.SetReadDeadline(time.Unix(1, 0)) // call runUp
	default:
		t.note(byBackend, howFIN)
		t.client.CloseWrite()
	}
	t.mu.Lock()
	t.downDone = true
	t.mu.Unlock()
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

// note records who ended the tunnel and how. The first reset, time-out or cut
// tells more than a FIN, before or after it.
func (t *tunnel) note(by, how string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.end.how == "" || t.end.how == howFIN && how != howFIN {
		t.end.by, t.end.how = by, how
	}
}

// reset ends the tunnel with a reset to the backend: with SO_LINGER on and
// zero, close(2) sends RST and drops what was not sent.
func (t *tunnel) reset() {
	t.backend.SetLinger(0)
	t.close()
}

// cut ends the tunnel from outside of its two directions.
func (t *tunnel) cut(by, how string) {
	t.note(by, how)
	t.close()
}

// close closes both connections, which ends both directions. It may be called
// again.
func (t *tunnel) close() {
	t.client.Close()
	t.backend.Close()
}

// recover keeps a bug in one tunnel from ending all the others.
func (t *tunnel) recover() {
	if v := recover(); v != nil {
		logPanic(t.relay.log, v)
		t.cut(byGateway, howError)
	}
}

func howOf(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return howReset
	case errors.Is(err, syscall.ETIMEDOUT):
		return howTimeout // keepalive or retransmission gave up
	default:
		return howError
	}
}

// add registers a tunnel; false means that the relay is closed.
func (r *relay) add(t *tunnel) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	if len(r.tunnels) == 0 {
		time.AfterFunc(r.sweepInterval, r.sweep)
	}
	r.tunnels[t] = struct{}{}
	return true
}

func (r *relay) remove(t *tunnel) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tunnels, t)
}

// sweep cuts the half-closed tunnels that rest too long, and calls itself
// again as long as there are tunnels.
func (r *relay) sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for t := range r.tunnels {
		t.sweep(now)
	}
	if len(r.tunnels) > 0 {
		time.AfterFunc(r.sweepInterval, r.sweep)
	}
}

func (t *tunnel) sweep(now time.Time) {
	t.mu.Lock()
	half := t.upDone != t.downDone
	lingering := t.deaf && t.downDone
	t.mu.Unlock()

	progress := t.up.Load() + t.down.Load()
	if lingering {
		// All was written, and the client is to acknowledge it.
		if c, err := t.client.SyscallConn(); err == nil {
			unacked, ok := sockopt.Unacked(c)
			if ok && unacked == 0 {
				t.close() // whoever ended it is noted already
				return
			}
			progress -= int64(unacked)
		}
	}
	if progress != t.progress || !half {
		t.progress, t.since = progress, now
	} else if now.Sub(t.since) >= t.relay.halfCloseTimeout {
		t.cut(byGateway, howTimeout)
	}
}

// close cuts all tunnels and lets no new one in. It does not wait for their
// done callbacks.
func (r *relay) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for t := range r.tunnels {
		t.cut(byGateway, howShutdown)
	}
	r.pipes.close()
}

// copyPump is the portable pump: one read, one write. It holds a buffer even
// while the tunnel rests.
func copyPump(r *relay, dst, src *net.TCPConn, moved *atomic.Int64) (readErr, writeErr error) {
	buf := r.buffers.Get().(*[]byte)
	defer r.buffers.Put(buf)
	for {
		n, readErr := src.Read(*buf)
		if n > 0 {
			m, writeErr := dst.Write((*buf)[:n])
			moved.Add(int64(m))
			if writeErr != nil {
				return nil, writeErr
			}
		}
		if readErr == io.EOF {
			return nil, nil
		}
		if readErr != nil {
			return readErr, nil
		}
	}
}
