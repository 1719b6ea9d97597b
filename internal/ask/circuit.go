package ask

import (
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// circuit keeps clients from waiting for a service that is down: after some
// failures in a row questions fail at once, and one at a time tries whether it is
// back.
type circuit struct {
	log *slog.Logger

	mu       sync.Mutex
	failures int           // in a row
	until    time.Time     // when it may be tried again; zero: the circuit is closed
	pause    time.Duration // how long it was open the last time
	trying   bool          // a question is on its way to see whether the service is back
}

const (
	maxFailures = 5 // in a row
	minPause    = 250 * time.Millisecond
	maxPause    = 8 * time.Second
)

// enter asks whether a question may be put. After nil, leave must be called.
func (c *circuit) enter(now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.until.IsZero() {
		return nil
	}
	if c.trying || now.Before(c.until) {
		return fmt.Errorf("%w, and is not asked for the moment", ErrDown)
	}
	c.trying = true
	return nil
}

// outcome is what a question tells about the service.
type outcome int

const (
	alive   outcome = iota // it has answered, whatever it said
	dead                   // it has not
	givenUp                // nothing: the client did not wait
)

// leave tells what became of a question; err is why the service is dead.
func (c *circuit) leave(now time.Time, how outcome, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case how == alive:
		c.close()
	case how == givenUp:
		c.trying = false
	case c.until.IsZero():
		if c.failures++; c.failures >= maxFailures {
			c.open(now, minPause)
			c.log.Error("-ask: the service is out of order, and is asked only now and then", "err", err)
		}
	case c.trying:
		c.open(now, min(2*c.pause, maxPause))
	}
}

func (c *circuit) isOpen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.until.IsZero()
}

func (c *circuit) open(now time.Time, pause time.Duration) {
	c.until, c.pause, c.trying = now.Add(pause), pause, false
}

func (c *circuit) close() {
	if !c.until.IsZero() {
		c.log.Info("-ask: the service answers again")
	}
	c.failures, c.until, c.trying = 0, time.Time{}, false
}
