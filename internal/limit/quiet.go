package limit

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// Quiet bounds the lines of a log that strangers can cause: beyond so many a second for
// one reason and one network, they are counted, and the count gets a line. Its methods are
// safe for concurrent use. The zero value lets everything through.
type Quiet struct {
	log *slog.Logger

	mu      sync.Mutex
	rate    int // lines a second; 0: any number
	prefix6 int
	began   time.Time // this window
	counts  map[quietKey]int
	armed   bool // told will be called
}

type quietKey struct {
	reason  string
	network netip.Prefix // zero: any of those that have no count of their own
}

const (
	quietWindow = time.Second
	// quietKeys bounds the networks and reasons that are told apart in a window.
	quietKeys = 1024
	// quietBits of an IPv4 address are its network: attackers have neighbours.
	quietBits = 24
)

// NewQuiet returns a Quiet that tells log what it has counted.
func NewQuiet(log *slog.Logger) *Quiet { return &Quiet{log: log} }

// Set sets how many lines a second there may be, 0 for any number, and how many bits of
// an IPv6 address are its network.
func (q *Quiet) Set(rate, prefix6 int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.rate, q.prefix6 = rate, prefix6
}

// Allow tells whether there may be a line for this reason and client. If not, it is
// counted.
func (q *Quiet) Allow(reason string, client netip.Addr) bool {
	if q == nil {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.rate == 0 {
		return true
	}
	now := time.Now()
	if now.Sub(q.began) >= quietWindow {
		q.tell()
		q.began = now
	}
	k := quietKey{reason, q.networkOf(client)}
	if _, known := q.counts[k]; !known && len(q.counts) >= quietKeys {
		k.network = netip.Prefix{}
	}
	if q.counts == nil {
		q.counts = make(map[quietKey]int)
	}
	q.counts[k]++
	if q.counts[k] <= q.rate {
		return true
	}
	if !q.armed {
		q.armed = true
		time.AfterFunc(quietWindow, q.Flush)
	}
	return false
}

func (q *Quiet) networkOf(client netip.Addr) netip.Prefix {
	client = client.Unmap().WithZone("")
	bits := quietBits
	if client.Is6() {
		bits = q.prefix6
	}
	p, _ := client.Prefix(bits)
	return p
}

// Flush tells at once what was counted and not told yet.
func (q *Quiet) Flush() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.armed = false
	q.tell()
	q.began = time.Time{}
}

// tell logs what this window has counted, and begins another. mu is held.
func (q *Quiet) tell() {
	for k, n := range q.counts {
		if n <= q.rate {
			continue
		}
		attrs := []slog.Attr{slog.String("reason", k.reason)}
		if k.network.IsValid() {
			attrs = append(attrs, slog.String("clients", k.network.String()))
		}
		attrs = append(attrs, slog.Int("count", n-q.rate))
		q.log.LogAttrs(context.Background(), slog.LevelInfo, "more were refused", attrs...)
	}
	clear(q.counts)
}
