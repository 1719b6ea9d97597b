// Package handshake reads what a client says first: where it wants to go, in one
// of several forms that share a port, and answers in that form. Bytes in, bytes
// out; it knows nothing of sockets, nor of what an address is worth.
package handshake

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
)

// Form is how a client says where it wants to go, and so how it is answered.
type Form uint8

const (
	Unknown   Form = iota // too little was read to tell
	Line                  // a sealed line; the bare status answers it
	Prefixed              // its text behind a length of four bytes, as the answer is
	Binary                // its raw bytes behind a zero and a length of one byte
	HTTP                  // HTTP/1.1
	TLS                   // TLS, with any of the above inside
	WebSocket             // HTTP at first
	Forward               // nothing: its listener leads to one backend; nothing is answered
	Upgrade               // HTTP at first; now a WebSocket that goes through to its backend
)

func (f Form) String() string {
	return [...]string{"unknown", "line", "prefixed", "binary", "http", "tls", "websocket", "forward", "upgrade"}[f]
}

// ParseForm returns the Form of a name; Unknown if there is none.
func ParseForm(name string) Form {
	for f := Unknown; f <= Upgrade; f++ {
		if f.String() == name {
			return f
		}
	}
	return Unknown
}

// A Status is the three ASCII bytes with which a request is answered. The
// empty status answers nothing: nobody is there to read it.
type Status string

const (
	OK             Status = "200" // connected; from here on bytes flow
	BadRequest     Status = "400" // no request could be read
	Unauthorized   Status = "401" // the address could not be opened
	Gone           Status = "410" // what was to be resumed is over
	BadGateway     Status = "502" // the backend could not be connected
	GatewayTimeout Status = "504" // connecting the backend timed out
)

// The ways in which what a client says is no request.
var (
	ErrTooLong   = errors.New("too_long")   // more than the limit in the sealed line
	ErrBadLength = errors.New("bad_length") // nothing where a sealed line should be
)

// ErrIncomplete is no failure: more has to be read.
var ErrIncomplete = errors.New("the request is incomplete")

// SniffSize is how many bytes it takes at most to tell the forms apart.
const SniffSize = 8

// Sniff tells by at most the first eight bytes which form a request has.
// Unknown means that more has to be read. Where the client is inside TLS
// already, or none is served, nothing is taken for TLS.
//
// The forms do not overlap. A sealed line is base64: it has neither zeros nor
// spaces. A record of TLS (RFC 8446 section 5.1) has a third byte of 1 to 3, and
// so is no length, which ends in two zeros. Two zeros at once may begin a length of
// either kind, and can be none: Binary says so without waiting for more.
func Sniff(b []byte, tls bool) Form {
	if len(b) > 1 && b[0] == 0 && b[1] == 0 {
		return Binary
	}
	const handshake, major = 0x16, 3
	if tls && hasPrefix(b, handshake, major) && len(b) > 2 && (b[2] != 0 || len(b) > 3 && b[3] != 0) {
		return TLS
	}
	if f := sniffPrefixed(b); f != Line {
		return f
	}
	if b[0] == 0 {
		return Binary
	}
	return sniffHTTP(b)
}

// hasPrefix tells whether b starts with prefix as far as it goes.
func hasPrefix(b []byte, prefix ...byte) bool {
	n := min(len(b), len(prefix))
	return bytes.Equal(b[:n], prefix[:n])
}

// sniffPrefixed returns Prefixed, Unknown, or Line for anything
// else. The length of a sealed line is less than 64 KiB, so its third and
// fourth byte are zero.
func sniffPrefixed(b []byte) Form {
	for i, c := range b {
		switch {
		case i < 2 && c == '\n', i >= 2 && c != 0:
			return Line
		case i == 3:
			return Prefixed
		}
	}
	return Unknown
}

// methods are those of RFC 9110 section 9.3 and RFC 5789.
var methods = []string{"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "CONNECT ", "OPTIONS ", "TRACE ", "PATCH "}

// sniffHTTP returns HTTP, Unknown, or Line for anything else.
func sniffHTTP(b []byte) Form {
	f := Line
	for _, m := range methods {
		switch {
		case bytes.HasPrefix(b, []byte(m)):
			return HTTP
		case len(b) < len(m) && strings.HasPrefix(m, string(b)):
			f = Unknown
		}
	}
	return f
}

// Size returns how many bytes a request has at most whose sealed line has at most
// limit.
func Size(limit int) int { return max(SniffSize, prefixSize+limit+len("\r\n")) }

// Parse looks for a request of form Line, Prefixed or Binary at the start of b,
// all that the client has sent so far. It returns the sealed line of at most
// limit bytes, and the rest behind the request; both alias b. In form Binary,
// sealed is raw bytes instead of their base64. The error is ErrIncomplete,
// ErrBadLength, or ErrTooLong as early as it can be known.
func (f Form) Parse(b []byte, limit int) (sealed, rest []byte, err error) {
	switch f {
	case Line:
		return parseLine(b, limit)
	case Prefixed:
		return parsePrefixed(b, limit)
	case Binary:
		return parseBinary(b, limit)
	}
	return nil, nil, ErrIncomplete
}

// parseLine is Parse for a line, which has at most limit bytes before its end,
// "\n" or "\r\n". It comes back without that.
func parseLine(b []byte, limit int) (line, rest []byte, err error) {
	// The longest acceptable request is limit bytes, '\r' and '\n'.
	if end := bytes.IndexByte(b[:min(len(b), limit+2)], '\n'); end >= 0 {
		line, rest = b[:end], b[end+1:]
		line = bytes.TrimSuffix(line, []byte("\r"))
		if len(line) > limit {
			return nil, nil, ErrTooLong
		}
		return line, rest, nil
	}
	if len(b) > limit+1 || len(b) == limit+1 && b[limit] != '\r' {
		return nil, nil, ErrTooLong
	}
	return nil, nil, ErrIncomplete
}

// prefixSize is the size of the length that leads a sealed line in Prefixed,
// and a status.
const prefixSize = 4

// parsePrefixed is Parse for a line without its end behind its length,
// little-endian, of 1 to limit. What has a length of 0 is Binary; see Sniff.
func parsePrefixed(b []byte, limit int) (line, rest []byte, err error) {
	if len(b) < prefixSize {
		return nil, nil, ErrIncomplete
	}
	size := uint64(binary.LittleEndian.Uint32(b))
	return take(b[prefixSize:], size, uint64(limit))
}

// parseBinary is Parse for the raw bytes of a sealed line, or the text of a token,
// behind a zero and a length of 1 to 255 and at most limit.
func parseBinary(b []byte, limit int) (line, rest []byte, err error) {
	if len(b) < 2 {
		return nil, nil, ErrIncomplete
	}
	return take(b[2:], uint64(b[1]), uint64(limit))
}

// Beginning returns as much of a sealed line in form Prefixed or Binary as has
// come, at the start of a request that Parse has not refused; of other forms,
// nothing. It aliases b.
func (f Form) Beginning(b []byte) []byte {
	size := uint64(0)
	switch {
	case f == Prefixed && len(b) > prefixSize:
		size, b = uint64(binary.LittleEndian.Uint32(b)), b[prefixSize:]
	case f == Binary && len(b) > 2:
		size, b = uint64(b[1]), b[2:]
	}
	return b[:min(uint64(len(b)), size)]
}

func take(b []byte, size, limit uint64) (first, rest []byte, err error) {
	switch {
	case size == 0:
		return nil, nil, ErrBadLength
	case size > limit:
		return nil, nil, ErrTooLong
	case uint64(len(b)) < size:
		return nil, nil, ErrIncomplete
	}
	return b[:size], b[size:], nil
}

// Reply returns the bytes that tell a client of a status in the form of its
// request; none where it expects none.
func (f Form) Reply(st Status) []byte {
	switch f {
	case Forward, TLS, HTTP, Upgrade: // HTTP answers for itself
		return nil
	case Prefixed:
		return append([]byte{byte(len(st)), 0, 0, 0}, st...)
	}
	return []byte(st)
}
