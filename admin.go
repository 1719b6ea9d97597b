package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"gateway/internal/address"
	"gateway/internal/admin"
	"gateway/internal/certificate"
	"gateway/internal/handshake"
	"gateway/internal/kcp"
	"gateway/internal/relay"
	"gateway/internal/token"
)

// overview is what an operator sees of a gateway, and may change. It is an
// admin.Source: internal/admin knows of HTTP, and this of gateways.
type overview struct {
	gateway *Gateway
	level   *slog.LevelVar // of the log
	build   build
	began   time.Time

	certificate *certificate.Reloader // nil: no TLS
	tokens      *token.Keys           // nil: no tokens

	started atomic.Bool // all is up
	lame    atomic.Bool // clients should go elsewhere, by an operator's will
}

// build is what the program was built from.
type build struct{ version, commit string }

// startAdmin serves -admin until stop is called.
func startAdmin(cfg *Config, g *Gateway, b build, log *slog.Logger) (o *overview, stop func(), err error) {
	ln, err := listenAdmin(cfg.Admin)
	if err != nil {
		return nil, nil, err
	}
	g.Own(ln.Addr())
	o = &overview{gateway: g, level: cfg.level, build: b, began: time.Now(), certificate: cfg.certificate, tokens: cfg.tokens}
	stop = admin.Serve(ln, o, admin.Options{Token: cfg.adminToken, Metrics: admin.NewMetrics(), Log: log})
	at := ln.Addr().String()
	if ln.Addr().Network() == "unix" {
		log.Info("admin is on", "socket", at)
	} else {
		log.Info("admin is on", "url", "http://"+at+"/")
	}
	return o, stop, nil
}

// ready says that all is up.
func (o *overview) ready() {
	if o != nil {
		o.started.Store(true)
	}
}

// Alive is for admin.Source.
func (o *overview) Alive(ctx context.Context) error { return o.gateway.loops.answer(ctx) }

// Unready is for admin.Source.
func (o *overview) Unready() string {
	switch {
	case !o.started.Load():
		return "starting"
	case o.gateway.isStopping():
		return "draining: the gateway ends"
	case o.lame.Load():
		return "lame duck: /api/drain was asked for"
	case o.gateway.loops.full():
		return "out of descriptors: there are as many connections as their limit allows (ulimit -n)"
	case o.gateway.ledger.cannotAccept():
		return "cannot accept, most likely out of descriptors: the log says more"
	}
	return ""
}

// Drain is for admin.Source.
func (o *overview) Drain(on bool) { o.lame.Store(on) }

// SetLogLevel is for admin.Source.
func (o *overview) SetLogLevel(level slog.Level) { o.level.Set(level) }

// visit calls look for each tunnel, and cuts those for which it returns true.
func (o *overview) visit(ctx context.Context, look func(*session, *upstream, relay.Pulse) (cut bool)) error {
	o.gateway.relay.Visit(func(who any, p relay.Pulse) bool {
		j, ok := who.(joined)
		return ok && look(j.session, j.upstream, p)
	})
	return o.gateway.loops.visit(ctx, look)
}

// filter is an admin.Filter in the gateway's words.
type filter struct {
	admin.Filter
	number uint64 // of the only tunnel; 0: any
}

// newFilter reports false if there is no such tunnel.
func (o *overview) newFilter(f admin.Filter) (filter, bool) {
	if f.ID == "" {
		return filter{f, 0}, true
	}
	number, ok := o.gateway.ledger.number(f.ID)
	return filter{f, number}, ok
}

// matches tells whether a tunnel is meant.
func (f *filter) matches(s *session, u *upstream) bool {
	switch {
	case f.number != 0 && f.number != s.number,
		f.Client.IsValid() && !f.Client.Contains(s.client.Addr()),
		f.Listener != "" && f.Listener != s.entranceName():
		return false
	}
	var led netip.AddrPort
	if u.dialed != nil {
		led = *u.dialed
	}
	return f.MatchesBackend(u.backend, led)
}

// liveTunnel is a line of the list of tunnels.
type liveTunnel struct {
	session  session
	upstream upstream
	pulse    relay.Pulse
}

// Tunnels is for admin.Source. The list is in the order of the tunnels' numbers, so
// that a page goes on where the last one ended, whatever has ended meanwhile. Of
// what comes behind the page no more is kept than the page has.
func (o *overview) Tunnels(ctx context.Context, q admin.Query, yield func(*admin.Tunnel) bool) (more bool, err error) {
	after := uint64(0)
	if q.After != "" {
		var ok bool
		if after, ok = o.gateway.ledger.number(q.After); !ok {
			return false, admin.ErrUnknownID
		}
	}
	f, ok := o.newFilter(q.Filter)
	if !ok {
		return false, nil
	}
	var list []liveTunnel
	byNumber := func(a, b liveTunnel) int { return cmp.Compare(a.session.number, b.session.number) }
	last := ^uint64(0) // the page has none behind it
	err = o.visit(ctx, func(s *session, u *upstream, p relay.Pulse) bool {
		if s.number <= after || s.number > last || !f.matches(s, u) {
			return false
		}
		list = append(list, liveTunnel{*s, *u, p})
		if len(list) >= 2*q.Limit+256 {
			slices.SortFunc(list, byNumber)
			clear(list[q.Limit+1:])
			list = list[:q.Limit+1]
			last = list[q.Limit].session.number
		}
		return false
	})
	if err != nil {
		return false, err
	}
	slices.SortFunc(list, byNumber)
	if more = len(list) > q.Limit; more {
		list = list[:q.Limit]
	}
	for i := range list {
		if !yield(o.tunnel(&list[i])) {
			break
		}
	}
	return more, nil
}

func (o *overview) tunnel(l *liveTunnel) *admin.Tunnel {
	s, u := &l.session, &l.upstream
	t := &admin.Tunnel{
		ID:       o.gateway.ledger.name(s.number),
		Client:   s.client.String(),
		Backend:  u.backend.String(),
		Listener: s.entranceName(),
		Form:     s.via(),
		Since:    s.accepted.UTC(),
		Up:       max(0, l.pulse.Up-int64(u.preface)),
		Down:     l.pulse.Down,
		IdleMS:   l.pulse.Idle.Milliseconds(),
		State:    "open",
	}
	if u.dialed != nil {
		t.BackendIP = u.dialed.String()
	}
	if l.pulse.HalfClosed {
		t.State = "half_closed"
	}
	return t
}

// errNothingMeant is a bug: a filter that means everything.
var errNothingMeant = errors.New("there is no filter")

// Cut is for admin.Source.
func (o *overview) Cut(ctx context.Context, what admin.Filter) (n int, err error) {
	if what.Zero() {
		return 0, errNothingMeant
	}
	f, ok := o.newFilter(what)
	if !ok {
		return 0, nil
	}
	err = o.visit(ctx, func(s *session, u *upstream, _ relay.Pulse) bool {
		if !f.matches(s, u) {
			return false
		}
		n++
		return true
	})
	return n, err
}

// Collect is for admin.Source. What is less than something else is read before it:
// tunnels that have ended before those that were opened, and so on.
func (o *overview) Collect(s *admin.Sample) {
	g, l := o.gateway, o.gateway.ledger
	s.Add(admin.BuildInfo, 1, o.build.version, o.build.commit, runtime.Version())
	s.Add(admin.StartTime, float64(o.began.UnixMicro())/1e6)
	if o.Unready() == "" {
		s.Add(admin.Ready, 1)
	}
	if o.lame.Load() || g.isStopping() {
		s.Add(admin.Draining, 1)
	}

	var ended, opened, outcomes, accepted int64
	for e, n := range l.ends.All() {
		ended += n
		s.Add(admin.TunnelsEnded, float64(n), e.By.String(), e.How.String(), "")
	}
	for reason, n := range l.refusals.All() {
		s.Add(admin.Refusals, float64(n), reason)
		addTokenFailure(s, reason, n)
	}
	for k, n := range l.outcomes.All() {
		outcomes += n
		if k.status == handshake.OK && k.form != handshake.HTTP {
			opened += n
		}
		as := session{entrance: k.by, form: k.form, secure: k.secure, kcp: k.kcp}
		s.Add(admin.Connections, float64(n), as.entranceName(), as.via(), cmp.Or(string(k.status), "none"))
	}
	for _, by := range l.allEntrances() {
		n := by.accepted.Load()
		accepted += n
		s.Add(admin.Accepted, float64(n), by.name)
	}
	s.Add(admin.Pending, float64(accepted-outcomes))
	s.Add(admin.TunnelsActive, float64(opened-ended))

	for k, n := range l.requests.All() {
		s.Add(admin.Requests, float64(n), k.kind, strconv.Itoa(k.status))
	}
	for reason, n := range l.requestRefusals.All() {
		s.Add(admin.RequestRefusals, float64(n), reason)
		addTokenFailure(s, reason, n)
	}

	for k, n := range l.dials.All() {
		s.Add(admin.Dials, float64(n), k.result, strconv.Itoa(k.attempt))
	}
	o.collectBackends(s)

	prefaced := l.prefaced.Load()
	spliced, copied := g.loops.movedFrom()
	up, down := g.relay.Copied()
	s.Add(admin.Bytes, float64(spliced[0]), "up", "spliced")
	s.Add(admin.Bytes, float64(spliced[1]), "down", "spliced")
	s.Add(admin.Bytes, float64(max(0, copied[0]+up-prefaced)), "up", "copied")
	s.Add(admin.Bytes, float64(copied[1]+down), "down", "copied")
	s.Add(admin.Bytes, float64(l.bodiesUp.Load()), "up", "http")
	s.Add(admin.Bytes, float64(l.bodiesDown.Load()), "down", "http")

	g.loops.work(func(i int, busy, longest time.Duration, conns int) {
		loop := strconv.Itoa(i)
		s.Add(admin.LoopBusy, busy.Seconds(), loop)
		s.Add(admin.LoopLongest, longest.Seconds(), loop)
		s.Add(admin.LoopConns, float64(conns), loop)
	})
	pipes, limit := g.loops.pipeCount()
	s.Add(admin.PipesOpen, float64(pipes))
	s.Add(admin.PipesLimit, float64(limit))

	for k, n := range g.resolver.Lookups() {
		s.Add(admin.DNSLookups, float64(n), k.Type, k.Result)
	}
	s.Add(admin.DNSStale, g.resolver.Stale().Seconds())
	for k, n := range l.handshakes.All() {
		s.Add(admin.TLSHandshakes, float64(n), k.version, k.result)
	}
	if o.tokens != nil {
		ok, failed := o.tokens.Reloads()
		s.Add(admin.Reloads, float64(ok), "token_keys", "ok")
		s.Add(admin.Reloads, float64(failed), "token_keys", "failed")
	}
	if o.certificate != nil {
		ok, failed := o.certificate.Reloads()
		s.Add(admin.Reloads, float64(ok), "certificate", "ok")
		s.Add(admin.Reloads, float64(failed), "certificate", "failed")
		s.Add(admin.TLSExpiry, float64(o.certificate.NotAfter().Unix()), o.certificate.File())
	}
	for _, by := range l.allEntrances() {
		if by.kcp != nil {
			st := by.kcp()
			s.Add(admin.KCPSessions, float64(st.Sessions), by.name)
			s.Add(admin.KCPUnproven, float64(st.Unproven), by.name)
			s.Add(admin.KCPRefused, float64(st.Refused), by.name)
			s.Add(admin.KCPChallenged, float64(st.Challenged), by.name)
			s.Add(admin.KCPDropped, float64(st.Dropped), by.name)
		}
	}
	s.Add(admin.KCPRetransmits, float64(kcp.Retransmitted()))
}

// collectBackends tells of the backends that no client can choose: those of -forward
// and of services.
func (o *overview) collectBackends(s *admin.Sample) {
	backends := o.gateway.ledger.backends
	add := func(name string, b *backendCounters) {
		ended := b.ended.Load()
		s.Add(admin.BackendFailed, float64(b.failed.Load()), name)
		s.Add(admin.BackendTunnels, float64(b.opened.Load()-ended), name)
		s.Add(admin.BackendSkipped, 0, name)
	}
	for a, b := range backends.All() {
		add(a.String(), b)
	}
	if b := backends.Rest(); b != nil {
		add("other", b)
	}
	r := o.gateway.rules.Load()
	routes := r.services.routes()
	for _, by := range o.gateway.ledger.allEntrances() {
		if by.forward != nil {
			routes = append(routes, *by.forward)
		}
	}
	slices.SortFunc(routes, func(a, b address.Route) int { return strings.Compare(a.String(), b.String()) })
	for _, route := range slices.CompactFunc(routes, func(a, b address.Route) bool { return a.String() == b.String() }) {
		if _, ok := route.Single(); ok {
			continue // there is none to go to instead
		}
		now := balanceClock()
		r.routes.Group(route, now).Each(now, func(a address.Address, skipped bool) {
			if _, own := backends.Of(a); own && skipped {
				s.Add(admin.BackendSkipped, 1, a.String())
			}
		})
	}
}

func addTokenFailure(s *admin.Sample, reason string, n int64) {
	if strings.HasPrefix(reason, "token_") {
		s.Add(admin.TokenFailures, float64(n), reason)
	}
}
