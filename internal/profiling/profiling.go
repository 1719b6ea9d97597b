// Package profiling serves net/http/pprof.
package profiling

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// Serve serves net/http/pprof on ln, which it owns, until stop is called; those
// whom it serves have until the end of ctx then. It returns at once.
func Serve(ln net.Listener, log *slog.Logger) (stop func(ctx context.Context)) {
	srv := &http.Server{
		Handler:           mux(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	go srv.Serve(ln)
	return func(ctx context.Context) {
		if srv.Shutdown(ctx) != nil {
			srv.Close()
		}
	}
}

// mux has every handler of net/http/pprof but cmdline, which would show the
// secrets among the program's arguments. The import puts that one on
// http.DefaultServeMux, which nobody is to serve.
func mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index) // and the named profiles
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
