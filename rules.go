package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"gateway/internal/address"
	"gateway/internal/balance"
	"gateway/internal/handshake"
	"gateway/internal/policy"
	"gateway/internal/proxyheader"
	"gateway/internal/resume"
	"gateway/internal/smallfile"
	"gateway/internal/token"
)

// rules say what a client's request means and where it may lead. They know
// nothing of sockets, and wait only where a ctx bounds it, so that the two ways
// in share them: a goroutine that reads and waits (Gateway.serveConn), and the
// event loops. They never change; a connection keeps those that it began with.
type rules struct {
	trusted          []netip.Prefix  // peers that tell of their clients by a PROXY header
	tls              *tls.Config     // nil: clients do not speak TLS
	resumes          bool            // tunnels may be resumable
	tickets          *resume.Tickets // opens those of clients that come back
	peers            []netip.Prefix  // where other gateways are
	resumePlain      bool            // also where their key can be read on the way
	httpHeaderMax    int             // of an HTTP request's head, in bytes
	handshakeTimeout time.Duration   // from accept to the end of the request
	handshakeMax     int             // of a sealed line, in bytes

	keys    *keyring         // opens sealed lines; nil: none is
	secrets *smallfile.Watch // of the files of their secrets
	tokens  *token.Keys      // opens tokens; nil: none is

	policy     *policy.Policy // where backends may be
	routes     *balance.Table // whose turn it is among several backends
	services   directory      // whom DNS lists
	attempts   int            // to dial in all, at least one
	timeout    time.Duration  // of one attempt
	maxTunnels int            // of one backend; 0: any number
	sendProxy  int            // version of the PROXY header for backends; 0: none
}

// directory lists the targets of a service, at least one: the same slice as long
// as the list is the same.
type directory interface {
	find(ctx context.Context, name string) ([]balance.Target, error)
	// routes returns the routes to all that were found.
	routes() []address.Route
}

func newRules(cfg *Config, services directory) *rules {
	r := &rules{
		trusted:          cfg.TrustedProxies,
		tls:              cfg.tlsConfig,
		handshakeTimeout: cfg.HandshakeTimeout,
		handshakeMax:     cfg.HandshakeMax,
		httpHeaderMax:    cfg.HTTPHeaderMax,
		resumes:          cfg.Resume,
		resumePlain:      cfg.ResumePlain,
		tickets:          cfg.tickets,
		peers:            cfg.ResumePeers,
		tokens:           cfg.tokens,
		policy:           policy.New(cfg.Allow, cfg.Deny),
		routes:           balance.NewTable(cfg.Balance),
		services:         services,
		attempts:         cfg.Retry,
		timeout:          cfg.Timeout,
		maxTunnels:       cfg.MaxTunnels,
		sendProxy:        cfg.proxyVersion(),
	}
	if cfg.Legacy {
		r.keys, r.secrets = newKeyring(cfg.Secrets, cfg.KDFs), cfg.watch
	}
	return r
}

// arrival is the beginning of a connection. forward is where its listener
// leads to, or nil where the client says so.
func (r *rules) arrival(peer netip.AddrPort, forward *address.Route) session {
	s := session{client: peer, accepted: time.Now()}
	if forward != nil {
		s.form, s.forward = handshake.Forward, forward
	}
	s.proxied = within(r.trusted, peer.Addr())
	s.anonymous = s.proxied
	return s
}

func within(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// peerArrival is arrival for another gateway, whose PROXY header is believed. It
// reports false for who is none.
func (r *rules) peerArrival(peer netip.AddrPort) (session, bool) {
	return session{client: peer, accepted: time.Now(), peer: true, proxied: true}, within(r.peers, peer.Addr())
}

// request is what a client asks for.
type request struct {
	route address.Route // to the backend
	early []byte        // what came behind the request, for the backend

	// Not nil: early is frames of a resumable tunnel, which is to begin, or to go on.
	begin *resume.Open
	again *resume.Request
}

// resumable tells whether it is for, or of, a resumable tunnel.
func (q *request) resumable() bool { return q.begin != nil || q.again != nil }

// The ways in which an address that opens is of no use.
var (
	errWrongWay  = unauthorized("wrong_way")  // it is for HTTP, and the client brings bytes
	errNotToken  = unauthorized("not_token")  // a sealed line, and -legacy=0
	errNoResume  = unauthorized("no_resume")  // for a resumable tunnel, and -resume=0
	errNotResume = unauthorized("not_resume") // on -resume-peer, anything but that
	errBadTicket = unauthorized("bad_ticket") // to resume one; made up, or of another secret
	errPlainKey  = unauthorized("plain_key")  // for one without a key, outside of TLS
)

var errLongHello = &refusal{reason: "tls_failed",
	cause: fmt.Errorf("tls_failed: the ClientHello is larger than %d bytes", handshake.HelloMax)}

// request reads a request from all that a client has sent so far, and opens
// its address; of HTTP and TLS it only tells which it is, once there is enough
// to begin with, and early is that. The result aliases received. The error is handshake.ErrIncomplete
// as long as more has to be read; otherwise it is a *refusal. The session learns
// the form and what a trusted proxy says. ctx bounds the wait for a slow key
// derivation.
func (r *rules) request(ctx context.Context, s *session, received []byte) (request, error) {
	b, err := r.believe(s, received)
	if err != nil {
		return request{}, err
	}
	if s.forward != nil && !s.forward.Has("http") {
		return request{route: *s.forward, early: b}, nil
	}
	if len(b) == 0 {
		return request{}, handshake.ErrIncomplete
	}
	s.form = handshake.Sniff(b, r.tls != nil && !s.secure && !s.kcp)
	switch {
	case s.peer:
		s.form = handshake.Line
	case s.forward != nil && s.form != handshake.TLS && s.form != handshake.Unknown:
		s.form = handshake.HTTP // net/http answers to what is not
	case s.form == handshake.HTTP && s.kcp:
		s.form = handshake.Line
	}
	if s.form == handshake.HTTP || s.form == handshake.TLS {
		switch err := s.form.Whole(b, r.httpHeaderMax); err {
		case handshake.ErrTooLong:
			return request{}, errLongHello
		case handshake.ErrIncomplete:
			return request{}, err
		}
		return request{early: b}, nil
	}
	limit, marked := r.handshakeMax, r.isMarked(s.form, b)
	if marked {
		limit = r.markedMax()
	}
	sealed, early, err := s.form.Parse(b, limit)
	switch err {
	case nil:
	case handshake.ErrTooLong:
		return request{}, errTooLong
	case handshake.ErrBadLength:
		return request{}, errBadLength
	}
	if hopeless := r.judge(s.form, s.form.Beginning(b)); hopeless != nil && !marked {
		return request{}, hopeless
	}
	if err != nil {
		return request{}, err
	}
	if bytes.HasPrefix(sealed, []byte(resume.Mark)) && s.form != handshake.Binary {
		q, err := r.marked(ctx, s.form, s.secure, sealed)
		q.early = early
		if s.peer && q.again == nil && err == nil {
			err = errNotResume
		}
		return q, err
	}
	if s.peer {
		return request{}, errNotResume
	}
	route, err := r.open(ctx, s.form, sealed)
	if err != nil {
		return request{}, err
	}
	if route.Has("http") {
		return request{}, errWrongWay
	}
	return request{route: route, early: early}, nil
}

// isMarked tells whether a request is one of internal/resume, as far as it has come.
// What stands behind a length and has not come yet may be one.
func (r *rules) isMarked(form handshake.Form, b []byte) bool {
	switch form {
	case handshake.Prefixed:
		b = form.Beginning(b)
	case handshake.Line:
	default:
		return false
	}
	return agree(b, resume.Mark) && (len(b) > 0 || r.resumes)
}

// markedMax is the length of the longest such request, in bytes.
func (r *rules) markedMax() int { return max(resume.OpenOverhead+r.handshakeMax, resume.MaxResume) }

// marked reads such a request, and opens the address if there is one. The error is a
// *refusal.
func (r *rules) marked(ctx context.Context, form handshake.Form, secure bool, line []byte) (request, error) {
	if !r.resumes {
		return request{}, errNoResume
	}
	begin, again, err := resume.Parse(line)
	switch {
	case err != nil:
		return request{}, errBadFormat
	case again != nil:
		// What does not open costs no more than a line that does not.
		if _, ok := r.tickets.Open(again.Ticket); !ok {
			return request{}, errBadTicket
		}
		return request{again: again}, nil
	case len(begin.Sealed) > r.handshakeMax:
		return request{}, errTooLong
	case begin.Key == nil && !secure && !r.resumePlain:
		return request{}, errPlainKey
	}
	route, err := r.open(ctx, form, begin.Sealed)
	if err != nil {
		return request{}, err
	}
	if route.Has("http") {
		return request{}, errWrongWay
	}
	return request{route: route, begin: begin}, nil
}

// judge refuses by its beginning what is neither a sealed line nor a token, so
// that its client need not be waited for. Only where a length leads it, the
// beginning is known as such; a line is what its newline says.
func (r *rules) judge(form handshake.Form, beginning []byte) error {
	line := "U2FsdGVkX1" // saltMagic in base64
	if form == handshake.Binary {
		line = saltMagic
	}
	switch {
	case r.tokens != nil && agree(beginning, token.Start):
		return nil
	case r.keys == nil:
		return errNotToken
	case agree(beginning, line):
		return nil
	}
	return errBadFormat
}

// agree tells whether b begins with s, as far as it goes.
func agree(b []byte, s string) bool {
	n := min(len(b), len(s))
	return string(b[:n]) == s[:n]
}

// open returns the route in a sealed line or a token, which a request of the
// given form held. The error is a *refusal.
func (r *rules) open(ctx context.Context, form handshake.Form, sealed []byte) (address.Route, error) {
	switch {
	case r.tokens != nil && token.Looks(sealed):
		return r.openToken(sealed)
	case r.keys == nil:
		return address.Route{}, errNotToken
	case form == handshake.Binary:
		return r.keys.openRaw(ctx, sealed)
	}
	return r.keys.open(ctx, sealed)
}

func (r *rules) openToken(text []byte) (address.Route, error) {
	subject, err := r.tokens.Open(text, time.Now())
	if err != nil {
		return address.Route{}, &refusal{status: handshake.Unauthorized, reason: err.Error(), cause: err}
	}
	route, err := address.ParseRoute(subject)
	if err != nil {
		return address.Route{}, errBadAddress
	}
	return route, nil
}

// slowKDF tells whether to open a sealed line may take milliseconds.
func (r *rules) slowKDF() bool { return r.keys != nil && r.keys.slowKDF() }

// maxHops is how many gateways may pass a connection on to each other. Two that
// forward to each other by mistake would else do so until they are full.
const maxHops = 8

var errForwardLoop = &refusal{status: handshake.BadGateway, reason: "forward_loop",
	cause: errors.New("gateways pass this connection on and on: do they forward to each other?")}

// believe reads the PROXY header that a trusted proxy has to send, and returns
// what stands behind it. Nobody else's is looked for.
func (r *rules) believe(s *session, received []byte) ([]byte, error) {
	if !s.proxied || s.header > 0 {
		return received[s.header:], nil
	}
	if len(received) == 0 {
		return nil, handshake.ErrIncomplete
	}
	h, n, err := proxyheader.Parse(received)
	switch {
	case errors.Is(err, proxyheader.ErrIncomplete):
		return nil, handshake.ErrIncomplete
	case err != nil:
		return nil, errNoHeader
	}
	s.header, s.hops = n, h.Hops
	if h.Hops >= maxHops {
		return nil, errForwardLoop
	}
	if h.Source.IsValid() {
		s.client, s.local, s.anonymous = h.Source, h.Destination, false
		if err := s.admit(time.Now()); err != nil { // not by the proxy's address
			return nil, err
		}
	}
	return received[n:], nil
}

// requestMax is the most that is read of a client before its request is
// complete, or refused; in bytes.
func (r *rules) requestMax() int {
	most := max(handshake.Size(r.markedMax()), handshake.HelloMax+1, r.httpHeaderMax+1)
	if len(r.trusted) > 0 || len(r.peers) > 0 {
		most += proxyheader.MaxSize
	}
	return most
}

// permit asks the policy whether a backend may be connected. The error is a
// *refusal.
func (r *rules) permit(backend netip.AddrPort) error {
	return denial(r.policy.Check(backend))
}

// permitBroadcast is permit for what only the system knows: whether a network's
// broadcast address is meant. It is asked before a datagram goes there, and
// when the kernel refuses to connect.
func (r *rules) permitBroadcast(backend netip.AddrPort) error {
	return denial(r.policy.CheckBroadcast(backend))
}

func denial(err error) error {
	if err != nil {
		return &refusal{status: handshake.BadGateway, reason: "denied", cause: err}
	}
	return nil
}

// upstream is the backend's end of what a client asks for: of a tunnel, or of
// one exchange of an HTTP client. It is given up by release.
type upstream struct {
	backend address.Address // the one to dial; zero until one is known
	choice  *choice         // among several; nil: there is one
	left    int             // dials that may still be tried
	tries   uint8           // dials that were, as far as they are counted
	began   time.Duration   // the last of them, by the ledger's clock
	dialed  *netip.AddrPort // where the backend's name led to; nil for a literal
	id      string          // told to the backend; empty without a PROXY header of version 2
	preface int32           // bytes of ours that lead what the client sends
	seat    *seat           // among the tunnels that its backend may have; nil: none
}

// seat is a tunnel's part in that.
type seat struct {
	seats *seats
	at    address.Address
}

var errBackendFull = &refusal{status: handshake.BadGateway, reason: "full", cause: errors.New("the backend has as many tunnels as -max-tunnels-per-backend allows")}

// sit counts the tunnel among those of the backend that is to be dialed, of which
// there may be most; 0 is any number, and none is counted.
func (u *upstream) sit(s *seats, most int) error {
	u.rise()
	if most == 0 {
		return nil
	}
	if !s.Take(u.backend, most) {
		return errBackendFull
	}
	u.seat = &seat{s, u.backend}
	return nil
}

// rise undoes sit.
func (u *upstream) rise() {
	if u.seat != nil {
		u.seat.seats.Give(u.seat.at)
		u.seat = nil
	}
}

// joined is what a tunnel joins, as internal/relay keeps it.
type joined struct {
	session  *session
	upstream *upstream
}

// choice is the way through several backends.
type choice struct {
	group   *balance.Group
	attempt balance.Attempt
	service bool // whom DNS lists
	spares  int  // backends that have not had their turn
	passed  bool // one has had it that was not dialed, by errSlowLookup
}

// errNoTarget is a service without targets.
var errNoTarget = &refusal{status: handshake.BadGateway, reason: "no_target", cause: errors.New("the service has no targets")}

// errSlowLookup says that a backend was passed over for others, since its name is
// being looked up for long. It comes wrapped, with a time-out.
var errSlowLookup = errors.New("the lookup takes long")

var processStart = time.Now()

// balanceClock is the time that internal/balance is told, in nanoseconds.
func balanceClock() int64 { return int64(time.Since(processStart)) }

// choose finds the first backend of a route. Where the route is a service, ctx
// bounds the lookup; its cause is the error then. Others are a *refusal.
func (u *upstream) choose(ctx context.Context, r *rules, s *session, route address.Route) error {
	u.left = r.attempts
	if addr, ok := route.Single(); ok {
		u.backend = addr
		return nil
	}
	group := r.routes.Group(route, balanceClock())
	if name := route.Service(); name != "" {
		targets, err := r.services.find(ctx, name)
		switch {
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return dialFailure(err)
		}
		group.Update(targets)
	}
	u.choice = &choice{group: group, attempt: group.Start(s.client.Addr()), spares: group.Len() - 1, service: route.Service() != ""}
	u.left = max(u.left, group.Len())
	if !u.next() {
		return errNoTarget
	}
	return nil
}

// next goes on to another backend. It reports false if each has had its turn.
func (u *upstream) next() bool {
	if u.choice == nil {
		return false
	}
	addr, ok := u.choice.attempt.Next(balanceClock())
	if ok {
		u.backend = addr
	}
	return ok
}

// again begins another round through the backends, each of which has failed the
// client.
func (u *upstream) again(s *session) bool {
	if u.choice == nil {
		return true // the only one
	}
	u.choice.attempt = u.choice.group.Start(s.client.Addr())
	return u.next()
}

// connected says that the backend that was dialed has answered.
func (u *upstream) connected() {
	if u.choice != nil {
		u.choice.attempt.Succeeded(balanceClock())
	}
}

// retry says why the backend that was dialed has not answered, and reports
// whether to dial once more: then u.backend says whom. Each backend has one
// turn. After that only a time-out is worth another round: who refuses now will
// refuse at once again. There is one more round if a backend was passed over.
func (u *upstream) retry(s *session, why *refusal) bool {
	u.rise()
	c := u.choice
	if c != nil {
		if why.blamesBackend {
			c.attempt.Failed(balanceClock())
		}
		c.spares--
		c.passed = c.passed || errors.Is(why, errSlowLookup)
	}
	u.left--
	switch {
	case u.left > 0 && u.next():
		return true
	case c != nil && c.passed:
		c.passed, c.spares, u.left = false, 0, max(u.left, c.group.Len())
		return u.again(s)
	}
	return u.left > 0 && why.status == handshake.GatewayTimeout && u.again(s)
}

// hasSpare tells whether there is a backend that has not had its turn.
func (u *upstream) hasSpare() bool { return u.choice != nil && u.choice.spares > 0 }

// release gives up the backend that was chosen.
func (u *upstream) release() {
	u.rise()
	if u.choice != nil {
		u.choice.attempt.Release()
	}
}
