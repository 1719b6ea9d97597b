// Package relay joins a client and a backend, connections of any kind, and
// keeps what TCP promises its two ends as if they had spoken directly:
//
//   - Each direction ends by itself: a FIN is passed on, and the other
//     direction goes on until it ends too.
//   - What was read is delivered: a backend that closes or resets right after
//     its last byte still has every byte delivered, then the client sees FIN.
//   - A client's reset reaches the backend as a reset.
//   - Backpressure: at most one buffer of a direction is read ahead of what its
//     receiver takes.
//   - A tunnel of which one side has finished is bounded by inactivity; a
//     whole one too, if so configured.
//
// Where a transport has no half-close, layer.CloseWrite is the end. The words
// for how tunnels end and how long they rest (Ending, Bounds) are also those of
// whoever relays otherwise.
package relay

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"gateway/internal/layer"
)

// Options say how a Relay works.
type Options struct {
	// Pump moves bytes from src to dst until src ends, then it returns nil, or
	// until one of them fails, then it returns that error. It reads again only
	// when dst has taken what was read.
	Pump   func(dst io.Writer, src io.Reader) error
	Bounds Bounds
	Log    *slog.Logger
	// FirstByte is told how long it took from the beginning of a tunnel until the
	// first byte of its backend was moved; nil: nobody wants to know.
	FirstByte func(time.Duration)
}

// Relay relays with two goroutines a tunnel. Its methods are safe for
// concurrent use.
type Relay struct {
	Options
	start time.Time

	mu       sync.Mutex
	tunnels  map[*tunnel]struct{}
	up, down int64 // bytes that finished tunnels have moved
	sweeping bool  // a sweep is due
	closed   bool
}

// New returns a relay. It must be closed.
func New(o Options) *Relay {
	return &Relay{Options: o, start: time.Now(), tunnels: make(map[*tunnel]struct{})}
}

// Run joins a client and a backend, both connected, and owns both: when it
// returns, both are closed. early is what the client has already sent for the
// backend.
func (r *Relay) Run(client, backend net.Conn, early []byte) End {
	return r.RunAs(nil, client, backend, early)
}

// RunAs is Run for a tunnel that Visit is to name as who.
func (r *Relay) RunAs(who any, client, backend net.Conn, early []byte) End {
	t := &tunnel{relay: r, who: who, client: client, backend: backend}
	t.began = r.now()
	t.rest.Begin(0, t.began)
	if r.add(t) {
		if n, ok := client.(interface{ NotifyBroken(func(error)) }); ok {
			n.NotifyBroken(t.clientGone)
		}
		var both sync.WaitGroup
		both.Go(t.runDown)
		t.runUp(early)
		both.Wait()
	} else {
		t.cut(Shutdown)
	}
	t.measure()
	t.close()
	idle := r.idle(t)
	t.mu.Lock() // a client may still say that it is broken
	t.end.Up, t.end.Down = t.up.moved.Load(), t.down.moved.Load()
	t.end.FirstByte, t.end.Idle = t.firstByte, idle
	end := t.end
	t.mu.Unlock()
	r.remove(t)
	return end
}

// idle returns for how long nothing had moved, as the kernel knew or else as of the last
// sweep.
func (r *Relay) idle(t *tunnel) time.Duration {
	if idle := t.measured.Load(); idle > 0 {
		return min(time.Duration(idle), time.Duration(r.now()-t.began))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return t.pulse(r.now()).Idle
}

// Copied returns how many bytes tunnels have moved, in each direction. It never
// gets less.
func (r *Relay) Copied() (up, down int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	up, down = r.up, r.down
	for t := range r.tunnels {
		up += t.up.moved.Load()
		down += t.down.moved.Load()
	}
	return up, down
}

// Visit calls look for each tunnel but those that are being cut, and cuts those for which
// it returns true. No tunnel begins or ends meanwhile.
func (r *Relay) Visit(look func(who any, p Pulse) (cut bool)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for t := range r.tunnels {
		if !t.isCut() && look(t.who, t.pulse(now)) {
			t.cut(Cut)
		}
	}
}

// Close cuts all tunnels and lets no new one in. It does not wait for them.
func (r *Relay) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for t := range r.tunnels {
		t.cut(Shutdown)
	}
}

// add registers a tunnel; false means that the relay is closed.
func (r *Relay) add(t *tunnel) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.tunnels[t] = struct{}{}
	if !r.sweeping {
		r.sweeping = true
		time.AfterFunc(r.Bounds.SweepPeriod(), r.sweep)
	}
	return true
}

func (r *Relay) remove(t *tunnel) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.tunnels[t]; ok {
		delete(r.tunnels, t)
		r.up += t.end.Up
		r.down += t.end.Down
	}
}

// now is the sweeper's clock, in nanoseconds.
func (r *Relay) now() int64 { return time.Since(r.start).Nanoseconds() }

// sweep cuts the tunnels that rest too long, and calls itself again as long
// as there are tunnels.
func (r *Relay) sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for t := range r.tunnels {
		t.sweep(now)
	}
	if r.sweeping = len(r.tunnels) > 0; r.sweeping {
		time.AfterFunc(r.Bounds.SweepPeriod(), r.sweep)
	}
}

// survive keeps a bug in one tunnel from ending all the others.
func (t *tunnel) survive() {
	if v := recover(); v != nil {
		t.relay.Log.Error("panic", "value", fmt.Sprint(v), "stack", string(debug.Stack()))
		t.cut(Failure)
	}
}

// close closes both connections, of which both directions have ended. What is
// still under way arrives. A TLS client has had its close_notify by then.
func (t *tunnel) close() {
	layer.Socket(t.client).Close()
	layer.Socket(t.backend).Close()
}
