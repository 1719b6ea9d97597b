// Package happyeyeballs connects to one of the addresses of a name, as RFC 8305
// has it: attempts begin a little apart and run side by side, and the first that
// connects wins. So an address that swallows packets costs a client the fourth
// part of a second, and not a time-out.
//
// It opens no socket itself. How an address is dialed is the caller's.
package happyeyeballs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"gateway/internal/layer"
)

const (
	// attemptDelay is the time between the beginnings of two attempts, if the
	// first of them neither connects nor fails before (RFC 8305 section 8).
	attemptDelay = 250 * time.Millisecond
	// minDelay is the least, however many addresses must share the time until
	// ctx's deadline (RFC 8305 section 5 forbids less).
	minDelay = 10 * time.Millisecond
)

// ErrNoAddress is the error of a Dial that was given no address.
var ErrNoAddress = errors.New("no address")

// Skip is the error of a dial that made no attempt, since the address must not
// be dialed. It tells less than any other: Dial returns what it wraps, and that
// only if no address was worth an attempt.
type Skip struct{ Err error }

func (s Skip) Error() string { return s.Err.Error() }
func (s Skip) Unwrap() error { return s.Err }

// Dial returns the first connection that dial makes to one of the addresses. It
// belongs to the caller. The other attempts are cancelled, and what connects
// nevertheless is closed.
//
// The families take turns, beginning with that of the first address; within a
// family the order is kept. No address is dialed twice. The next attempt begins
// 250 ms after the last one, or as soon as that has failed; sooner where ctx's
// deadline would leave some addresses no turn.
//
// Late, which may be nil, brings further addresses while attempts run, until it
// is closed. When all others have failed, it has 250 ms, like an attempt, to
// bring some: where it waits for a server that does not answer, the caller may
// have better places to go.
//
// The error is the most telling one of the attempts: a time-out, since trying
// again may help; else the first; of those that are a [Skip] the last. It is
// ErrNoAddress if there was nothing to dial, and ctx's cause if ctx is
// cancelled. Ctx's deadline is the time-out of all attempts that run then.
//
// Dial is called concurrently, with a context that ends with ctx, and when
// another attempt has won. It must return soon after that, but nobody waits for
// it.
func Dial(ctx context.Context, addrs []netip.Addr, late <-chan []netip.Addr,
	dial func(context.Context, netip.Addr) (net.Conn, error)) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &race{ctx: ctx, dial: dial, late: late, outcomes: make(chan outcome)}
	r.queue.add(addrs)
	return r.run()
}

// race is a Dial under way. Only run's goroutine uses it, but for the first
// three fields, which do not change.
type race struct {
	ctx      context.Context
	dial     func(context.Context, netip.Addr) (net.Conn, error)
	outcomes chan outcome // not buffered: what is sent is received

	queue   queue
	late    <-chan []netip.Addr // nil: no more to come
	running []netip.Addr        // in the order in which they began
	last    netip.Addr          // began last
	err     error               // the most telling so far
}

// outcome is what came of an attempt.
type outcome struct {
	addr netip.Addr
	conn net.Conn // nil if err is set
	err  error
	// panic is what dial panicked with, and where. It goes on in run's
	// goroutine, where the caller may survive it.
	panic any
}

func (r *race) run() (net.Conn, error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := true // it is the turn of the next address, if there is one
	for {
		if due && r.ctx.Err() == nil && r.begin() {
			due = false
			timer.Reset(r.delay())
		}
		if r.over() {
			return nil, r.failure()
		}
		select {
		case o := <-r.outcomes:
			switch {
			case o.panic != nil:
				panic(o.panic)
			case o.err == nil:
				return o.conn, nil
			}
			r.failed(o)
			if o.addr == r.last || len(r.running) == 0 {
				due = true
			}
			if len(r.running) == 0 && r.queue.len() == 0 {
				timer.Reset(attemptDelay) // late's turn
			}
		case more, ok := <-r.late:
			if !ok {
				r.late = nil
			}
			r.queue.add(more)
		case <-timer.C:
			due = true
			if len(r.running) == 0 && r.queue.len() == 0 && r.err != nil {
				r.late = nil
			}
		case <-r.ctx.Done():
			return nil, r.ended()
		}
	}
}

// begin begins an attempt, if an address is left.
func (r *race) begin() bool {
	addr, ok := r.queue.next()
	if !ok {
		return false
	}
	r.running = append(r.running, addr)
	r.last = addr
	go r.attempt(addr)
	return true
}

// attempt hands its connection over or closes it: once ctx has ended, which it
// has when run returns, nobody receives any more.
func (r *race) attempt(addr netip.Addr) {
	o := outcome{addr: addr}
	defer func() {
		if v := recover(); v != nil {
			o.panic = fmt.Sprintf("%v\n\n%s", v, debug.Stack())
		}
		select {
		case r.outcomes <- o:
		case <-r.ctx.Done():
			if o.conn != nil {
				o.conn.Close()
			}
		}
	}()
	o.conn, o.err = r.dial(r.ctx, addr)
}

// delay returns for how long the attempt that has just begun has no company.
func (r *race) delay() time.Duration {
	deadline, ok := r.ctx.Deadline()
	if !ok {
		return attemptDelay
	}
	turns := r.queue.len() + 1 // this attempt's too
	if r.late != nil {
		turns++
	}
	return min(max(time.Until(deadline)/time.Duration(turns), minDelay), attemptDelay)
}

// over tells whether nothing is left to hope for.
func (r *race) over() bool {
	return len(r.running) == 0 && r.queue.len() == 0 && r.late == nil
}

// failed notes that an attempt has failed.
func (r *race) failed(o outcome) {
	i := slices.Index(r.running, o.addr)
	r.running = slices.Delete(r.running, i, i+1)
	r.note(o.err)
}

// note keeps the more telling of two errors.
func (r *race) note(err error) {
	if w, before := worth(err), worth(r.err); w > before || w == skipped && before == skipped {
		r.err = err
	}
}

// How much errors tell.
const (
	nothing = iota
	skipped
	broken
	timedOut
)

func worth(err error) int {
	switch {
	case err == nil:
		return nothing
	case errors.As(err, new(Skip)):
		return skipped
	case layer.IsTimeout(err):
		return timedOut
	}
	return broken
}

// ended returns the error of a race that ctx's end has ended.
func (r *race) ended() error {
	if r.ctx.Err() != context.DeadlineExceeded {
		return context.Cause(r.ctx)
	}
	if len(r.running) > 0 {
		first := r.running[0]
		r.note(&net.OpError{Op: "dial", Addr: &net.IPAddr{IP: first.AsSlice(), Zone: first.Zone()}, Err: os.ErrDeadlineExceeded})
	}
	if r.err == nil {
		return context.DeadlineExceeded // the time went by in waiting for late
	}
	return r.failure()
}

func (r *race) failure() error {
	var skip Skip
	switch {
	case r.err == nil:
		return ErrNoAddress
	case errors.As(r.err, &skip):
		return skip.Err
	}
	return r.err
}
