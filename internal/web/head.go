package web

import (
	"bytes"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// head is what must be known of a request's head before net/http may have it.
//
// net/http forgives what RFC 9112 lets a server forgive: folded lines,
// Transfer-Encoding beside Content-Length or in HTTP/1.0. A proxy before this
// one may have read the same bytes otherwise, and then the two disagree about
// where the next request begins. So here is refused what can be read in two
// ways; net/http still judges the rest.
//
// A line may end in a bare LF (section 2.2): a sealed address that is pasted
// with its end does. But no LF may make a field of its own out of what frames
// the body.
type head struct {
	lines  int  // so far
	isBare bool // the last ended in a bare LF
	method string
	minor  byte // of HTTP/1.x

	hosts   int   // fields of that name
	lengths int   // Content-Length
	length  int64 // its value
	codings int   // Transfer-Encoding
	expects bool  // 100-continue
}

// maxLength bounds a Content-Length, and the size of a chunk, in bytes.
const maxLength = math.MaxInt64 >> 1

// add takes the next line, without its end. It returns the status to refuse
// the request with, 0 for none. drop says that net/http must not see the line.
func (h *head) add(line []byte, isBare bool) (status int, drop bool) {
	h.lines++
	besideBare := isBare || h.isBare
	h.isBare = isBare
	if h.lines == 1 {
		return h.addRequestLine(string(line)), false
	}
	name, value, found := bytes.Cut(line, []byte(":"))
	// A line that is folded begins with white space (section 5.2), and none may
	// stand before the colon (section 5.1): neither is a token.
	if !found || !isToken(string(name)) || bytes.ContainsFunc(value, isControl) {
		return http.StatusBadRequest, false
	}
	framing := h.lengths + h.codings
	status, drop = h.addField(string(name), strings.Trim(string(value), " \t"))
	if besideBare && h.lengths+h.codings > framing {
		status = http.StatusBadRequest
	}
	return status, drop
}

// addRequestLine takes "method SP target SP version" (section 3). Only the four
// forms of a target pass of which net/http makes what was meant.
func (h *head) addRequestLine(line string) (status int) {
	method, rest, _ := strings.Cut(line, " ")
	target, version, _ := strings.Cut(rest, " ")
	h.method = method
	if !isToken(method) || !isTarget(method, target) {
		return http.StatusBadRequest
	}
	number, found := strings.CutPrefix(version, "HTTP/")
	if !found || len(number) != len("1.1") || !isDigit(number[0]) || number[1] != '.' || !isDigit(number[2]) {
		return http.StatusBadRequest
	}
	if number[0] != '1' {
		return http.StatusHTTPVersionNotSupported
	}
	h.minor = number[2] - '0'
	return 0
}

func isTarget(method, target string) bool {
	switch {
	case strings.ContainsFunc(target, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return false
	case strings.HasPrefix(target, "/"):
		return true
	case method == http.MethodConnect:
		return target != ""
	case target == "*":
		return method == http.MethodOptions
	}
	scheme, rest, found := strings.Cut(strings.ToLower(target), "://")
	switch scheme {
	case "http", "https", "ws", "wss":
		// There must be a host (RFC 9110 section 4.2.1).
		host := rest
		if end := strings.IndexAny(rest, "/?#"); end >= 0 {
			host = rest[:end]
		}
		host = host[strings.LastIndexByte(host, '@')+1:]
		return found && host != "" && isHost(host)
	}
	return false
}

func (h *head) addField(name, value string) (status int, drop bool) {
	switch strings.ToLower(name) {
	case "host":
		if h.hosts++; h.hosts > 1 || !isHost(value) {
			return http.StatusBadRequest, false // section 3.2
		}
	case "content-length":
		// Several equal ones might be taken for one (section 6.3), but whoever
		// sends them hopes that somebody takes another.
		n, err := strconv.ParseUint(value, 10, 63)
		if h.lengths++; h.lengths > 1 || err != nil || n > maxLength {
			return http.StatusBadRequest, false
		}
		h.length = int64(n)
	case "transfer-encoding":
		if h.codings++; h.codings > 1 {
			return http.StatusBadRequest, false
		}
		return codingStatus(value), false
	case "expect":
		// net/http would answer 100 as soon as the body is asked for. It is the
		// backend's word, so net/http is not told of the wish.
		if !strings.EqualFold(value, "100-continue") {
			return http.StatusExpectationFailed, false
		}
		h.expects = true
		return 0, true
	}
	return 0, false
}

// codingStatus judges a Transfer-Encoding. Where chunked is not the last, the
// body has no end (section 6.3); others are not understood (section 6.1).
func codingStatus(value string) (status int) {
	switch strings.ToLower(value) {
	case "chunked":
		return 0
	case "":
		return http.StatusBadRequest
	}
	codings := strings.Split(value, ",")
	for i, c := range codings {
		if strings.EqualFold(strings.Trim(c, " \t"), "chunked") && i < len(codings)-1 {
			return http.StatusBadRequest
		}
	}
	return http.StatusNotImplemented
}

// end judges the head as a whole.
func (h *head) end() (status int) {
	chunked := h.codings > 0
	switch {
	case h.lines == 0,
		h.minor >= 1 && h.hosts == 0, // section 3.2
		chunked && h.lengths > 0,     // section 6.1: smuggling is what it is for
		chunked && h.minor == 0:      // the same section: faultily framed
		return http.StatusBadRequest
	}
	if h.minor == 0 {
		h.expects = false // RFC 9110 section 10.1.1: HTTP/1.0 does not know it
	}
	return 0
}

// message returns how a request of size bytes of head goes on.
func (h *head) message(size int) message {
	m := message{left: int64(size) + h.length}
	if h.codings > 0 {
		m.chunks = new(chunks)
	}
	return m
}

// isToken tells whether s is a token of RFC 9110 section 5.6.2.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// isHost tells whether s is made of what a host and a port are made of (RFC
// 3986 section 3.2.2). An empty one is legal.
func isHost(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"#/<>?@\\^`{|}", r)
	})
}

// isControl tells whether a character may not stand in a field's value (RFC
// 9110 section 5.5): NUL, CR and LF are dangerous, and the others are no use.
func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

func isDigit(b byte) bool { return '0' <= b && b <= '9' }
