package web

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"gateway/internal/address"
)

// conn is a client's connection as net/http sees it.
type conn struct {
	net.Conn
	fixed  *address.Route // of every request; nil: each brings its own
	server *Server
	ctx    context.Context
	cancel context.CancelFunc

	// rest gets what is left to do when net/http has finished with the
	// connection: nil, or a function that serves a WebSocket. It is run by
	// ServeConn, so that net/http's goroutine and all that hangs on it, a few
	// kilobytes, are not kept for as long as the WebSocket lasts.
	rest chan func()

	ws *Conn // guarded by Server.mu; nil if there is none

	mu sync.Mutex

	// See accountHead.
	heading bool      // no handler has begun since the last request
	began   time.Time // the head that is coming in; zero if none is
	failure error     // what the last read met; nil if nothing

	// See Read.
	changed   sync.Cond // any of these
	serving   bool      // a request
	x         *exchange // that request; nil before its handler has begun, and after
	finished  bool      // the client has finished sending
	upgrading bool      // see Close
	closed    bool
	deadline  time.Time // of Read
	drainBy   time.Time // see boundDrain
}

func newConn(ctx context.Context, cancel context.CancelFunc, s *Server, nc net.Conn, fixed *address.Route) *conn {
	c := &conn{Conn: nc, fixed: fixed, server: s, ctx: ctx, cancel: cancel, rest: make(chan func(), 1), heading: true}
	c.changed.L = &c.mu
	return c
}

type connKey struct{}

func (c *conn) base() *conn { return c }

// setState is told what net/http does with the connection.
func (c *conn) setState(state http.ConnState) {
	c.change(func() {
		c.serving = state == http.StateActive
		if state == http.StateIdle {
			c.heading, c.began, c.failure = true, time.Time{}, nil
			c.drainBy = time.Time{}
		}
	})
	if state == http.StateClosed {
		c.accountHead(0, errEOF)
		c.rest <- nil
	}
}

// beginRequest is told that a head has come to its handler.
func (c *conn) beginRequest() {
	c.change(func() { c.heading, c.began = false, time.Time{} })
}

// accountHead accounts for a request's head that comes to no handler, because
// it never ended or net/http refuses it.
func (c *conn) accountHead(status int, err error) {
	c.mu.Lock()
	began := c.began
	c.began = time.Time{}
	err = cmp.Or(c.failure, err)
	c.mu.Unlock()
	if began.IsZero() {
		return
	}
	c.server.gate.Served(c.ctx, Exchange{
		Kind:     "http",
		Method:   methodName(""),
		Status:   status,
		Duration: time.Since(began),
		Err:      err,
	})
}

// Write notices how net/http refuses a head: nothing else is written before
// there is a handler.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	heading := c.heading
	if heading && c.began.IsZero() { // it came along with the request before
		c.began = time.Now()
	}
	c.mu.Unlock()
	if heading {
		var status int
		fmt.Sscanf(string(p[:min(len(p), len("HTTP/1.1 400"))]), "HTTP/1.1 %d", &status)
		c.accountHead(status, errBadRequest)
	}
	return c.Conn.Write(p)
}

// Read hides the client's FIN from net/http while a request is served. The
// client has only finished sending and still wants its answer, but net/http
// would take it for gone and end the request's context. It reads a single byte
// to find that out, and calls the read back by a deadline in the past. As the
// client may be gone all the same, HalfCloseTimeout bounds what is waited for.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	if c.heading && n > 0 && c.began.IsZero() {
		c.began = time.Now()
	}
	switch c.failure = nil; {
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.failure = errTooSlow
	case err != nil:
		c.failure = errEOF
	}
	c.mu.Unlock()
	if err == io.EOF && len(p) == 1 {
		err = c.awaitChange()
	}
	return n, err
}

// awaitChange returns what a read at the end of the stream returns when it
// matters.
func (c *conn) awaitChange() error {
	var x *exchange
	c.change(func() { c.finished, x = true, c.x })
	if x != nil {
		x.watch(x.halfCloseBound())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.closed:
			return net.ErrClosed
		case !c.serving:
			return io.EOF
		case !c.deadline.IsZero() && !time.Now().Before(c.deadline):
			return os.ErrDeadlineExceeded
		}
		c.changed.Wait()
	}
}

// setExchange tells which request is served: nil is none.
func (c *conn) setExchange(x *exchange) {
	finished := false
	c.change(func() { c.x, finished = x, c.finished })
	if finished && x != nil {
		x.watch(x.halfCloseBound())
	}
}

func (c *conn) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	c.changed.Broadcast()
}

// Close does nothing while a request is answered with 101: the client may have
// read that already, and then has a right to a Close frame, but net/http gives
// the connection to the WebSocket only afterwards and closes it until then.
func (c *conn) Close() error {
	upgrading := false
	c.change(func() { upgrading, c.closed = c.upgrading, !c.upgrading })
	if upgrading {
		return nil
	}
	return c.Conn.Close()
}

func (c *conn) setUpgrading(b bool) { c.change(func() { c.upgrading = b }) }

func (c *conn) SetReadDeadline(t time.Time) error {
	c.change(func() {
		if !c.drainBy.IsZero() && (t.IsZero() || t.After(c.drainBy)) {
			t = c.drainBy
		}
		c.deadline = t
	})
	return c.Conn.SetReadDeadline(t)
}

// boundDrain bounds how long net/http reads what is left of a request's body
// once the handler has returned. It would do so for as long as the client likes,
// and before it sends a short answer. It lifts deadlines when it begins, so this
// one stays until the request is over.
func (c *conn) boundDrain(by time.Time) {
	c.change(func() { c.drainBy = by })
	c.SetReadDeadline(by)
}

func (c *conn) SetDeadline(t time.Time) error {
	c.change(func() { c.deadline = t })
	return c.Conn.SetDeadline(t)
}

// CloseWrite lets net/http send the end of an answer before it closes.
func (c *conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// end cuts the connection. The caller holds Server.mu.
func (c *conn) end() {
	c.cancel()
	if c.ws != nil {
		c.ws.Close()
	} else {
		c.Close()
	}
}

// adopt registers the connection's WebSocket for Server.Close.
func (c *conn) adopt(ws *Conn) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.setUpgrading(false)
	c.ws = ws
	if c.server.closed {
		ws.Close()
	}
}

// tlsConn is a conn of which net/http knows that it came by TLS.
type tlsConn struct {
	*conn
	connectionStater
}

type connectionStater interface{ ConnectionState() tls.ConnectionState }

// listener hands a single connection to net/http.
type listener struct {
	conn     *conn
	accepted bool
}

func (l *listener) Accept() (net.Conn, error) {
	if l.accepted {
		return nil, io.EOF
	}
	l.accepted = true
	if cs, ok := l.conn.Conn.(connectionStater); ok {
		return &tlsConn{l.conn, cs}, nil
	}
	return l.conn, nil
}

func (l *listener) Close() error   { return nil }
func (l *listener) Addr() net.Addr { return l.conn.LocalAddr() }
