package web

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// The client's side of a connection: what it sends waits here until a request's
// head is whole, and net/http is given one request at a time.
//
// A client that has proven nothing yet so costs the bytes of its head, and not
// what net/http keeps for a connection; a head has exactly HeaderMax bytes at
// most; and net/http never holds a byte of the next request.

const (
	// firstRead is the room for what a client sends first. It grows fourfold, so
	// that little is left behind.
	firstRead = 512

	// parkAfter is how long net/http keeps a connection that rests, and that has
	// once named a backend. Then it is parked: only its ServeConn is left.
	parkAfter = time.Second
)

// Why there is no head.
var (
	errNotYet  = errors.New("not yet whole")
	errRefused = errors.New("the head was refused")
	errLate    = errors.New("the client has not proven itself in its time")
)

// intake is what a client has sent and net/http has not been given.
type intake struct {
	buf     []byte
	one     [1]byte
	skipped int       // bytes of empty lines before the head
	scanned int       // bytes of buf that are whole lines
	dropped int       // bytes of lines that net/http does not see
	head    head      // those lines
	began   time.Time // the head; zero if none has
	headBy  time.Time // when it must be whole; zero is no bound
	restBy  time.Time // when it must have begun

	msg   message // the request that net/http is given
	again bool    // it is not the first
	raw   bool    // no more requests: the connection has been hijacked
}

// awaitHead waits until a request's head is whole, and checks it. Where it is
// not within patience, which is no bound if it is 0, the error is errNotYet.
// After any other error the connection is of no use; a head that was begun has
// been answered and accounted for.
func (c *conn) awaitHead(patience time.Duration) error {
	in := &c.in
	var patientUntil time.Time
	if patience > 0 {
		patientUntil = time.Now().Add(patience)
	}
	for {
		if in.again && c.isLate() {
			c.accountHead(0, errTooSlow)
			return errLate
		}
		status, whole := in.scan(c.server.HeaderMax)
		if status != 0 {
			c.refuseHead(status)
			return errRefused
		}
		if whole {
			c.setResting(false)
			return c.SetReadDeadline(time.Time{})
		}
		resting := in.again && in.began.IsZero() && in.headBy.IsZero()
		by := in.restBy
		if !resting {
			by = in.boundHead(c.server.HeaderTimeout)
			if !c.proven {
				by = earliest(by, c.proveBy)
			}
		}
		if err := c.setResting(resting); err != nil {
			return err
		}
		c.SetReadDeadline(earliest(by, patientUntil))
		err := in.fill(c.Conn, c.server.HeaderMax)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			if by.IsZero() || time.Now().Before(by) {
				return errNotYet
			}
			c.accountHead(0, errTooSlow)
			return err
		default:
			c.accountHead(0, errEOF)
			return err
		}
	}
}

// boundHead returns when a head must be whole that has begun.
func (in *intake) boundHead(timeout time.Duration) time.Time {
	if in.headBy.IsZero() && timeout > 0 {
		in.headBy = in.began.Add(timeout)
	}
	return in.headBy
}

// fill reads once. There is room for limit bytes.
func (in *intake) fill(r io.Reader, limit int) error {
	if len(in.buf) == cap(in.buf) {
		size := min(max(firstRead, 4*cap(in.buf)), limit)
		in.buf = append(make([]byte, 0, size), in.buf...)
	}
	n, err := r.Read(in.buf[len(in.buf):cap(in.buf)])
	in.buf = in.buf[:len(in.buf)+n]
	if n > 0 {
		return nil
	}
	return err
}

// scan goes on with the lines of a head that have come, and tells whether it
// is whole or to be refused. A head of more than limit bytes gets 431.
func (in *intake) scan(limit int) (status int, whole bool) {
	limit -= in.dropped
	in.skipEmptyLines()
	if in.skipped > limit {
		return http.StatusBadRequest, false
	}
	if len(in.buf) > 0 && in.began.IsZero() {
		in.began = time.Now()
	}
	for {
		rest := in.buf[in.scanned:min(len(in.buf), limit)]
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			if len(in.buf) >= limit {
				return http.StatusRequestHeaderFieldsTooLarge, false
			}
			return 0, false
		}
		line := rest[:end]
		isBare := !bytes.HasSuffix(line, []byte("\r"))
		if !isBare {
			line = line[:end-1]
		}
		if len(line) == 0 {
			return in.finish(in.scanned + end + 1)
		}
		status, drop := in.head.add(line, isBare)
		if status != 0 {
			return status, false
		}
		if drop {
			in.buf = append(in.buf[:in.scanned], in.buf[in.scanned+end+1:]...)
			in.dropped += end + 1
			limit -= end + 1
		} else {
			in.scanned += end + 1
		}
	}
}

func (in *intake) finish(size int) (status int, whole bool) {
	if status := in.head.end(); status != 0 {
		return status, false
	}
	in.msg = in.head.message(size)
	return 0, true
}

// skipEmptyLines drops the empty lines before a request line, which some
// clients send behind a body (RFC 9112 section 2.2).
func (in *intake) skipEmptyLines() {
	if in.scanned > 0 {
		return
	}
	n := 0
	for bytes.HasPrefix(in.buf[n:], []byte("\r\n")) {
		n += len("\r\n")
	}
	if n == 0 {
		return
	}
	in.skipped += n
	if in.buf = in.buf[n:]; len(in.buf) == 0 {
		in.buf, in.began = nil, time.Time{}
	}
}

// next makes ready for another head.
func (in *intake) next(restBy time.Time) {
	in.skipped, in.scanned, in.dropped, in.head = 0, 0, 0, head{}
	in.began, in.headBy, in.restBy = time.Time{}, time.Time{}, restBy
	in.again = true
}

// read gives net/http what belongs to the request, first of what is there. An
// error comes without bytes: net/http ends the request's context by it, which
// must not be before there is a handler.
func (in *intake) read(r io.Reader, p []byte) (int, error) {
	if len(in.buf) == 0 {
		n, err := r.Read(p)
		if in.raw || n == 0 {
			return n, err
		}
		taken, framing := in.msg.take(p[:n])
		if taken < n {
			in.buf = bytes.Clone(p[taken:n])
		}
		if taken > 0 {
			return taken, err
		}
		return 0, framing
	}
	n := copy(p, in.buf)
	if !in.raw {
		taken, framing := in.msg.take(p[:n])
		if taken == 0 {
			return 0, framing
		}
		n = taken
	}
	if in.buf = in.buf[n:]; len(in.buf) == 0 {
		in.buf = nil // its memory is not held while a body or a tunnel lasts
	}
	return n, nil
}

// refuseHead answers a head that net/http does not get to see.
func (c *conn) refuseHead(status int) {
	text := fmt.Sprintf("%d %s\n", status, http.StatusText(status))
	c.Conn.SetWriteDeadline(time.Now().Add(lingerTime))
	fmt.Fprintf(c.Conn, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, http.StatusText(status), len(text), text)
	c.lingers = true
	c.accountHead(status, errBadRequest)
}

// accountHead accounts for a request's head that comes to no handler, because
// it never ended or is refused.
func (c *conn) accountHead(status int, err error) {
	began := c.in.began
	c.in.began = time.Time{}
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

// Read gives net/http the request at hand and hides from it what is behind.
//
// While a request is served, net/http reads a single byte to find out whether
// the client is gone. It shall not learn of a FIN then: the client has only
// finished sending and still wants its answer, but net/http would end the
// request's context. It calls the read back by a deadline in the past.
func (c *conn) Read(p []byte) (int, error) {
	in := &c.in
	if in.raw && len(in.buf) == 0 { // most of all
		return c.Conn.Read(p)
	}
	if in.raw || !in.msg.ended() {
		if c.isDrained() { // also of what is here already
			return 0, os.ErrDeadlineExceeded
		}
		n, err := in.read(c.Conn, p)
		if err == errFraming {
			c.failBody()
		}
		return n, err
	}
	if !c.isIdle() {
		return 0, c.hold()
	}
	patience := parkAfter
	if !c.proven {
		patience = time.Nanosecond
	}
	if err := c.awaitHead(patience); err != nil {
		c.park(err == errNotYet)
		return 0, io.EOF
	}
	return in.read(c.Conn, p)
}

// hold reads on behind a request while it is served, and returns when net/http
// calls the read back, or the client has broken the connection.
func (c *conn) hold() error {
	if len(c.in.buf) == 0 {
		// A single byte, so that the wait costs none: most clients send nothing.
		n, err := c.Conn.Read(c.in.one[:])
		if n > 0 {
			c.in.buf = c.in.one[:]
		}
		if err == io.EOF {
			c.finish()
		} else if err != nil {
			return err
		}
	}
	return c.awaitChange()
}

// lingerBytes bounds what is still read of a client that has proven nothing.
const lingerBytes = 256 << 10

// linger lets the client read the last answer: a connection closed with
// something unread is reset, and the answer may be lost with it.
func (c *conn) linger() {
	if c.in.raw || !c.lingers && len(c.in.buf) == 0 {
		return
	}
	if c.CloseWrite() != nil {
		return
	}
	patience := closeTimeout
	if !c.proven {
		patience = lingerTime
	}
	end := time.Now().Add(patience)
	buf := make([]byte, firstRead)
	for read := 0; c.proven || read < lingerBytes; {
		c.Conn.SetReadDeadline(earliest(end, time.Now().Add(lingerTime)))
		n, err := c.Conn.Read(buf)
		if read += n; err != nil {
			return
		}
	}
}

// earliest returns the earlier of two times, of which zero is never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
