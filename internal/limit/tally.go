package limit

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Tally counts the clients that were turned away, and tells of them in a line every
// so often, however many they are. Its methods are safe for concurrent use.
type Tally struct {
	log    *slog.Logger
	counts [numReasons]atomic.Int64
	armed  atomic.Bool // a line will follow

	mu     sync.Mutex
	told   [numReasons]int64
	latest atomic.Pointer[netip.Addr]
}

// The first line comes soon after the first client, the others no more often than
// this.
const (
	firstLine = time.Second
	nextLine  = 10 * time.Second
)

// NewTally returns a tally that tells a log.
func NewTally(log *slog.Logger) *Tally { return &Tally{log: log} }

// Refused counts a client.
func (t *Tally) Refused(why Reason, client netip.Addr) {
	t.counts[why].Add(1)
	if !t.armed.Load() && t.armed.CompareAndSwap(false, true) {
		t.latest.Store(&client)
		time.AfterFunc(firstLine, t.tell)
	}
}

// Count returns how many clients were turned away for a reason.
func (t *Tally) Count(why Reason) int64 { return t.counts[why].Load() }

// tell logs a line, and goes on for as long as there is something to tell.
func (t *Tally) tell() {
	if t.Flush() {
		time.AfterFunc(nextLine, t.tell)
		return
	}
	t.armed.Store(false)
}

// Flush logs at once what was not told yet, and reports whether that was anything.
func (t *Tally) Flush() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	attrs := make([]slog.Attr, 0, numReasons)
	for _, why := range Reasons() {
		n := t.counts[why].Load()
		if n > t.told[why] {
			attrs = append(attrs, slog.Int64(why.String(), n-t.told[why]))
		}
		t.told[why] = n
	}
	if len(attrs) == 0 {
		return false
	}
	if a := t.latest.Swap(nil); a != nil {
		attrs = append(attrs, slog.String("client", a.String()))
	}
	t.log.LogAttrs(context.Background(), slog.LevelWarn, "clients were turned away", attrs...)
	return true
}
