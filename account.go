package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"gateway/internal/address"
)

// The log has one line for each connection. It never holds a secret, a sealed
// line, or plaintext that is not a valid address.

// account logs a finished tunnel.
func (g *Gateway) account(client, backend net.Conn, addr address.Address, accepted time.Time, end tunnelEnd) {
	attrs := []slog.Attr{
		slog.String("client", client.RemoteAddr().String()),
		slog.String("backend", addr.String()),
	}
	if !addr.IP.IsValid() { // a name: say which of its addresses
		attrs = append(attrs, slog.String("backend_ip", backend.RemoteAddr().String()))
	}
	attrs = append(attrs,
		slog.Int64("up", end.up),
		slog.Int64("down", end.down),
		slog.Int64("duration_ms", time.Since(accepted).Milliseconds()),
		slog.String("ended_by", end.by),
		slog.String("how", end.how),
	)
	if end.how == howShutdown {
		g.cut.Add(1)
	}
	g.log.LogAttrs(context.Background(), slog.LevelInfo, "tunnel", attrs...)
}

// accountRefused logs a request that came to no tunnel. addr is nil unless an
// address was opened.
func (g *Gateway) accountRefused(client net.Conn, s status, err error, addr *address.Address) {
	level, msg := slog.LevelInfo, "refused"
	if err == errEmpty {
		level, msg = slog.LevelDebug, "no request" // a health check most of the time
	}
	attrs := []slog.Attr{
		slog.String("client", client.RemoteAddr().String()),
		slog.String("status", string(s)),
	}
	if addr != nil {
		attrs = append(attrs, slog.String("backend", addr.String()))
	}
	if de, ok := err.(*dialError); ok {
		attrs = append(attrs, slog.String("reason", de.reason), slog.String("err", de.Error()))
	} else {
		attrs = append(attrs, slog.String("reason", err.Error()))
	}
	g.log.LogAttrs(context.Background(), level, msg, attrs...)
}

// logPanic logs what recover returned, with the stack that it came from.
func logPanic(log *slog.Logger, v any) {
	log.Error("panic", "value", fmt.Sprint(v), "stack", string(debug.Stack()))
}
