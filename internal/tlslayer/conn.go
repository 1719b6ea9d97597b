// Package tlslayer has TLS in two shapes. While somebody waits for a client, Conn is a
// net.Conn on its socket as any other. Once an event loop is to relay it, Lift makes of
// it a layer.Transform that has no socket and waits for nobody. The protocol is
// crypto/tls's own in both: a *tls.Conn cannot be had without a net.Conn below, but
// that may be memory.
package tlslayer

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"gateway/internal/layer"
)

// Conn is the server's side of a TLS connection on a socket. It is a net.Conn for one
// goroutine that reads and one that writes; its other methods may be called from any.
type Conn struct {
	*tls.Conn
	below net.Conn
	layer *Layer
	state atomic.Int32 // lifted, closed, shaken
}

// Server returns the server's side of a connection over c, as tls.Server does.
func Server(c net.Conn, config *tls.Config) *Conn {
	l := &Layer{}
	l.wire.below.Store(&below{c})
	l.conn = tls.Server(&l.wire, config)
	return &Conn{Conn: l.conn, below: c, layer: l}
}

// What becomes of a Conn.
const (
	lifted = 1 << iota // it is a Transform
	closed             // it was closed
	shaken             // the handshake is done
)

// Lift ends the use of the socket: from here on the Transform is the connection, which
// whoever has the socket reads and writes. What crypto/tls has read already comes out of
// the first In, which is to be called with nothing. held is what was read from the
// socket besides and not passed on; upper is what the client speaks inside, nil for
// bytes. Nobody reads or writes meanwhile. Until Land the Conn is closed to its user:
// what is done to it then is not done to the client. It returns nil after Close, and
// where crypto/tls has other fields than it is known to have.
func (c *Conn) Lift(held []byte, upper layer.Transform) layer.Transform {
	if !known || !c.state.CompareAndSwap(shaken, shaken|lifted) {
		return nil
	}
	c.layer.held = held
	c.layer.wire.below.Store(nil)
	if upper == nil {
		return c.layer
	}
	return &stacked{Layer: c.layer, upper: upper}
}

// Land undoes Lift, if nothing was done with the Transform.
func (c *Conn) Land() {
	c.layer.held = nil
	c.layer.wire.below.Store(&below{c.below})
	if c.state.And(^lifted)&closed != 0 {
		c.Conn.Close()
	}
}

func (c *Conn) isLifted() bool { return c.state.Load()&lifted != 0 }

// NetConn returns the connection below, as that of *tls.Conn does.
func (c *Conn) NetConn() net.Conn { return c.below }

// LocalAddr and RemoteAddr are the connection's below.
func (c *Conn) LocalAddr() net.Addr  { return c.below.LocalAddr() }
func (c *Conn) RemoteAddr() net.Addr { return c.below.RemoteAddr() }

// Handshake is that of *tls.Conn. It comes before everything else.
func (c *Conn) Handshake() error {
	if known {
		c.layer.wire.shaking.Store(c.Conn)
	}
	err := c.Conn.Handshake()
	c.layer.wire.shaking.Store(nil)
	if err == nil {
		c.state.Or(shaken)
	}
	return err
}

// Read is for net.Conn. It waits for what the client sends, as long as its deadline lets
// it, and never for the client to read: what crypto/tls answers meanwhile by itself goes
// out before the next Write.
func (c *Conn) Read(b []byte) (int, error) {
	if c.isLifted() {
		return 0, net.ErrClosed
	}
	w := &c.layer.wire
	if w.waiting.Load() > waitingMax {
		return 0, errDeaf
	}
	w.reading.Store(c.state.Load()&shaken != 0)
	n, err := c.Conn.Read(b)
	w.reading.Store(false)
	if err != nil && err != io.EOF && !layer.IsTimeout(err) {
		w.lastWords()
	}
	return n, err
}

// Write is for net.Conn.
func (c *Conn) Write(b []byte) (int, error) {
	if c.isLifted() {
		return 0, net.ErrClosed
	}
	defer c.layer.wire.write().done()
	return c.Conn.Write(b)
}

// Close closes the connection, unless it is somebody else's by now.
func (c *Conn) Close() error {
	if c.state.Or(closed)&lifted != 0 {
		return nil
	}
	defer c.layer.wire.write().done()
	return c.Conn.Close()
}

// CloseWrite sends close_notify: the client may still send (RFC 8446 section 6.1).
func (c *Conn) CloseWrite() error {
	if c.isLifted() {
		return net.ErrClosed
	}
	defer c.layer.wire.write().done()
	return c.Conn.CloseWrite()
}

// FailWrite ends the stream without close_notify, so that the client can tell that what
// it has got may not be all (RFC 8446 section 6.1).
func (c *Conn) FailWrite() error {
	if c.isLifted() {
		return net.ErrClosed
	}
	return layer.CloseWrite(c.below)
}

// errEmpty says that memory has no more for now. crypto/tls takes no harm from a
// temporary error of a read.
var errEmpty net.Error = empty{errors.New("nothing more has come")}

type empty struct{ error }

func (empty) Timeout() bool   { return false }
func (empty) Temporary() bool { return true }

// errDeaf is what comes of a client that asks for new keys time and again, while there is
// nothing to be written.
var errDeaf = errors.New("the client asks for too many keys")

// waitingMax bounds the answers to that, in bytes: more than a hundred.
const waitingMax = 4 << 10

// lastWordsTime is how long an alert waits for a client to read, who has no right to one.
const lastWordsTime = time.Second

// wire is the net.Conn below a *tls.Conn: the socket, or memory, which has nothing to be
// read (buffers.go has what there is) and takes everything that is written.
type wire struct {
	below   atomic.Pointer[below]    // the socket; nil: memory
	shaking atomic.Pointer[tls.Conn] // shakes hands, and has buffers to be dropped

	// What a Read writes stays in memory too: it could wait for a client that has
	// asked for new keys and does not read, whatever the deadline of the Read. The
	// answer has to come before whatever is written next (RFC 8446 section 4.6.3), and
	// it need not come before.
	reading atomic.Bool
	writers atomic.Int32 // who writes meanwhile waits for the client anyway

	mu      sync.Mutex   // of out, while there is a socket
	out     []byte       // what was written to memory
	waiting atomic.Int32 // how much that is, while there is a socket
}

type below struct{ net.Conn }

func (w *wire) Read(b []byte) (int, error) {
	if c := w.below.Load(); c != nil {
		return c.Read(b)
	}
	return 0, errEmpty
}

func (w *wire) Write(b []byte) (int, error) {
	c := w.below.Load()
	if c == nil {
		w.out = append(w.out, b...)
		return len(b), nil
	}
	// Who closes the connection, in a goroutine of his own, is one of the writers.
	if shaking := w.shaking.Load(); shaking != nil && w.writers.Load() == 0 {
		buffersOf(shaking).drop()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reading.Load() && w.writers.Load() == 0 {
		w.hold(append(w.out, b...))
		return len(b), nil
	}
	if err := w.flush(c); err != nil {
		return 0, err
	}
	return c.Write(b)
}

// hold has w hold what is written later. The caller holds mu.
func (w *wire) hold(out []byte) {
	w.out = out
	w.waiting.Store(int32(len(out)))
}

// flush writes what is held. The caller holds mu.
func (w *wire) flush(c net.Conn) error {
	if len(w.out) == 0 {
		return nil
	}
	n, err := c.Write(w.out)
	if w.hold(w.out[n:]); len(w.out) == 0 {
		w.out = nil
	}
	return err
}

// write says that what is written from now on is no Read's, and done that it is over.
func (w *wire) write() *wire { w.writers.Add(1); return w }
func (w *wire) done()        { w.writers.Add(-1) }

// lastWords writes what a Read has left that has failed: an alert.
func (w *wire) lastWords() {
	if w.waiting.Load() == 0 {
		return
	}
	if c := w.below.Load(); c != nil {
		c.SetWriteDeadline(time.Now().Add(lastWordsTime))
		w.mu.Lock()
		defer w.mu.Unlock()
		w.flush(c)
	}
}

func (w *wire) Close() error {
	if c := w.below.Load(); c != nil {
		return c.Close()
	}
	return nil
}

// LocalAddr and RemoteAddr are those of the Conn to everybody else.
func (w *wire) LocalAddr() net.Addr  { return nil }
func (w *wire) RemoteAddr() net.Addr { return nil }

// SetDeadline and the others bound nothing in memory, where nobody waits.
func (w *wire) SetDeadline(t time.Time) error {
	if c := w.below.Load(); c != nil {
		return c.SetDeadline(t)
	}
	return nil
}

func (w *wire) SetReadDeadline(t time.Time) error {
	if c := w.below.Load(); c != nil {
		return c.SetReadDeadline(t)
	}
	return nil
}

func (w *wire) SetWriteDeadline(t time.Time) error {
	if c := w.below.Load(); c != nil {
		return c.SetWriteDeadline(t)
	}
	return nil
}
