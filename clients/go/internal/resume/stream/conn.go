// Package stream makes a connection of a session: what is written and read goes by one
// connection after another, and who writes and reads never sees the change.
package stream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"gateway/clients/go/internal/resume"
)

// Options say how a Conn works. The functions are called without any lock held, from
// any goroutine; each may be nil.
type Options struct {
	// Lost is called when the connection is gone that carried the session, which may
	// be resumed.
	Lost func(why error)
	// Ended is called once, when the session is over, with what Err returns.
	Ended func(why error)
	// Held is told by how many bytes the memory of the session has changed.
	Held func(delta int)
	// Late says that what Read has returned is passed on when Read is called again,
	// not at once.
	Late bool
}

// Conn is a net.Conn over a session. It outlives the connections that it is given by
// Attach and Switch.
type Conn struct {
	Options
	start time.Time

	mu       sync.Mutex
	session  *resume.Session
	readable sync.Cond
	writable sync.Cond
	output   sync.Cond // for the writer of the link
	link     *Link     // nil: detached
	local    net.Addr
	remote   net.Addr
	err      error // why the session is over; nil: it is not
	done     chan struct{}
	ended    bool // Ended was called
	reading  deadline
	writing  deadline
	broken   func(error)
	discards bool // what comes is of no use to anybody
	timed    bool // a timer acknowledges what waits for company
	held     int
	heard    time.Time
}

var _ net.Conn = (*Conn)(nil)

// ErrOver is what ends a session in which both directions have.
var ErrOver = fmt.Errorf("the session is complete: %w", net.ErrClosed)

// CloseError is what ends a session that the peer has closed.
type CloseError struct{ Reason resume.Reason }

func (e *CloseError) Error() string { return "the peer has closed the session: " + e.Reason.String() }

// Unwrap makes it a reset.
func (e *CloseError) Unwrap() error { return syscall.ECONNRESET }

// New returns a connection over a session that is attached to nothing yet.
func New(s *resume.Session, o Options) *Conn {
	c := &Conn{Options: o, start: time.Now(), session: s, done: make(chan struct{}), heard: time.Now()}
	c.readable.L, c.writable.L, c.output.L = &c.mu, &c.mu, &c.mu
	return c
}

// now is the session's clock.
func (c *Conn) now() time.Duration { return time.Since(c.start) }

// unlock lets others see what was changed, and tells of the memory and of the end.
func (c *Conn) unlock() {
	if c.err != nil && !c.ended && c.Late {
		c.session.Release()
	}
	held := c.session.Memory()
	delta := held - c.held
	c.held = held
	c.prompt()
	end := c.err != nil && !c.ended
	if end {
		c.ended = true
		close(c.done)
		c.readable.Broadcast()
		c.writable.Broadcast()
		c.output.Broadcast()
		c.reading.stop()
		c.writing.stop()
	}
	err, broken := c.err, c.broken
	c.mu.Unlock()
	if delta != 0 && c.Held != nil {
		c.Held(delta)
	}
	if !end {
		return
	}
	if c.Ended != nil {
		c.Ended(err)
	}
	if broken != nil && brokenBy(err) {
		broken(err)
	}
}

// fail ends the session. The caller holds mu.
func (c *Conn) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

// Cut gives up the connection that carries the session, if there is one, and reports
// whether there was.
func (c *Conn) Cut(why error) bool {
	c.mu.Lock()
	l := c.link
	c.mu.Unlock()
	if l == nil {
		return false
	}
	c.lost(l, why)
	l.abort()
	return true
}

// End ends a session that is detached, and reports whether it was. The peer is not
// told.
func (c *Conn) End(why error) bool {
	c.mu.Lock()
	if c.link != nil || c.err != nil {
		c.mu.Unlock()
		return false
	}
	c.fail(why)
	c.unlock()
	return true
}

// Ping asks the peer whether it is there, and Heard returns when something came last.
func (c *Conn) Ping() {
	c.mu.Lock()
	c.session.Ping()
	c.unlock()
}

// Heard returns when something came last, or when the connection began.
func (c *Conn) Heard() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard
}

// Attached tells whether a connection carries the session.
func (c *Conn) Attached() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link != nil
}

// Done is closed when the session is over.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the session is over, or nil.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Progress grows with each byte that is acknowledged or received.
func (c *Conn) Progress() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session.Progress()
}

// Unacked returns how many bytes the peer has not acknowledged, its own end included.
func (c *Conn) Unacked() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session.Unacked()
}

// NotifyBroken has f called when the peer has broken off, or is given up, whether
// anybody reads or not; at once if that is so already.
func (c *Conn) NotifyBroken(f func(error)) {
	c.mu.Lock()
	c.broken = f
	err, ended := c.err, c.ended
	c.mu.Unlock()
	if ended && brokenBy(err) {
		f(err)
	}
}

// Broken returns why the session is over that has not ended by itself; or nil.
func (c *Conn) Broken() error {
	if err := c.Err(); brokenBy(err) {
		return err
	}
	return nil
}

// Read reads what the peer's application has written.
func (c *Conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.unlock()
	if c.Late {
		c.session.Pass(false, c.now())
	}
	for {
		switch {
		case c.discards:
			return 0, net.ErrClosed
		case c.err != nil && c.Late && !errors.Is(c.err, ErrOver):
			return 0, c.err
		case c.reading.over():
			return 0, os.ErrDeadlineExceeded
		}
		if n := c.session.Take(p); n > 0 || len(p) == 0 {
			if !c.Late {
				c.session.Pass(false, c.now())
			}
			return n, nil
		}
		if c.session.AtEnd() {
			c.session.Pass(true, c.now())
			return 0, io.EOF
		}
		if c.err != nil {
			return 0, c.err
		}
		c.prompt()
		c.readable.Wait()
	}
}

// Write writes for the peer's application. It waits while too much is unacknowledged.
func (c *Conn) Write(p []byte) (written int, err error) {
	c.mu.Lock()
	defer c.unlock()
	for {
		switch {
		case c.err != nil:
			return written, c.err
		case c.session.Finished(), c.session.Closing():
			return written, syscall.EPIPE
		case c.writing.over():
			return written, os.ErrDeadlineExceeded
		case len(p) == 0:
			return written, nil
		}
		n := min(c.session.Room(), len(p))
		c.session.Send(p[:n])
		written, p = written+n, p[n:]
		if len(p) == 0 {
			return written, nil
		}
		c.output.Broadcast()
		c.writable.Wait()
	}
}

// CloseWrite says that nothing more is written. It does not wait.
func (c *Conn) CloseWrite() error {
	c.mu.Lock()
	defer c.unlock()
	if c.err != nil {
		return c.err
	}
	c.session.Finish()
	c.writable.Broadcast()
	return nil
}

// FailWrite is CloseWrite for a backend that has broken off: the peer gets what was
// written, and then CLOSE. Where nobody is there to be told, the session is over.
func (c *Conn) FailWrite() error {
	c.mu.Lock()
	defer c.unlock()
	c.session.Close(resume.BackendReset)
	c.writable.Broadcast()
	if c.link == nil {
		c.fail(errBackendGone)
	}
	return nil
}

// errAborted is why a session is over that was ended at this end.
var errAborted = fmt.Errorf("the session was ended: %w", net.ErrClosed)

// AbortFor ends the session at once, and tells the peer why if it can. It does not
// wait.
func (c *Conn) AbortFor(why resume.Reason) {
	c.mu.Lock()
	if c.err == nil {
		c.session.CloseNow(why)
		c.fail(errAborted)
	}
	l := c.link
	c.unlock()
	if l != nil {
		l.linger()
	}
}

// Abort is AbortFor a gateway that ends, or has had enough of the session.
func (c *Conn) Abort() { c.AbortFor(resume.Drained) }

// Ends tells whether both directions have ended here, or one of them has and the
// session is over.
func (c *Conn) Ends() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session.Finished() && c.session.AtEnd()
}

// Close ends the session. Where both directions have ended, it waits until the peer
// knows and all has arrived, or nobody can be told any more.
func (c *Conn) Close() error {
	if c.Ends() {
		<-c.done
		return nil
	}
	c.AbortFor(resume.ByApplication)
	return nil
}

// LocalAddr and RemoteAddr are those of the connection that carries the session, or
// did last.
func (c *Conn) LocalAddr() net.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.local
}

// RemoteAddr is like LocalAddr.
func (c *Conn) RemoteAddr() net.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.remote
}

// deadline is one of a net.Conn's.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) over() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *deadline) set(c *Conn, at time.Time, waiting *sync.Cond) {
	d.stop()
	d.at = at
	if wait := time.Until(at); !at.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, func() {
			c.mu.Lock()
			waiting.Broadcast()
			c.mu.Unlock()
		})
	}
	waiting.Broadcast()
}

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline bounds Read, also one that waits already.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading.set(c, t, &c.readable)
	return nil
}

// SetWriteDeadline bounds Write, also one that waits already.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writing.set(c, t, &c.writable)
	return nil
}
