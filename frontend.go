package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gateway/internal/address"
)

// frontend decides about clients and keeps account of them. It knows nothing
// of sockets and of waiting, so that the two ways in share it: a goroutine
// that reads and waits (Gateway.serveConn), and the event loops.
type frontend struct {
	keys *keyring
	log  *slog.Logger

	handshakeTimeout time.Duration // from accept to the end of the request
	handshakeMax     int           // of a sealed line, in bytes

	serving sync.WaitGroup // connections, from accept to account
	cut     atomic.Int64   // tunnels ended by Close

	warnedAccept atomic.Int64 // when, in Unix nanoseconds
}

// session is what the account of a connection needs from its beginning.
type session struct {
	client   netip.AddrPort
	accepted time.Time
	backend  address.Address // zero until one is opened
	dialed   *netip.AddrPort // where the backend's name led to; nil for a literal
	finished bool
}

// peerOf returns the address of a connection's peer, IPv4-mapped ones as IPv4.
func peerOf(c *net.TCPConn) netip.AddrPort {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
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

// finish ends a connection's part in serving. Only its first call counts.
func (f *frontend) finish(s *session) {
	if !s.finished {
		s.finished = true
		f.serving.Done()
	}
}
