package web

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// defaultBackendIdle is below the 5 s after which Node.js closes.
	defaultBackendIdle = 4 * time.Second

	// freshFor is how long a connection has rested at most that is given a
	// request which cannot be repeated.
	freshFor = time.Second
)

// errStale is why nothing was sent on a kept connection.
var errStale = errors.New("the backend may be closing the connection")

// errStatus is why a status below 100 is not passed on: there are none (RFC 9110
// section 15), and net/http panics when it is to write one.
var errStatus = errors.New("the backend answers with a status below 100")

// errSwitch is why a 101 is not passed on.
var errSwitch = errors.New("the backend switches to what it was not asked for")

// backendConn is a connection that the transport has dialed.
//
// A kept one may be closed by its backend at any moment. Where a request can be
// repeated the transport does so, which begin bounds to once. The others are sent only if nothing tells
// that the end is near, and on another connection if nothing has been sent.
//
// A backend may answer before it has read the body, and reset what is still
// coming. Then the transport would take the failed write for the outcome, and
// drop an answer that has arrived; so such a write waits for what is read.
type backendConn struct {
	net.Conn
	ended   chan struct{} // nothing can be read any more
	endOnce sync.Once
	closed  atomic.Bool

	x      atomic.Pointer[exchange] // whose request was sent last
	reused atomic.Bool              // it was not the first
	stale  atomic.Bool              // it may not be sent here
	sent   atomic.Int64             // bytes of it

	parted atomic.Bool // see part

	keepFor atomic.Int64 // nanoseconds of rest that the backend allows; 0 for any
	last    atomic.Pointer[rest]
	resting atomic.Bool
}

// rest is when a connection has come to rest, and whose it is.
type rest struct {
	since time.Time
	seen  *lifetimes
	host  string
}

// ended is told that the backend has closed the connection.
func (r *rest) ended() {
	if r != nil {
		r.seen.add(r.host, time.Since(r.since))
	}
}

func newBackendConn(c net.Conn) *backendConn {
	return &backendConn{Conn: c, ended: make(chan struct{})}
}

// begin is told that the connection has been chosen for a request.
func (b *backendConn) begin(x *exchange, r *http.Request, info httptrace.GotConnInfo, fresh time.Duration) {
	b.resting.Store(false)
	stale := info.WasIdle && info.IdleTime >= fresh && !isRepeatable(r)
	// What was lost on a kept connection is sent once more, on a fresh one (RFC 9112
	// section 9.3.1). It may be what makes the backend close.
	stale = stale || info.Reused && x.lost.Load()
	if allowed := b.keepFor.Load(); info.WasIdle && allowed != 0 {
		stale = stale || int64(info.IdleTime) >= allowed
	}
	b.x.Store(x)
	x.sent.Store(0)
	x.reused.Store(info.Reused)
	b.reused.Store(info.Reused)
	b.sent.Store(0)
	b.stale.Store(stale)
}

// mayGoElsewhere tells that nothing of the request was sent, since the connection was
// about to close. The connection does not know: it may be another request's before the
// outcome of this one is told.
func (x *exchange) mayGoElsewhere() bool {
	return x.via.Load() != nil && x.reused.Load() && x.sent.Load() == 0
}

// keep takes the backend's word on how long the connection may rest.
func (b *backendConn) keep(h http.Header) {
	for _, list := range h["Keep-Alive"] {
		for param := range strings.SplitSeq(list, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(param), "=")
			seconds, err := strconv.ParseUint(value, 10, 16)
			if !strings.EqualFold(name, "timeout") || err != nil {
				continue
			}
			// Half of the last second is for the way.
			b.keepFor.Store(max(1, int64(seconds)*int64(time.Second)-int64(time.Second)/2))
		}
	}
}

func (b *backendConn) Write(p []byte) (int, error) {
	if b.sent.Load() == 0 && b.reused.Load() {
		if b.stale.Load() {
			return 0, errStale
		}
		if b.hasEnded() {
			b.last.Load().ended()
			return 0, errStale
		}
	}
	x := b.x.Load()
	n, err := b.Conn.Write(p)
	b.sent.Add(int64(n))
	if x != nil {
		x.sent.Add(int64(n))
	}
	if err != nil && b.sent.Load() > 0 {
		<-b.ended
	}
	return n, err
}

// hasEnded tells whether the backend has sent something unasked for, which is
// mostly its FIN, though the transport has not read it yet.
func (b *backendConn) hasEnded() bool {
	readable := b.x.Load().Readable
	return readable != nil && readable(b.Conn)
}

// part has the connection below belong to the caller, whatever becomes of this one,
// and returns what the transport has read ahead of it for a body.
func (b *backendConn) part(body io.Reader) []byte {
	b.parted.Store(true)
	ahead, _ := io.ReadAll(body) // up to where Read says that this is the end
	return ahead
}

func (b *backendConn) Read(p []byte) (int, error) {
	if b.parted.Load() {
		return 0, io.EOF
	}
	n, err := b.Conn.Read(p)
	if n > 0 {
		b.resting.Store(false)
	}
	if err != nil {
		b.end()
		if b.resting.Load() && !b.closed.Load() {
			b.last.Load().ended()
		}
		if x := b.x.Load(); x != nil && b.sent.Load() > 0 && !b.closed.Load() {
			x.backendEnded()
		}
	}
	return n, err
}

func (b *backendConn) Close() error {
	b.closed.Store(true)
	b.end()
	if b.parted.Load() {
		return nil
	}
	return b.Conn.Close()
}

func (b *backendConn) end() { b.endOnce.Do(func() { close(b.ended) }) }

// CloseWrite is for connections that the backend has upgraded.
func (b *backendConn) CloseWrite() error {
	if cw, ok := b.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// isRepeatable tells whether the transport would send a request again.
func isRepeatable(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return r.Body == nil || r.Body == http.NoBody
	}
	return false
}

// backendEnded is told that nothing more comes from the backend. Without an
// answer there will be none, but the transport says so only when the body has
// been read, and a client may wait for 100 before it sends one.
func (x *exchange) backendEnded() {
	if x.answered.Load() || !x.unread.Load() {
		return
	}
	x.cancel(errNoResponse)
	x.conn.SetReadDeadline(time.Unix(1, 0))
}

// unclosed keeps a body open when the transport closes it.
type unclosed struct{ io.Reader }

func (unclosed) Close() error { return nil }

// isSwitch tells whether a 101 is what the request has asked for: a WebSocket,
// and that alone.
func isSwitch(r *http.Request, resp *http.Response) bool {
	upgrade := resp.Header["Upgrade"]
	return r.Header.Get("Upgrade") != "" && hasToken(resp.Header["Connection"], "upgrade") &&
		len(upgrade) == 1 && strings.EqualFold(upgrade[0], "websocket")
}

// cleanInterim takes from a 1xx what is between the backend and the gateway
// alone. The proxy does so with final answers only. There is no body that a field
// could speak of (RFC 9110 section 8.6).
func cleanInterim(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for name := range hopByHop {
		h.Del(name)
	}
}

// cleanSwitch is cleanInterim for a 101.
func cleanSwitch(h http.Header) {
	cleanInterim(h)
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", "websocket")
}
