package web

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gateway/internal/address"
)

// Why an exchange failed, in a word for the log.
var (
	errBadRequest = errors.New("bad_request") // net/http does not take it for a request
	errNotHTTP    = errors.New("not_http")    // the address cannot be spoken to this way
	errNotTCP     = errors.New("not_tcp")     // the same, the other way round
	errMethod     = errors.New("method")      // it is meant for another kind of proxy
	errOrigin     = errors.New("origin")      // the page may not open WebSockets
	errHandshake  = errors.New("handshake")   // not that of RFC 6455
	errClientGone = errors.New("client_gone") // before the answer was finished
	errBody       = errors.New("body")        // the request's body could not be read
	errNoResponse = errors.New("no_response") // the backend does not speak HTTP, or broke off
	errCutShort   = errors.New("cut_short")   // the response, by its backend
	errIdle       = errors.New("idle")        // nothing moved for IdleTimeout
)

// dialError marks an error of Gate.Dial, among those that come out of net/http.
type dialError struct{ error }

func (e dialError) Unwrap() error { return e.error }

// exchange is one request and what becomes of it.
type exchange struct {
	*Server
	conn   *conn
	ctx    context.Context
	cancel context.CancelCauseFunc
	began  time.Time

	kind    string
	method  string
	route   address.Route
	changes *Changes // nil: none
	expects bool     // the client waits for 100 before it sends its body
	isOld   bool     // HTTP/1.0, which knows no 1xx

	// For the handler's goroutine alone.
	w        *response
	status   int
	err      error
	hijacked bool
	proxied  bool
	rest     func() // what ServeConn is to do when the handler has returned

	up, down   atomic.Int64 // bytes moved
	bodyFailed atomic.Bool
	unread     atomic.Bool // there is more of the body, or nobody knows

	via      atomic.Pointer[backendConn] // the last that the transport chose
	reused   atomic.Bool                 // by this request
	sent     atomic.Int64                // bytes of it, there
	lost     atomic.Bool                 // it was sent where no answer came, and may be repeated
	answered atomic.Bool                 // the transport waits for no answer

	dialing sync.Mutex // held while the Gate dials

	mu       sync.Mutex
	over     bool
	dials    sync.WaitGroup
	stopDial context.CancelFunc // of the last
	idle     *time.Timer
	vanish   *time.Timer // looks whether the client is there; or nil
	moved    int64       // what idle saw the last time
}

type exchangeKey struct{}

// exchangeOf returns the exchange of a request's context.
func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// handle is net/http's handler: one request.
func handle(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(connKey{}).(*conn)
	c.beginRequest()
	x := &exchange{Server: c.server, conn: c, began: time.Now(), kind: "http", method: methodName(r.Method)}
	x.expects, x.isOld = c.in.head.expects, !r.ProtoAtLeast(1, 1)
	ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), exchangeKey{}, x))
	x.ctx, x.cancel = ctx, cancel
	x.watch(x.IdleTimeout)
	c.setExchange(x)
	if r.ContentLength != 0 || r.Header.Get("Upgrade") != "" {
		x.lookAfter()
	}

	finished := false
	defer func() {
		if !finished && x.err == nil { // the proxy aborts a response by a panic
			x.err = errCutShort
			if r.Context().Err() != nil {
				x.err = errClientGone
			}
		}
		x.end()
	}()
	r = r.WithContext(ctx)
	if r.ContentLength != 0 {
		r.Body = &body{ReadCloser: r.Body, x: x, in: r}
		x.unread.Store(true)
	}
	x.w = &response{w, x}
	x.serve(x.w, r)
	finished = true
}

// end accounts for the exchange, unless ServeConn goes on with it. Nothing is
// done for it after that.
func (x *exchange) end() {
	x.cancel(nil)
	x.conn.setExchange(nil)
	x.mu.Lock()
	x.over = true
	if x.idle != nil {
		x.idle.Stop()
	}
	if x.vanish != nil {
		x.vanish.Stop()
	}
	x.mu.Unlock()
	x.dials.Wait()
	if x.unread.Load() && !x.hijacked {
		by := time.Unix(1, 0) // conn.linger reads the rest
		if !x.cannotReadOn() {
			by = time.Now().Add(lingerTime)
		}
		x.conn.boundDrain(by)
		x.conn.lingers = true
	}
	if !x.hijacked && x.err != errIdle {
		x.conn.boundLastWrite()
	}
	if x.rest == nil {
		x.account()
	}
	if x.hijacked {
		x.conn.rest <- x.rest
	}
}

func (x *exchange) account() { x.gate.Served(x.conn.ctx, x.soFar()) }

// soFar is the account up to now.
func (x *exchange) soFar() Exchange {
	return Exchange{
		Kind:     x.kind,
		Method:   x.method,
		Route:    x.route,
		Status:   x.status,
		Up:       x.up.Load(),
		Down:     x.down.Load(),
		Duration: time.Since(x.began),
		Err:      x.err,
	}
}

// serve decides what becomes of a request.
func (x *exchange) serve(w http.ResponseWriter, r *http.Request) {
	ws := isWebSocket(r.Header)
	if x.conn.fixed != nil {
		if x.asksHealth(r, ws) {
			x.tellHealth(w)
			return
		}
		x.serveFixed(w, r, ws)
		return
	}
	sealed, from, err := findSealed(r.Header, r.URL.RawQuery, x.LineMax)
	if err == nil && (from == nowhere || from == inIdentHeader) && x.asksHealth(r, ws) {
		x.tellHealth(w)
		return
	}
	switch {
	case ws && from == inOriginHeader:
		x.kind = "upgrade"
	case ws:
		x.kind = "websocket"
	case err == nil && (from == nowhere || from == inIdentHeader):
		err = errNoAddress
	}

	switch {
	case x.isRefused(w, r, ws):
		return
	case err != nil:
		x.refuse(w, http.StatusBadRequest, err)
		return
	case from == nowhere:
		x.awaitAddress(w, r)
		return
	}

	route, changes, err := x.gate.Open(x.ctx, []byte(sealed), x.describe(r))
	if err != nil {
		x.refuse(w, x.gate.Status(err), err)
		return
	}
	x.route, x.changes = route, changes
	x.conn.proven = true
	switch {
	case ws && (from != inOriginHeader || isStream(route)):
		x.kind = "websocket"
		x.terminate(w, r)
	case isStream(route):
		x.refuse(w, http.StatusUnauthorized, errNotHTTP)
	default:
		x.forward(w, r)
	}
}

// asksHealth tells whether a request is for the server's own health.
func (x *exchange) asksHealth(r *http.Request, ws bool) bool {
	return x.HealthPath != "" && r.URL.Path == x.HealthPath && !ws && r.ContentLength == 0 &&
		(r.Method == http.MethodGet || r.Method == http.MethodHead)
}

func (x *exchange) tellHealth(w http.ResponseWriter) {
	x.kind = "health"
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	text := "ok\n"
	if x.draining.Load() || x.Unhealthy != nil && x.Unhealthy() {
		text = "draining\n"
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	io.WriteString(w, text)
}

// isRefused refuses a request that is wrong wherever it leads.
func (x *exchange) isRefused(w http.ResponseWriter, r *http.Request, ws bool) bool {
	switch {
	case r.Method == http.MethodConnect || r.Method == http.MethodTrace:
		x.refuse(w, http.StatusNotImplemented, errMethod)
	case ws && (r.ContentLength != 0 || x.expects):
		// net/http flushes a 101 only when it has read the body, for which
		// nothing bounds the wait (golang/go#61841).
		x.refuse(w, http.StatusBadRequest, errHandshake)
	case ws && !originAllowed(r, x.Origins):
		x.refuse(w, http.StatusForbidden, errOrigin)
	case slices.ContainsFunc(r.Header["Upgrade"], isUnprintable): // the proxy would blame the backend
		x.refuse(w, http.StatusBadRequest, errHandshake)
	default:
		return false
	}
	return true
}

// forward has the proxy answer.
func (x *exchange) forward(w http.ResponseWriter, r *http.Request) {
	// A backend may answer while it reads. Without this, net/http would first
	// read some of the body itself, and throw it away.
	http.NewResponseController(w).EnableFullDuplex()
	x.proxied = true
	x.proxy.ServeHTTP(w, r)
}

// serveFixed serves a request whose connection leads to one route.
func (x *exchange) serveFixed(w http.ResponseWriter, r *http.Request, ws bool) {
	if ws {
		x.kind = "upgrade"
	}
	if x.isRefused(w, r, ws) {
		return
	}
	x.route = *x.conn.fixed
	x.forward(w, r)
}

// isStream tells whether a route says that some backend speaks no HTTP.
func isStream(r address.Route) bool { return r.Has("tcp") || r.Has("kcp") }

// refuse answers with a status and nothing that could help an attacker. A
// status of 0 only closes the connection.
func (x *exchange) refuse(w http.ResponseWriter, status int, err error) {
	x.err = err
	switch {
	case x.hijacked:
	case status == 0:
		panic(http.ErrAbortHandler)
	default:
		http.Error(w, fmt.Sprintf("%d %s", status, http.StatusText(status)), status)
	}
}

// dial connects the backend. ctx has the values of x.ctx; the proxy's
// transport, which would rather finish a dial that nobody waits for, takes its
// end away, so x.ctx counts as well.
func (x *exchange) dial(ctx context.Context) (net.Conn, error) {
	x.mu.Lock()
	if x.over {
		x.mu.Unlock()
		return nil, dialError{context.Canceled}
	}
	x.dials.Add(1)
	if x.stopDial != nil {
		x.stopDial()
	}
	ctx, cancel := context.WithCancel(ctx)
	x.stopDial = cancel
	x.mu.Unlock()
	defer x.dials.Done()
	defer cancel()
	defer context.AfterFunc(x.ctx, cancel)()

	// The transport dials anew while it still does if the connection that it
	// took instead turns out to be closed. The Gate keeps account of one.
	x.dialing.Lock()
	defer x.dialing.Unlock()
	backend, err := x.gate.Dial(ctx, x.route)
	if err != nil {
		return nil, dialError{err}
	}
	return backend, nil
}

// watch ends the exchange when nothing moves for bound, or for up to twice as
// long. It replaces an earlier bound; zero is none.
func (x *exchange) watch(bound time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.idle != nil {
		x.idle.Stop()
		x.idle = nil
	}
	if bound == 0 || x.over {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(bound, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.idle != t || x.over {
			return // stopped too late
		}
		if moved := x.up.Load() + x.down.Load(); moved != x.moved {
			x.moved = moved
			t.Reset(bound)
			return
		}
		x.cancel(errIdle)
		// Nobody may wait for the client any longer, except to tell it.
		x.conn.SetReadDeadline(time.Unix(1, 0))
		x.conn.SetWriteDeadline(time.Now().Add(lingerTime))
	})
	x.idle = t
}

// lookEvery is the time between two looks whether a client is there.
const lookEvery = time.Second

// lookAfter ends the exchange of a client that is gone while its backend takes
// nothing: net/http only notices where it reads.
func (x *exchange) lookAfter() {
	if x.Broken == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.vanish = time.AfterFunc(lookEvery, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		switch {
		case x.over:
		case x.Broken(x.conn.Conn) != nil:
			x.cancel(errClientGone)
		default:
			x.vanish.Reset(lookEvery)
		}
	})
}

// response is a ResponseWriter that keeps the exchange's account.
type response struct {
	http.ResponseWriter
	x *exchange
}

func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) WriteHeader(status int) {
	x := w.x
	if status < 200 && status != http.StatusSwitchingProtocols {
		if !x.isOld { // RFC 9110 section 15.2
			cleanInterim(w.Header())
			x.dropChanged(w.Header())
			w.ResponseWriter.WriteHeader(status)
		}
		return
	}
	if x.status == 0 {
		x.status = status
		// Otherwise net/http would guess a type that the backend did not give.
		h := w.Header()
		if h["Content-Type"] == nil {
			h["Content-Type"] = nil
		}
		if x.unread.Load() && x.cannotReadOn() && status != http.StatusSwitchingProtocols {
			h.Set("Connection", "close")
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// cannotReadOn tells whether the connection ends with an answer that comes
// before the end of the body. Behind the proxy, which is full duplex, net/http
// would read the rest once the handler has returned, and panic when it then
// waits for another request. A client that waits for 100, or that puts a body
// where none belongs, may send none, and net/http would wait for it before it
// answers.
func (x *exchange) cannotReadOn() bool { return x.proxied || x.expects || x.kind != "http" }

func (w *response) Write(p []byte) (int, error) {
	if w.x.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(p)
	w.x.down.Add(int64(n))
	return n, err
}

// Hijack is called by the proxy when the backend has agreed to an upgrade.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, brw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.x.hijacked = true
	w.x.status = http.StatusSwitchingProtocols
	return &upgraded{Conn: nc, x: w.x}, brw, nil
}

// body is a request's body that keeps the exchange's account.
type body struct {
	io.ReadCloser
	x       *exchange
	in      *http.Request
	trailer http.Header // for the backend
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.x.up.Add(int64(n))
	switch err {
	case nil:
	case io.EOF:
		b.x.unread.Store(false)
		// Now net/http knows the trailers that rewrite has announced.
		for name := range b.trailer {
			b.trailer[name] = b.in.Trailer[name]
		}
	default:
		// Where the next request would begin, nobody knows: unread stays.
		// Nor is it the client's fault if the backend has gone meanwhile.
		b.x.bodyFailed.Store(context.Cause(b.x.ctx) != errNoResponse)
	}
	return n, err
}

// methodName keeps what a client made up out of the log.
func methodName(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return method
	}
	return "other"
}
