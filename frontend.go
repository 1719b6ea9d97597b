package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"gateway/internal/address"
	"gateway/internal/policy"
	"gateway/internal/proxyheader"
)

// frontend decides about clients and keeps account of them. It knows nothing
// of sockets and of waiting, so that the two ways in share it: a goroutine
// that reads and waits (Gateway.serveConn), and the event loops.
type frontend struct {
	keys   *keyring
	policy *policy.Policy // where backends may be
	log    *slog.Logger

	handshakeTimeout time.Duration // from accept to the end of the request
	handshakeMax     int           // of a sealed line, in bytes
	sendProxy        int           // version of the PROXY header for backends; 0: none

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
	backend  address.Address // zero until one is known
	dialed   *netip.AddrPort // where the backend's name led to; nil for a literal
	id       string          // told to the backend; empty without a PROXY header of version 2
	preface  int32           // bytes of ours that lead what the client sends
	finished bool
}

// arrival is the beginning of a connection. forward is where its listener
// leads to, or nil where the client says so.
func arrival(client netip.AddrPort, forward *address.Address) session {
	s := session{client: client, accepted: time.Now()}
	if forward != nil {
		s.form, s.backend = formForward, *forward
	}
	return s
}

// reply returns the bytes that tell the client of a status; none where the
// client does not expect any.
func (s *session) reply(st status) []byte {
	if s.form == formForward {
		return nil
	}
	return []byte(st)
}

// addrPort returns a socket's address, an IPv4-mapped one as IPv4.
func addrPort(a net.Addr) netip.AddrPort {
	if a, ok := a.(*net.TCPAddr); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

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
		de *dialError
	)
	switch {
	case errors.As(err, &re):
		return statusBadRequest
	case errors.As(err, &oe):
		return statusUnauthorized
	case errors.As(err, &de):
		return de.status
	}
	return statusBadGateway
}

// request is what a client asks for.
type request struct {
	addr  address.Address // of the backend
	early []byte          // what came behind the request, for the backend
}

// request reads a request from all that a client has sent so far, and opens
// its address. The result aliases received. The error is errIncomplete as long
// as more has to be read; otherwise it is a requestError or an openError. ctx
// bounds the wait for a slow key derivation.
func (f *frontend) request(ctx context.Context, received []byte) (request, error) {
	line, early, err := parseLine(received, f.handshakeMax)
	if err != nil {
		return request{}, err
	}
	addr, err := f.keys.open(ctx, line)
	if err != nil {
		return request{}, err
	}
	return request{addr, early}, nil
}

// permit asks the policy whether a backend may be connected. The error is a
// *dialError.
func (f *frontend) permit(backend netip.AddrPort) error {
	if err := f.policy.Check(backend); err != nil {
		return &dialError{statusBadGateway, "denied", err}
	}
	return nil
}

// announce returns what goes to the backend before anything else: the PROXY
// header, if there is to be one, and what the client has sent early. local is
// the address that the client connected to.
func (f *frontend) announce(s *session, local netip.AddrPort, early []byte) []byte {
	if f.sendProxy == 0 {
		return early
	}
	if f.sendProxy == 2 {
		s.id = f.newID()
	}
	b, err := proxyheader.Append(make([]byte, 0, 128+len(early)), f.sendProxy, s.client, local, s.id)
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
		f.serving.Done()
	}
}
