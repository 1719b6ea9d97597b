package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"gateway/internal/address"
	"gateway/internal/admin"
	"gateway/internal/admin/page"
	"gateway/internal/certificate"
	"gateway/internal/count"
	"gateway/internal/handshake"
	"gateway/internal/kcp"
	"gateway/internal/limit"
	"gateway/internal/listen"
	"gateway/internal/relay"
	"gateway/internal/resolve"
	"gateway/internal/token"
)

// overview is what an operator sees of a gateway, and may change. It is an
// admin.Source: internal/admin knows of HTTP, and this of gateways.
type overview struct {
	gateway *Gateway
	level   *slog.LevelVar // of the log
	build   build
	began   time.Time

	files      atomic.Pointer[files]
	reload     func() error
	maxPending int          // clients that have proven nothing
	dropped    func() int64 // lines of the log

	started atomic.Bool // all is up
	pages   admin.Pages
	copied  count.Rising // bytes upwards
}

// build is what the program was built from.
type build struct{ version, commit string }

// startAdmin serves -admin on ln until stop is called. reload is Reload of admin.Source;
// dropped tells how many lines of the log were.
// ready says that all is up already.
func startAdmin(ln net.Listener, cfg *Config, g *Gateway, b build, reload func() error, dropped func() int64, ready bool, log *slog.Logger) (o *overview, stop func(context.Context)) {
	g.Own(ln.Addr())
	o = &overview{gateway: g, level: cfg.level, build: b, began: time.Now(), reload: reload, maxPending: cfg.maxPending(), dropped: dropped}
	o.reloaded(cfg)
	o.started.Store(ready)
	stop = admin.Serve(ln, o, admin.Options{Token: cfg.adminToken, Page: servePage, Metrics: g.metrics, Bans: operatorBans{g.ledger.bans}, Log: log})
	at := ln.Addr().String()
	if ln.Addr().Network() == "unix" {
		log.Info("admin is on", "socket", at)
	} else {
		log.Info("admin is on", "url", "http://"+at+"/")
	}
	return o, stop
}

// servePage makes the status page and the events that it listens to.
func servePage(ctx context.Context, status func() admin.Status) (http.Handler, http.Handler) {
	p := page.New(status)
	context.AfterFunc(ctx, p.Stop)
	return p, http.HandlerFunc(p.Events)
}

// reloaded is told of another configuration.
func (o *overview) reloaded(cfg *Config) {
	if o == nil {
		return
	}
	next := &files{certificate: cfg.certificate, tokens: cfg.tokens}
	if old := o.files.Load(); old != nil {
		next.certificates, next.tokenKeys = old.reloads()
	}
	o.files.Store(next)
}

// files are what files of the settings hold, and tell of themselves.
type files struct {
	certificate *certificate.Reloader // nil: no TLS
	tokens      *token.Keys           // nil: no tokens

	certificates, tokenKeys fileReloads // by what was in their place before
}

// fileReloads are how many changes of a file were taken up, and how many could not be.
type fileReloads struct{ ok, failed int64 }

// reloads returns those since the start.
func (f *files) reloads() (certificates, tokenKeys fileReloads) {
	certificates, tokenKeys = f.certificates, f.tokenKeys
	if f.certificate != nil {
		ok, failed := f.certificate.Reloads()
		certificates.ok, certificates.failed = certificates.ok+ok, certificates.failed+failed
	}
	if f.tokens != nil {
		ok, failed := f.tokens.Reloads()
		tokenKeys.ok, tokenKeys.failed = tokenKeys.ok+ok, tokenKeys.failed+failed
	}
	return certificates, tokenKeys
}

// Reload is for admin.Source.
func (o *overview) Reload() error { return o.reload() }

// ready says that all is up.
func (o *overview) ready() {
	if o != nil {
		o.started.Store(true)
	}
}

// Alive is for admin.Source.
func (o *overview) Alive(ctx context.Context) error { return o.gateway.engine.answer(ctx) }

// Unready is for admin.Source.
func (o *overview) Unready() string {
	switch {
	case !o.started.Load():
		return "starting"
	case o.gateway.isStopping():
		return "draining: the gateway ends"
	case o.gateway.ledger.leaving.Load():
		return "lame duck: the gateway is about to end"
	case o.gateway.ledger.lame.Load():
		return "lame duck: /api/drain was asked for"
	case o.gateway.ledger.full():
		return "full: there are as many connections as -max-conns or the limit of descriptors (ulimit -n) allows"
	case o.gateway.ledger.cannotAccept():
		return "cannot accept, most likely out of descriptors: the log says more"
	}
	return ""
}

// Drain is for admin.Source.
func (o *overview) Drain(on bool) { o.gateway.ledger.lame.Store(on) }

// operatorBans are the bans as admin.Bans has them.
type operatorBans struct{ *limit.Bans }

func (b operatorBans) List() []admin.Ban {
	var list []admin.Ban
	for _, ban := range b.Bans.List(time.Now()) {
		by := "rule"
		if ban.Added {
			by = "admin"
		}
		list = append(list, admin.Ban{Network: ban.Network, Until: ban.Until.Round(0).UTC(), By: by})
	}
	return list
}

func (b operatorBans) Add(network netip.Prefix, span time.Duration) error {
	return b.Bans.Add(network, span, time.Now())
}

func (b operatorBans) Lift(network netip.Prefix) bool { return b.Bans.Lift(network, time.Now()) }

// SetLogLevel is for admin.Source.
func (o *overview) SetLogLevel(level slog.Level) { o.level.Set(level) }

// visit calls look for each tunnel, and cuts those for which it returns true. What has
// the tunnel waits meanwhile, so look is quick: it does not sort, and what it appends to
// has room for 256 tunnels. Whatever takes longer is for between, which is called after
// each portion.
func (o *overview) visit(ctx context.Context, look func(*session, *upstream, relay.Pulse) (cut bool), between func()) error {
	o.gateway.relay.Visit(func(who any, p relay.Pulse) bool {
		j, ok := who.(joined)
		return ok && look(j.session, j.upstream, p)
	})
	between()
	return o.gateway.engine.visit(ctx, look, between)
}

// filter is an admin.Filter in the gateway's words.
type filter struct {
	admin.Filter
	number uint64 // of f.ID, if it is a name that this process makes
}

func (o *overview) newFilter(f admin.Filter) filter {
	number, _ := o.gateway.ledger.number(f.ID)
	return filter{f, number}
}

// isNamed tells whether a tunnel has the name that is asked for; see account.id.
func (f *filter) isNamed(s *session, u *upstream) bool {
	switch {
	case f.ID == "":
		return true
	case u.id != "":
		return f.ID == u.id
	}
	return f.number != 0 && f.number == s.number
}

// matches tells whether a tunnel is meant.
func (f *filter) matches(s *session, u *upstream) bool {
	switch {
	case !f.isNamed(s, u),
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

// liveTunnel is a line of the list of tunnels: what it has of a session, an upstream
// and a pulse, since there may be many.
type liveTunnel struct {
	number      uint64
	id          string // see upstream.id
	client      netip.AddrPort
	accepted    time.Time
	by          *entrance
	backend     address.Address
	dialed      *netip.AddrPort
	up, down    int64
	idle        time.Duration
	form        handshake.Form
	secure, kcp bool
	halfClosed  bool
}

func newLiveTunnel(s *session, u *upstream, p relay.Pulse) liveTunnel {
	return liveTunnel{
		number: s.number, id: u.id, client: s.client, accepted: s.accepted, by: s.entrance,
		backend: u.backend, dialed: u.dialed,
		up: max(0, p.Up-int64(u.preface)), down: p.Down, idle: p.Idle,
		form: s.form, secure: s.secure, kcp: s.kcp, halfClosed: p.HalfClosed,
	}
}

// Tunnels is for admin.Source. The list is in the order of the tunnels' numbers, so
// that a page goes on where the last one ended, whatever has ended meanwhile. Of
// what comes behind the page no more is kept than the page has.
func (o *overview) Tunnels(ctx context.Context, q admin.Query, yield func(*admin.Tunnel) bool) (more bool, err error) {
	after := uint64(0)
	if q.After != "" {
		var ok bool
		if after, ok = o.pages.Number(q.After); !ok {
			after, ok = o.gateway.ledger.number(q.After)
		}
		if !ok {
			return false, admin.ErrUnknownID
		}
	}
	f := o.newFilter(q.Filter)
	seen := make([]liveTunnel, 0, 256) // in this portion
	var list []liveTunnel
	byNumber := func(a, b liveTunnel) int { return cmp.Compare(a.number, b.number) }
	last := ^uint64(0) // the page has none behind it
	err = o.visit(ctx, func(s *session, u *upstream, p relay.Pulse) bool {
		if s.number <= after || s.number > last || !f.matches(s, u) {
			return false
		}
		seen = append(seen, newLiveTunnel(s, u, p))
		return false
	}, func() {
		list = append(list, seen...)
		seen = seen[:0]
		if len(list) >= 2*q.Limit+256 {
			slices.SortFunc(list, byNumber)
			clear(list[q.Limit+1:])
			list = list[:q.Limit+1]
			last = list[q.Limit].number
		}
	})
	if err != nil {
		return false, err
	}
	slices.SortFunc(list, byNumber)
	if more = len(list) > q.Limit; more {
		list = list[:q.Limit]
		if last := &list[q.Limit-1]; last.id != "" { // which does not tell the number
			o.pages.End(last.id, last.number)
		}
	}
	var t admin.Tunnel
	for i := range list {
		if o.describe(&list[i], &t); !yield(&t) {
			break
		}
	}
	return more, nil
}

func (o *overview) describe(l *liveTunnel, t *admin.Tunnel) {
	as := session{entrance: l.by, form: l.form, secure: l.secure, kcp: l.kcp}
	*t = admin.Tunnel{
		ID:       o.gateway.ledger.id(&session{number: l.number}, &upstream{id: l.id}),
		Client:   l.client.String(),
		Backend:  l.backend.String(),
		Listener: as.entranceName(),
		Form:     as.via(),
		Since:    l.accepted.UTC(),
		Up:       l.up,
		Down:     l.down,
		IdleMS:   l.idle.Milliseconds(),
		State:    "open",
	}
	if l.dialed != nil {
		t.BackendIP = l.dialed.String()
	}
	if l.halfClosed {
		t.State = "half_closed"
	}
}

// errNothingMeant is a bug: a filter that means everything.
var errNothingMeant = errors.New("there is no filter")

// Cut is for admin.Source.
func (o *overview) Cut(ctx context.Context, what admin.Filter) (n int, err error) {
	if what.Zero() {
		return 0, errNothingMeant
	}
	f := o.newFilter(what)
	err = o.visit(ctx, func(s *session, u *upstream, _ relay.Pulse) bool {
		if !f.matches(s, u) {
			return false
		}
		n++
		return true
	}, func() {})
	return n, err
}

// Status is for admin.Source. What is never more than something else is read before
// it: tunnels that have ended before those that were opened, and so on. So all that was
// accepted is at any time among what Pending is the rest of.
func (o *overview) Status() admin.Status {
	g, l := o.gateway, o.gateway.ledger
	st := admin.Status{
		Time: time.Now().UTC(), Started: o.began.UTC(), PID: os.Getpid(),
		Version: o.build.version, Commit: o.build.commit, Go: runtime.Version(),
		LogLevel: strings.ToLower(o.level.Level().String()),
		Draining: l.unready() || g.isStopping(), LogDropped: o.dropped(),
	}
	st.Reason = o.Unready()
	st.Ready = st.Reason == ""

	var ended int64
	st.Tunnels.Ended = admin.Counts(l.ends.All(), func(e ending, n int64) admin.EndCount {
		ended += n
		return admin.EndCount{By: e.By.String(), How: e.How.String(), Limit: e.limit.String(), Count: n}
	})
	st.Tunnels.Moved = l.moved.Load()
	st.Refusals = admin.Counts(l.refusals.All(), countReason)
	for _, r := range st.Refusals {
		st.Pending -= r.Count
	}
	outcomes := make(map[admin.ConnectionCount]int64)
	for k, n := range l.outcomes.All() {
		switch {
		case k.form == handshake.HTTP && !k.kcp, k.status == resumedStatus:
			st.Pending -= n
		case k.status == handshake.OK:
			st.Tunnels.Opened += n
			st.Pending -= n
		} // and any other is among the refusals, or is about to be
		as := session{entrance: k.by, form: k.form, secure: k.secure, kcp: k.kcp}
		outcomes[admin.ConnectionCount{Listener: as.entranceName(), Form: as.via(), Status: cmp.Or(string(k.status), "none")}] += n
	}
	st.Connections = admin.Counts(maps.All(outcomes), func(c admin.ConnectionCount, n int64) admin.ConnectionCount {
		c.Count = n
		return c
	})
	st.Tunnels.Active = st.Tunnels.Opened + st.Tunnels.Moved - ended
	st.Listeners = []admin.Listener{}
	for _, by := range l.allEntrances() {
		n := by.accepted.Load()
		st.Accepted += n
		st.Listeners = append(st.Listeners, admin.Listener{Name: by.name, Forward: listen.TargetText(by.forward), Accepted: n})
	}
	st.Pending += st.Accepted
	st.Recent = o.recent()

	st.Requests = admin.Counts(l.requests.All(), func(a answered, n int64) admin.RequestCount {
		return admin.RequestCount{Kind: a.kind, Status: a.status, Count: n}
	})
	st.RequestRefusals = admin.Counts(l.requestRefusals.All(), countReason)
	st.Dials = admin.Counts(l.dials.All(), func(k dialResult, n int64) admin.DialCount {
		return admin.DialCount{Result: k.result, Attempt: k.attempt, Count: n}
	})
	st.Backends = o.backends()
	st.Bytes = o.bytes()
	o.protocols(&st)
	o.limits(&st)
	return st
}

func countReason(reason string, n int64) admin.ReasonCount {
	return admin.ReasonCount{Reason: reason, Count: n}
}

// recent returns the latest refusals, the newest first.
func (o *overview) recent() []admin.Refusal {
	list := []admin.Refusal{}
	for _, r := range o.gateway.ledger.recent.All() {
		f := admin.Refusal{
			Time: r.at.UTC(), Client: r.session.client.String(), Listener: r.session.entranceName(),
			Form: r.session.via(), Status: r.status, Reason: r.reason,
		}
		if r.backend.Port != 0 {
			f.Backend = r.backend.String()
		}
		list = append(list, f)
	}
	return list
}

// bytes returns what was moved. What the gateway itself tells backends was moved too,
// but not for a client: that is taken off when a tunnel begins, and moved a little later,
// so for a moment there may be less than was told before.
func (o *overview) bytes() (b admin.Bytes) {
	g, l := o.gateway, o.gateway.ledger
	prefaced := l.prefaced.Load()
	spliced, copied := g.engine.movedFrom()
	up, down := g.relay.Copied()
	b.Up = admin.Moved{Spliced: spliced[0], Copied: o.copied.Tell(copied[0] + up - prefaced), HTTP: l.bodiesUp.Load()}
	b.Down = admin.Moved{Spliced: spliced[1], Copied: copied[1] + down, HTTP: l.bodiesDown.Load()}
	return b
}

// backends tells of those that no client can choose: of -forward and of services.
func (o *overview) backends() []admin.Backend {
	list := []admin.Backend{}
	known := o.gateway.ledger.backends
	skipped := o.skipped()
	add := func(name string, b *backendCounters) {
		ended := b.ended.Load()
		list = append(list, admin.Backend{Address: name, Tunnels: b.opened.Load() - ended, Failures: b.failed.Load(), Skipped: skipped[name]})
	}
	for a, b := range known.All() {
		add(a.String(), b)
	}
	slices.SortFunc(list, func(a, b admin.Backend) int { return strings.Compare(a.Address, b.Address) })
	if b := known.Rest(); b != nil {
		add("other", b)
	}
	return list
}

// skipped returns the backends of several that are passed over now.
func (o *overview) skipped() map[string]bool {
	r := o.gateway.rules.Load()
	routes := r.services.Routes()
	for _, by := range o.gateway.ledger.allEntrances() {
		if by.forward != nil {
			routes = append(routes, *by.forward)
		}
	}
	found, now := make(map[string]bool), balanceClock()
	for _, route := range routes {
		if _, ok := route.Single(); ok {
			continue // there is none to go to instead
		}
		r.routes.Group(route, now).Each(now, func(a address.Address, skipped bool) {
			if skipped {
				found[a.String()] = true
			}
		})
	}
	return found
}

// protocols tells of TLS, names and KCP.
func (o *overview) protocols(st *admin.Status) {
	g, l := o.gateway, o.gateway.ledger
	st.Reloads = []admin.ReloadCount{}
	reloads := func(what string, ok, failed int64) {
		st.Reloads = append(st.Reloads, admin.ReloadCount{What: what, Result: "ok", Count: ok}, admin.ReloadCount{What: what, Result: "failed", Count: failed})
	}
	reloads("settings", g.reloads.ok.Load(), g.reloads.failed.Load())
	reloads("secrets", g.secretReloads.ok.Load(), g.secretReloads.failed.Load())
	of := o.files.Load()
	certificates, tokenKeys := of.reloads()
	if of.certificate != nil {
		st.TLS.File, st.TLS.NotAfter = of.certificate.File(), of.certificate.NotAfter()
		reloads("certificate", certificates.ok, certificates.failed)
	}
	if of.tokens != nil {
		reloads("token_keys", tokenKeys.ok, tokenKeys.failed)
	}
	st.TLS.Handshakes = admin.Counts(l.handshakes.All(), func(k tlsResult, n int64) admin.HandshakeCount {
		return admin.HandshakeCount{Version: k.version, Result: k.result, Count: n}
	})
	st.DNS.Lookups = admin.Counts(maps.All(g.resolver.Lookups()), func(k resolve.LookupKey, n int64) admin.LookupCount {
		return admin.LookupCount{Type: k.Type, Result: k.Result, Count: n}
	})
	st.DNS.StaleSeconds = g.resolver.Stale().Seconds()
	o.asking(&st.Ask)
	st.Resume.Attempts = admin.Counts(l.resumes.All(), func(result string, n int64) admin.ResultCount { return admin.ResultCount{Result: result, Count: n} })
	if g.owner != nil {
		r := g.owner.Stats()
		st.Resume.Tunnels, st.Resume.Detached, st.Resume.Memory = r.Tunnels, r.Detached, r.Memory
	}
	st.KCP = admin.KCP{Listeners: []admin.KCPListener{}, Retransmitted: int64(kcp.Retransmitted())}
	for _, by := range l.allEntrances() {
		if by.kcp == nil {
			continue
		}
		k := by.kcp()
		st.KCP.Listeners = append(st.KCP.Listeners, admin.KCPListener{
			Listener: by.name, Sessions: int64(k.Sessions), Unproven: int64(k.Unproven),
			Refused: int64(k.Refused), Challenged: int64(k.Challenged), Dropped: int64(k.Dropped),
		})
	}
}

// asking tells of the service of -ask.
func (o *overview) asking(a *admin.Ask) {
	service := o.gateway.rules.Load().asks.service
	s := service.Stats()
	*a = admin.Ask{
		On: service != nil, Questions: []admin.ResultCount{}, Hits: []admin.KindCount{},
		Labels: admin.Counts(o.gateway.ledger.labels.All(), func(label string, n int64) admin.LabelCount { return admin.LabelCount{Label: label, Count: n} }),
		Asking: s.Asking, Waiting: s.Waiting, CircuitOpen: s.Open,
	}
	if service == nil {
		return
	}
	a.Questions = admin.Counts(maps.All(s.Results), func(result string, n int64) admin.ResultCount { return admin.ResultCount{Result: result, Count: n} })
	a.Hits = append(a.Hits, admin.KindCount{Kind: "fresh", Count: s.Hits}, admin.KindCount{Kind: "stale", Count: s.Stale})
}

// limits tells what the loops do, and what there may be.
func (o *overview) limits(st *admin.Status) {
	g := o.gateway
	st.Loops = []admin.Loop{}
	waiting := g.pending.Len()
	g.engine.work(func(busy, longest time.Duration, conns, awaiting int) {
		waiting += awaiting
		st.Loops = append(st.Loops, admin.Loop{BusySeconds: busy.Seconds(), LongestTurnSeconds: longest.Seconds(), Connections: int64(conns)})
	})
	use := func(used, limit int) admin.Use { return admin.Use{Used: int64(used), Limit: int64(limit)} }
	st.Limits.Pipes = use(g.engine.pipeCount())
	st.Limits.Connections = use(g.ledger.conns.Count())
	st.Limits.Unproven = use(waiting, o.maxPending)
}
