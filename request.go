package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"strings"

	"gateway/internal/token"
)

// form is how a client says where it wants to go, and so how it is answered.
type form uint8

const (
	formUnknown   form = iota // too little was read to tell
	formLine                  // a sealed line; the bare status answers it
	formPrefixed              // its text behind a length of four bytes, as the answer is
	formBinary                // its raw bytes behind a zero and a length of one byte
	formHTTP                  // HTTP/1.1
	formTLS                   // TLS, with any of the above inside
	formWebSocket             // HTTP at first
	formForward               // nothing: its listener leads to one backend; nothing is answered
)

func (f form) String() string {
	return [...]string{"unknown", "line", "prefixed", "binary", "http", "tls", "websocket", "forward"}[f]
}

// requestError is why no request could be read. The client gets 400 for each;
// the log gets the reason.
type requestError string

func (e requestError) Error() string { return string(e) }

const (
	errTooLong   requestError = "too_long"   // more than -handshake-max bytes in the sealed line
	errBadLength requestError = "bad_length" // nothing where a sealed line should be
	errTooSlow   requestError = "too_slow"   // -handshake-timeout passed
	errEOF       requestError = "eof"        // the client finished before the end of its request
	errReset     requestError = "reset"      // the client broke the connection
	errEmpty     requestError = "empty"      // any of these without a single byte
	errNoHeader  requestError = "no_header"  // a trusted proxy sent no valid PROXY header
	errTLS       requestError = "tls_failed" // the TLS handshake failed
)

// cutShort returns why a request is incomplete for ever: err is what ended the
// reading, nil or io.EOF for the client's FIN. A client that has not said a
// thing, a proxy's header aside, was a health check most of the time.
func cutShort(s *session, received []byte, err error) requestError {
	switch {
	case len(received) == s.header:
		return errEmpty
	case err == errTooSlow, isTimeout(err):
		return errTooSlow
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errEOF
	}
	return errReset
}

// errIncomplete is no failure: more has to be read.
var errIncomplete = errors.New("the request is incomplete")

// sniff tells by at most the first eight bytes which form a request has.
// formUnknown means that more has to be read. Where the client is inside TLS
// already, or none is served, nothing is taken for TLS.
//
// The forms do not overlap. A sealed line is base64: it has neither zeros nor
// spaces. A record of TLS (RFC 8446 section 5.1) has a third byte of 1 to 3, and
// so is no length, which ends in two zeros.
func sniff(b []byte, tls bool) form {
	const handshake, major = 0x16, 3
	if tls && hasPrefix(b, handshake, major) && len(b) > 2 && (b[2] != 0 || len(b) > 3 && b[3] != 0) {
		return formTLS
	}
	if f := sniffPrefixed(b); f != formLine {
		return f
	}
	if b[0] == 0 {
		return formBinary
	}
	return sniffHTTP(b)
}

// hasPrefix tells whether b starts with prefix as far as it goes.
func hasPrefix(b []byte, prefix ...byte) bool {
	n := min(len(b), len(prefix))
	return bytes.Equal(b[:n], prefix[:n])
}

// sniffPrefixed returns formPrefixed, formUnknown, or formLine for anything
// else. The length of a sealed line is less than 64 KiB, so its third and
// fourth byte are zero.
func sniffPrefixed(b []byte) form {
	for i, c := range b {
		switch {
		case i < 2 && c == '\n', i >= 2 && c != 0:
			return formLine
		case i == 3:
			return formPrefixed
		}
	}
	return formUnknown
}

// methods are those of RFC 9110 section 9.3 and RFC 5789.
var methods = []string{"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "CONNECT ", "OPTIONS ", "TRACE ", "PATCH "}

// sniffHTTP returns formHTTP, formUnknown, or formLine for anything else.
func sniffHTTP(b []byte) form {
	f := formLine
	for _, m := range methods {
		switch {
		case bytes.HasPrefix(b, []byte(m)):
			return formHTTP
		case len(b) < len(m) && strings.HasPrefix(m, string(b)):
			f = formUnknown
		}
	}
	return f
}

// parseLine looks for a sealed line at the start of b, all that the client has
// sent so far. A line has at most limit bytes before its end, which is "\n" or
// "\r\n". It returns the line without its end, and the rest behind it; both
// alias b. The error is errIncomplete, or errTooLong as early as it can be
// known.
func parseLine(b []byte, limit int) (line, rest []byte, err error) {
	// The longest acceptable request is limit bytes, '\r' and '\n'.
	if end := bytes.IndexByte(b[:min(len(b), limit+2)], '\n'); end >= 0 {
		line, rest = b[:end], b[end+1:]
		line = bytes.TrimSuffix(line, []byte("\r"))
		if len(line) > limit {
			return nil, nil, errTooLong
		}
		return line, rest, nil
	}
	if len(b) > limit+1 || len(b) == limit+1 && b[limit] != '\r' {
		return nil, nil, errTooLong
	}
	return nil, nil, errIncomplete
}

// prefixSize is the size of the length that leads a sealed line in formPrefixed,
// and a status.
const prefixSize = 4

// parsePrefixed is parseLine for a line without its end behind its length,
// little-endian, of 1 to limit.
func parsePrefixed(b []byte, limit int) (line, rest []byte, err error) {
	if len(b) < prefixSize {
		return nil, nil, errIncomplete
	}
	size := uint64(binary.LittleEndian.Uint32(b))
	return take(b[prefixSize:], size, uint64(limit))
}

// parseBinary is parseLine for the raw bytes of a sealed line, behind a zero and
// a length of 1 to 255 and at most limit. They come back as base64. A token is
// text as it is.
func parseBinary(b []byte, limit int) (line, rest []byte, err error) {
	if len(b) < 2 {
		return nil, nil, errIncomplete
	}
	raw, rest, err := take(b[2:], uint64(b[1]), uint64(limit))
	if err != nil {
		return nil, nil, err
	}
	if token.Looks(raw) {
		return raw, rest, nil
	}
	return base64.StdEncoding.AppendEncode(nil, raw), rest, nil
}

func take(b []byte, size, limit uint64) (first, rest []byte, err error) {
	switch {
	case size == 0:
		return nil, nil, errBadLength
	case size > limit:
		return nil, nil, errTooLong
	case uint64(len(b)) < size:
		return nil, nil, errIncomplete
	}
	return b[:size], b[size:], nil
}

// reply returns the bytes that tell a client of a status in the form of its
// request; none where it expects none.
func (f form) reply(st status) []byte {
	switch f {
	case formForward, formTLS, formHTTP: // HTTP answers for itself
		return nil
	case formPrefixed:
		return append([]byte{byte(len(st)), 0, 0, 0}, st...)
	}
	return []byte(st)
}
