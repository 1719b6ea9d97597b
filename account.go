package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"gateway/internal/policy"
)

// The log has one line for each connection. It never holds a secret, a sealed
// line, or plaintext that is not a valid address.

// account logs a finished tunnel.
func (f *frontend) account(s *session, end tunnelEnd) {
	defer f.finish(s)
	if end.how == howShutdown {
		f.cut.Add(1)
	}
	end.up = max(0, end.up-int64(s.preface))
	if f.log.Enabled(context.Background(), slog.LevelInfo) {
		attrs := make([]slog.Attr, 0, 9)
		attrs = append(attrs,
			slog.String("client", s.client.String()),
			slog.String("backend", s.backend.String()))
		if s.dialed != nil {
			attrs = append(attrs, slog.String("backend_ip", s.dialed.String()))
		}
		attrs = append(attrs,
			slog.Int64("up", end.up),
			slog.Int64("down", end.down),
			slog.Int64("duration_ms", time.Since(s.accepted).Milliseconds()),
			slog.String("ended_by", end.by),
			slog.String("how", end.how))
		if s.id != "" {
			attrs = append(attrs, slog.String("id", s.id))
		}
		f.log.LogAttrs(context.Background(), slog.LevelInfo, "tunnel", attrs...)
	}
}

// accountRefused logs a request that came to no tunnel.
func (f *frontend) accountRefused(s *session, st status, err error) {
	var (
		de     *dialError
		denial *policy.Denial
	)
	errors.As(err, &de)
	if errors.As(err, &denial) {
		f.denied.Add(1)
	}
	level, msg := slog.LevelInfo, "refused"
	if err == errEmpty {
		level, msg = slog.LevelDebug, "no request" // a health check most of the time
	}
	if !f.log.Enabled(context.Background(), level) {
		return
	}
	attrs := make([]slog.Attr, 0, 5)
	attrs = append(attrs,
		slog.String("client", s.client.String()),
		slog.String("status", string(st)))
	if s.backend.Port != 0 {
		attrs = append(attrs, slog.String("backend", s.backend.String()))
	}
	if de != nil {
		attrs = append(attrs, slog.String("reason", de.reason), slog.String("err", de.Error()))
	} else {
		attrs = append(attrs, slog.String("reason", err.Error()))
	}
	f.log.LogAttrs(context.Background(), level, msg, attrs...)
}

// warnCannotAccept tells of a listener's failure, once in 10 s for all of them.
func (f *frontend) warnCannotAccept(err error, delay time.Duration) {
	now := time.Now().UnixNano()
	last := f.warnedAccept.Load()
	if now-last >= int64(10*time.Second) && f.warnedAccept.CompareAndSwap(last, now) {
		f.log.Warn("cannot accept, trying again", "err", err, "delay", delay.String())
	}
}

// logPanic logs what recover returned, with the stack that it came from.
func logPanic(log *slog.Logger, v any) {
	log.Error("panic", "value", fmt.Sprint(v), "stack", string(debug.Stack()))
}
