package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"gateway/internal/policy"
	"gateway/internal/web"
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
		attrs := make([]slog.Attr, 0, 10)
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
		attrs = appendVia(attrs, s)
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
	reason := err.Error()
	var re requestError
	switch {
	case de != nil:
		reason = de.reason
	case errors.As(err, &re):
		reason = string(re)
	}
	attrs := make([]slog.Attr, 0, 6)
	attrs = append(attrs,
		slog.String("client", s.client.String()),
		slog.String("status", string(st)))
	if s.backend.Port != 0 {
		attrs = append(attrs, slog.String("backend", s.backend.String()))
	}
	attrs = append(attrs, slog.String("reason", reason))
	if text := err.Error(); text != reason {
		attrs = append(attrs, slog.String("err", text))
	}
	attrs = appendVia(attrs, s)
	f.log.LogAttrs(context.Background(), level, msg, attrs...)
}

// accountExchange logs a request of an HTTP client.
func (f *frontend) accountExchange(s *session, e web.Exchange) {
	var (
		de     *dialError
		denial *policy.Denial
	)
	errors.As(e.Err, &de)
	if errors.As(e.Err, &denial) {
		f.denied.Add(1)
	}
	if !f.log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs,
		slog.String("client", s.client.String()),
		slog.String("method", e.Method),
		slog.Int("status", e.Status))
	if s.backend.Port != 0 {
		attrs = append(attrs, slog.String("backend", s.backend.String()))
	}
	if s.dialed != nil {
		attrs = append(attrs, slog.String("backend_ip", s.dialed.String()))
	}
	attrs = append(attrs,
		slog.Int64("up", e.Up),
		slog.Int64("down", e.Down),
		slog.Int64("duration_ms", e.Duration.Milliseconds()))
	switch {
	case de != nil:
		attrs = append(attrs, slog.String("reason", de.reason), slog.String("err", de.Error()))
	case e.Err != nil:
		attrs = append(attrs, slog.String("reason", e.Err.Error()))
	}
	if s.id != "" {
		attrs = append(attrs, slog.String("id", s.id))
	}
	via := e.Kind
	if s.secure {
		via += "+tls"
	}
	attrs = append(attrs, slog.String("via", via))
	f.log.LogAttrs(context.Background(), slog.LevelInfo, "request", attrs...)
}

// appendVia tells how the client came in, where that was not by a bare line.
func appendVia(attrs []slog.Attr, s *session) []slog.Attr {
	via := s.form.String()
	switch {
	case s.secure && s.form == formUnknown:
		via = "tls"
	case s.secure:
		via += "+tls"
	case s.kcp:
		via += "+kcp"
	case s.form == formUnknown, s.form == formLine, s.form == formForward:
		return attrs
	}
	return append(attrs, slog.String("via", via))
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
