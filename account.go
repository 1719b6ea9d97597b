package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"time"

	"gateway/internal/address"
)

// session is what the account of a connection needs from its beginning.
type session struct {
	client   netip.AddrPort
	accepted time.Time
	backend  address.Address // zero until one is opened
	dialed   netip.AddrPort  // where the backend's name led to; zero for a literal
	finished bool
}

// peerOf returns the address of a connection's peer, IPv4-mapped ones as IPv4.
func peerOf(c *net.TCPConn) netip.AddrPort {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// The log has one line for each connection. It never holds a secret, a sealed
// line, or plaintext that is not a valid address.

// account logs a finished tunnel.
func (g *Gateway) account(s *session, end tunnelEnd) {
	if end.how == howShutdown {
		g.cut.Add(1)
	}
	if g.log.Enabled(context.Background(), slog.LevelInfo) {
		attrs := make([]slog.Attr, 0, 8)
		attrs = append(attrs,
			slog.String("client", s.client.String()),
			slog.String("backend", s.backend.String()))
		if s.dialed.IsValid() {
			attrs = append(attrs, slog.String("backend_ip", s.dialed.String()))
		}
		attrs = append(attrs,
			slog.Int64("up", end.up),
			slog.Int64("down", end.down),
			slog.Int64("duration_ms", time.Since(s.accepted).Milliseconds()),
			slog.String("ended_by", end.by),
			slog.String("how", end.how))
		g.log.LogAttrs(context.Background(), slog.LevelInfo, "tunnel", attrs...)
	}
	g.finish(s)
}

// accountRefused logs a request that came to no tunnel.
func (g *Gateway) accountRefused(s *session, st status, err error) {
	level, msg := slog.LevelInfo, "refused"
	if err == errEmpty {
		level, msg = slog.LevelDebug, "no request" // a health check most of the time
	}
	if !g.log.Enabled(context.Background(), level) {
		return
	}
	attrs := make([]slog.Attr, 0, 5)
	attrs = append(attrs,
		slog.String("client", s.client.String()),
		slog.String("status", string(st)))
	if s.backend.Port != 0 {
		attrs = append(attrs, slog.String("backend", s.backend.String()))
	}
	var de *dialError
	if errors.As(err, &de) {
		attrs = append(attrs, slog.String("reason", de.reason), slog.String("err", de.Error()))
	} else {
		attrs = append(attrs, slog.String("reason", err.Error()))
	}
	g.log.LogAttrs(context.Background(), level, msg, attrs...)
}

// warnCannotAccept tells of a listener's failure, once in 10 s for all of them.
func (g *Gateway) warnCannotAccept(err error, delay time.Duration) {
	now := time.Now().UnixNano()
	last := g.warnedAccept.Load()
	if now-last >= int64(10*time.Second) && g.warnedAccept.CompareAndSwap(last, now) {
		g.log.Warn("cannot accept, trying again", "err", err, "delay", delay.String())
	}
}

// logPanic logs what recover returned, with the stack that it came from.
func logPanic(log *slog.Logger, v any) {
	log.Error("panic", "value", fmt.Sprint(v), "stack", string(debug.Stack()))
}
