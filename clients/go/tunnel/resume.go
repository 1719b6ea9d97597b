package tunnel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"gateway/clients/go/internal/resume"
)

// lost is called when the connection is gone.
func (c *Conn) lost(why error) {
	c.mu.Lock()
	if c.running {
		c.mu.Unlock()
		return
	}
	c.running, c.lostAt = true, time.Now()
	c.mu.Unlock()
	go c.resume(why)
}

// over is called when the tunnel is.
func (c *Conn) over(why error) {
	c.mu.Lock()
	if c.watching != nil {
		c.watching.Stop()
	}
	if c.hurry != nil {
		close(c.hurry)
		c.hurry = nil
	}
	c.mu.Unlock()
	if errors.Is(why, net.ErrClosed) { // complete, or by us
		why = nil
	}
	c.tell(Event{Kind: Ended, Err: why})
}

func (c *Conn) tell(e Event) {
	if f := c.dialer.OnEvent; f != nil {
		c.events.Lock()
		defer c.events.Unlock()
		f(e)
	}
}

// The pauses between attempts to resume that bring nothing: at first, and at most, before
// what is added by chance.
const (
	firstPause   = 50 * time.Millisecond
	longestPause = time.Second
)

// attempts are those to resume since bytes got through: how many, and since when. A
// gateway that answers 200 and ends the connection again and again brings nothing.
type attempts struct {
	n      int
	since  time.Time
	before uint64 // Progress
	pause  time.Duration
	back   time.Time // when the last one succeeded
}

// next counts one more, and returns the pause before it, and whether the gateway is to be
// another one; ok is false if it was tried for long enough.
func (a *attempts) next(progress uint64, gateways int, hold time.Duration) (pause time.Duration, other, ok bool) {
	now := time.Now()
	switch {
	case a.n == 0, progress != a.before, !a.back.IsZero() && now.Sub(a.back) >= 2*longestPause:
		*a = attempts{since: now, pause: firstPause}
	case now.Sub(a.since) >= hold:
		return 0, false, false
	default:
		other = true
	}
	if a.n > 0 && a.n%gateways == 0 {
		pause = a.pause + rand.N(a.pause)
		a.pause = min(2*a.pause, longestPause)
	}
	a.n++
	a.before, a.back = progress, time.Time{}
	return pause, other, true
}

// resume looks for a connection that carries the tunnel on.
func (c *Conn) resume(why error) {
	c.tell(Event{Kind: Reconnecting, Err: why})
	d := c.dialer
	for err := why; ; {
		hurry := c.arm()
		progress := c.stream.Progress()
		c.mu.Lock()
		pause, other, ok := c.attempts.next(progress, len(d.Gateways), d.hold())
		if other {
			c.at = (c.at + 1) % len(d.Gateways)
		}
		c.mu.Unlock()
		if !ok {
			c.stream.End(fmt.Errorf("%w: %w", ErrLost, err))
			return
		}
		if pause > 0 {
			c.wait(hurry, pause)
			hurry = c.arm() // which has ended the pause, and not the attempt
		}
		err = c.attempt(hurry)
		if err == nil || c.stream.Err() != nil {
			return
		}
		if errors.Is(err, ErrUnauthorized) || errors.Is(err, ErrGone) {
			c.stream.End(err)
			return
		}
		c.tell(Event{Kind: Failed, Err: err, After: time.Since(c.lostAt), Gateway: d.Gateways[c.at]})
	}
}

// arm returns what Reconnect closes from now on.
func (c *Conn) arm() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hurry = make(chan struct{})
	return c.hurry
}

// wait waits for d, for Reconnect, or for the end.
func (c *Conn) wait(hurry <-chan struct{}, d time.Duration) {
	select {
	case <-hurry:
	case <-time.After(d):
	case <-c.stream.Done():
	}
}

// attempt asks one gateway to go on. Without an error the tunnel goes on, and another
// resume, if need be, begins by lost.
func (c *Conn) attempt(hurry <-chan struct{}) error {
	deadline := time.Now().Add(c.dialer.timeout())
	conn, err := c.connect(hurry, deadline)
	if err != nil {
		return err
	}
	var line []byte
	l, err := c.stream.Switch(conn, func() { cut(conn) }, func(s *resume.Session) error {
		line = s.Reattach(c.ticket)
		return nil
	})
	if err != nil {
		conn.Close()
		return err
	}
	conn.SetDeadline(deadline)
	if _, err := conn.Write(line); err != nil {
		c.stream.Drop(l, err)
		return err
	}
	answered := make(chan error, 2)
	go func() {
		answered <- c.stream.CarryBehind(l, func() error {
			err := readStatus(conn)
			if err == nil {
				conn.SetDeadline(time.Time{})
				c.back()
				answered <- nil
			}
			return err
		})
	}()
	return <-answered
}

// connect connects to the gateway whose turn it is, unless Reconnect is called or the
// tunnel ends before.
func (c *Conn) connect(hurry <-chan struct{}, deadline time.Time) (net.Conn, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-c.stream.Done():
			cancel()
		case <-hurry:
			cancel()
		case <-ctx.Done():
		}
	}()
	return c.dialer.connect(ctx, c.at, deadline)
}

// back says that the tunnel goes on.
func (c *Conn) back() {
	c.mu.Lock()
	c.running, c.hurry = false, nil
	c.resumes++
	c.attempts.back = time.Now()
	e := Event{Kind: Back, After: time.Since(c.lostAt), Gateway: c.dialer.Gateways[c.at]}
	c.mu.Unlock()
	c.tell(e)
	if !c.stream.Attached() && c.stream.Err() == nil {
		c.lost(errReconnect) // meanwhile, when it was nobody's business
	}
}

// watch asks a silent gateway whether it is there, and gives it up if it does not say.
func (c *Conn) watch() {
	silence, patience := orElse(c.dialer.Silence, 5*time.Second), orElse(c.dialer.Patience, 3*time.Second)
	period := min(max(min(silence, patience)/4, 10*time.Millisecond), time.Second)
	var asked time.Time // zero: it was not
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watching = time.AfterFunc(period, func() {
		switch {
		case !c.stream.Attached(), time.Since(c.stream.Heard()) < silence:
			asked = time.Time{}
		case asked.IsZero():
			asked = time.Now()
			c.stream.Ping()
		case time.Since(asked) >= patience:
			asked = time.Time{}
			c.stream.Cut(errSilent)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.stream.Err() == nil {
			c.watching.Reset(period)
		}
	})
}
