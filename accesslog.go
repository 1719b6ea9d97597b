package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gateway/internal/address"
	"gateway/internal/admin"
	"gateway/internal/count"
	"gateway/internal/handshake"
	"gateway/internal/limit"
	"gateway/internal/policy"
	"gateway/internal/relay"
	"gateway/internal/resume/owner"
	"gateway/internal/web"
)

// timings are distributions of durations. Zero ones take nothing, and cost no look at
// a clock.
type timings struct{ handshake, dial, firstByte, stall *admin.Histogram }

// asked accounts for a client that has said where it wants to go.
func (a *account) asked(s *session) {
	if a.times.handshake != nil && s.asks() {
		a.times.handshake.Observe(time.Since(s.accepted))
	}
}

// dialing accounts for the beginning of an attempt to connect a backend.
func (a *account) dialing(u *upstream) {
	u.began = time.Since(a.start)
}

// opened accounts for the beginning of a tunnel, whose client is told so.
func (a *account) opened(s *session, u *upstream) {
	a.became(s, handshake.OK)
	a.countLabel(u)
	a.prefaced.Add(int64(u.preface))
	if b := a.backendOf(s, u); b != nil {
		b.opened.Add(1)
	}
	if level := a.openLevel(); a.enabled(level) {
		a.tell(level, "connected", a.lineOf(s, u).backend(u).dials(u).via(s))
	}
}

// dialed accounts for an attempt to connect a backend; why is nil where that went
// well.
func (a *account) dialed(s *session, u *upstream, why *refusal) {
	u.tries = uint8(min(int(u.tries)+1, math.MaxUint8))
	k := dialResult{"ok", min(int(u.tries), maxCountedTries)}
	took := time.Since(a.start) - u.began
	u.dialing += int32(min(took.Milliseconds(), math.MaxInt32-int64(u.dialing)))
	if why == nil && a.times.dial != nil {
		a.times.dial.Observe(took)
	}
	if why != nil {
		k.result = reasonWord(why)
		if b := a.backendOf(s, u); b != nil && why.blamesBackend {
			b.failed.Add(1)
		}
	}
	a.dials.Add(k, 1)
}

// backendOf returns the counters of a connection's backend, if it is one that no
// client can choose: of a listener that forwards, or of a service.
func (a *account) backendOf(s *session, u *upstream) *backendCounters {
	if s.forward == nil && (u.choice == nil || !u.choice.service) {
		return nil
	}
	b, _ := a.backends.Of(u.backend)
	return b
}

// handshaken accounts for a TLS handshake. It asks for the large ConnectionState
// itself: the stack of a client that shakes hands has no room for one.
func (a *account) handshaken(c *tls.Conn, err error) {
	k := tlsResult{"none", "ok"}
	if version := c.ConnectionState().Version; version != 0 {
		k.version = strings.TrimPrefix(tls.VersionName(version), "TLS ")
	}
	if err != nil {
		k.result = "failed"
	}
	a.handshakes.Add(k, 1)
}

// name returns the name of a connection by its number, which no other connection
// of any gateway has.
func (a *account) name(number uint64) string {
	return a.idPrefix + "-" + strconv.FormatUint(number, 16)
}

// number returns the number that a name is made of, if it is one of this process's.
func (a *account) number(name string) (n uint64, ok bool) {
	text, ok := strings.CutPrefix(name, a.idPrefix+"-")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 16, 64)
	return n, err == nil && n > 0
}

// id returns the name of a connection: what its backend was told, or another process has
// called it, if there was that.
func (a *account) id(s *session, u *upstream) string {
	if u.id != "" || s.number == 0 {
		return u.id
	}
	return a.name(s.number)
}

// line is a line of the log about a connection.
type line []slog.Attr

// lineOf begins a line with what all have.
func (a *account) lineOf(s *session, u *upstream) line {
	l := make(line, 0, 22)
	l = append(l, slog.String("id", a.id(s, u)), slog.String("client", s.client.String()))
	if name := s.entranceName(); name != "" {
		l = append(l, slog.String("listener", name))
	}
	return l
}

// backend names the backend, if one was chosen, and where its name led to.
func (l line) backend(u *upstream) line {
	if u.backend.Port != 0 {
		l = append(l, slog.String("backend", u.backend.String()))
	}
	if u.dialed != nil {
		l = append(l, slog.String("backend_ip", u.dialed.String()))
	}
	if u.label != "" {
		l = append(l, slog.String("label", u.label))
	}
	return l
}

// dials tells what it took to get the backend.
func (l line) dials(u *upstream) line {
	if u.tries > 0 {
		l = append(l, slog.Int64("dial_ms", int64(u.dialing)), slog.Int("attempts", int(u.tries)))
	}
	if u.choice != nil && len(u.choice.failed) > 0 {
		l = append(l, slog.String("failed", strings.Join(u.choice.failed, ",")))
	}
	return l
}

// why tells the reason of a refusal.
func (l line) why(err error) line {
	why := refusalOf(err)
	l = append(l, slog.String("reason", why.reason))
	if text := err.Error(); text != why.reason {
		l = append(l, slog.String("err", text))
	}
	return l
}

// via tells how the client came in, where that was not by a bare line.
func (l line) via(s *session) line {
	switch s.form {
	case handshake.Unknown, handshake.Line, handshake.Forward:
		if !s.secure && !s.kcp {
			return l
		}
	}
	return append(l, slog.String("via", s.via()))
}

func (a *account) enabled(level slog.Level) bool { return a.log.Enabled(context.Background(), level) }

func (a *account) tell(level slog.Level, msg string, l line) {
	a.log.LogAttrs(context.Background(), level, msg, l...)
}

// openLevel is the level of the line for the beginning of a tunnel.
func (a *account) openLevel() slog.Level {
	if a.logOpen.Load() {
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// tunnelEnded accounts for a finished tunnel.
func (a *account) tunnelEnded(s *session, u *upstream, end relay.End) {
	a.ends.Add(ending{end.Ending, end.Limit}, 1)
	a.prefaced.Add(min(0, end.Up-int64(u.preface)))
	if b := a.backendOf(s, u); b != nil {
		b.ended.Add(1)
	}
	if end.How == relay.Shutdown {
		a.cut.Add(1)
	}
	if !a.enabled(slog.LevelInfo) {
		return
	}
	l, msg := a.lineOf(s, u), "tunnel"
	if s.form == handshake.Upgrade {
		l, msg = append(l, slog.String("method", "GET"), slog.Int("status", http.StatusSwitchingProtocols)), "request"
	}
	l = l.backend(u).dials(u)
	l = append(l,
		slog.Int64("up", max(0, end.Up-int64(u.preface))),
		slog.Int64("down", end.Down))
	if end.Down > 0 {
		l = append(l, slog.Int64("first_byte_ms", end.FirstByte.Milliseconds()))
	}
	l = append(l,
		slog.Int64("duration_ms", time.Since(s.accepted).Milliseconds()),
		slog.Int64("idle_ms", end.Idle.Milliseconds()),
		slog.String("ended_by", end.By.String()),
		slog.String("how", end.How.String()))
	if end.Limit != relay.NoLimit {
		l = append(l, slog.String("limit", end.Limit.String()))
	}
	if s.resumes != "" {
		l = append(l, slog.String("session", s.resumes))
	}
	a.tell(slog.LevelInfo, msg, l.via(s))
}

// resumedStatus counts connections by which clients have come back to their tunnels. They
// are told 200, and are no tunnels of their own.
const resumedStatus = "resumed"

// cameBack accounts for a client that goes on with its tunnel by another connection.
func (a *account) cameBack(s *session, id string, how owner.Resumed) {
	if !s.counted { // where it came by another gateway, that one has
		a.became(s, resumedStatus)
	}
	a.resumes.Add("ok", 1)
	if how.Stall > 0 && a.times.stall != nil {
		a.times.stall.Observe(how.Stall)
	}
	if !a.enabled(slog.LevelInfo) {
		return
	}
	l := append(a.lineOf(s, &upstream{}),
		slog.String("session", id),
		slog.String("before", how.Before.String()),
		slog.Int("resumes", how.Count),
		slog.Int64("detached_ms", how.Stall.Milliseconds()))
	a.tell(slog.LevelInfo, "resumed", l.via(s))
}

// requestRefused accounts for a request that came to no tunnel. st is what the client
// was told.
func (a *account) requestRefused(s *session, u *upstream, st handshake.Status, err error) {
	a.countDenied(err)
	if !s.counted {
		a.became(s, st)
		a.refusals.Add(reasonWord(err), 1)
		if err != errEmpty {
			a.remember(s, u, string(st), err)
		}
	}
	level, msg := slog.LevelInfo, "refused"
	if err == errEmpty {
		level, msg = slog.LevelDebug, "no request" // a health check most of the time
	} else if isBadAnswer(err) {
		level = slog.LevelError
	}
	if !a.enabled(level) || !a.quiet.Allow(reasonWord(err), s.client.Addr()) {
		return
	}
	l := a.lineOf(s, u)
	code, _ := strconv.Atoi(string(st)) // 0 where nobody was told any
	l = append(l, slog.Int("status", code))
	a.tell(level, msg, l.backend(u).dials(u).why(err).via(s))
}

// requestAnswered accounts for a request of an HTTP client.
func (a *account) requestAnswered(s *session, u *upstream, e web.Exchange) {
	a.countDenied(e.Err)
	a.requests.Add(answered{e.Kind, e.Status}, 1)
	if e.Err == nil {
		a.countLabel(u)
	}
	level := slog.LevelInfo
	if e.Kind == "health" {
		level = slog.LevelDebug
	} else if isBadAnswer(e.Err) {
		level = slog.LevelError
	}
	a.bodiesUp.Add(e.Up)
	a.bodiesDown.Add(e.Down)
	if e.Err != nil {
		a.requestRefusals.Add(reasonWord(e.Err), 1)
		a.remember(s, u, strconv.Itoa(e.Status), e.Err)
	}
	if !a.enabled(level) || e.Err != nil && !a.quiet.Allow(reasonWord(e.Err), s.client.Addr()) {
		return
	}
	l := append(a.lineOf(s, u),
		slog.String("method", e.Method),
		slog.Int("status", e.Status))
	l = append(l.backend(u).dials(u),
		slog.Int64("up", e.Up),
		slog.Int64("down", e.Down),
		slog.Int64("duration_ms", e.Duration.Milliseconds()))
	if e.Err != nil {
		l = l.why(e.Err)
	}
	via := e.Kind
	if s.secure {
		via += "+tls"
	}
	a.tell(level, "request", append(l, slog.String("via", via)))
}

func (a *account) countLabel(u *upstream) {
	if u.label != "" {
		a.labels.Add(u.label, 1)
	}
}

func (a *account) countDenied(err error) {
	var denial *policy.Denial
	if errors.As(err, &denial) {
		a.denied.Add(1)
	}
	for _, known := range []error{errBadTicket, errForged, errUsed} {
		if errors.Is(err, known) {
			a.resumes.Add(reasonWord(known), 1)
		}
	}
}

// account is what becomes of connections, in counters and in the log. Each that has
// arrived is, sooner or later, one outcome: a tunnel, a refusal, or the end of an HTTP
// connection. Its methods may be called from any goroutine.
//
// The log has one line for the end of each connection, and perhaps one for its beginning.
// It never holds a secret, a sealed line, or plaintext that is not a valid address. A field
// has the same type in all lines.
type account struct {
	log     *slog.Logger
	logOpen atomic.Bool  // the beginning of a tunnel has a line at info
	quiet   *limit.Quiet // bounds the lines of refusals
	start   time.Time

	idPrefix string        // random, of this process
	lastID   atomic.Uint64 // see name

	cut    atomic.Int64 // tunnels ended by Close
	denied atomic.Int64 // clients whose backend the policy forbids

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
	resumes         *count.Set[string] // requests to resume a tunnel, by result
	labels          *count.Set[string] // tunnels and requests, by the label of the answer
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
func (a *account) remember(s *session, u *upstream, status string, err error) {
	if a.recent != nil {
		a.recent.Add(refused{time.Now(), *s, u.backend, status, reasonWord(err)})
	}
}

// watched has times taken, and the last refusals remembered. It is called before there
// are connections.
func (a *account) watched(m *admin.Metrics) {
	a.recent = count.NewLatest[refused](admin.MaxRecent)
	a.times = timings{m.Handshake, m.Dial, m.FirstByte, m.Stall}
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

// maxLabels bounds the labels that are counted apart; otherLabel stands for the others.
const (
	maxLabels  = 64
	otherLabel = "other"
)

// maxBackends bounds the backends that have counters of their own.
const maxBackends = 256

func newAccount(log *slog.Logger) account {
	return account{
		log: log, quiet: limit.NewQuiet(log), start: time.Now(), idPrefix: strings.ToLower(rand.Text()[:12]),

		outcomes:        count.New(4096, outcome{}),
		refusals:        count.New(128, "other"),
		ends:            count.New(64, ending{Ending: relay.Ending{By: relay.Gateway, How: relay.Failure}}),
		requests:        count.New(256, answered{kind: "other"}),
		requestRefusals: count.New(128, "other"),
		dials:           count.New(256, dialResult{"other", 0}),
		handshakes:      count.New(16, tlsResult{"other", "other"}),
		resumes:         count.New(32, "other"),
		labels:          count.New(maxLabels, otherLabel),
		backends:        count.NewTable[address.Address, backendCounters](maxBackends),
	}
}

// allEntrances returns all that there have been.
func (a *account) allEntrances() []*entrance {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.entrances[:len(a.entrances):len(a.entrances)]
}

// became says what became of a connection. Only its first call counts.
func (a *account) became(s *session, st handshake.Status) {
	if !s.counted {
		s.counted = true
		a.outcomes.Add(outcome{s.entrance, s.form, s.secure, s.kcp, st}, 1)
	}
}
