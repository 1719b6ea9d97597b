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
	"gateway/internal/balance"
	"gateway/internal/handshake"
	"gateway/internal/kcp"
	"gateway/internal/layer"
	"gateway/internal/limit"
	"gateway/internal/resume/owner"
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
		return s.foreign(received, errTooSlow)
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return s.foreign(received, errEOF)
	}
	return s.foreign(received, errReset)
}

// errForeign are why clients of other protocols are refused, by what the same bytes would
// be told anyway.
var errForeign = func() map[handshake.Foreign]map[handshake.Status]*refusal {
	all := make(map[handshake.Foreign]map[handshake.Status]*refusal)
	for is, what := range map[handshake.Foreign]string{
		handshake.ProxyHeader: "a PROXY header of a peer that is not among -trusted-proxies",
		handshake.TLSHello:    "the client speaks TLS, and there is no -tls-cert",
		handshake.HTTP2:       "the client speaks HTTP/2, and only HTTP/1.1 is spoken here",
		handshake.SSH:         "the client speaks SSH",
	} {
		all[is] = make(map[handshake.Status]*refusal)
		for _, st := range []handshake.Status{handshake.BadRequest, handshake.Unauthorized} {
			all[is][st] = &refusal{status: st, reason: string(is), cause: fmt.Errorf("%s: %s", is, what)}
		}
	}
	return all
}()

// foreign returns why a client is refused whose request is none, and who has sent
// received: that it speaks another protocol, if it does. The status stays.
func (s *session) foreign(received []byte, why *refusal) *refusal {
	switch {
	case s.forward != nil, s.form == handshake.HTTP, s.form == handshake.TLS:
		return why
	case s.proxied && s.header == 0: // a trusted proxy, whose header is not there yet
		return why
	}
	if other := errForeign[handshake.SniffForeign(received[s.header:])][why.status]; other != nil {
		return other
	}
	return why
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

// errAskDenied is a name of a sealed address where the operator's service says that there
// is no such thing, any more or for this client. The address was a good one.
var errAskDenied = unauthorized("ask_denied")

// badAnswer is an answer of the operator's service that is of no use, which the operator
// should hear of.
type badAnswer struct{ error }

func (e badAnswer) Unwrap() error { return e.error }

func isBadAnswer(err error) bool {
	var bad badAnswer
	return errors.As(err, &bad)
}

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
	errGaveWay    = &refusal{reason: "gave_way", cause: errors.New("more clients than -max-pending had not said yet where they want to go, or there were as many connections as there may be, and this was the oldest")}
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

// folded returns what is counted for the client's address.
func (s *session) folded() netip.Addr {
	if s.entrance != nil {
		if limiter := s.entrance.limiter.Load(); limiter != nil {
			return limiter.Fold(s.client.Addr())
		}
	}
	return limit.Fold(s.client.Addr(), 0)
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
	case errEmpty, errReset, errNoHeader, errAskDenied:
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

// upstream is the backend's end of what a client asks for: of a tunnel, or of
// one exchange of an HTTP client. It is given up by release.
type upstream struct {
	backend address.Address // the one to dial; zero until one is known
	choice  *choice         // among several; nil: there is one
	left    int             // dials that may still be tried
	tries   uint8           // dials that were, 255 at most
	dialing int32           // milliseconds that they took together
	began   time.Duration   // the last of them, by the ledger's clock
	dialed  *netip.AddrPort // where the backend's name led to; nil for a literal
	id      string          // told to the backend, or its name in another process; empty: see account.id
	label   string          // what the operator's service calls it that was asked for it, or empty
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

// beginning is what a tunnel begins with that was connected elsewhere.
type beginning struct {
	early []byte          // what the client has already sent for the backend
	sent  int64           // bytes of the backend that the client has had
	layer layer.Transform // on the client's socket; nil: none
	state layer.State     // what that knows of the client

	resumable *owner.Tunnel // the layer is its session; nil: it is not
	frames    []byte        // what the client has already sent for that
}

// choice is the way through several backends.
type choice struct {
	group   *balance.Group
	attempt balance.Attempt
	service bool     // whom DNS lists
	spares  int      // backends that have not had their turn
	passed  bool     // one has had it that was not dialed, by errSlowLookup
	failed  []string // those that had it, and did not answer
}

// errSlowLookup says that a backend was passed over for others, since its name is
// being looked up for long. It comes wrapped, with a time-out.
var errSlowLookup = errors.New("the lookup takes long")

var processStart = time.Now()

// balanceClock is the time that internal/balance is told, in nanoseconds.
func balanceClock() int64 { return int64(time.Since(processStart)) }

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
		if len(c.failed) < maxFailed {
			c.failed = append(c.failed, u.backend.String())
		}
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

// maxFailed bounds the backends that the log names.
const maxFailed = 8

// hasSpare tells whether there is a backend that has not had its turn.
func (u *upstream) hasSpare() bool { return u.choice != nil && u.choice.spares > 0 }

// release gives up the backend that was chosen.
func (u *upstream) release() {
	u.rise()
	if u.choice != nil {
		u.choice.attempt.Release()
	}
}
