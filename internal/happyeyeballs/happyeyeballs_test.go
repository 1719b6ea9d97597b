package happyeyeballs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const ms = time.Millisecond

// host is how an address behaves when it is dialed.
type host struct {
	after time.Duration // until err or a connection; negative: never
	err   error         // nil connects
	deaf  bool          // goes on when its context has ended
}

// world is the addresses, and what was done with them.
type world struct {
	hosts map[netip.Addr]host
	start time.Time

	mu    sync.Mutex
	dials []string // "+MILLISECONDS ADDRESS", in order
	conns []*conn
}

func newWorld(hosts map[string]host) *world {
	w := &world{hosts: make(map[netip.Addr]host), start: time.Now()}
	for a, h := range hosts {
		w.hosts[netip.MustParseAddr(a)] = h
	}
	return w
}

type conn struct {
	net.Conn
	addr   netip.Addr
	closed int // how often; under the world's mu
	w      *world
}

func (c *conn) Close() error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.closed++
	return nil
}

func (w *world) dial(ctx context.Context, a netip.Addr) (net.Conn, error) {
	h := w.hosts[a]
	w.mu.Lock()
	w.dials = append(w.dials, fmt.Sprintf("+%d %v", time.Since(w.start).Milliseconds(), a))
	w.mu.Unlock()
	done := ctx.Done()
	if h.deaf {
		done = nil
	}
	var answer <-chan time.Time
	if h.after >= 0 {
		answer = time.After(h.after)
	}
	select {
	case <-answer:
	case <-done:
		return nil, ctx.Err()
	}
	if h.err != nil {
		return nil, h.err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c := &conn{addr: a, w: w}
	w.conns = append(w.conns, c)
	return c, nil
}

// settle waits for all attempts to be over, and fails unless each connection but
// the one that was returned is closed, and that one is not.
func (w *world) settle(t *testing.T, returned net.Conn) {
	t.Helper()
	time.Sleep(time.Hour) // of the bubble: nobody is that slow
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		want := 1
		if net.Conn(c) == returned {
			want = 0
		}
		if c.closed != want {
			t.Errorf("the connection to %v was closed %d times, want %d", c.addr, c.closed, want)
		}
	}
}

// addrs reads addresses.
func addrs(list string) []netip.Addr {
	var all []netip.Addr
	for a := range strings.FieldsSeq(list) {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

type timeout struct{ error }

func (timeout) Timeout() bool   { return true }
func (timeout) Temporary() bool { return true }

var (
	errRefused  = &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	errUnreach  = &net.OpError{Op: "dial", Err: syscall.ENETUNREACH}
	errTimedOut = timeout{errors.New("timed out")}
	errDenied   = errors.New("denied")
)

// late is addresses that come after a time. An empty list closes the channel.
type late struct {
	after time.Duration
	addrs string
}

func deliver(all []late) <-chan []netip.Addr {
	if all == nil {
		return nil
	}
	c := make(chan []netip.Addr, len(all))
	go func() {
		for _, l := range all {
			time.Sleep(l.after)
			if l.addrs == "" {
				close(c)
				return
			}
			c <- addrs(l.addrs)
		}
	}()
	return c
}

func TestARace(t *testing.T) {
	never := host{after: -1}
	refuses, connects := host{err: errRefused}, host{}
	for _, tt := range []struct {
		name    string
		addrs   string
		late    []late
		hosts   map[string]host
		timeout time.Duration // 0: none
		dials   string
		won     string // or
		err     error
		took    time.Duration
	}{
		{name: "one address", addrs: "10.0.0.1", hosts: map[string]host{"10.0.0.1": {after: 70 * ms}},
			dials: "+0 10.0.0.1", won: "10.0.0.1", took: 70 * ms},
		{name: "the second is not dialed while the first may be quick", addrs: "10.0.0.1 10.0.0.2",
			hosts: map[string]host{"10.0.0.1": {after: 249 * ms}}, dials: "+0 10.0.0.1", won: "10.0.0.1", took: 249 * ms},
		{name: "packets are swallowed", addrs: "10.0.0.1 10.0.0.2 10.0.0.3", timeout: 3 * time.Second,
			hosts: map[string]host{"10.0.0.1": never, "10.0.0.2": never, "10.0.0.3": {after: 5 * ms}},
			dials: "+0 10.0.0.1, +250 10.0.0.2, +500 10.0.0.3", won: "10.0.0.3", took: 505 * ms},
		{name: "the first is slow and still wins", addrs: "10.0.0.1 10.0.0.2",
			hosts: map[string]host{"10.0.0.1": {after: 300 * ms}, "10.0.0.2": {after: 100 * ms}},
			dials: "+0 10.0.0.1, +250 10.0.0.2", won: "10.0.0.1", took: 300 * ms},
		{name: "who fails makes room at once", addrs: "10.0.0.1 10.0.0.2 10.0.0.3",
			hosts: map[string]host{"10.0.0.1": {after: 10 * ms, err: errUnreach}, "10.0.0.2": refuses, "10.0.0.3": connects},
			dials: "+0 10.0.0.1, +10 10.0.0.2, +10 10.0.0.3", won: "10.0.0.3", took: 10 * ms},
		{name: "an older one that fails changes nothing", addrs: "10.0.0.1 10.0.0.2 10.0.0.3",
			hosts: map[string]host{"10.0.0.1": {after: 300 * ms, err: errRefused}, "10.0.0.2": never, "10.0.0.3": connects},
			dials: "+0 10.0.0.1, +250 10.0.0.2, +500 10.0.0.3", won: "10.0.0.3", took: 500 * ms},
		{name: "families take turns from the first one's", addrs: "10.0.0.1 10.0.0.2 10.0.0.3 ::1 ::2",
			dials: "+0 10.0.0.1, +0 ::1, +0 10.0.0.2, +0 ::2, +0 10.0.0.3", hosts: all(refuses, "10.0.0.1 10.0.0.2 10.0.0.3 ::1 ::2"), err: errRefused},
		{name: "families take turns from IPv6", addrs: "::1 ::2 10.0.0.1 ::3 fe80::1%eth0",
			dials: "+0 ::1, +0 10.0.0.1, +0 ::2, +0 ::3, +0 fe80::1%eth0", hosts: all(refuses, "10.0.0.1 ::1 ::2 ::3 fe80::1%eth0"), err: errRefused},
		{name: "mapped is IPv4, and nobody is dialed twice", addrs: "::ffff:10.0.0.1 10.0.0.1 ::1 ::1",
			dials: "+0 10.0.0.1, +0 ::1", hosts: all(refuses, "10.0.0.1 ::1"), err: errRefused},
		{name: "who comes late has its turn", addrs: "10.0.0.1 10.0.0.2", late: []late{{100 * ms, "::1"}, {0, ""}},
			hosts: map[string]host{"10.0.0.1": never, "::1": {after: 20 * ms}, "10.0.0.2": never},
			dials: "+0 10.0.0.1, +250 ::1", won: "::1", took: 270 * ms},
		{name: "who comes when it is late's turn is dialed at once", addrs: "10.0.0.1", late: []late{{400 * ms, "::1"}},
			hosts: map[string]host{"10.0.0.1": never, "::1": connects}, dials: "+0 10.0.0.1, +400 ::1", won: "::1", took: 400 * ms},
		{name: "who comes when all have failed is dialed at once", addrs: "10.0.0.1", late: []late{{200 * ms, "::1"}},
			hosts: map[string]host{"10.0.0.1": refuses, "::1": connects}, dials: "+0 10.0.0.1, +200 ::1", won: "::1", took: 200 * ms},
		{name: "who comes late is known", addrs: "10.0.0.1", late: []late{{100 * ms, "10.0.0.1"}, {0, ""}},
			hosts: all(refuses, "10.0.0.1"), dials: "+0 10.0.0.1", err: errRefused, took: 100 * ms},
		{name: "late is not waited for for ever", addrs: "10.0.0.1", late: []late{{time.Minute, "::1"}},
			hosts: map[string]host{"10.0.0.1": {after: 100 * ms, err: errRefused}}, dials: "+0 10.0.0.1", err: errRefused, took: 350 * ms},
		{name: "all that there are come late", late: []late{{time.Second, "::1"}, {0, "10.0.0.1 ::2"}, {0, ""}},
			hosts: map[string]host{"::1": refuses, "::2": connects, "10.0.0.1": refuses},
			dials: "+1000 ::1, +1000 10.0.0.1, +1000 ::2", won: "::2", took: time.Second},
		{name: "none comes", late: []late{{time.Second, ""}}, err: ErrNoAddress, took: time.Second},
		{name: "none", err: ErrNoAddress},
		{name: "none in time", late: []late{{time.Minute, "::1"}}, timeout: time.Second, err: context.DeadlineExceeded, took: time.Second},
		{name: "a time-out tells more than a refusal", addrs: "10.0.0.1 10.0.0.2 10.0.0.3",
			hosts: map[string]host{"10.0.0.1": refuses, "10.0.0.2": {after: ms, err: errTimedOut}, "10.0.0.3": {err: errUnreach}},
			dials: "+0 10.0.0.1, +0 10.0.0.2, +1 10.0.0.3", err: errTimedOut, took: ms},
		{name: "of refusals the first", addrs: "10.0.0.1 10.0.0.2", hosts: map[string]host{"10.0.0.1": {err: errUnreach}, "10.0.0.2": refuses},
			dials: "+0 10.0.0.1, +0 10.0.0.2", err: errUnreach},
		{name: "what was skipped tells least", addrs: "10.0.0.1 10.0.0.2 10.0.0.3",
			hosts: map[string]host{"10.0.0.1": {err: Skip{errTimedOut}}, "10.0.0.2": refuses, "10.0.0.3": {err: Skip{errDenied}}},
			dials: "+0 10.0.0.1, +0 10.0.0.2, +0 10.0.0.3", err: errRefused},
		{name: "all are skipped", addrs: "10.0.0.1 10.0.0.2", hosts: map[string]host{"10.0.0.1": {err: Skip{errRefused}}, "10.0.0.2": {err: Skip{errDenied}}},
			dials: "+0 10.0.0.1, +0 10.0.0.2", err: errDenied},
		{name: "the deadline is a time-out", addrs: "10.0.0.1 10.0.0.2", timeout: time.Second,
			hosts: map[string]host{"10.0.0.1": refuses, "10.0.0.2": {after: time.Minute, deaf: true}},
			dials: "+0 10.0.0.1, +0 10.0.0.2", err: errDeadline, took: time.Second},
		{name: "everybody has a turn in a short time", addrs: "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4", timeout: 200 * ms,
			hosts: map[string]host{"10.0.0.1": never, "10.0.0.2": never, "10.0.0.3": never, "10.0.0.4": connects},
			dials: "+0 10.0.0.1, +50 10.0.0.2, +100 10.0.0.3, +150 10.0.0.4", won: "10.0.0.4", took: 150 * ms},
		{name: "but not without a pause", addrs: "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4", timeout: 25 * ms,
			hosts: all(never, "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4"),
			dials: "+0 10.0.0.1, +10 10.0.0.2, +20 10.0.0.3", err: errDeadline, took: 25 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(tt.hosts)
				ctx := t.Context()
				if tt.timeout > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.timeout)
					defer cancel()
				}
				c, err := Dial(ctx, addrs(tt.addrs), deliver(tt.late), w.dial)
				took := time.Since(w.start)
				w.mu.Lock()
				dials := strings.Join(w.dials, ", ")
				w.mu.Unlock()
				won := ""
				if c != nil {
					won = c.(*conn).addr.String()
				}
				if dials != tt.dials || won != tt.won || took != tt.took {
					t.Errorf("dialed %s\nwant   %s\n%q won after %v, want %q after %v", dials, tt.dials, won, took, tt.won, tt.took)
				}
				if tt.err == errDeadline {
					var oe *net.OpError
					if !errors.As(err, &oe) || !oe.Timeout() || oe.Addr == nil {
						t.Errorf("error %v, want a time-out of an address", err)
					}
				} else if err != tt.err {
					t.Errorf("error %v, want %v", err, tt.err)
				}
				w.settle(t, c)
			})
		})
	}
}

// errDeadline stands for the time-out of an attempt that ctx's deadline ends.
var errDeadline = errors.New("a deadline")

// all gives many addresses one behaviour.
func all(h host, list string) map[string]host {
	m := make(map[string]host)
	for a := range strings.FieldsSeq(list) {
		m[a] = h
	}
	return m
}

func TestTheEndOfItsContextEndsARaceWithItsCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := errors.New("the client is gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(300*ms, func() { cancel(gone) })
		// The first connects late, although it was cancelled.
		w := newWorld(map[string]host{"10.0.0.1": {after: time.Minute, deaf: true}, "::1": {after: -1}})
		c, err := Dial(ctx, addrs("10.0.0.1 ::1 ::2"), nil, w.dial)
		if took := time.Since(w.start); c != nil || err != gone || took != 300*ms {
			t.Errorf("%v, %v after %v", c, err, took)
		}
		w.settle(t, nil)
		if len(w.conns) != 1 || len(w.dials) != 2 {
			t.Errorf("%d connections, dialed %v", len(w.conns), w.dials)
		}
	})
}

func TestARaceWhoseContextHasEndedDialsNobody(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := newWorld(all(host{}, "10.0.0.1 ::1"))
	if c, err := Dial(ctx, addrs("10.0.0.1 ::1"), nil, w.dial); c != nil || err != context.Canceled || len(w.dials) > 0 {
		t.Errorf("%v, %v, dialed %v", c, err, w.dials)
	}
}

func TestTheLosersAreCancelledAndWhatTheyConnectIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(map[string]host{
			"10.0.0.1": {after: -1},
			"10.0.0.2": {after: 5 * time.Second, deaf: true},
			"10.0.0.3": {after: 10 * ms},
		})
		c, err := Dial(t.Context(), addrs("10.0.0.1 10.0.0.2 10.0.0.3"), nil, w.dial)
		if err != nil || c.(*conn).addr.String() != "10.0.0.3" {
			t.Fatal(c, err)
		}
		w.settle(t, c)
		if len(w.conns) != 2 {
			t.Errorf("%d connections, want the late one too", len(w.conns))
		}
	})
}

// A bug that one client's dial meets must not end the process, where that
// client's goroutine would survive it.
func TestAPanicReachesTheCaller(t *testing.T) {
	defer func() {
		if v := fmt.Sprint(recover()); !strings.Contains(v, "a bug") || !strings.Contains(v, "TestAPanicReachesTheCaller") {
			t.Errorf("recovered %s", v)
		}
	}()
	Dial(t.Context(), addrs("10.0.0.1"), nil, func(context.Context, netip.Addr) (net.Conn, error) { panic("a bug") })
	t.Error("no panic")
}
