package web

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Where a sealed address may stand.
const (
	originHeader = "X-Cipher-Origin"
	originParam  = "x-cipher-origin"
	identHeader  = "Server-Identify" // on WebSockets only
)

// A place is where a sealed address was found.
type place int

const (
	nowhere place = iota
	inOriginHeader
	inQuery
	inIdentHeader
)

// Why a request has no address that could be opened.
var (
	errNoAddress = errors.New("no_address") // there is none
	errAmbiguous = errors.New("ambiguous")  // there is more than one
	errMalformed = errors.New("malformed")  // it is empty, or wrongly escaped
	errTooLong   = errors.New("too_long")   // it has more than LineMax bytes
)

// findSealed returns the sealed address of a request and where it stands. Of
// several places the first counts; each may hold only one. The result is
// empty, without an error, if there is no address anywhere.
func findSealed(h http.Header, rawQuery string, limit int) (sealed string, from place, err error) {
	_, params := cutParam(rawQuery, originParam)
	var values []string
	switch {
	case len(h[originHeader]) > 0:
		values, from = h[originHeader], inOriginHeader
	case len(params) > 0:
		values, from = params, inQuery
	case len(h[identHeader]) > 0:
		values, from = h[identHeader], inIdentHeader
	default:
		return "", nowhere, nil
	}
	if len(values) > 1 {
		return "", from, errAmbiguous
	}
	sealed = values[0]
	if from == inQuery {
		if sealed, err = unescapeSealed(sealed); err != nil {
			return "", from, err
		}
	}
	switch {
	case sealed == "":
		return "", from, errMalformed
	case len(sealed) > limit:
		return "", from, errTooLong
	}
	return sealed, from, nil
}

// unescapeSealed returns the value of a query parameter. In a query a '+' means
// a space, and whoever forgets to escape base64 sends one for the other. There
// is no space in base64, so each of them was a '+'.
func unescapeSealed(s string) (string, error) {
	s, err := url.PathUnescape(s) // leaves '+' alone
	if err != nil {
		return "", errMalformed
	}
	return strings.ReplaceAll(s, " ", "+"), nil
}

// cutParam takes a parameter out of a query. It returns the rest byte for
// byte, its order, escapes and mistakes included, and the parameter's values,
// still escaped.
func cutParam(rawQuery, name string) (rest string, values []string) {
	var kept []string
	for pair := range strings.SplitSeq(rawQuery, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if k, err := url.QueryUnescape(key); err == nil && k == name {
			values = append(values, value)
		} else {
			kept = append(kept, pair)
		}
	}
	if values == nil {
		return rawQuery, nil
	}
	return strings.Join(kept, "&"), values
}

// stripSealed removes every sealed address from a request's headers.
func stripSealed(h http.Header) {
	h.Del(originHeader)
	h.Del(identHeader)
	// A page that was asked for by the query parameter is the Referer of what
	// it asks for in turn.
	for i, ref := range h["Referer"] {
		before, query, found := strings.Cut(ref, "?")
		if !found {
			continue
		}
		query, fragment, hash := strings.Cut(query, "#")
		query, values := cutParam(query, originParam)
		if values == nil {
			continue
		}
		if query != "" {
			before += "?" + query
		}
		if hash {
			before += "#" + fragment
		}
		h["Referer"][i] = before
	}
}

// hopByHop are the fields that concern one connection (RFC 9110 section 7.6.1)
// or frame what is sent there.
var hopByHop = map[string]bool{
	"Connection":          true,
	"Content-Length":      true,
	"Expect":              true,
	"Host":                true,
	"Http2-Settings":      true,
	"Keep-Alive":          true,
	"Proxy-Authenticate":  true,
	"Proxy-Authorization": true,
	"Proxy-Connection":    true,
	"Te":                  true,
	"Trailer":             true,
	"Transfer-Encoding":   true,
	"Upgrade":             true,
}

// isOwn tells whether only the gateway may tell a backend a field of that name,
// which is in canonical form. The client's address stands last in
// X-Forwarded-For, where its own list is kept. X-Real-IP and Forwarded say the
// same and are set by nobody here, so that what a client says there does not
// pass for it. Proxy would be HTTP_PROXY to a CGI program.
//
// CGI and its heirs take other names for the same (see cgiName): "X_Forwarded_For"
// would be another X-Forwarded-For. In such a spelling nothing passes that means
// something to a proxy.
func isOwn(name string) bool {
	if cgi := cgiName(name); cgi != name {
		name = cgi
		if name == "X-Forwarded-For" || hopByHop[name] {
			return true
		}
	}
	switch name {
	case originHeader, identHeader, "Forwarded", "Proxy", "X-Real-Ip":
		return true
	case "X-Forwarded-For":
		return false
	}
	return strings.HasPrefix(name, "X-Forwarded-")
}

// cgiName returns the canonical one of the names that CGI and its heirs (WSGI, PHP,
// Rack) take for the same: all have '_' for '-', and some, lighttpd for one, for
// whatever is neither a letter nor a digit.
func cgiName(name string) string {
	if !strings.ContainsFunc(name, isOdd) {
		return name
	}
	return http.CanonicalHeaderKey(strings.Map(func(r rune) rune {
		if isOdd(r) {
			return '-'
		}
		return r
	}, name))
}

func isOdd(r rune) bool {
	return r != '-' && !('0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z')
}

// stripOwn removes what a backend would take for the gateway's word.
func stripOwn(h http.Header) {
	for name := range h {
		if isOwn(name) {
			delete(h, name)
		}
	}
}

// describe returns what a Gate is told of a request.
func (x *exchange) describe(r *http.Request) *Request {
	d := &Request{WebSocket: isWebSocket(r.Header), Upgrade: x.kind == "upgrade"}
	if !x.Describe {
		return d
	}
	d.Method, d.Path = r.Method, r.URL.EscapedPath()
	if query, _ := cutParam(r.URL.RawQuery, originParam); query != "" {
		d.Path += "?" + query
	}
	for _, name := range x.DescribeHeaders {
		values := r.Header[name]
		if name == "Host" {
			values = []string{r.Host}
		}
		if len(values) == 0 || name == originHeader || name == identHeader {
			continue
		}
		sep := ", "
		if name == "Cookie" { // RFC 6265 section 5.4
			sep = "; "
		}
		if name == "Referer" {
			h := http.Header{name: slices.Clone(values)}
			stripSealed(h)
			values = h[name]
		}
		if d.Headers == nil {
			d.Headers = make(map[string]string)
		}
		d.Headers[name] = strings.Join(values, sep)
	}
	return d
}
