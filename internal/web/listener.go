package web

import (
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

// conn is a client's connection as net/http sees it. What comes in is in
// intake.go.
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

	// For the goroutine that reads, of which there is one at a time.
	in      intake
	heading bool      // no handler has begun since the last request
	proven  bool      // it has brought an address that could be opened
	lingers bool      // there may be more to read than anybody reads
	proveBy time.Time // when it must be proven, however often it asks; zero is no bound

	mu        sync.Mutex
	changed   sync.Cond // any of these
	serving   bool      // a request
	idle      bool      // net/http waits for the next
	x         *exchange // that request; nil before its handler has begun, and after
	finished  bool      // the client has finished sending
	upgrading bool      // see cut
	hijacked  bool
	parked    bool // see park
	resting   bool // between requests
	closed    bool
	deadline  time.Time // of Read
	drainBy   time.Time // see boundDrain
}

func newConn(ctx context.Context, cancel context.CancelFunc, s *Server, nc net.Conn, fixed *address.Route) *conn {
	c := &conn{
		Conn: nc, fixed: fixed, server: s, ctx: ctx, cancel: cancel,
		rest: make(chan func(), 1), heading: true, proven: fixed != nil,
	}
	if s.HeaderTimeout > 0 {
		c.in.headBy = time.Now().Add(s.HeaderTimeout)
		c.proveBy = c.in.headBy
	}
	c.changed.L = &c.mu
	return c
}

type connKey struct{}

func (c *conn) base() *conn { return c }

// serve serves requests, and returns when the connection is of no use any more.
func (c *conn) serve() {
	for c.awaitHead(0) == nil {
		c.setParked(false)
		ln := &listener{conn: c}
		c.server.http.Serve(ln) // starts a goroutine
		if !ln.accepted {
			return // the server was closed
		}
		if rest := <-c.rest; rest != nil {
			rest()
			return
		}
		if !c.isParked() {
			break
		}
	}
	c.linger()
}

// setState is told what net/http does with the connection.
func (c *conn) setState(state http.ConnState) {
	switch state {
	case http.StateIdle:
		c.heading = true
		restBy := time.Time{}
		if bound := c.server.KeepAliveTimeout; bound > 0 {
			restBy = time.Now().Add(bound)
		}
		if !c.proven {
			restBy = earliest(restBy, c.proveBy)
		}
		c.in.next(restBy)
	case http.StateHijacked:
		c.in.raw = true
	}
	c.change(func() {
		c.hijacked = state == http.StateHijacked
		c.serving, c.idle = state == http.StateActive, state == http.StateIdle
		if state == http.StateIdle {
			c.drainBy = time.Time{}
		}
	})
	if state == http.StateClosed {
		if !c.isParked() {
			c.accountHead(0, errEOF)
		}
		c.rest <- nil
	}
}

// isLate tells whether a client has asked for long enough without an address. What it
// asks for next is not answered.
func (c *conn) isLate() bool {
	return !c.proven && !c.proveBy.IsZero() && !time.Now().Before(c.proveBy)
}

// beginRequest is told that a head has come to its handler.
func (c *conn) beginRequest() { c.heading, c.in.began = false, time.Time{} }

// Write notices how net/http refuses a head: nothing else is written before
// there is a handler.
func (c *conn) Write(p []byte) (int, error) {
	if c.heading {
		var status int
		fmt.Sscanf(string(p[:min(len(p), len("HTTP/1.1 400"))]), "HTTP/1.1 %d", &status)
		c.lingers = true
		c.accountHead(status, errBadRequest)
	}
	return c.Conn.Write(p)
}

// park takes the connection away from net/http while it rests, if it does, so
// that nothing is kept for it but what ServeConn needs. Read returns io.EOF
// then, and net/http closes what it takes for the connection.
func (c *conn) park(rests bool) { c.setParked(rests) }

func (c *conn) setParked(b bool) { c.change(func() { c.parked = b }) }

func (c *conn) isParked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.parked && !c.closed
}

// setResting tells Shutdown that the connection may be closed. The error says
// that it should have been.
func (c *conn) setResting(b bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resting = b
	if b && c.server.draining.Load() {
		return net.ErrClosed
	}
	return nil
}

// awaitChange returns what a read behind the request at hand returns when it
// matters.
func (c *conn) awaitChange() error {
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

func (c *conn) isIdle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.idle
}

// isDrained tells whether net/http has had its time to read on (boundDrain).
func (c *conn) isDrained() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.drainBy.IsZero() && !time.Now().Before(c.drainBy)
}

// finish is told that the client has finished sending. As it may be gone all
// the same, HalfCloseTimeout bounds what is waited for.
func (c *conn) finish() {
	var x *exchange
	c.change(func() { c.finished, x = true, c.x })
	if x != nil {
		x.watch(x.halfCloseBound())
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

// failBody ends the exchange of a body that is wrongly framed.
func (c *conn) failBody() {
	c.mu.Lock()
	x := c.x
	c.mu.Unlock()
	if x != nil {
		x.cancel(errBody)
	}
}

func (c *conn) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	c.changed.Broadcast()
}

// Close is for net/http, and for whoever has hijacked the connection. For
// net/http it closes nothing yet: serve does, when the client has had the time
// to read the last answer, or goes on with a connection that is parked.
func (c *conn) Close() error {
	hijacked := false
	c.change(func() { hijacked, c.closed = c.hijacked, !c.parked })
	if !hijacked {
		return nil
	}
	return c.Conn.Close()
}

// cut closes the connection. It does nothing while a request is answered with
// 101: the client may have read that already, and then has a right to a Close
// frame, but net/http gives the connection to the WebSocket only afterwards.
func (c *conn) cut() {
	upgrading := false
	c.change(func() { upgrading, c.closed = c.upgrading, !c.upgrading })
	if !upgrading {
		c.Conn.Close()
	}
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

// boundLastWrite bounds the writes that net/http does when the handler has
// returned, which nobody else watches. net/http lifts the bound itself.
func (c *conn) boundLastWrite() {
	bound := c.server.HeaderTimeout
	if c.proven {
		bound = c.server.IdleTimeout
	}
	if bound > 0 {
		c.Conn.SetWriteDeadline(time.Now().Add(bound))
	}
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
		c.cut()
	}
}

// drain cuts the connection if it rests.
func (c *conn) drain() {
	c.mu.Lock()
	resting := c.resting
	c.mu.Unlock()
	if resting {
		c.cut()
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
