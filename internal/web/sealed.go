package web

import (
	"errors"
	"net/http"
	"net/url"
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
