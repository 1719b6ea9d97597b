package main

import (
	"bytes"
	"errors"
)

// form is how a client says where it wants to go, and so how it is answered.
type form uint8

const (
	formLine    form = iota // a sealed line; the bare status answers it
	formForward             // not at all: its listener leads to one backend; nothing is answered
)

// requestError is why no request could be read. The client gets 400 for each;
// the log gets the reason.
type requestError string

func (e requestError) Error() string { return string(e) }

const (
	errTooLong requestError = "too_long" // more than -handshake-max bytes in the line
	errTooSlow requestError = "too_slow" // -handshake-timeout passed
	errEOF     requestError = "eof"      // the client finished before the newline
	errReset   requestError = "reset"    // the client broke the connection
	errEmpty   requestError = "empty"    // any of these without a single byte
)

// errIncomplete is no failure: more has to be read.
var errIncomplete = errors.New("the request is incomplete")

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
