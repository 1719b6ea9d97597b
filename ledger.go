package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gateway/internal/handshake"
	"gateway/internal/policy"
	"gateway/internal/proxyheader"
	"gateway/internal/relay"
	"gateway/internal/resume/owner"
	"gateway/internal/web"
)

// ledger keeps account of connections: who is served, the log, the counters,
// the names under which backends know them. It outlives any rules. Its methods
// may be called from any goroutine.
//
// The log has one line for each connection. It never holds a secret, a sealed
// line, or plaintext that is not a valid address.
type ledger struct {
	log     *slog.Logger
	serving sync.WaitGroup // connections, from begin to done
	cut     atomic.Int64   // tunnels ended by Close
	denied  atomic.Int64   // clients whose backend the policy forbids

	idPrefix string        // random, of this process
	lastID   atomic.Uint64 // see newID

	start        time.Time
	warnedAccept atomic.Int64 // when, in nanoseconds since start; 0: never
}

func newLedger(log *slog.Logger) *ledger {
	return &ledger{log: log, idPrefix: strings.ToLower(rand.Text()[:12]), start: time.Now()}
}

// begin counts a connection among those that are served, until done. It must
// not be called once wait has returned.
func (l *ledger) begin() { l.serving.Add(1) }

// done ends a connection's part in being served. Only its first call counts.
func (l *ledger) done(s *session, u *upstream) {
	if !s.done {
		s.done = true
		u.release()
		l.serving.Done()
	}
}

// wait waits until all connections are done.
func (l *ledger) wait() { l.serving.Wait() }

// ended accounts for a finished tunnel.
func (l *ledger) ended(s *session, u *upstream, end relay.End) {
	defer l.done(s, u)
	if end.How == relay.Shutdown {
		l.cut.Add(1)
	}
	if !l.log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	attrs := make([]slog.Attr, 0, 10)
	attrs = append(attrs,
		slog.String("client", s.client.String()),
		slog.String("backend", u.backend.String()))
	if u.dialed != nil {
		attrs = append(attrs, slog.String("backend_ip", u.dialed.String()))
	}
	attrs = append(attrs,
		slog.Int64("up", max(0, end.Up-int64(u.preface))),
		slog.Int64("down", end.Down),
		slog.Int64("duration_ms", time.Since(s.accepted).Milliseconds()),
		slog.String("ended_by", end.By.String()),
		slog.String("how", end.How.String()))
	if u.id != "" {
		attrs = append(attrs, slog.String("id", u.id))
	}
	if s.resumes != "" {
		attrs = append(attrs, slog.String("session", s.resumes))
	}
	attrs = appendVia(attrs, s)
	l.log.LogAttrs(context.Background(), slog.LevelInfo, "tunnel", attrs...)
}

// resumed tells of a client that goes on with its tunnel by another connection. It is
// the end of this connection's account: the tunnel has one.
func (l *ledger) resumed(s *session, id string, how owner.Resumed) {
	defer l.done(s, &upstream{})
	if !l.log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	attrs := []slog.Attr{
		slog.String("client", s.client.String()),
		slog.String("session", id),
		slog.String("before", how.Before.String()),
		slog.Int("resumes", how.Count),
		slog.Int64("detached_ms", how.Stall.Milliseconds()),
	}
	l.log.LogAttrs(context.Background(), slog.LevelInfo, "resumed", appendVia(attrs, s)...)
}

// refused accounts for a request that came to no tunnel. st is what the client
// was told. It is not the end of the connection: see done.
func (l *ledger) refused(s *session, u *upstream, st handshake.Status, err error) {
	l.countDenied(err)
	level, msg := slog.LevelInfo, "refused"
	if err == errEmpty {
		level, msg = slog.LevelDebug, "no request" // a health check most of the time
	}
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	attrs := make([]slog.Attr, 0, 6)
	attrs = append(attrs,
		slog.String("client", s.client.String()),
		slog.String("status", string(st)))
	if u.backend.Port != 0 {
		attrs = append(attrs, slog.String("backend", u.backend.String()))
	}
	reason := refusalOf(err).reason
	attrs = append(attrs, slog.String("reason", reason))
	if text := err.Error(); text != reason {
		attrs = append(attrs, slog.String("err", text))
	}
	attrs = appendVia(attrs, s)
	l.log.LogAttrs(context.Background(), level, msg, attrs...)
}

// exchanged accounts for a request of an HTTP client.
func (l *ledger) exchanged(s *session, u *upstream, e web.Exchange) {
	l.countDenied(e.Err)
	if !l.log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs,
		slog.String("client", s.client.String()),
		slog.String("method", e.Method),
		slog.Int("status", e.Status))
	if u.backend.Port != 0 {
		attrs = append(attrs, slog.String("backend", u.backend.String()))
	}
	if u.dialed != nil {
		attrs = append(attrs, slog.String("backend_ip", u.dialed.String()))
	}
	attrs = append(attrs,
		slog.Int64("up", e.Up),
		slog.Int64("down", e.Down),
		slog.Int64("duration_ms", e.Duration.Milliseconds()))
	if e.Err != nil {
		why := refusalOf(e.Err)
		attrs = append(attrs, slog.String("reason", why.reason))
		if text := why.Error(); text != why.reason {
			attrs = append(attrs, slog.String("err", text))
		}
	}
	if u.id != "" {
		attrs = append(attrs, slog.String("id", u.id))
	}
	via := e.Kind
	if s.secure {
		via += "+tls"
	}
	attrs = append(attrs, slog.String("via", via))
	l.log.LogAttrs(context.Background(), slog.LevelInfo, "request", attrs...)
}

// appendVia tells how the client came in, where that was not by a bare line.
func appendVia(attrs []slog.Attr, s *session) []slog.Attr {
	via := s.form.String()
	switch {
	case s.secure && s.form == handshake.Unknown:
		via = "tls"
	case s.secure:
		via += "+tls"
	case s.kcp:
		via += "+kcp"
	case s.form == handshake.Unknown, s.form == handshake.Line, s.form == handshake.Forward:
		return attrs
	}
	return append(attrs, slog.String("via", via))
}

func (l *ledger) countDenied(err error) {
	var denial *policy.Denial
	if errors.As(err, &denial) {
		l.denied.Add(1)
	}
}

// announce returns what goes to the backend before anything else: the PROXY
// header of the given version, if there is to be one, and what the client has
// sent early. local is the socket's own address.
func (l *ledger) announce(version int, s *session, u *upstream, local netip.AddrPort, early []byte) []byte {
	if version == 0 {
		return early
	}
	if s.local.IsValid() {
		local = s.local
	}
	if version == 2 {
		u.id = l.newID()
	}
	b, err := proxyheader.Append(make([]byte, 0, 128+len(early)), version,
		proxyheader.Header{Source: s.client, Destination: local, UniqueID: u.id, Hops: s.hops + 1})
	if err != nil { // only for a bug: both addresses are a socket's
		l.log.Error("cannot make a PROXY header", "client", s.client.String(), "err", err)
		return early
	}
	u.preface = int32(len(b))
	return append(b, early...)
}

// newID returns a name for a connection that no other connection of any
// gateway has.
func (l *ledger) newID() string {
	return l.idPrefix + "-" + strconv.FormatUint(l.lastID.Add(1), 16)
}

// warnCannotAccept tells of a listener's failure, once in 10 s for all of them.
func (l *ledger) warnCannotAccept(err error, delay time.Duration) {
	// By the monotonic clock: one that is set back would silence it.
	now := int64(time.Since(l.start))
	last := l.warnedAccept.Load()
	if (last == 0 || now-last >= int64(10*time.Second)) && l.warnedAccept.CompareAndSwap(last, now) {
		l.log.Warn("cannot accept, trying again", "err", err, "delay", delay.String())
	}
}

// panicked logs what recover returned, with the stack that it came from.
func (l *ledger) panicked(v any) {
	l.log.Error("panic", "value", fmt.Sprint(v), "stack", string(debug.Stack()))
}
