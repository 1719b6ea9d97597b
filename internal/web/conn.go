package web

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

const (
	// closeTimeout is how long a client has to answer a Close frame; and how
	// long what a backend sends to a client that has closed is dropped before
	// the backend is told.
	closeTimeout = 5 * time.Second
	// lingerTime bounds the last writes and reads of a connection that ends.
	lingerTime = time.Second
)

// Conn is a WebSocket whose messages are a stream of bytes. It is a net.Conn
// for one goroutine that reads and one that writes; the other methods may be
// called from any. Where a WebSocket is not like TCP:
//
//   - Read takes text and binary messages alike and does not tell where one
//     ends. Each Write is a binary message.
//   - There is no half-close. CloseWrite and FailWrite say that nothing more
//     comes, and what the client still sends can be read, but a client answers
//     by closing its side too. Read returns io.EOF then, or after 5 s.
//   - A client that closes the WebSocket wants nothing more either. Read
//     returns io.EOF, and what is written within 5 s is dropped, so that the
//     backend is not reset while it reads to the end; after that, Write fails.
//   - A client that vanishes without a Close frame has broken the connection:
//     syscall.ECONNRESET. One that does not answer pings: syscall.ETIMEDOUT.
//   - After a read deadline, Read goes on if the deadline is lifted, unless it
//     struck in the middle of a frame. After a write deadline that struck, no
//     more can be written.
//
// The library (coder/websocket) shakes hands and keeps the frames of data. The
// control frames it would send (ping, pong and close) are sent here, because
// its own close the connection when they cannot be written within 5 s, which
// a client that only reads slowly does not deserve, and because its Close
// takes the reading away from Read.
type Conn struct {
	lib  *websocket.Conn
	wire *wire

	// For Read alone.
	br      *bufio.Reader // between wire and lib
	msg     io.Reader     // the message at hand; nil between messages
	mark    int64         // a position between frames, or within one's payload
	readErr error         // why nothing can be read any more

	// writeMu is held while a frame is written. The library takes it for
	// granted that it writes alone, and leaves nothing buffered after a frame.
	writeMu   sync.Mutex
	bw        *bufio.Writer // between lib and wire
	torn      bool          // a frame was begun and not finished
	parted    bool          // somebody else writes; see Rest
	dropUntil time.Time     // the client has closed; what is written until then is dropped
	dropped   int64         // bytes that were

	// violation is what Read fails with where the client keeps to no rules. It is the end
	// for Write too, which may be the first to tell of it.
	violation atomic.Pointer[error]

	// pong is the payload of a ping to be answered. Whoever unlocks writeMu
	// answers it, so that a stalled Write never stops Read.
	pong atomic.Pointer[[]byte]

	interval time.Duration // half of PingInterval

	mu       sync.Mutex
	deadline time.Time // of Read, as set by SetReadDeadline
	closeBy  time.Time // the client has until then to answer a Close frame
	closed   bool
	dead     bool // it did not answer a ping
	pings    *time.Timer
	heard    int64 // bytes received when pings looked the last time
	silent   int   // how often it has heard nothing since
}

var _ net.Conn = (*Conn)(nil)

// errMessageEnd is no failure.
var errMessageEnd = errors.New("end of message")

// What Read and Write fail with, besides net.ErrClosed, io.EOF and
// os.ErrDeadlineExceeded.
var (
	errVanished = fmt.Errorf("the client left without a Close frame: %w", syscall.ECONNRESET)
	errSilent   = fmt.Errorf("the client did not answer a ping: %w", syscall.ETIMEDOUT)
	errGone     = fmt.Errorf("the client has closed: %w", syscall.EPIPE)
	errFailed   = fmt.Errorf("the client closed with an error: %w", syscall.ECONNRESET)
	errProtocol = errors.New("the client does not keep to the WebSocket protocol")
	errTooBig   = errors.New("the client sent too large a message")
	errBroken   = errors.New("a read deadline struck within a frame")
)

// Read reads what the client sends.
func (c *Conn) Read(p []byte) (int, error) {
	for len(p) > 0 {
		n, err := c.readMessage(p)
		if err == errMessageEnd {
			err = nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, nil
}

// readMessage is Read within one message, at whose end it returns
// errMessageEnd.
func (c *Conn) readMessage(p []byte) (int, error) {
	if c.readErr != nil {
		return 0, c.readErr
	}
	c.mark = c.position()
	if c.msg == nil {
		// A context that can end would close the connection.
		_, msg, err := c.lib.Reader(context.Background())
		if err != nil {
			return 0, c.readFailed(err)
		}
		c.msg = msg
		c.mark = c.position()
	}
	n, err := c.msg.Read(p)
	switch err {
	case nil:
		return n, nil
	case io.EOF:
		c.msg = nil
		return n, errMessageEnd
	}
	return 0, c.readFailed(err) // n bytes were read, but are still masked
}

// position counts the bytes that the library has taken.
func (c *Conn) position() int64 { return c.wire.received.Load() - int64(c.br.Buffered()) }

// readFailed returns the error of Read for one of the library, which may
// quote what the client has sent.
func (c *Conn) readFailed(err error) error {
	c.mu.Lock()
	closed, dead := c.closed, c.dead
	ended := !c.closeBy.IsZero() // by CloseWrite
	late := ended && !time.Now().Before(c.closeBy)
	c.mu.Unlock()

	code := websocket.CloseStatus(err)
	switch {
	case closed:
		c.readErr = net.ErrClosed
	case dead:
		c.readErr = errSilent
	case code == websocket.StatusNormalClosure, code == websocket.StatusGoingAway,
		code == websocket.StatusNoStatusRcvd, code >= 3000: // the application's own
		c.readErr = io.EOF
	case code != -1:
		c.readErr = errFailed
	case late:
		c.readErr = io.EOF
	case errors.Is(err, os.ErrDeadlineExceeded):
		if c.position() != c.mark {
			c.readErr = errBroken
		}
		return os.ErrDeadlineExceeded
	case ended:
		c.readErr = io.EOF // without an answer to the Close frame, but so what
	case isConnectionError(err):
		c.readErr = errVanished
	default:
		c.readErr = errProtocol
		if c.wire.wrong == websocket.StatusMessageTooBig {
			c.readErr = errTooBig
		}
		violation := c.readErr
		c.violation.Store(&violation)
		c.sendClose(cmp.Or(c.wire.wrong, websocket.StatusProtocolError))
	}
	return c.readErr
}

func isConnectionError(err error) bool {
	var opErr *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.As(err, &opErr)
}

// Write sends p as one binary message.
func (c *Conn) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.writeMu.Lock()
	defer c.unlockWrite()
	switch {
	case c.isClosed():
		return 0, net.ErrClosed
	case c.violation.Load() != nil:
		return 0, *c.violation.Load()
	case c.wire.muted.Load():
		return 0, errGone
	case c.torn:
		return 0, errVanished
	}
	err := c.lib.Write(context.Background(), websocket.MessageBinary, p)
	if err == nil {
		return len(p), nil
	}
	if errors.Is(err, net.ErrClosed) && !c.isClosed() {
		return c.drop(p) // the library saw the client's Close frame
	}
	c.torn = true
	switch {
	case c.isClosed():
		return 0, net.ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, os.ErrDeadlineExceeded
	}
	return 0, errVanished
}

// drop takes what is written to a client that has closed.
func (c *Conn) drop(p []byte) (int, error) {
	now := time.Now()
	if c.dropUntil.IsZero() {
		c.dropUntil = now.Add(closeTimeout)
	}
	if now.After(c.dropUntil) {
		return 0, errGone
	}
	c.dropped += int64(len(p))
	return len(p), nil
}

// Dropped returns how many of the bytes that Write has taken nobody gets.
func (c *Conn) Dropped() int64 {
	c.writeMu.Lock()
	defer c.unlockWrite()
	return c.dropped
}

// CloseWrite tells the client by a Close frame 1000 that the backend has
// finished. See Conn for what comes then.
func (c *Conn) CloseWrite() error { return c.endWrite(websocket.StatusNormalClosure) }

// FailWrite is CloseWrite for a backend that broke the connection: 1011.
func (c *Conn) FailWrite() error { return c.endWrite(websocket.StatusInternalError) }

func (c *Conn) endWrite(code websocket.StatusCode) error {
	if c.isClosed() {
		return net.ErrClosed
	}
	err := c.sendClose(code)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closeBy.IsZero() {
		c.closeBy = time.Now().Add(closeTimeout)
		c.setReadDeadline()
	}
	return err
}

// Close ends both directions at once: Read and Write return net.ErrClosed, a
// Write under way after at most 1 s. It does not wait, and may be called from
// anywhere. If no Close frame has been sent, the client gets one with 1001, the
// gateway leaves; the server sends it when Relay has returned, and closes the
// connection below.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	if c.pings != nil {
		c.pings.Stop()
	}
	c.setReadDeadline()
	return c.wire.SetWriteDeadline(time.Now().Add(lingerTime))
}

// finish says the last words, once nobody reads or writes any more, and closes
// the connection below. A connection closed with something unread is reset,
// and the client might never see the Close frame; so it is read to its end.
func (c *Conn) finish() {
	c.Close()
	if c.parted {
		c.lib.CloseNow()
		return
	}
	c.wire.SetDeadline(time.Now().Add(lingerTime))
	if c.sendClose(websocket.StatusGoingAway) == nil && !c.dead {
		c.wire.Conn.(interface{ CloseWrite() error }).CloseWrite()
		io.Copy(io.Discard, c.wire.Conn)
	}
	c.lib.CloseNow()
}

// Below returns the connection that carries the WebSocket, for questions about
// it alone.
func (c *Conn) Below() net.Conn {
	if b, ok := c.wire.Conn.(interface{ base() *conn }); ok {
		return b.base().Conn
	}
	return c.wire.Conn
}

func (c *Conn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// LocalAddr and RemoteAddr are the connection's below.
func (c *Conn) LocalAddr() net.Addr  { return c.wire.LocalAddr() }
func (c *Conn) RemoteAddr() net.Addr { return c.wire.RemoteAddr() }

// SetDeadline sets the deadlines of Read and of Write.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline bounds Read, also one that waits already.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return c.setReadDeadline()
}

// SetWriteDeadline bounds Write, also one that waits already.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return c.wire.SetWriteDeadline(t)
}

// setReadDeadline has the earliest of all deadlines strike. The caller holds mu.
func (c *Conn) setReadDeadline() error {
	t := c.deadline
	if !c.closeBy.IsZero() && (t.IsZero() || c.closeBy.Before(t)) {
		t = c.closeBy
	}
	if c.closed || c.dead {
		t = time.Unix(1, 0)
	}
	return c.wire.SetReadDeadline(t)
}
