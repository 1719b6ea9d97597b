package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"syscall"
	"time"
)

// startPprof serves net/http/pprof on addr until stop is called. at is where it
// listens.
func startPprof(addr string, log *slog.Logger) (at net.Addr, stop func(), err error) {
	ln, err := net.Listen(networkOf("tcp", addr), addr)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("%w (stop who uses it, or give each process a -pprof of its own: -reuse=1 does not share it)", err)
		}
		return nil, nil, fmt.Errorf("-pprof: %w", err)
	}
	srv := &http.Server{
		Handler:           pprofMux(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	go srv.Serve(ln)
	log.Info("pprof is on", "url", fmt.Sprintf("http://%s/debug/pprof/", ln.Addr()))
	return ln.Addr(), func() { srv.Close() }, nil
}

// pprofMux has every handler of net/http/pprof but cmdline, which would show
// the value of -secret. The import puts that one on http.DefaultServeMux; no
// server here uses it.
func pprofMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index) // and the named profiles
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
