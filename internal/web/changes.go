package web

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Changes are what becomes of a request that is proxied, and of what answers it. They
// come in this order, each after what the gateway itself takes away and adds:
// Options.StripPrefix, Options.BackendHost, Options.Changes, and last those of the Gate.
type Changes struct {
	// A nil value takes all fields of the name away, another replaces them.
	RequestHeaders, ResponseHeaders map[string]*string
	// Path replaces the request's, which is escaped, and its query if it has one; empty:
	// it does not.
	Path string
	// Host replaces the Host that the backend is told; empty: it does not.
	Host string
}

// fixed are fields that nobody may change besides those that concern one connection or
// frame what is sent: a WebSocket's handshake would be another's.
var fixed = map[string]bool{
	"Sec-Websocket-Accept":     true,
	"Sec-Websocket-Extensions": true,
	"Sec-Websocket-Key":        true,
	"Sec-Websocket-Version":    true,
}

// CheckField tells what is wrong with changing a field of this name to a value.
func CheckField(name, value string) error {
	canonical := http.CanonicalHeaderKey(name)
	switch {
	case name == "" || strings.ContainsFunc(name, isNoTokenRune):
		return errors.New("a name has letters, digits and !#$%&'*+-.^_`|~ only")
	case cgiName(canonical) != canonical && (isOwn(canonical) || hopByHop[cgiName(canonical)]),
		hopByHop[canonical], fixed[canonical]:
		return fmt.Errorf("%s concerns a connection or frames what is sent, and is the gateway's own", canonical)
	case canonical == originHeader || canonical == identHeader:
		return fmt.Errorf("%s is for sealed addresses", canonical)
	case strings.ContainsFunc(value, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }):
		return fmt.Errorf("the value of %s holds a control character", canonical)
	}
	return nil
}

func isNoTokenRune(c rune) bool {
	return !('0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.ContainsRune("!#$%&'*+-.^_`|~", c))
}

// Check tells what is wrong with changes that somebody else has made up.
func (c *Changes) Check() error {
	for _, fields := range []map[string]*string{c.RequestHeaders, c.ResponseHeaders} {
		seen := make(map[string]bool)
		for name, value := range fields {
			text := ""
			if value != nil {
				text = *value
			}
			if err := CheckField(name, text); err != nil {
				return err
			}
			canonical := http.CanonicalHeaderKey(name)
			if seen[canonical] {
				return fmt.Errorf("%s is there twice", canonical)
			}
			seen[canonical] = true
		}
	}
	if c.Path != "" {
		if _, err := parseTarget(c.Path); err != nil {
			return err
		}
	}
	return nil
}

// parseTarget reads an escaped path, with a query or without.
func parseTarget(s string) (*url.URL, error) {
	if s[0] != '/' || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '#' }) {
		return nil, errors.New("a path begins with a slash, and is escaped")
	}
	u := new(url.URL)
	path, query, ok := strings.Cut(s, "?")
	decoded, err := url.PathUnescape(path)
	if err != nil {
		return nil, errors.New("a path is escaped by % and two hexadecimal digits")
	}
	u.Path, u.RawPath, u.RawQuery, u.ForceQuery = decoded, path, query, ok && query == ""
	if u.EscapedPath() != path {
		return nil, errors.New("a path is escaped where it holds what RFC 3986 section 3.3 does not name")
	}
	return u, nil
}

// escapeRest escapes what a client should have escaped in its path, and leaves the rest as
// it is. Without that url.URL.EscapedPath escapes the whole anew, and a %2F becomes a slash.
func escapeRest(raw string) string {
	var b strings.Builder
	for _, c := range []byte(raw) {
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~!$&'()*+,;=:@/%[]", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// change does to the backend's request what is asked for.
func (x *exchange) change(out *http.Request) {
	if x.StripPrefix != "" {
		stripPrefix(out.URL, x.StripPrefix)
	}
	if x.BackendHost {
		out.Host = x.backendHost()
	}
	for _, c := range []*Changes{x.Changes, x.changes} {
		if c == nil {
			continue
		}
		if c.Path != "" {
			if to, err := parseTarget(c.Path); err == nil {
				out.URL.Path, out.URL.RawPath = to.Path, to.RawPath
				if strings.Contains(c.Path, "?") {
					out.URL.RawQuery, out.URL.ForceQuery = to.RawQuery, to.ForceQuery
				}
			}
		}
		if c.Host != "" {
			out.Host = c.Host
		}
		for name := range c.RequestHeaders {
			dropSpellings(name, out.Header, out.Trailer)
		}
		setFields(out.Header, c.RequestHeaders)
	}
}

// changeResponse does the same to what the backend has answered. What is taken away or
// replaced does not come as a trailer either.
func (x *exchange) changeResponse(resp *http.Response) {
	changed := false
	for _, c := range []*Changes{x.Changes, x.changes} {
		if c != nil {
			setFields(resp.Header, c.ResponseHeaders)
			changed = changed || len(c.ResponseHeaders) > 0
		}
	}
	if changed && resp.StatusCode != http.StatusSwitchingProtocols {
		x.dropChanged(resp.Trailer)
		resp.Body = &trailed{resp.Body, x, resp}
	}
}

// dropChanged takes away what the response's changes are about: from its trailers, and
// from what the backend says ahead of it (RFC 9110 section 15.2).
func (x *exchange) dropChanged(h http.Header) {
	for _, c := range []*Changes{x.Changes, x.changes} {
		if c != nil {
			for name := range c.ResponseHeaders {
				h.Del(name)
			}
		}
	}
}

// trailed is the body of a response whose trailers are changed: they are there when it
// has been read to its end.
type trailed struct {
	io.ReadCloser
	x    *exchange
	resp *http.Response
}

func (b *trailed) Read(p []byte) (n int, err error) {
	if n, err = b.ReadCloser.Read(p); err == io.EOF {
		b.x.dropChanged(b.resp.Trailer)
	}
	return n, err
}

// dropSpellings takes away what CGI takes for a field of that name (see cgiName): what is
// set in its place would not be the only one, and a client could pass for another.
func dropSpellings(name string, all ...http.Header) {
	name = cgiName(name)
	for _, h := range all {
		for other := range h {
			if strings.EqualFold(cgiName(other), name) {
				delete(h, other)
			}
		}
	}
}

func setFields(h http.Header, fields map[string]*string) {
	for name, value := range fields {
		if value == nil {
			h.Del(name)
		} else {
			h.Set(name, *value)
		}
	}
}

// stripPrefix takes a prefix off a path, in its escaped form, where the prefix ends at a
// slash or the path with it. Other paths stay.
func stripPrefix(u *url.URL, prefix string) {
	rest, ok := strings.CutPrefix(u.EscapedPath(), prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return
	}
	if rest == "" {
		rest = "/"
	}
	if decoded, err := url.PathUnescape(rest); err == nil {
		u.Path, u.RawPath = decoded, rest
	}
}

// backendHost is the Host of a backend that is to be told its own: of several the first
// that is named, of a service its name. Port 80 is left out (RFC 9110 section 7.2).
func (x *exchange) backendHost() string {
	if service := x.route.Service(); service != "" {
		return service
	}
	if x.route.Len() == 0 {
		return x.upstream()
	}
	return strings.TrimSuffix(x.route.Target(0).Addr.HostPort(), ":80")
}

// Field is one header that is set or taken away.
type Field struct {
	Response    bool // of what the backend answers, not of the request
	Name, Value string
	Remove      bool
}

// ParseField reads "Name: value", which is for requests, or "response Name: value". No
// value takes the field away.
func ParseField(s string) (f Field, err error) {
	name, value, ok := strings.Cut(s, ":")
	if !ok {
		return f, errors.New(`want "Name: value", or "response Name: value"; nothing behind the colon removes the header`)
	}
	if rest, is := strings.CutPrefix(name, "response "); is {
		f.Response, name = true, rest
	} else if rest, is := strings.CutPrefix(name, "request "); is {
		name = rest
	}
	f.Name, f.Value = http.CanonicalHeaderKey(strings.TrimSpace(name)), strings.Trim(value, " \t")
	f.Remove = f.Value == ""
	if err := CheckField(strings.TrimSpace(name), f.Value); err != nil {
		return f, fmt.Errorf("want a header that may be set (%w)", err)
	}
	return f, nil
}

// String is what ParseField reads.
func (f Field) String() string {
	text := f.Name + ":"
	if !f.Remove {
		text += " " + f.Value
	}
	if f.Response {
		return "response " + text
	}
	return text
}

// ChangesOf returns what fields change, of which the last of a name counts; nil for none.
func ChangesOf(fields []Field) *Changes {
	if len(fields) == 0 {
		return nil
	}
	c := &Changes{RequestHeaders: make(map[string]*string), ResponseHeaders: make(map[string]*string)}
	for _, f := range slices.Clone(fields) {
		of := c.RequestHeaders
		if f.Response {
			of = c.ResponseHeaders
		}
		of[f.Name] = nil
		if !f.Remove {
			of[f.Name] = &f.Value
		}
	}
	return c
}
