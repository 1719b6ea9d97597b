package resolve

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// How long answers are used.
const (
	// minTTL is the least time to live. Some servers answer with 0 for all
	// they serve, Consul by default: then every connection would wait for a
	// lookup of its own.
	minTTL = time.Second
	// maxTTL is the greatest, so that a mistake in a zone does not last.
	maxTTL = time.Hour
	// maxStale is for how long an answer is used behind its time to live when
	// it cannot be had anew (RFC 8767 section 5 suggests 1 to 3 days).
	maxStale = 24 * time.Hour
	// maxNegative is the greatest time to live of "there is none", which the
	// zone's SOA record sets (RFC 2308). A server that was just added must not
	// have to wait for long.
	maxNegative = 5 * time.Second
	// failureTTL is for how long a failed lookup is not repeated. Lookups may
	// fail because packets are lost.
	failureTTL = time.Second
	// staleUse is for how long, since a lookup failed, nobody waits for the next:
	// servers are down. Afterwards they may be back.
	staleUse = 30 * time.Second
	// warnEvery is the least time between two warnings.
	warnEvery = time.Minute
)

// lookupFunc finds the values of a name, and for how long they may be used. When it
// has a part of them, and the rest is slow, it may call early with those, once.
type lookupFunc[T comparable] func(ctx context.Context, name string, early func([]T)) ([]T, time.Duration, error)

// cache remembers the answers for names and looks up what it does not know.
// Times are counted from when it was made.
type cache[T comparable] struct {
	lookup  lookupFunc[T]
	timeout time.Duration
	max     int // answers
	log     *slog.Logger
	now     func() time.Duration
	warned  atomic.Int64 // when, as a time.Duration; 0 is never

	results [3]atomic.Int64 // lookups: ok, not found, failed

	ctx    context.Context // of all lookups
	cancel context.CancelFunc
	wg     sync.WaitGroup // of all lookups

	mu      sync.RWMutex
	closed  bool
	answers map[string]*answer[T]
	flights map[string]*flight[T]
}

// answer is what is known of a name. But for its atomic fields it never changes.
type answer[T comparable] struct {
	values []T   // none if err is set
	err    error // of the kind that may be used until it expires

	refresh time.Duration // from when on to look up again, while it is used
	expires time.Duration // until when it is used without waiting
	stale   time.Duration // until when it is used if there is no better one
	hint    bool          // nobody asked for it: see add
	failed  bool          // the values are old, since the lookup failed

	used   atomic.Int64 // the second in which it was used last
	called atomic.Bool  // the refresh was started
}

func newCache[T comparable](o Options, lookup lookupFunc[T]) *cache[T] {
	start := time.Now()
	c := &cache[T]{
		lookup:  lookup,
		timeout: o.Timeout,
		max:     o.MaxEntries,
		log:     o.Log,
		now:     func() time.Duration { return time.Since(start) },
		answers: make(map[string]*answer[T]),
		flights: make(map[string]*flight[T]),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

func (c *cache[T]) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
}

// get returns the values of a name, and looks them up if need be. If those are a
// part, it returns the flight that finds the rest.
func (c *cache[T]) get(ctx context.Context, name string) ([]T, *flight[T], error) {
	if a := c.find(name); a != nil {
		return a.values, nil, a.err
	}
	if !isName(name) { // and would be refused or misread elsewhere
		return nil, nil, notFound(name)
	}
	if ctx.Err() != nil {
		return nil, nil, ended(ctx, name)
	}
	c.mu.Lock()
	a, f := c.answers[name], c.flights[name]
	if a != nil && c.now() < a.expires { // somebody was quicker
		c.mu.Unlock()
		return a.values, nil, a.err
	}
	if f == nil {
		f = c.start(name)
	}
	c.mu.Unlock()
	if f == nil {
		return nil, nil, &net.DNSError{Err: "the resolver is closed", Name: name, IsTemporary: true}
	}
	return c.wait(ctx, name, a, f)
}

// find returns the answer that may be used without waiting, or nil. It starts a
// refresh if one is due.
func (c *cache[T]) find(name string) *answer[T] {
	c.mu.RLock()
	a := c.answers[name]
	c.mu.RUnlock()
	if a == nil {
		return nil
	}
	now := c.now()
	if now >= a.expires {
		return nil
	}
	a.touch(now)
	if now >= a.refresh && !a.called.Load() && a.called.CompareAndSwap(false, true) {
		c.mu.Lock()
		if c.flights[name] == nil {
			c.start(name)
		}
		c.mu.Unlock()
	}
	return a
}

// next returns the answer that follows on a, which may be nil.
func (a *answer[T]) next(now time.Duration, values []T, ttl time.Duration, err error) *answer[T] {
	if err == nil {
		if a != nil && slices.Equal(a.values, values) {
			values = a.values
		}
		return newAnswer(now, values, ttl)
	}
	next := &answer[T]{}
	switch {
	case isNotFound(err): // this, too, is an answer (RFC 8767 section 4)
		next.err, next.expires = err, now+min(max(ttl, minTTL), maxNegative)
		next.refresh = next.expires
	case a.usable(now):
		next.values, next.failed = a.values, true
		next.refresh, next.expires, next.stale = now+failureTTL, min(now+staleUse, a.stale), a.stale
	default:
		next.err, next.expires = err, now+failureTTL
		next.refresh = next.expires
	}
	next.touch(now)
	return next
}

func newAnswer[T comparable](now time.Duration, values []T, ttl time.Duration) *answer[T] {
	ttl = min(max(ttl, minTTL), maxTTL)
	a := &answer[T]{values: values, refresh: now + ttl*3/4, expires: now + ttl, stale: now + ttl + maxStale}
	a.touch(now)
	return a
}

// usable tells whether there are values that are better than none.
func (a *answer[T]) usable(now time.Duration) bool {
	return a != nil && len(a.values) > 0 && now < a.stale
}

func (a *answer[T]) touch(now time.Duration) {
	second := int64(now / time.Second)
	if a.used.Load() != second { // so that few uses write
		a.used.Store(second)
	}
}

// add puts in what was learned besides. It does not replace what was asked for
// and is still good, which is worth more (RFC 2181 section 5.4.1).
func (c *cache[T]) add(name string, values []T, ttl time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	old := c.answers[name]
	if old != nil && old.err == nil && !old.hint && !old.failed && now < old.expires {
		return
	}
	a := newAnswer(now, values, ttl)
	a.hint = true
	c.store(name, a)
}

// store puts in an answer, with c.mu held.
func (c *cache[T]) store(name string, a *answer[T]) {
	if _, ok := c.answers[name]; !ok && len(c.answers) >= c.max {
		c.evict()
	}
	c.answers[name] = a
}

// evict forgets, of a few answers that the map happens to begin with, the one
// that was not used the longest.
func (c *cache[T]) evict() {
	const few = 8
	var oldest string
	used, n := int64(0), 0
	for name, a := range c.answers {
		if u := a.used.Load(); n == 0 || u < used {
			oldest, used = name, u
		}
		if n++; n == few {
			break
		}
	}
	delete(c.answers, oldest)
}

// counted counts a lookup by its result.
func (c *cache[T]) counted(err error) {
	switch {
	case err == nil:
		c.results[0].Add(1)
	case isNotFound(err):
		c.results[1].Add(1)
	default:
		c.results[2].Add(1)
	}
}

// oldest returns for how long the oldest answer has been out of date that is in use
// since the lookup failed.
func (c *cache[T]) oldest() (age time.Duration) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	now := c.now()
	for _, a := range c.answers {
		if a.failed && now < a.stale {
			age = max(age, now-(a.stale-maxStale))
		}
	}
	return age
}

// warn logs, once in a while, that an old answer stays in use.
func (c *cache[T]) warn(now time.Duration, name string, err error) {
	last := c.warned.Load()
	if last != 0 && now-time.Duration(last) < warnEvery || c.ctx.Err() != nil {
		return
	}
	if c.warned.CompareAndSwap(last, int64(max(now, 1))) {
		c.log.Warn("cannot look up a name, what was found last stays in use", "name", name, "err", err)
	}
}

func isNotFound(err error) bool {
	var e *net.DNSError
	return errors.As(err, &e) && e.IsNotFound
}

func notFound(name string) error {
	return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// ended is the error of a call whose ctx has ended.
func ended(ctx context.Context, name string) error {
	err := context.Cause(ctx)
	return &net.DNSError{
		UnwrapErr: err,
		Err:       err.Error(),
		Name:      name,
		IsTimeout: errors.Is(ctx.Err(), context.DeadlineExceeded),
	}
}
