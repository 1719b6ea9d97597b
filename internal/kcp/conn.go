package kcp

import (
	"container/list"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"
)

// ErrIdle is the end of a session without a byte either way. It is a timeout
// (net.Error).
var ErrIdle error = idleError{}

type idleError struct{}

func (idleError) Error() string   { return "kcp: the peer is silent" }
func (idleError) Timeout() bool   { return true }
func (idleError) Temporary() bool { return false }

// errReplaced is the end of a session whose address has begun another.
var errReplaced = errors.New("kcp: the peer has begun another session")

// errCrowded is the end of a session that has not shown in time that it has a
// peer, when others want its place.
var errCrowded = errors.New("kcp: too many sessions without a proven peer")

// errGuesses is the end of a session whose client acknowledges what it was not
// sent.
var errGuesses = errors.New("kcp: the peer guesses acknowledgements")

const (
	// unprovenWrite is the most of the stream that a client is sent before it
	// acknowledges something. It is short, so that it can be sent several times
	// within amplification: a status of three bytes for a line of 45 goes out
	// six times.
	unprovenWrite = 8
	// unprovenWindow is how many packets a session holds until then.
	unprovenWindow = 16
	// unprovenInterval is the clock of a session until then, in ms: the slowest,
	// as the clocks are what a flood of sessions costs.
	unprovenInterval = 40
	// amplification is how many times the bytes that came from a client it may
	// be sent until then (RFC 9000 section 8.1).
	amplification = 3
	// unprovenTime is how long it may take to acknowledge the first bytes that
	// it was sent; the idle timeout counts too, if it is shorter.
	unprovenTime = 10 * time.Second
	// unprovenLinger is Linger for a client that may not exist.
	unprovenLinger = 2 * time.Second
	// maxGuesses bounds the acknowledgements of what was never sent. An honest
	// client makes none, or a few for a session that it has had before; so a
	// guess is right in one session of 2^26.
	maxGuesses = 16
	// writePortion keeps what one Write may queue beyond the window small.
	writePortion = 16 << 10
)

// Conn is one session: a stream of bytes both ways. Read and Write may be
// called at the same time by one goroutine each. A deadline counts for calls
// that begin after it was set; to interrupt one that has begun, end the session
// with Abort. After the end of a session they return why it ended: [ErrIdle],
// net.ErrClosed, or syscall.ECONNREFUSED for a backend whose port nobody has.
// Read never returns io.EOF, as no peer can say that it has finished.
type Conn struct {
	transport *Transport
	frame     *frame // around what we send
	who       conversation
	name      string // of the session, within kcp-go
	local     net.Addr
	remote    net.Addr
	client    *net.UDPAddr // the same
	forget    func(*Conn)  // called once, at the end

	// own is the session's own socket, once the shared one is another process's.
	own atomic.Pointer[net.UDPConn]

	// session is nil until kcp-go has made it of the first datagram.
	session atomic.Pointer[kcpgo.UDPSession]

	// What the datagrams tell. Those that come are read by one goroutine,
	// those that go are written by another.
	una      atomic.Uint32 // the peer has all segments before this one
	next     atomic.Uint32 // the first segment that was never sent
	received atomic.Int64  // bytes of datagrams
	sent     atomic.Int64  // bytes of datagrams until proven
	proven   atomic.Bool   // the peer receives what we send
	begun    int64         // by sinceStart
	given    atomic.Int64  // when data was first sent, or 0
	cookie   cookie        // in what is sent until proven
	asked    bool          // the reader's: it has been sent the challenge
	guesses  int           // the reader's: false acknowledgements
	stamped  uint32        // the writer's: group of error correction, the last with a cookie
	place    *list.Element // the guard's: among its unproven, or nil

	progress atomic.Int64 // when a byte last moved, by sinceStart
	heard    atomic.Int64 // when a datagram last came
	idle     *time.Timer

	writing sync.Mutex // a Write is under way
	closing atomic.Bool

	once  sync.Once
	ended chan struct{}
	cause error // set before ended is closed
}

var (
	start    = time.Now()
	sessions atomic.Uint64 // that have begun
)

func sinceStart() int64 { return int64(time.Since(start)) }

// newConn returns a session that ends by itself when it is idle.
func (t *Transport) newConn(f *frame, who conversation, local net.Addr, forget func(*Conn)) *Conn {
	address := netip.AddrPortFrom(who.source.Addr().Unmap(), who.source.Port())
	client := net.UDPAddrFromAddrPort(address)
	c := &Conn{
		transport: t, frame: f, who: who, forget: forget,
		local: local, remote: client, client: client,
		name:  strconv.FormatUint(sessions.Add(1), 10),
		ended: make(chan struct{}),
	}
	now := sinceStart()
	c.begun = now
	c.progress.Store(now)
	c.heard.Store(now)
	c.idle = time.AfterFunc(time.Hour, c.checkIdle)
	c.idle.Reset(t.IdleTimeout) // not before c.idle is set
	return c
}

// checkIdle is the idle timer's. The timer is set again when it fires, rather
// than at each byte.
func (c *Conn) checkIdle() {
	quiet := time.Duration(sinceStart() - c.progress.Load())
	rest := c.transport.IdleTimeout - quiet
	if given := c.given.Load(); given != 0 && !c.proven.Load() {
		rest = min(rest, unprovenTime-time.Duration(sinceStart()-given))
	}
	if rest > 0 {
		c.idle.Reset(rest)
		return
	}
	c.end(ErrIdle)
}

func (c *Conn) moved() { c.progress.Store(sinceStart()) }

// takes notes what a datagram of n bytes from the peer says, and tells whether
// kcp-go may see it. Until the peer is proven that is only new data, or the
// proof: kcp-go would believe any other acknowledgement, and not send again
// what has not arrived.
func (c *Conn) takes(n int, s *summary) bool {
	if !c.restarted(s) {
		c.heard.Store(sinceStart())
	}
	c.received.Add(int64(n))
	if !c.proven.Load() && (s.acks || s.parity) {
		ok, wrong := c.cookie.echoed(s, c.next.Load())
		if !ok {
			if c.guesses += wrong; c.guesses > maxGuesses {
				c.end(errGuesses)
			}
			return false
		}
		c.proven.Store(true)
	}
	// Only what was sent can be acknowledged.
	if !s.parity && after(s.una, c.una.Load()) && !after(s.una, c.next.Load()) {
		c.una.Store(s.una)
		c.moved()
	}
	return true
}

// restarted tells whether a datagram is the first of a client that has lost the
// session: it has acknowledged something before, and now knows of nothing. It
// may also be a late copy.
func (c *Conn) restarted(s *summary) bool {
	return !s.parity && s.opens() && c.una.Load() != 0
}

// silent tells whether nothing has come for so long that another session may
// take the address.
func (c *Conn) silent(now int64) bool { return now-c.heard.Load() >= int64(yieldAfter) }

// gives notes that a packet is about to be sent in n bytes, and until the peer
// is proven puts the cookie into it; or it returns false, if the packet may not
// be sent.
func (c *Conn) gives(n int, packet []byte) bool {
	s, ok := c.transport.layout().read(packet)
	if !ok {
		return false
	}
	if c.proven.Load() {
		// Parity would restore data without its cookie, and garble other data
		// for it.
		if s.parity && s.group == c.stamped {
			return false
		}
	} else if s.parity || !c.affords(n) {
		return false
	} else if s.data {
		c.cookie.stamp(&s)
		c.stamped = s.group
		if c.given.CompareAndSwap(0, sinceStart()) {
			c.idle.Reset(min(unprovenTime, c.transport.IdleTimeout))
		}
	}
	if s.data && after(s.next, c.next.Load()) {
		c.next.Store(s.next)
	}
	return true
}

// affords tells whether n more bytes may be sent before the peer is proven, and
// counts them.
func (c *Conn) affords(n int) bool {
	sum := c.sent.Add(int64(n))
	if sum > amplification*c.received.Load() {
		c.sent.Add(-int64(n))
		return false
	}
	return true
}

// attach gives the session to the connection, tuned, unless it has ended.
func (c *Conn) attach(s *kcpgo.UDPSession) bool {
	c.transport.tune(s, c.frame.overhead())
	proven := c.proven.Load()
	c.transport.pace(s, proven)
	c.session.Store(s)
	if !proven && c.proven.Load() { // just before there was a session to pace
		c.transport.pace(s, true)
	}
	if c.isEnded() { // perhaps before there was a session to close
		s.Close()
		return false
	}
	return true
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.session.Load().Read(b)
	if n > 0 {
		c.moved()
	}
	return n, c.explain(err)
}

// Write implements net.Conn. It returns when the bytes are queued, and blocks
// while the windows are full: the peer's, and ours of SendWindow packets.
func (c *Conn) Write(b []byte) (n int, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.closing.Load() {
		return 0, net.ErrClosed
	}
	for len(b) > 0 {
		portion := min(len(b), writePortion)
		if !c.proven.Load() {
			portion = min(portion, unprovenWrite)
		}
		// Bytes for a peer that still owes acknowledgements are no sign of
		// life.
		if c.una.Load() == c.next.Load() {
			c.moved()
		}
		m, err := c.session.Load().Write(b[:portion])
		n += m
		if err != nil {
			return n, c.explain(err)
		}
		b = b[portion:]
	}
	return n, nil
}

// explain tells why a call failed in the words of package net.
func (c *Conn) explain(err error) error {
	if err == nil {
		return nil
	}
	if c.isEnded() {
		return c.cause
	}
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return os.ErrDeadlineExceeded
	case errors.Is(err, io.ErrClosedPipe):
		return net.ErrClosed
	}
	return err
}

// Close ends the session when the peer has acknowledged all that was written,
// or nothing more for Linger; for two seconds, in which a status goes out six
// times, if it never has. Calls that block end no later. It returns nil if
// everything was acknowledged, and otherwise why not.
func (c *Conn) Close() error {
	c.closing.Store(true)
	s := c.session.Load()
	if c.writing.TryLock() { // kcp-go reads the deadline without a lock
		s.SetWriteDeadline(time.Time{})
		c.writing.Unlock()
	}
	lingering := make(chan struct{})
	defer close(lingering)
	go c.linger(lingering)
	// kcp-go does not tell how much is unacknowledged, but a write waits until
	// that is less than the window, even a write of nothing. By halves, so that
	// what is queued still goes in few round trips.
	var err error
	for window := c.transport.SendWindow; window > 0 && err == nil; window /= 2 {
		if window < c.transport.SendWindow || c.proven.Load() {
			s.SetWindowSize(window, 0)
		}
		_, err = s.WriteBuffers(nil)
	}
	err = c.explain(err)
	c.end(net.ErrClosed)
	return err
}

// linger ends the session that closes when its peer acknowledges nothing more.
// A slow path may take long to bring it all.
func (c *Conn) linger(done <-chan struct{}) {
	for {
		una, bound := c.una.Load(), min(Linger, c.transport.IdleTimeout)
		if !c.proven.Load() {
			bound = min(bound, unprovenLinger)
		}
		select {
		case <-done:
			return
		case <-time.After(bound):
		}
		if c.una.Load() == una {
			c.end(ErrIdle) // no deadline: that would be worth another try
			return
		}
	}
}

func (c *Conn) isEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// Broken returns why the session has ended without Close or Abort, or nil.
func (c *Conn) Broken() error {
	if !c.isEnded() || c.cause == net.ErrClosed {
		return nil
	}
	return c.cause
}

// Abort ends the session at once. What was not acknowledged may be lost.
func (c *Conn) Abort() { c.end(net.ErrClosed) }

// end ends the session for a reason; only the first counts.
func (c *Conn) end(cause error) {
	c.once.Do(func() {
		c.cause = cause
		close(c.ended)
		c.idle.Stop()
		if s := c.session.Load(); s != nil {
			s.Close()
		}
		c.forget(c)
	})
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn: a *net.UDPAddr.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn, for calls that begin after it.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn, for calls that begin after it. Only a
// session that has ended takes one while a Read is under way, and does nothing:
// kcp-go reads the deadline without a lock.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if c.isEnded() {
		return c.cause
	}
	return c.session.Load().SetReadDeadline(t)
}

// SetWriteDeadline is SetReadDeadline for Write.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.isEnded() {
		return c.cause
	}
	return c.session.Load().SetWriteDeadline(t)
}

// peer is a session as kcp-go knows it: by the name of its address. As each
// session has a name of its own, none takes the place of another there.
type peer struct{ *Conn }

func (p peer) Network() string { return "udp" }
func (p peer) String() string  { return p.name }
