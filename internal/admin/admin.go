// Package admin serves the address from which an operator sees and changes what a
// server does: metrics, health, live connections. It knows nothing of that server
// but what its Source tells.
//
// Everybody who reaches the address may look. Only who is at the Unix socket, which
// has the mode 0600, or has the token may change anything.
package admin

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// Source is what is asked of the server. Its methods are called from any goroutine.
type Source interface {
	// Alive returns why nothing can be served at all, or nil. ctx bounds the wait.
	Alive(ctx context.Context) error
	// Unready returns why no new clients should be sent here, in a few words;
	// nothing if they may come.
	Unready() string
	// Status tells how all is. Of the limits of the process it leaves out what this
	// package finds out itself: the descriptors.
	Status() Status
	// Tunnels calls yield for the live tunnels that a query is for, in the order
	// of their ids, until it returns false. yield does not keep the Tunnel. more
	// tells whether there are others behind the last.
	Tunnels(ctx context.Context, q Query, yield func(*Tunnel) bool) (more bool, err error)
	// Cut ends the tunnels of a filter and returns how many those were.
	Cut(ctx context.Context, f Filter) (int, error)
	// Drain says whether new clients should be sent elsewhere; those that come are
	// served all the same.
	Drain(on bool)
	// SetLogLevel says what is logged from now on.
	SetLogLevel(slog.Level)
	// Reload takes up settings that have changed; an error says why all is as it was.
	Reload() error
}

// Options say how a Server serves.
type Options struct {
	// Token is what a client by TCP has to bring to change anything; empty: none may.
	Token string
	// Page makes what serves "/", and what serves /api/events, to which that may
	// listen; nil: there is neither. status tells how all is; ctx ends with the server.
	Page    func(ctx context.Context, status func() Status) (page, events http.Handler)
	Metrics *Metrics
	// Bans, if it is not nil, are listed, added and lifted.
	Bans Bans
	// Log is told of every change, and who asked for it.
	Log *slog.Logger
}

// The bounds of an exchange. What streams may take longer.
const (
	headTimeout  = 5 * time.Second
	readTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second
	idleTimeout  = time.Minute
	headMax      = 16 << 10 // bytes
)

// Serve serves on ln, which it owns, until stop is called. It returns at once.
//
// Those whom it serves have until the end of stop's ctx.
func Serve(ln net.Listener, source Source, o Options) (stop func(ctx context.Context)) {
	s := &server{Options: o, source: withDescriptors{source}, lists: make(chan struct{}, maxLists)}
	ctx, cancel := context.WithCancel(context.Background())
	srv := &http.Server{
		Handler:           s.routes(ctx),
		ReadHeaderTimeout: headTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headMax,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		ConnContext:       rememberPeer,
		Protocols:         new(http.Protocols),
	}
	srv.Protocols.SetHTTP1(true)
	end := serveUntilStopped(srv, newLimited(ln))
	return func(ctx context.Context) {
		cancel()
		end(ctx)
	}
}

// serveUntilStopped returns what stops a server. Its Shutdown would close connections
// whose request it has just read (net/http's conn.serve); here all requests are answered
// that have come when ctx ends, since another process goes on at the same address.
func serveUntilStopped(srv *http.Server, ln net.Listener) (stop func(ctx context.Context)) {
	var open atomic.Int64
	srv.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed, http.StateHijacked:
			open.Add(-1)
		}
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		srv.Serve(ln)
	}()
	return func(ctx context.Context) {
		ln.Close()
		select {
		case <-served:
		case <-ctx.Done(): // no place is free, so nobody accepts
		}
		srv.SetKeepAlivesEnabled(false)
		look := time.NewTicker(2 * time.Millisecond)
		defer look.Stop()
		for open.Load() > 0 && ctx.Err() == nil {
			select {
			case <-look.C:
			case <-ctx.Done():
			}
		}
		srv.Close()
	}
}

// withDescriptors is a Source that knows of the descriptors of the process.
type withDescriptors struct{ Source }

func (s withDescriptors) Status() Status {
	st := s.Source.Status()
	open, limit := descriptors()
	st.Limits.Descriptors = Use{int64(open), int64(limit)}
	return st
}

// server answers requests.
type server struct {
	Options
	source Source
	lists  chan struct{} // those that are being made
}

func (s *server) routes(ctx context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /readyz", s.readyz)
	if s.Metrics != nil {
		mux.Handle("GET /metrics", s.Metrics.handler(s.source, s.Log))
	}
	mux.Handle("/api/status", onlyGET(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, s.source.Status())
	})))
	mux.Handle("/api/tunnels", onlyGET(http.HandlerFunc(s.tunnels)))
	changes := map[string]change{
		"/api/tunnels/cut": s.cut,
		"/api/drain":       s.drain(true),
		"/api/undrain":     s.drain(false),
		"/api/log-level":   s.logLevel,
		"/api/reload":      s.reload,
	}
	if s.Bans != nil {
		mux.HandleFunc("GET /api/bans", s.bans)
		changes["/api/bans"], changes["/api/bans/lift"] = s.ban, s.lift
	}
	for path, do := range changes {
		mux.HandleFunc("POST "+path, s.change(do))
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Allow", "POST")
			fail(w, http.StatusMethodNotAllowed, "POST changes something, and nothing else does")
		})
	}
	mux.HandleFunc("/api/", func(w http.ResponseWriter, _ *http.Request) {
		fail(w, http.StatusNotFound, "there is no such path")
	})
	if s.Page != nil {
		page, events := s.Page(ctx, s.source.Status)
		mux.Handle("/", onlyGET(page))
		mux.Handle("/api/events", onlyGET(unbounded(events)))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, r)
	})
}

// onlyGET is for what has no other methods.
func onlyGET(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			fail(w, http.StatusMethodNotAllowed, "there is nothing but GET here")
			return
		}
		h.ServeHTTP(w, r)
	})
}

// unbounded lifts the bounds of time from what goes on for long.
func unbounded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.SetReadDeadline(time.Time{}) // whose end would end the request
		rc.SetWriteDeadline(time.Time{})
		h.ServeHTTP(w, r)
	})
}

// aliveTimeout is how long a server that works takes at most to say so.
const aliveTimeout = 5 * time.Second

func (s *server) healthz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), aliveTimeout)
	defer cancel()
	if err := s.source.Alive(ctx); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "ok\n")
}

func (s *server) readyz(w http.ResponseWriter, _ *http.Request) {
	if why := s.source.Unready(); why != "" {
		http.Error(w, why, http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "ready\n")
}

// answer writes a JSON object.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// problem is the answer to a request that fails.
type problem struct {
	Error string `json:"error"`
}

func fail(w http.ResponseWriter, status int, why string) { answer(w, status, problem{why}) }
