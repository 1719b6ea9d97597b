package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"gateway/internal/address"
	"gateway/internal/handshake"
	"gateway/internal/kcp"
	"gateway/internal/layer"
	"gateway/internal/limit"
)

// session is what is known of a client's connection, from accept to account.
type session struct {
	client    netip.AddrPort
	local     netip.AddrPort // where it connected to, if a trusted proxy has told; or invalid
	accepted  time.Time
	entrance  *entrance      // by which it came
	number    uint64         // its own in this process; see ledger.name
	forward   *address.Route // where its listener leads; nil: the client says so
	form      handshake.Form
	secure    bool        // inside TLS
	kcp       bool        // comes by KCP
	peer      bool        // of another gateway, which has a client that resumes
	proxied   bool        // a trusted proxy is the socket's peer
	header    int         // bytes of its PROXY header
	hops      uint8       // gateways that have passed it on, by that header
	counted   bool        // what became of it is
	anonymous bool        // a trusted proxy has not said yet whose it is, or that it is its own
	reserved  bool        // it is one of those that ledger.reserve counts
	place     limit.Place // in what is counted for its client's address
	done      bool        // accounted for
	resumes   string      // the name of its resumable tunnel; empty: it is not
}

// entrance is a listener as its connections know it.
type entrance struct {
	name     string         // its address, with kcp:// before it for KCP
	forward  *address.Route // where its clients go; nil: they say so
	accepted atomic.Int64   // connections that have begun

	kcp func() kcp.Stats // of a listener for KCP; nil for others

	at      string                        // its address in the settings; empty in tests
	limiter atomic.Pointer[limit.Limiter] // of its clients; nil in tests: none
	conns   limit.Occupancy               // connections, those being accepted included
}

// seats count the tunnels of each backend.
type seats = limit.Seats[address.Address]

// admission says how many connections there may be at a time, and whose. It outlives any
// configuration.
type admission struct {
	limiter       *limit.Limiter // of clients of all listeners that have no own
	bans          *limit.Bans
	seats         seats           // of backends
	away          *limit.Tally    // clients that limits have turned away
	lame          atomic.Bool     // clients should go elsewhere, by an operator's will
	leaving       atomic.Bool     // the same, since the gateway is about to end
	conns         limit.Occupancy // connections, those being accepted included
	byDescriptors atomic.Int32    // the most that the descriptors suffice for
}

// errFull and the others are why accepting pauses.
var (
	errFull         = errors.New("as many connections as the limit of descriptors allows (ulimit -n)")
	errMaxConns     = errors.New("as many connections as -max-conns allows")
	errListenerFull = errors.New("as many connections as the max-conns of this listener allows")
)

// reserve counts a connection that is about to be accepted among those that there may
// be at a time. The error is why there may be no other: then it is better off in
// the listener's queue.
func (a *admission) reserve(by *entrance) error {
	if !a.conns.Take() {
		if _, most := a.conns.Count(); most == int(a.byDescriptors.Load()) {
			return errFull
		}
		return errMaxConns
	}
	if !by.conns.Take() {
		a.conns.Give()
		return errListenerFull
	}
	return nil
}

// reserveBeyond is reserve for a connection that is there already.
func (a *admission) reserveBeyond(by *entrance) {
	a.conns.Force()
	by.conns.Force()
}

// unready tells whether clients should go elsewhere; those that come are served.
func (a *admission) unready() bool { return a.lame.Load() || a.leaving.Load() }

// unreserve undoes reserve.
func (a *admission) unreserve(by *entrance) {
	by.conns.Give()
	a.conns.Give()
}

// full tells whether there may be no other connection.
func (a *admission) full() bool { return a.conns.Full() }

// fullAt is full for a listener.
func (a *admission) fullAt(by *entrance) bool { return a.full() || by.conns.Full() }

// entranceName is the name of the listener by which a client came.
func (s *session) entranceName() string {
	if s.entrance == nil { // in tests
		return ""
	}
	return s.entrance.name
}

// via tells how the client came in: its form, and what that came in.
func (s *session) via() string {
	switch {
	case s.secure && s.form == handshake.Unknown:
		return "tls"
	case s.secure:
		return s.form.String() + "+tls"
	case s.kcp:
		return s.form.String() + "+kcp"
	}
	return s.form.String()
}

// asks tells whether a client has to say something before it is connected.
func (s *session) asks() bool { return s.forward == nil || s.proxied || s.forward.Has("http") }

// Why a client said no request, or not all of one.
var (
	errTooLong   = badRequest("too_long")   // more than -handshake-max bytes in the sealed line
	errBadLength = badRequest("bad_length") // nothing where a sealed line should be
	errTooSlow   = badRequest("too_slow")   // -handshake-timeout passed
	errEOF       = badRequest("eof")        // the client finished before the end of its request
	errReset     = badRequest("reset")      // the client broke the connection
	errEmpty     = badRequest("empty")      // any of these without a single byte
	errNoHeader  = badRequest("no_header")  // a trusted proxy sent no valid PROXY header
)

var errHalfHello = &refusal{reason: "tls_failed", cause: errors.New("tls_failed: the client finished, or was too slow, within its ClientHello")}

// cutShort returns why a request is incomplete for ever: err is what ended the
// reading, nil or io.EOF for the client's FIN. A client that has not said a
// thing, a proxy's header aside, was a health check most of the time.
func (s *session) cutShort(received []byte, err error) *refusal {
	switch {
	case len(received) == s.header:
		return errEmpty
	case s.form == handshake.TLS: // who speaks TLS reads no status
		return errHalfHello
	case err == errTooSlow, layer.IsTimeout(err):
		return errTooSlow
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errEOF
	}
	return errReset
}

// refusal is why a client gets no backend. The client is told the status, and
// the log the rest.
type refusal struct {
	status handshake.Status // empty: nobody is there to read one
	reason string           // one word
	cause  error            // what says more than that word; or nil

	// Whether the backend, and nobody else, is why: it loses its turn for a
	// while. A client that left or a gateway without descriptors says nothing
	// about it.
	blamesBackend bool

	limit limit.Reason // of limits that turn a client away: it is reset, and told nothing
}

func (r *refusal) Error() string {
	if r.cause == nil {
		return r.reason
	}
	return r.cause.Error()
}

func (r *refusal) Unwrap() error { return r.cause }

// refusalOf returns the refusal that an error is, or holds. Anything else is a
// backend that could not be had.
func refusalOf(err error) *refusal {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	return &refusal{status: handshake.BadGateway, reason: err.Error(), cause: err}
}

// statusOf returns the answer to a failed request.
func statusOf(err error) handshake.Status { return refusalOf(err).status }

// badRequest is why no request could be read.
func badRequest(reason string) *refusal {
	return &refusal{status: handshake.BadRequest, reason: reason}
}

// unauthorized is why an address did not open. The client gets the same 401 for
// each.
func unauthorized(reason string) *refusal {
	return &refusal{status: handshake.Unauthorized, reason: reason}
}

const (
	// lingerTime and lingerBytes bound how long and how much is still read
	// from a refused client.
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// Why a connection ended before its request was answered. Nobody waits for an
// answer.
var (
	errClientGone = &refusal{reason: "client_gone", cause: errors.New("the client broke the connection while its backend was dialed")}
	errGaveWay    = &refusal{reason: "gave_way", cause: errors.New("more clients than -max-pending had not said yet where they want to go, and this was the oldest")}
	errShutdown   = &refusal{reason: "shutdown", cause: errors.New("the gateway ended")}
	errInternal   = &refusal{reason: "internal", cause: errors.New("a bug or a failure of the gateway itself; the log says more")}
)

// errLimits are why limits turn a client away, by their reason.
var errLimits = func() map[limit.Reason]*refusal {
	all := make(map[limit.Reason]*refusal)
	for _, why := range limit.Reasons() {
		all[why] = &refusal{reason: why.String(), limit: why}
	}
	return all
}()

// admit asks the limits of the listener whether the client may be served, by its
// address as it is believed by now. The error is a *refusal.
func (s *session) admit(now time.Time) error {
	if s.entrance == nil {
		return nil
	}
	limiter := s.entrance.limiter.Load()
	if limiter == nil {
		return nil
	}
	place, why := limiter.Admit(s.client.Addr(), now)
	if why != limit.None {
		return errLimits[why]
	}
	s.place = place
	return nil
}

// shares returns the address that a client which has proven nothing shares its room
// with, if that is known.
func (s *session) shares() netip.Addr {
	if s.anonymous || s.entrance == nil {
		return netip.Addr{}
	}
	if limiter := s.entrance.limiter.Load(); limiter != nil {
		return limiter.Fold(s.client.Addr())
	}
	return s.client.Addr()
}

// misbehaved tells the limits of a client's bad line, token or handshake, if that is
// why it was refused, and reports whether it is banned for that.
func (s *session) misbehaved(err error, status handshake.Status) bool {
	if s.anonymous || s.entrance == nil || !isBad(err, status) {
		return false
	}
	limiter := s.entrance.limiter.Load()
	return limiter != nil && limiter.Strike(s.client.Addr(), time.Now())
}

// isBad tells whether a refusal is for what its client has sent. To send nothing, as
// health checks do, or to be cut off is not bad, nor is what a proxy has to answer
// for.
func isBad(err error, status handshake.Status) bool {
	switch err {
	case errEmpty, errReset, errNoHeader:
		return false
	}
	return status == handshake.BadRequest || status == handshake.Unauthorized || refusalOf(err).reason == "tls_failed"
}

// limitOf returns why limits have turned a client away, if that is what an error is.
func limitOf(err error) limit.Reason {
	if r, ok := err.(*refusal); ok {
		return r.limit
	}
	return limit.None
}

// dialFailure gives a failed lookup or dial its status and its word in the log.
func dialFailure(err error) *refusal {
	if r, ok := err.(*refusal); ok {
		return r
	}
	if layer.IsTimeout(err) {
		return &refusal{status: handshake.GatewayTimeout, reason: "timeout", cause: err, blamesBackend: true}
	}
	reason, blamesBackend := "connect_failed", true
	var dnsErr *net.DNSError
	switch {
	case errors.As(err, &dnsErr) && dnsErr.IsNotFound:
		reason = "unknown_host"
	case errors.As(err, &dnsErr):
		reason = "lookup_failed"
	case errors.Is(err, syscall.ECONNREFUSED):
		reason = "refused"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		reason = "unreachable"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		reason, blamesBackend = "no_descriptors", false
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		reason, blamesBackend = "no_local_port", false
		err = fmt.Errorf("%w (all local ports towards it are in use: widen net.ipv4.ip_local_port_range, or spread the backend over several addresses)", err)
	}
	return &refusal{status: handshake.BadGateway, reason: reason, cause: err, blamesBackend: blamesBackend}
}
