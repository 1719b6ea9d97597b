package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gateway/internal/address"
	"gateway/internal/admin"
	"gateway/internal/count"
	"gateway/internal/handshake"
	"gateway/internal/kcp"
	"gateway/internal/limit"
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
	served  atomic.Int64   // how many of them there are
	cut     atomic.Int64   // tunnels ended by Close
	denied  atomic.Int64   // clients whose backend the policy forbids

	tally

	admission

	idPrefix string        // random, of this process
	lastID   atomic.Uint64 // see name

	start        time.Time
	warnedAccept atomic.Int64 // when, in nanoseconds since start; 0: never
	failedAccept atomic.Int64 // the same for the last failure
}

func newLedger(log *slog.Logger) *ledger {
	bans := new(limit.Bans)
	return &ledger{
		log: log, tally: newTally(), idPrefix: strings.ToLower(rand.Text()[:12]), start: time.Now(),
		admission: admission{bans: bans, limiter: limit.New(bans), away: limit.NewTally(log)},
	}
}

// hold has clients to come held to the limits of a configuration. descriptors is for
// how many connections they suffice, 0 for any number.
func (l *ledger) hold(cfg *Config, descriptors int32) {
	l.byDescriptors.Store(descriptors)
	most := int32(cfg.MaxConns)
	if most == 0 || descriptors > 0 && descriptors < most {
		most = descriptors
	}
	l.conns.Bound(int(most))
	l.bans.SetRule(cfg.Ban)
	l.limiter.Set(cfg.limits())
}

// holdApart has clients of a listener to come held to limits of its own, and counts
// them apart.
func (l *ledger) holdApart(by *entrance, own *clientLimits) {
	by.conns.Bound(own.MaxConns)
	limiter := limit.New(l.bans)
	limiter.Set(own.limits())
	by.limiter.Store(limiter)
}

// holdAll has clients to come held to what listeners have of their own in a new
// configuration. What is counted stays, but where a listener has begun to have its own.
func (l *ledger) holdAll(list []listening) {
	for _, by := range l.allEntrances() {
		for _, e := range list {
			if e.addr != by.at || e.kcp != (by.kcp != nil) {
				continue
			}
			limiter := by.limiter.Load()
			switch {
			case e.own == nil:
				by.conns.Bound(0)
				by.limiter.Store(l.limiter)
			case limiter == l.limiter:
				l.holdApart(by, e.own)
			default:
				by.conns.Bound(e.own.MaxConns)
				limiter.Set(e.own.limits())
			}
		}
	}
}

// begin counts a connection among those that are served, until done. It must
// not be called once wait has returned.
func (l *ledger) begin() {
	l.serving.Add(1)
	l.served.Add(1)
}

// open returns how many connections are served.
func (l *ledger) open() int64 { return l.served.Load() }

// entrance returns a listener as its connections know it.
func (l *ledger) entrance(ln net.Listener, forward *address.Route) *entrance {
	by := &entrance{name: ln.Addr().String(), forward: forward}
	leads := 0
	if forward != nil {
		leads = forward.Len()
	}
	if k, ok := ln.(interface{ Stats() kcp.Stats }); ok {
		by.name, by.kcp = "kcp://"+by.name, k.Stats
	}
	for i := range leads {
		l.backends.Of(forward.Target(i).Addr)
	}
	by.limiter.Store(l.limiter)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entrances = append(l.entrances, by)
	return by
}

// arrived gives a connection that has begun its number.
func (l *ledger) arrived(s *session, by *entrance) {
	s.entrance, s.number, s.reserved = by, l.lastID.Add(1), true
	by.accepted.Add(1)
}

// admit asks the limits whether a client that has arrived may be served. For whom a
// trusted proxy speaks is not known before its header; see rules.believe.
func (l *ledger) admit(s *session) error {
	if s.anonymous {
		return nil
	}
	return s.admit(s.accepted)
}

// turnedAway accounts for a client that a limit does not let in. There is no line for
// it alone.
func (l *ledger) turnedAway(s *session, err error) {
	why := limitOf(err)
	l.away.Refused(why, s.client.Addr())
	if !s.counted {
		l.became(s, "")
		l.refusals.Add(why.String(), 1)
	}
}

// timings are distributions of durations. Zero ones take nothing, and cost no look at
// a clock.
type timings struct{ handshake, dial, firstByte *admin.Histogram }

// asked accounts for a client that has said where it wants to go.
func (l *ledger) asked(s *session) {
	if l.times.handshake != nil && s.asks() {
		l.times.handshake.Observe(time.Since(s.accepted))
	}
}

// dialing accounts for the beginning of an attempt to connect a backend.
func (l *ledger) dialing(u *upstream) {
	if l.times.dial != nil {
		u.began = time.Since(l.start)
	}
}

// opened accounts for the beginning of a tunnel, whose client is told so.
func (l *ledger) opened(s *session, u *upstream) {
	l.became(s, handshake.OK)
	l.prefaced.Add(int64(u.preface))
	if b := l.backendOf(s, u); b != nil {
		b.opened.Add(1)
	}
}

// adopted begins to account for a tunnel that another process has accounted for so
// far, and that has been counted in by begin. Its client came by a listener of this
// name.
func (l *ledger) adopted(s *session, u *upstream, listener string) {
	s.entrance, s.number, s.counted = l.entranceOf(listener), l.lastID.Add(1), true
	l.reserveBeyond(s.entrance)
	s.reserved = true
	if limiter := s.entrance.limiter.Load(); limiter != nil {
		s.place = limiter.Hold(s.client.Addr())
	}
	l.moved.Add(1)
	if b := l.backendOf(s, u); b != nil {
		b.opened.Add(1)
	}
}

// entranceOf returns the listener of that name, or what stands for one that there is
// not any more.
func (l *ledger) entranceOf(name string) *entrance {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, by := range l.entrances {
		if by.name == name {
			return by
		}
	}
	by := &entrance{name: name}
	by.limiter.Store(l.limiter)
	return by
}

// departed leaves it to another process to account for a tunnel from here on.
func (l *ledger) departed(s *session, u *upstream) {
	l.moved.Add(-1)
	if b := l.backendOf(s, u); b != nil {
		b.ended.Add(1)
	}
	l.done(s, u)
}

// dialed accounts for an attempt to connect a backend; why is nil where that went
// well.
func (l *ledger) dialed(s *session, u *upstream, why *refusal) {
	u.tries = min(u.tries+1, maxCountedTries)
	k := dialResult{"ok", int(u.tries)}
	if why == nil && l.times.dial != nil {
		l.times.dial.Observe(time.Since(l.start) - u.began)
	}
	if why != nil {
		k.result = reasonWord(why)
		if b := l.backendOf(s, u); b != nil && why.blamesBackend {
			b.failed.Add(1)
		}
	}
	l.dials.Add(k, 1)
}

// backendOf returns the counters of a connection's backend, if it is one that no
// client can choose: of a listener that forwards, or of a service.
func (l *ledger) backendOf(s *session, u *upstream) *backendCounters {
	if s.forward == nil && (u.choice == nil || !u.choice.service) {
		return nil
	}
	b, _ := l.backends.Of(u.backend)
	return b
}

// handshaken accounts for a TLS handshake. It asks for the large ConnectionState
// itself: the stack of a client that shakes hands has no room for one.
func (l *ledger) handshaken(c *tls.Conn, err error) {
	k := tlsResult{"none", "ok"}
	if version := c.ConnectionState().Version; version != 0 {
		k.version = strings.TrimPrefix(tls.VersionName(version), "TLS ")
	}
	if err != nil {
		k.result = "failed"
	}
	l.handshakes.Add(k, 1)
}

// misbehaved tells the limits of a refused client.
func (l *ledger) misbehaved(s *session, err error, st handshake.Status) {
	if s.misbehaved(err, st) {
		l.log.Warn("client banned", "client", s.client.Addr().String(), "rule", l.bans.Rule().String())
	}
}

// done ends a connection's part in being served. Only its first call counts.
func (l *ledger) done(s *session, u *upstream) {
	if !s.done {
		s.done = true
		if s.number != 0 && !s.counted { // a bug has ended it
			l.became(s, "")
			l.refusals.Add(errInternal.reason, 1)
		}
		u.release()
		l.served.Add(-1)
		s.place.Release()
		if s.reserved {
			l.unreserve(s.entrance)
		}
		l.serving.Done()
	}
}

// wait waits until all connections are done.
func (l *ledger) wait() { l.serving.Wait() }

// ended accounts for a finished tunnel.
func (l *ledger) ended(s *session, u *upstream, end relay.End) {
	defer l.done(s, u)
	l.ends.Add(ending{end.Ending, end.Limit}, 1)
	l.prefaced.Add(min(0, end.Up-int64(u.preface)))
	if b := l.backendOf(s, u); b != nil {
		b.ended.Add(1)
	}
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

// resumedStatus counts connections by which clients have come back to their tunnels. They
// are told 200, and are no tunnels of their own.
const resumedStatus = "resumed"

// resumed tells of a client that goes on with its tunnel by another connection. It is
// the end of this connection's account: the tunnel has one.
func (l *ledger) resumed(s *session, id string, how owner.Resumed) {
	defer l.done(s, &upstream{})
	if !s.counted { // where it came by another gateway, that one has
		l.became(s, resumedStatus)
	}
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
	l.misbehaved(s, err, st)
	if !s.counted {
		l.became(s, st)
		l.refusals.Add(reasonWord(err), 1)
		if err != errEmpty {
			l.remember(s, u, string(st), err)
		}
	}
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
	l.requests.Add(answered{e.Kind, e.Status}, 1)
	level := slog.LevelInfo
	if e.Kind == "health" {
		level = slog.LevelDebug
	}
	l.bodiesUp.Add(e.Up)
	l.bodiesDown.Add(e.Down)
	if e.Err != nil {
		l.misbehaved(s, e.Err, handshake.Status(strconv.Itoa(e.Status)))
		l.requestRefusals.Add(reasonWord(e.Err), 1)
		l.remember(s, u, strconv.Itoa(e.Status), e.Err)
	}
	if !l.log.Enabled(context.Background(), level) {
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
	l.log.LogAttrs(context.Background(), level, "request", attrs...)
}

// appendVia tells how the client came in, where that was not by a bare line.
func appendVia(attrs []slog.Attr, s *session) []slog.Attr {
	switch s.form {
	case handshake.Unknown, handshake.Line, handshake.Forward:
		if !s.secure && !s.kcp {
			return attrs
		}
	}
	return append(attrs, slog.String("via", s.via()))
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
		u.id = l.name(s.number)
		if s.form == handshake.HTTP { // one of several that it asks for
			u.id = l.name(l.lastID.Add(1))
		}
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

// name returns the name of a connection by its number, which no other connection
// of any gateway has.
func (l *ledger) name(number uint64) string {
	return l.idPrefix + "-" + strconv.FormatUint(number, 16)
}

// number returns the number that a name is made of, if it is one of this process's.
func (l *ledger) number(name string) (n uint64, ok bool) {
	text, ok := strings.CutPrefix(name, l.idPrefix+"-")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 16, 64)
	return n, err == nil && n > 0
}

// warnCannotAccept tells of a listener's failure, once in 10 s for all of them.
func (l *ledger) warnCannotAccept(err error, delay time.Duration) {
	// By the monotonic clock: one that is set back would silence it.
	now := int64(time.Since(l.start))
	if err != errMaxConns && err != errListenerFull {
		l.failedAccept.Store(now)
	}
	last := l.warnedAccept.Load()
	if (last == 0 || now-last >= int64(10*time.Second)) && l.warnedAccept.CompareAndSwap(last, now) {
		l.log.Warn("cannot accept, trying again", "err", err, "delay", delay.String())
	}
}

// cannotAccept tells whether connections wait because accepting them fails: it is
// tried again every second at least.
func (l *ledger) cannotAccept() bool {
	last := l.failedAccept.Load()
	return last != 0 && int64(time.Since(l.start))-last < int64(2*time.Second)
}

// panicked logs what recover returned, with the stack that it came from.
func (l *ledger) panicked(v any) {
	l.log.Error("panic", "value", fmt.Sprint(v), "stack", string(debug.Stack()))
}

// tally counts what becomes of connections. Each that has arrived is, sooner or
// later, one outcome: a tunnel, a refusal, or the end of an HTTP connection.
type tally struct {
	mu        sync.Mutex
	entrances []*entrance

	outcomes        *count.Set[outcome]
	refusals        *count.Set[string]   // by reason
	ends            *count.Set[ending]   // of tunnels
	requests        *count.Set[answered] // of HTTP clients
	requestRefusals *count.Set[string]   // by reason
	prefaced        atomic.Int64         // bytes of ours that tunnels have moved
	moved           atomic.Int64         // tunnels that came from other processes, less those that went to them
	dials           *count.Set[dialResult]
	handshakes      *count.Set[tlsResult]
	backends        *count.Table[address.Address, backendCounters]
	recent          *count.Latest[refused] // nil: nobody looks
	times           timings

	bodiesUp, bodiesDown atomic.Int64 // bytes of those requests and of what answered them
}

// outcome is what became of a connection, as far as it is counted by that.
type outcome struct {
	by          *entrance
	form        handshake.Form
	secure, kcp bool
	status      handshake.Status // empty: nobody was there to read one
}

// reasonWord is the reason of an error in a word, "other" where it has none: what it
// says may be anything.
func reasonWord(err error) string {
	word, _, _ := strings.Cut(refusalOf(err).reason, ":")
	if strings.Trim(word, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return "other"
	}
	return word
}

// ending is how a tunnel ended.
type ending struct {
	relay.Ending
	limit relay.Limit
}

// answered is what became of an HTTP client's request.
type answered struct {
	kind   string // see web.Exchange
	status int
}

// refused is a connection or a request that was refused.
type refused struct {
	at             time.Time
	session        session
	backend        address.Address // zero: none was chosen
	status, reason string
}

// remember keeps a refusal for those who look.
func (t *tally) remember(s *session, u *upstream, status string, err error) {
	if t.recent != nil {
		t.recent.Add(refused{time.Now(), *s, u.backend, status, reasonWord(err)})
	}
}

// watched has times taken, and the last refusals remembered. It is called before there
// are connections.
func (t *tally) watched(m *admin.Metrics) {
	t.recent = count.NewLatest[refused](admin.MaxRecent)
	t.times = timings{m.Handshake, m.Dial, m.FirstByte}
}

// dialResult is what came of an attempt to connect a backend, and which of a
// connection it was.
type dialResult struct {
	result  string // ok, or the reason of a refusal
	attempt int    // from 1 to maxCountedTries
}

// maxCountedTries is the last attempt that is told from those after it.
const maxCountedTries = 4

type tlsResult struct{ version, result string }

// backendCounters are those of one backend.
type backendCounters struct{ opened, ended, failed atomic.Int64 }

// maxBackends bounds the backends that have counters of their own.
const maxBackends = 256

func newTally() tally {
	return tally{
		outcomes:        count.New(4096, outcome{}),
		refusals:        count.New(128, "other"),
		ends:            count.New(64, ending{Ending: relay.Ending{By: relay.Gateway, How: relay.Failure}}),
		requests:        count.New(256, answered{kind: "other"}),
		requestRefusals: count.New(128, "other"),
		dials:           count.New(256, dialResult{"other", 0}),
		handshakes:      count.New(16, tlsResult{"other", "other"}),
		backends:        count.NewTable[address.Address, backendCounters](maxBackends),
	}
}

// allEntrances returns all that there have been.
func (t *tally) allEntrances() []*entrance {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.entrances[:len(t.entrances):len(t.entrances)]
}

// became says what became of a connection. Only its first call counts.
func (t *tally) became(s *session, st handshake.Status) {
	if !s.counted {
		s.counted = true
		t.outcomes.Add(outcome{s.entrance, s.form, s.secure, s.kcp, st}, 1)
	}
}
