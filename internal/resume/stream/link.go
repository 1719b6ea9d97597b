package stream

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"gateway/internal/resume"
)

// The connections that carry a session, one after another: who reads them, who writes
// them, and what becomes of the session when one is lost.

// Link is a connection that carries, or has carried, a session.
type Link struct {
	conn    net.Conn
	abort   func()
	written chan struct{} // closed when nothing more is written
}

// brokenBy tells whether it was the peer that has broken the session off, or was given
// up.
func brokenBy(err error) bool {
	return err != nil && !errors.Is(err, ErrOver) && err != errAborted && err != errBackendGone
}

// prompt has what is to be written, written. The caller holds mu.
func (c *Conn) prompt() {
	if c.session.Pending(c.now()) {
		c.output.Broadcast()
	} else if at, ok := c.session.Due(); ok && !c.timed && c.err == nil {
		c.timed = true
		time.AfterFunc(at-c.now(), c.acknowledge)
	}
}

// acknowledge has what was passed on acknowledged that has waited for long enough.
func (c *Conn) acknowledge() {
	c.mu.Lock()
	c.timed = false
	c.session.Trim()
	c.unlock()
}

// Attach has a session that begins carried by conn; abort closes it at once. What
// comes by it is for Carry.
func (c *Conn) Attach(conn net.Conn, abort func()) *Link {
	l := newLink(conn, abort)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.use(l)
	return l
}

func newLink(conn net.Conn, abort func()) *Link {
	return &Link{conn: conn, abort: abort, written: make(chan struct{})}
}

func (c *Conn) use(l *Link) {
	c.link, c.local, c.remote, c.heard = l, l.conn.LocalAddr(), l.conn.RemoteAddr(), time.Now()
}

// Switch asks resume, under the lock, to move the session to conn, and closes the
// connection that it had when resume returns nil; then what comes by conn is for
// Carry. The error is resume's, or why the session is over.
func (c *Conn) Switch(conn net.Conn, abort func(), resume func(*resume.Session) error) (*Link, error) {
	c.mu.Lock()
	err := c.err
	if err == nil {
		err = resume(c.session)
	}
	if err != nil {
		c.mu.Unlock()
		return nil, err
	}
	l, old := newLink(conn, abort), c.link
	c.use(l)
	c.output.Broadcast() // the old link's writer leaves
	c.writable.Broadcast()
	c.mu.Unlock()
	if old != nil {
		old.abort()
	}
	return l, nil
}

// Carry reads and writes the link until it is lost, replaced, or the session is over,
// and closes it. early is what has been read of it.
func (c *Conn) Carry(l *Link, early []byte) {
	go c.write(l)
	c.input(l, early)
	c.read(l)
	l.abort()
	<-l.written
}

// CarryBehind is Carry for who has to be answered first: writing begins at once, answer
// reads. If that fails, the link is lost, and the error is answer's.
func (c *Conn) CarryBehind(l *Link, answer func() error) error {
	go c.write(l)
	err := answer()
	if err != nil {
		c.lost(l, err)
	} else {
		c.read(l)
	}
	l.abort()
	<-l.written
	return err
}

// Drop is for a link that is not to be carried: it could not be answered.
func (c *Conn) Drop(l *Link, why error) {
	c.lost(l, why)
	l.abort()
}

// readSize is how much is read at once, in bytes.
const readSize = 16 << 10

var buffers = sync.Pool{New: func() any { return new([readSize]byte) }}

// read is what comes by a link.
func (c *Conn) read(l *Link) {
	small := make([]byte, 512) // while it rests
	for {
		n, err := l.conn.Read(small)
		alive := c.input(l, small[:n])
		for alive && err == nil && n == len(small) {
			buf := buffers.Get().(*[readSize]byte)
			for m := len(buf); alive && err == nil && m == len(buf); {
				m, err = l.conn.Read(buf[:])
				alive = c.input(l, buf[:m])
			}
			buffers.Put(buf)
			break
		}
		if !alive {
			c.linger(l)
			return
		}
		if err != nil {
			c.lost(l, err)
			return
		}
	}
}

// lingerTime bounds how long is read from a connection that has carried a session to
// its end: closed with something unread it would be reset.
const lingerTime = time.Second

func (c *Conn) linger(l *Link) {
	c.mu.Lock()
	replaced := c.link != l
	c.mu.Unlock()
	if replaced {
		return
	}
	l.linger()
	<-l.written
	io.Copy(io.Discard, struct{ io.Reader }{l.conn})
}

// linger bounds what is left of a link. Not every connection has deadlines that strike
// who waits already: kcp-go's reads do not.
func (l *Link) linger() {
	l.conn.SetDeadline(time.Now().Add(lingerTime))
	time.AfterFunc(lingerTime+lingerTime/4, l.abort)
}

// input takes what has come by a link. It reports false if that carries the session no
// more.
func (c *Conn) input(l *Link, b []byte) bool {
	c.mu.Lock()
	if c.link != l {
		c.mu.Unlock()
		return false
	}
	if len(b) > 0 {
		c.heard = time.Now()
		err := c.session.Input(b)
		if c.discards {
			c.drain()
		}
		c.settle()
		if err != nil {
			c.fail(err)
		}
		if c.session.Buffered() > 0 || c.session.AtEnd() {
			c.readable.Broadcast()
		}
		if c.session.Room() > 0 {
			c.writable.Broadcast()
		}
	}
	alive := c.err == nil
	c.unlock()
	return alive
}

// Discard ends reading: Read fails, and what still comes is passed on to nobody.
func (c *Conn) Discard() {
	c.mu.Lock()
	defer c.unlock()
	c.discards = true
	c.drain()
	c.readable.Broadcast()
}

// drain takes what was received. The caller holds mu.
func (c *Conn) drain() {
	var buf [4 << 10]byte
	for c.session.Take(buf[:]) > 0 {
	}
	c.session.Pass(true, c.now())
}

// settle sees whether the session is over. The caller holds mu.
func (c *Conn) settle() {
	if why, ok := c.session.Closed(); ok {
		c.fail(&CloseError{why})
	} else if c.session.Complete() {
		c.fail(ErrOver)
	} else if c.session.Closing() && c.session.Over() {
		c.fail(errBackendGone)
	}
}

// write is what goes by a link.
func (c *Conn) write(l *Link) {
	defer close(l.written)
	var buf []byte
	for {
		c.mu.Lock()
		for c.link == l && c.err == nil && !c.session.Pending(c.now()) {
			c.output.Wait()
		}
		if c.link != l {
			c.mu.Unlock()
			return
		}
		buf = c.session.Output(buf[:0], resume.MaxData, c.now())
		c.settle()
		over := c.err != nil && !c.session.Pending(c.now())
		if over || c.session.Room() > 0 {
			c.writable.Broadcast()
		}
		c.unlock()
		if over {
			l.linger()
		}
		if len(buf) > 0 {
			if _, err := l.conn.Write(buf); err != nil {
				// What the peer has said before may be that the session is over: who reads
				// comes to that, and to the end of the connection, or gives it up.
				l.linger()
				return
			}
		}
		if over {
			if w, ok := l.conn.(interface{ CloseWrite() error }); ok {
				w.CloseWrite()
			}
			return
		}
		if cap(buf) > 2<<10 && len(buf) < cap(buf)/4 {
			buf = nil
		}
	}
}

// errBackendGone is why a session is over whose backend has broken off while nobody
// was there to be told.
var errBackendGone = errors.New("the backend has broken off")

// lost says that a link is gone.
func (c *Conn) lost(l *Link, why error) {
	c.mu.Lock()
	if c.link != l {
		c.mu.Unlock()
		return
	}
	c.link = nil
	if c.err != nil {
		c.output.Broadcast()
		c.unlock()
		return
	}
	c.session.Detach()
	c.output.Broadcast() // its writer leaves
	if c.session.Closing() {
		c.fail(errBackendGone)
		c.unlock()
		return
	}
	c.unlock()
	if c.Lost != nil {
		c.Lost(why)
	}
}
