package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"gateway/internal/address"
	"gateway/internal/balance"
	"gateway/internal/policy"
	"gateway/internal/proxyheader"
	"gateway/internal/token"
)

// frontend decides about clients and keeps account of them. It knows nothing
// of sockets, and waits only where a ctx bounds it, so that the two ways in share
// it: a goroutine that reads and waits (Gateway.serveConn), and the event loops.
type frontend struct {
	keys     *keyring       // opens sealed lines; nil: none is
	tokens   *token.Keys    // opens tokens; nil: none is
	policy   *policy.Policy // where backends may be
	routes   *balance.Table // whose turn it is among several backends
	services *services      // whom DNS lists
	log      *slog.Logger

	handshakeTimeout time.Duration  // from accept to the end of the request
	handshakeMax     int            // of a sealed line, in bytes
	sendProxy        int            // version of the PROXY header for backends; 0: none
	trusted          []netip.Prefix // peers that tell of their clients by a PROXY header
	tls              bool           // clients may speak it

	serving sync.WaitGroup // connections, from accept to account
	cut     atomic.Int64   // tunnels ended by Close
	denied  atomic.Int64   // clients whose backend the policy forbids

	idPrefix string        // random, of this process
	lastID   atomic.Uint64 // see newID

	warnedAccept atomic.Int64 // when, in Unix nanoseconds
}

// session is what the account of a connection needs from its beginning.
type session struct {
	client   netip.AddrPort
	accepted time.Time
	form     form
	forward  *address.Route  // where its listener leads; nil: the client says so
	secure   bool            // inside TLS
	kcp      bool            // comes by KCP
	proxied  bool            // a trusted proxy is the socket's peer
	header   int             // bytes of its PROXY header
	local    netip.AddrPort  // where the client connected to, by that header; or invalid
	backend  address.Address // zero until one is known
	choice   *choice         // among several backends; nil: there is one
	dialed   *netip.AddrPort // where the backend's name led to; nil for a literal
	id       string          // told to the backend; empty without a PROXY header of version 2
	preface  int32           // bytes of ours that lead what the client sends
	finished bool
}

// arrival is the beginning of a connection. forward is where its listener
// leads to, or nil where the client says so.
func (f *frontend) arrival(peer netip.AddrPort, forward *address.Route) session {
	s := session{client: peer, accepted: time.Now()}
	if forward != nil {
		s.form, s.forward = formForward, forward
	}
	s.proxied = slices.ContainsFunc(f.trusted, func(p netip.Prefix) bool { return p.Contains(peer.Addr()) })
	return s
}

// asks tells whether a client has to say something before it is connected.
func (s *session) asks() bool { return s.forward == nil || s.proxied || s.forward.Has("http") }

// A status is the three ASCII bytes with which a request is answered. The
// empty status answers nothing: nobody is there to read it.
type status string

const (
	statusOK             status = "200" // connected; from here on bytes flow
	statusBadRequest     status = "400" // no request could be read
	statusUnauthorized   status = "401" // the address could not be opened
	statusBadGateway     status = "502" // the backend could not be connected
	statusGatewayTimeout status = "504" // connecting the backend timed out
)

// statusOf returns the answer to a failed request.
func statusOf(err error) status {
	var (
		re requestError
		oe openError
		te token.Error
		de *dialError
	)
	switch {
	case errors.Is(err, errTLS):
		return ""
	case errors.As(err, &re):
		return statusBadRequest
	case errors.As(err, &oe), errors.As(err, &te):
		return statusUnauthorized
	case errors.As(err, &de):
		return de.status
	}
	return statusBadGateway
}

// request is what a client asks for.
type request struct {
	route address.Route // to the backend
	early []byte        // what came behind the request, for the backend
}

// request reads a request from all that a client has sent so far, and opens
// its address; of HTTP and TLS it only tells which it is, and early is the
// beginning. The result aliases received. The error is errIncomplete as long as
// more has to be read; otherwise it is a requestError or one of open. The
// session learns the form and what a trusted proxy says. ctx bounds the wait
// for a slow key derivation.
func (f *frontend) request(ctx context.Context, s *session, received []byte) (request, error) {
	b, err := f.believe(s, received)
	if err != nil {
		return request{}, err
	}
	if s.forward != nil && !s.forward.Has("http") {
		return request{*s.forward, b}, nil
	}
	if len(b) == 0 {
		return request{}, errIncomplete
	}
	var line, early []byte
	s.form = sniff(b, f.tls && !s.secure && !s.kcp)
	switch {
	case s.forward != nil && s.form != formTLS && s.form != formUnknown:
		s.form = formHTTP // net/http answers to what is not
	case s.form == formHTTP && s.kcp:
		s.form = formLine
	}
	switch s.form {
	case formLine:
		line, early, err = parseLine(b, f.handshakeMax)
	case formPrefixed:
		line, early, err = parsePrefixed(b, f.handshakeMax)
	case formBinary:
		line, early, err = parseBinary(b, f.handshakeMax)
	case formHTTP, formTLS:
		return request{early: b}, nil
	default:
		err = errIncomplete
	}
	if err != nil {
		return request{}, err
	}
	route, err := f.open(ctx, line)
	if err != nil {
		return request{}, err
	}
	if route.Has("http") {
		return request{}, errWrongWay
	}
	return request{route, early}, nil
}

// open returns the route in a sealed line or a token, wherever that stood. The
// error is an openError or a token.Error.
func (f *frontend) open(ctx context.Context, sealed []byte) (address.Route, error) {
	if f.tokens != nil && token.Looks(sealed) {
		subject, err := f.tokens.Open(sealed, time.Now())
		if err != nil {
			return address.Route{}, err
		}
		route, err := address.ParseRoute(subject)
		if err != nil {
			return address.Route{}, errBadAddress
		}
		return route, nil
	}
	if f.keys == nil {
		return address.Route{}, errNotToken
	}
	return f.keys.open(ctx, sealed)
}

// believe reads the PROXY header that a trusted proxy has to send, and returns
// what stands behind it. Nobody else's is looked for.
func (f *frontend) believe(s *session, received []byte) ([]byte, error) {
	if !s.proxied || s.header > 0 {
		return received[s.header:], nil
	}
	if len(received) == 0 {
		return nil, errIncomplete
	}
	h, n, err := proxyheader.Parse(received)
	switch {
	case err == proxyheader.ErrIncomplete:
		return nil, errIncomplete
	case err != nil:
		return nil, errNoHeader
	}
	s.header = n
	if h.Source.IsValid() {
		s.client, s.local = h.Source, h.Destination
	}
	return received[n:], nil
}

// requestMax is the most that is read of a client before its request is
// complete, or refused.
func (f *frontend) requestMax() int {
	// It takes up to 8 bytes to tell the forms apart, see sniff.
	most := max(8, prefixSize+f.handshakeMax+len("\r\n"))
	if len(f.trusted) > 0 {
		most += proxyheader.MaxSize
	}
	return most
}

// permit asks the policy whether a backend may be connected. The error is a
// *dialError.
func (f *frontend) permit(backend netip.AddrPort) error {
	return denial(f.policy.Check(backend))
}

// permitBroadcast is permit for what only the system knows: whether a network's
// broadcast address is meant. It is asked before a datagram goes there, and
// when the kernel refuses to connect.
func (f *frontend) permitBroadcast(backend netip.AddrPort) error {
	return denial(f.policy.CheckBroadcast(backend))
}

func denial(err error) error {
	if err != nil {
		return &dialError{statusBadGateway, "denied", err}
	}
	return nil
}

// announce returns what goes to the backend before anything else: the PROXY
// header, if there is to be one, and what the client has sent early. local is
// the socket's own address.
func (f *frontend) announce(s *session, local netip.AddrPort, early []byte) []byte {
	if f.sendProxy == 0 {
		return early
	}
	if s.local.IsValid() {
		local = s.local
	}
	if f.sendProxy == 2 {
		s.id = f.newID()
	}
	b, err := proxyheader.Append(make([]byte, 0, 128+len(early)), f.sendProxy,
		proxyheader.Header{Source: s.client, Destination: local, UniqueID: s.id})
	if err != nil { // only for a bug: both addresses are a socket's
		f.log.Error("cannot make a PROXY header", "client", s.client.String(), "err", err)
		return early
	}
	s.preface = int32(len(b))
	return append(b, early...)
}

// newID returns a name for a connection that no other connection of any
// gateway has.
func (f *frontend) newID() string {
	return f.idPrefix + "-" + strconv.FormatUint(f.lastID.Add(1), 16)
}

// finish ends a connection's part in serving. Only its first call counts.
func (f *frontend) finish(s *session) {
	if !s.finished {
		s.finished = true
		s.choice.release()
		f.serving.Done()
	}
}
