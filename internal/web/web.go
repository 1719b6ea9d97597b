// Package web serves HTTP/1.1 and WebSocket clients on connections that
// somebody else has accepted. Each request brings the sealed address of its
// backend, and this package decides what becomes of it:
//
//   - An ordinary request is proxied (proxy.go). So is the upgrade to a
//     WebSocket that the backend itself is to speak.
//   - Other WebSockets end here (websocket.go), and their messages become the
//     bytes of a TCP connection.
//
// What an address is worth, how a backend is reached and how bytes are pumped
// is not known here; that is asked of a Gate.
package web

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"

	"gateway/internal/address"
)

// Gate is what is asked of whoever uses this package. Its methods are called
// from any goroutine. The contexts hold the values of the context that the
// client's connection came with.
type Gate interface {
	// Open opens a sealed address, which has at most Options.LineMax bytes, and finds out
	// where that leads and what becomes of the request that brought it. The Changes are
	// not changed; nil are none.
	Open(ctx context.Context, sealed []byte, r *Request) (address.Route, *Changes, error)

	// Dial connects to a backend; the caller closes the connection. ctx ends
	// when nobody waits for the backend any longer.
	Dial(ctx context.Context, route address.Route) (net.Conn, error)

	// Status returns the HTTP status for an error of Open or Dial: 400, 401, 429,
	// 502 or 504; or 0 if nobody is there to read one.
	Status(err error) int

	// Relay pumps bytes between a WebSocket and its TCP backend until both
	// have ended, closes both and accounts for them. early comes first to the
	// backend. ctx ends when the server is closed.
	Relay(ctx context.Context, client *Conn, backend net.Conn, early []byte)

	// Served accounts for what Relay does not: a request that was answered, a
	// connection that was upgraded by its backend and has ended, a WebSocket
	// that was refused. The client's connection may still serve others. What
	// net/http refuses itself is not told.
	Served(ctx context.Context, e Exchange)
}

// Marker is a Gate that takes something else than sealed addresses as the first message
// of a WebSocket too.
type Marker interface {
	// Marked returns what such messages begin with, and how many bytes they have at
	// most.
	Marked(ctx context.Context) (mark string, most int)

	// ServeMarked serves a WebSocket that has begun so, and answers it unless the
	// error is not nil: that is for Status. early came behind the message's line. dial
	// is Gate.Dial for as long as the client waits.
	ServeMarked(ctx context.Context, client *Conn, line, early []byte, r *Request, dial func(address.Route) (net.Conn, error)) error
}

// Request is what a Gate is told of the request that has brought an address. It is what
// the client says, and may be long. Only the first two are set without Options.Describe.
type Request struct {
	WebSocket bool // it asks for one
	Upgrade   bool // which its backend is to speak, unless that speaks no HTTP
	Method    string
	Path      string            // with its query, escaped, without the sealed address
	Headers   map[string]string // those of Options.DescribeHeaders that there are; several of a name are joined
}

// Taker is a Gate that relays upgraded connections itself, instead of this package's
// proxy: what a client and its backend say to each other after a 101 is theirs alone.
type Taker interface {
	// Takes tells whether Take is to be called for a client.
	Takes(ctx context.Context) bool

	// Take relays between the client of ctx and a backend that has agreed to the
	// upgrade, owns both, and accounts for what it moves; e says what is known of the
	// request so far. It may return before the end. early is what the client has sent
	// behind its request, and comes first to the backend; e.Down bytes of the backend
	// the client has had.
	Take(ctx context.Context, backend net.Conn, early []byte, e Exchange)
}

// Exchange is the account of one request.
type Exchange struct {
	// Kind is "http"; "health", see Options.HealthPath; "upgrade" for a request that the backend was to upgrade
	// to a WebSocket; or "websocket" for one that was to end here.
	Kind string
	// Method is the request's, or "other" if it is none of RFC 9110 or PATCH.
	Method string
	// Route is the zero value if none was opened.
	Route address.Route
	// Status is what the client was answered, 0 for nothing.
	Status int
	// Up and Down count the bytes of bodies, or of an upgraded connection,
	// from the client and to the client.
	Up, Down int64
	// Duration is from the request's headers to the end of the answer.
	Duration time.Duration
	// Err is why the exchange failed. It never holds anything that the client
	// or the backend has sent. A response that was begun and not finished has
	// its status and an error.
	Err error
}

// Options are the bounds of a Server. Durations of zero mean no bound.
type Options struct {
	// HeaderMax bounds the first line and the headers of a request, in bytes, to
	// the byte; what is longer gets 431. It is at least 1.
	HeaderMax int
	// LineMax bounds a sealed address, in bytes, wherever it stands.
	LineMax int
	// HeaderTimeout bounds the time from a request's first byte to the end of
	// its headers, and the time in which a WebSocket without an address has
	// to send one.
	HeaderTimeout time.Duration
	// KeepAliveTimeout bounds how long a connection rests between requests; before
	// it has brought an address that opens, HeaderTimeout does, if that is less.
	KeepAliveTimeout time.Duration
	// IdleTimeout bounds how long nothing moves within a request, or in a
	// connection that the backend upgraded.
	IdleTimeout time.Duration
	// HalfCloseTimeout is the same for an upgraded connection of which one
	// side has finished.
	HalfCloseTimeout time.Duration
	// PingInterval is how often a silent WebSocket is pinged, and how long the
	// client has to answer.
	PingInterval time.Duration
	// Origins says which pages may open WebSockets: patterns of path.Match for
	// the Origin's host, or for scheme://host if they contain "://". "*" is
	// any page. Clients that are no browsers send no Origin and are let in, as
	// are pages of the very host that is asked.
	Origins []string
	// ShareBackends lets requests of all clients share the connections to a
	// backend. It must be off if these begin by naming their client, as with
	// the PROXY protocol: then there is one for each request.
	ShareBackends bool
	// BackendIdleTimeout bounds how long a connection to a backend that is
	// shared rests between two requests. It should be below the time after which
	// backends close theirs. 0 is 4 s, since Node.js closes after 5 s; below 0
	// no connection is kept.
	BackendIdleTimeout time.Duration
	// Describe has the Gate told of requests, and of their headers those in
	// DescribeHeaders, whose names are in canonical form. Clients that have proven nothing
	// take the memory for that.
	Describe        bool
	DescribeHeaders []string
	// StripPrefix is taken off the paths of requests, in their escaped form: it begins with
	// a slash and does not end with one. Empty: nothing is.
	StripPrefix string
	// BackendHost tells backends their own address as the Host, and not the client's word.
	BackendHost bool
	// Changes are for all requests; nil: none. The Gate's come after them.
	Changes *Changes
	// HealthPath, if it is not empty, is the path of requests for the server's own
	// health, where they bring no sealed address: they are answered 200, or 503 if
	// Unhealthy says so, or after Shutdown. Their Exchange is of the kind "health".
	HealthPath string
	Unhealthy  func() bool
	// Readable tells, without waiting, whether a read from a connection would
	// not block. It is asked before a kept connection to a backend is used: what
	// can be read then is its end. Nil is never.
	Readable func(net.Conn) bool
	// Broken returns why a client is gone, without reading from it, or nil. It is
	// asked once a second while a backend may take nothing of what a client
	// sends: nobody reads then. Nil is never.
	Broken func(net.Conn) error
	// Log gets what net/http has to tell; nil is slog.Default().
	Log *slog.Logger
}

// Server serves HTTP clients. Its methods may be called from any goroutine.
type Server struct {
	Options
	gate  Gate
	http  *http.Server
	proxy *httputil.ReverseProxy

	draining atomic.Bool // since Shutdown

	mu     sync.Mutex
	conns  map[*conn]struct{}
	closed bool
}

// NewServer returns a server. It must be closed.
func NewServer(gate Gate, o Options) *Server {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	s := &Server{Options: o, gate: gate, conns: make(map[*conn]struct{})}
	errorLog := log.New(errorLog{o.Log}, "", 0)
	s.proxy = newProxy(errorLog, &o)
	s.http = &http.Server{
		Handler: http.HandlerFunc(handle),
		// The bounds of a head and of a rest are kept by intake.go.
		MaxHeaderBytes: o.HeaderMax,
		ErrorLog:       errorLog,
		// "OPTIONS *" needs an address like any other request.
		DisableGeneralOptionsHandler: true,
		Protocols:                    new(http.Protocols),
		BaseContext: func(ln net.Listener) context.Context {
			c := ln.(*listener).conn
			return context.WithValue(c.ctx, connKey{}, c)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			c.(interface{ base() *conn }).base().setState(state)
		},
	}
	s.http.Protocols.SetHTTP1(true)
	return s
}

// ServeConn serves a connection, which it owns, and returns when it is closed
// and nothing is done for it any more. ctx is the base of the contexts that
// the Gate gets. The connection's RemoteAddr is what the backends are told
// about the client; if it has a ConnectionState method, as *tls.Conn has, they
// are told of https, and the TLS handshake must be finished.
//
// Where fixed is not nil, every request goes to that route, and none is asked
// for a sealed address; WebSockets are the backend's to speak then.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn, fixed *address.Route) {
	defer nc.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := newConn(ctx, cancel, s, nc, fixed)
	if !s.add(c) {
		return
	}
	defer s.remove(c)

	c.serve()
}

// Shutdown closes the connections that rest between requests, and the others
// after their request. WebSockets stay, and ServeConn still serves one request
// of each connection. It does not wait.
func (s *Server) Shutdown() {
	s.draining.Store(true)
	s.http.SetKeepAlivesEnabled(false)
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.drain()
	}
}

// Close ends all connections; WebSocket clients are told 1001. Connections
// that come later are closed. It does not wait: ServeConn returns soon.
func (s *Server) Close() {
	s.http.Close()
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.end()
	}
	s.mu.Unlock()
	s.proxy.Transport.(*transports).shared.CloseIdleConnections()
}

// add registers a connection; false means that the server is closed.
func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.conns[c] = struct{}{}
	}
	return !s.closed
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// errorLog takes the lines that net/http and httputil log. They tell of
// clients and backends that went away, except for one kind.
type errorLog struct{ log *slog.Logger }

func (l errorLog) Write(line []byte) (int, error) {
	level := slog.LevelDebug
	if bytes.HasPrefix(line, []byte("http: panic ")) {
		level = slog.LevelError
	}
	l.log.Log(context.Background(), level, "net/http", "text", string(bytes.TrimSpace(line)))
	return len(line), nil
}
