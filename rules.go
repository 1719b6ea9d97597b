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
	"gateway/internal/ask"
	"gateway/internal/balance"
	"gateway/internal/handshake"
	"gateway/internal/layer"
	"gateway/internal/limit"
	"gateway/internal/policy"
	"gateway/internal/proxyheader"
	"gateway/internal/resolve"
	"gateway/internal/resume"
	"gateway/internal/resume/owner"
	"gateway/internal/smallfile"
)

// rules say what a client's request means and where it may lead. They know
// nothing of sockets, and wait only where a ctx bounds it, so that the two ways
// in share them: a goroutine that reads and waits (Gateway.serveConn), and the
// event loops. They never change; a connection keeps those that it began with.
type rules struct {
	trusted          []netip.Prefix // peers that tell of their clients by a PROXY header
	tls              *tls.Config    // nil: clients do not speak TLS
	resumes          bool           // tunnels may be resumable
	owner            *owner.Owner   // of resumable tunnels; nil: there are none
	peers            []netip.Prefix // where other gateways are
	resumePlain      bool           // also where their key can be read on the way
	httpHeaderMax    int            // of an HTTP request's head, in bytes
	handshakeTimeout time.Duration  // from accept to the end of the request
	handshakeMax     int            // of a sealed line, in bytes

	opener  opener
	secrets *smallfile.Watch // of the files of the secrets of sealed lines

	policy     *policy.Policy                      // where backends may be
	routes     *balance.Table                      // whose turn it is among several backends
	services   *balance.Directory[resolve.Service] // whom DNS lists
	attempts   int                                 // to dial in all, at least one
	timeout    time.Duration                       // of one attempt
	maxTunnels int                                 // of one backend; 0: any number
	sendProxy  int                                 // version of the PROXY header for backends; 0: none

	asks asking // where names and tickets lead
}

// asking is whom the gateway asks where names and tickets lead; see rules.ask. The zero
// value asks nobody.
type asking struct {
	service *ask.Service // nil: nobody
	gateway string       // this process, as the service knows it
	tries   *limit.Tries // of tickets, by address; nil: any number
}

func newRules(cfg *Config, services *balance.Directory[resolve.Service]) *rules {
	r := &rules{
		opener:           newOpener(cfg),
		trusted:          cfg.TrustedProxies,
		tls:              cfg.tlsConfig,
		handshakeTimeout: cfg.HandshakeTimeout,
		handshakeMax:     cfg.HandshakeMax,
		httpHeaderMax:    cfg.HTTPHeaderMax,
		resumes:          cfg.Resume,
		resumePlain:      cfg.ResumePlain,
		peers:            cfg.ResumePeers,
		policy:           policy.New(cfg.Allow, cfg.Deny),
		routes:           balance.NewTable(cfg.Balance),
		services:         services,
		attempts:         cfg.Retry,
		timeout:          cfg.Timeout,
		maxTunnels:       cfg.MaxTunnels,
		sendProxy:        cfg.proxyVersion(),
		asks:             asking{service: cfg.asks},
	}
	if cfg.Legacy {
		r.secrets = cfg.watch
	}
	return r
}

func newOpener(cfg *Config) opener {
	o := opener{tokens: cfg.tokens, tickets: cfg.AskTickets}
	if cfg.Legacy {
		o.keys = newKeyring(cfg.Secrets, cfg.KDFs)
	}
	return o
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
	errNoResume  = unauthorized("no_resume")  // for a resumable tunnel, and -resume=0
	errNotResume = unauthorized("not_resume") // on -resume-peer, anything but that
	errBadTicket = unauthorized("bad_ticket") // to resume one; made up, or of another secret
	errForged    = unauthorized("forged")     // to resume one; of somebody else
	errUsed      = unauthorized("used")       // to resume one; it was before, or a newer one
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
func (r *rules) request(ctx context.Context, s *session, received []byte) (q request, err error) {
	defer func() {
		if why, ok := err.(*refusal); ok {
			err = s.foreign(received, why)
		}
	}()
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
	if hopeless := r.opener.judge(s.form, s.form.Beginning(b)); hopeless != nil && !marked {
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
	route, err := r.opener.open(ctx, s.form, sealed)
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
		switch r.owner.Refuses(again) {
		case owner.ErrTicket:
			return request{}, errBadTicket
		case resume.ErrForged:
			return request{}, errForged
		case resume.ErrUsed:
			return request{}, errUsed
		}
		return request{again: again}, nil
	case len(begin.Sealed) > r.handshakeMax:
		return request{}, errTooLong
	case begin.Key == nil && !secure && !r.resumePlain:
		return request{}, errPlainKey
	}
	route, err := r.opener.open(ctx, form, begin.Sealed)
	if err != nil {
		return request{}, err
	}
	if route.Has("http") {
		return request{}, errWrongWay
	}
	return request{route: route, begin: begin}, nil
}

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

// Where names and tickets lead. internal/ask speaks with the operator's service; this says
// what a question is of a session, and what an answer or none is to it.

// ticketTries bounds the tickets of a client address that come to nothing.
const ticketTries = "10/s,100"

// mustRate reads a rate that is a constant.
func mustRate(s string) limit.Rate {
	r, err := limit.ParseRate(s)
	if err != nil {
		panic(err)
	}
	return r
}

// Why there is no answer. The service's own words are not in it.
var (
	errUnasked      = &refusal{status: handshake.BadGateway, reason: "ask_off", cause: errors.New("it is a name for the service of -ask, which is not set")}
	errTicketDenied = unauthorized("ticket_denied")
	errAskQueue     = &refusal{status: handshake.GatewayTimeout, reason: "ask_queue", cause: errors.New("-ask: the handshake's time was over before the service was asked, or had answered")}
)

// takes is what backends a client can be led to: such as take bytes, or HTTP.
type takes uint8

const (
	takesBytes takes = 1 << iota
	takesHTTP
)

// ask asks where a name or a ticket leads, within the time that a request has. q holds
// the form of the request, and what only that knows. The error is a *refusal, or the cause of a ctx
// that ends; one that wraps a badAnswer is the service's fault.
func (r *rules) ask(ctx context.Context, s *session, route address.Route, takes takes, q ask.Question) (*ask.Answer, error) {
	if r.asks.service == nil {
		return nil, errUnasked
	}
	q.Name, q.Ticket = route.Asked(), route.Ticket()
	q.Client, q.Listener, q.Gateway = s.client.String(), s.entranceName(), r.asks.gateway
	q.TLS, q.KCP = s.secure, s.kcp
	began := s.accepted
	if s.form == handshake.HTTP { // one of several that it asks for
		began = time.Now()
	}
	within, cancel := context.WithDeadlineCause(ctx, began.Add(r.handshakeTimeout), errAskQueue)
	defer cancel()
	var answer *ask.Answer
	var err error
	if q.Ticket == "" {
		answer, err = r.asks.service.Ask(within, &q)
	} else {
		answer, err = r.askTicket(within, s, &q)
	}
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, askFailure(err, &q)
	}
	if err := r.fits(answer, takes); err != nil {
		return nil, askFailure(badAnswer{err}, &q)
	}
	return answer, nil
}

// askTicket asks for a ticket, unless too many of the client's address were good for
// nothing: what anybody can make up is not passed on without bounds.
func (r *rules) askTicket(ctx context.Context, s *session, q *ask.Question) (*ask.Answer, error) {
	if r.asks.tries == nil {
		return r.asks.service.Ask(ctx, q)
	}
	try, ok := r.asks.tries.Begin(s.folded(), time.Now())
	if !ok {
		return nil, errLimits[limit.TooManyTries]
	}
	answer, err := r.asks.service.Ask(ctx, q)
	try.End(err == nil)
	return answer, err
}

// fits tells whether an answer is of use to a client that can be led there, and allowed
// as far as that shows before names are looked up.
func (r *rules) fits(a *ask.Answer, takes takes) error {
	switch {
	case takes&takesHTTP == 0 && a.Backend.Has("http"):
		return errors.New("the backend speaks HTTP, and the client does not")
	case takes&takesBytes == 0 && (a.Backend.Has("tcp") || a.Backend.Has("kcp")):
		return errors.New("the backend does not speak HTTP, and the client does")
	}
	for i := range a.Backend.Len() {
		if to := a.Backend.Target(i).Addr; to.IP.IsValid() {
			if err := r.permit(netip.AddrPortFrom(to.IP, to.Port)); err != nil {
				return err
			}
		}
	}
	return nil
}

// blameAnswer makes an error of a dial the service's fault, whose answer led there, if the
// policy is why.
func blameAnswer(err error) error {
	var denial *policy.Denial
	if !errors.As(err, &denial) {
		return err
	}
	why := *refusalOf(err)
	why.cause = badAnswer{fmt.Errorf("-ask: the answer leads where no backend may be: %w", err)}
	return &why
}

// known returns the answer for a name that can be had without a wait, for a client that
// brings bytes; or nil.
func (r *rules) known(route address.Route) *ask.Answer {
	if r.asks.service == nil || route.Asked() == "" {
		return nil
	}
	answer := r.asks.service.Known(route.Asked())
	if answer == nil || r.fits(answer, takesBytes) != nil {
		return nil
	}
	return answer
}

// askFailure gives a question without an answer its status and its word in the log.
func askFailure(err error, q *ask.Question) *refusal {
	of := fmt.Sprintf("%q", q.Name)
	if q.Ticket != "" {
		of = "a ticket"
	}
	var why *refusal
	switch {
	case isBadAnswer(err), errors.Is(err, ask.ErrBad):
		return &refusal{status: handshake.BadGateway, reason: "ask_bad", cause: badAnswer{fmt.Errorf("-ask: the answer for %s: %w", of, err)}}
	case errors.As(err, &why):
		return why
	case errors.Is(err, ask.ErrDenied) && q.Ticket != "":
		return errTicketDenied
	case errors.Is(err, ask.ErrDenied):
		return errAskDenied
	case errors.Is(err, ask.ErrLimited):
		return errLimits[limit.Elsewhere]
	case errors.Is(err, ask.ErrSilent), layer.IsTimeout(err):
		return &refusal{status: handshake.GatewayTimeout, reason: "ask_silent", cause: fmt.Errorf("-ask: %w", err)}
	case errors.Is(err, ask.ErrBusy):
		return &refusal{status: handshake.BadGateway, reason: "ask_busy", cause: fmt.Errorf("-ask: %w", err)}
	}
	return &refusal{status: handshake.BadGateway, reason: "ask_down", cause: fmt.Errorf("-ask: %w", err)}
}
