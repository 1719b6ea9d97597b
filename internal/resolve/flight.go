package resolve

import (
	"context"
	"slices"
	"strings"
	"time"
)

// patience is how long a client waits for lookups before it gets the answers
// that have run out, where there are some (RFC 8767 section 5: the client
// response timer).
const patience = 500 * time.Millisecond

// flight is a lookup under way.
type flight[T comparable] struct {
	began  time.Time
	done   chan struct{} // closed behind the writing of answer
	answer *answer[T]
	early  chan struct{} // closed behind the writing of part, if there is one
	part   []T
	late   []chan []T // of those who went on with the part; under the cache's mu
}

// start starts a lookup, with c.mu held. It returns nil if the cache is closed.
func (c *cache[T]) start(name string) *flight[T] {
	if c.closed {
		return nil
	}
	name = strings.Clone(name) // it may be part of something larger
	f := &flight[T]{began: time.Now(), done: make(chan struct{}), early: make(chan struct{})}
	c.flights[name] = f
	c.wg.Add(1)
	go c.fly(name, f)
	return f
}

// fly looks up a name, whoever waits for it.
func (c *cache[T]) fly(name string, f *flight[T]) {
	defer c.wg.Done()
	ctx, cancel := context.WithTimeout(c.ctx, c.timeout)
	defer cancel()
	values, ttl, err := c.lookup(ctx, name, func(part []T) {
		f.part = part
		close(f.early)
	})

	c.counted(err)
	now := c.now()
	c.mu.Lock()
	old := c.answers[name]
	f.answer = old.next(now, values, ttl, err)
	delete(c.flights, name)
	c.store(name, f.answer)
	for _, late := range f.late {
		f.tell(late)
	}
	c.mu.Unlock()
	close(f.done)
	if f.answer.failed {
		c.warn(now, name, err)
	}
}

// wait waits for a lookup, and not for long if there is an old answer. If the
// values are a part, it returns the flight too.
func (c *cache[T]) wait(ctx context.Context, name string, old *answer[T], f *flight[T]) ([]T, *flight[T], error) {
	var enough <-chan time.Time
	if old.usable(c.now()) {
		t := time.NewTimer(patienceOf(ctx, f.began))
		defer t.Stop()
		enough = t.C
	}
	select {
	case <-f.done:
	case <-f.early:
		select {
		case <-f.done: // as well
		default:
			return f.part, f, nil
		}
	case <-enough:
		return old.values, nil, nil
	case <-ctx.Done():
		return nil, nil, ended(ctx, name)
	}
	return f.answer.values, nil, f.answer.err
}

// rest returns a channel of what a flight finds besides its part.
func (c *cache[T]) rest(f *flight[T]) <-chan []T {
	late := make(chan []T, 1) // nobody need receive it
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.answer != nil {
		f.tell(late)
	} else {
		f.late = append(f.late, late)
	}
	return late
}

// tell sends what the flight has found besides its part, if anything, and closes
// the channel.
func (f *flight[T]) tell(late chan<- []T) {
	rest := slices.DeleteFunc(slices.Clone(f.answer.values), func(v T) bool { return slices.Contains(f.part, v) })
	if len(rest) > 0 {
		late <- rest
	}
	close(late)
}

type patienceKey struct{}

// WithPatience returns a context for all that one client has looked up. Where no
// server answers, and there are old answers, the client waits for half a second
// for better ones; with other contexts it waits that long for each lookup.
func WithPatience(ctx context.Context) context.Context {
	return context.WithValue(ctx, patienceKey{}, time.Now().Add(patience))
}

// patienceOf returns how long a call with ctx waits for a lookup that began then.
// If ctx has a deadline, half of the time is left for whatever the answer is for.
func patienceOf(ctx context.Context, began time.Time) time.Duration {
	left := patience - time.Since(began)
	if deadline, ok := ctx.Deadline(); ok {
		left = min(left, time.Until(deadline)/2)
	}
	if until, ok := ctx.Value(patienceKey{}).(time.Time); ok {
		left = min(left, time.Until(until))
	}
	return left
}
