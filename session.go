package main

import (
	"errors"
	"io"
	"net/netip"
	"time"

	"gateway/internal/address"
	"gateway/internal/handshake"
	"gateway/internal/layer"
)

// session is what is known of a client's connection, from accept to account.
type session struct {
	client   netip.AddrPort
	local    netip.AddrPort // where it connected to, if a trusted proxy has told; or invalid
	accepted time.Time
	forward  *address.Route // where its listener leads; nil: the client says so
	form     handshake.Form
	secure   bool  // inside TLS
	kcp      bool  // comes by KCP
	proxied  bool  // a trusted proxy is the socket's peer
	header   int   // bytes of its PROXY header
	hops     uint8 // gateways that have passed it on, by that header
	done     bool  // accounted for
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

// cutShort returns why a request is incomplete for ever: err is what ended the
// reading, nil or io.EOF for the client's FIN. A client that has not said a
// thing, a proxy's header aside, was a health check most of the time.
func (s *session) cutShort(received []byte, err error) *refusal {
	switch {
	case len(received) == s.header:
		return errEmpty
	case err == errTooSlow, layer.IsTimeout(err):
		return errTooSlow
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errEOF
	}
	return errReset
}
