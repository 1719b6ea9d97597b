package ask

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"gateway/internal/address"
)

// Answer is what the service says. It never changes.
type Answer struct {
	// Backend is where the client goes, by the grammar of package address; never
	// to another name for the service.
	Backend address.Route
	// TTL is how long the answer for a name serves other clients too; 0 for none.
	TTL time.Duration
	// TicketTTL is how long the answer for a ticket serves whoever brings it again.
	TicketTTL time.Duration
	// Label says for people and dashboards what this is: at most maxLabel bytes
	// of letters, digits and "-_.:/@".
	Label string

	// What becomes of an HTTP request and its response. A nil value takes all
	// fields of the name away, another replaces them.
	RequestHeaders, ResponseHeaders map[string]*string
	// Path replaces the request's path, and its query if it has one; "" does not.
	Path string
	// Host replaces the Host that the backend is told; "" does not.
	Host string
}

// The bounds of an answer.
const (
	maxAnswer  = 64 << 10 // bytes
	maxLabel   = 64       // bytes
	maxHeaders = 64       // of each kind
	maxTTL     = 24 * time.Hour
)

// parseAnswer reads an answer. Errors wrap ErrBad, and repeat nothing of the text
// but the names of its own fields.
func parseAnswer(text []byte) (*Answer, error) {
	a := new(Answer)
	var backend *string
	var ttl, ticketTTL float64
	fields := map[string]any{
		"backend": &backend, "ttl": &ttl, "ticket_ttl": &ticketTTL, "label": &a.Label,
		"request_headers": &a.RequestHeaders, "response_headers": &a.ResponseHeaders, "path": &a.Path, "host": &a.Host,
	}
	err := readObject(text, func(name string, value json.RawMessage) error {
		to := fields[name]
		if to == nil {
			return nil
		}
		err := json.Unmarshal(value, to)
		if _, is := to.(*map[string]*string); is && err == nil && value[0] == '{' {
			err = readObject(value, func(string, json.RawMessage) error { return nil })
		}
		if err != nil && !errors.Is(err, ErrBad) {
			err = fmt.Errorf("%w: %q has the wrong type", ErrBad, name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if backend == nil {
		return nil, fmt.Errorf(`%w: it has no "backend"`, ErrBad)
	}
	if a.Backend, err = address.ParseRoute(*backend); err != nil {
		return nil, fmt.Errorf(`%w: "backend": %w`, ErrBad, err)
	}
	if a.Backend.Asked() != "" {
		return nil, fmt.Errorf(`%w: "backend" is a name to ask for again`, ErrBad)
	}
	if a.TTL, err = seconds("ttl", ttl); err != nil {
		return nil, err
	}
	if a.TicketTTL, err = seconds("ticket_ttl", ticketTTL); err != nil {
		return nil, err
	}
	if len(a.Label) > maxLabel || strings.ContainsFunc(a.Label, isNoLabel) {
		return nil, fmt.Errorf(`%w: "label" has more than %d bytes, or others than letters, digits and -_.:/@`, ErrBad, maxLabel)
	}
	if a.Path != "" && (a.Path[0] != '/' || strings.ContainsFunc(a.Path, isNoPath)) {
		return nil, fmt.Errorf(`%w: "path" must begin with a slash, and be escaped`, ErrBad)
	}
	if a.Host != "" && (len(a.Host) > 255 || strings.ContainsFunc(a.Host, isNoHost)) {
		return nil, fmt.Errorf(`%w: "host" is none`, ErrBad)
	}
	if err := checkHeaders("request_headers", a.RequestHeaders); err != nil {
		return nil, err
	}
	if err := checkHeaders("response_headers", a.ResponseHeaders); err != nil {
		return nil, err
	}
	return a, nil
}

// readObject reads an object of JSON, and nothing behind it. A name that is there twice makes
// it a bad one: whoever gets something of theirs into the service's JSON as it is would
// have the last word. each may not keep value.
func readObject(text []byte, each func(name string, value json.RawMessage) error) error {
	isNone := fmt.Errorf("%w: it is no object of JSON", ErrBad)
	if !json.Valid(text) {
		return isNone
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if begin, err := d.Token(); err != nil || begin != json.Delim('{') {
		return isNone
	}
	seen := make(map[string]bool)
	var value json.RawMessage
	for d.More() {
		token, err := d.Token()
		name, _ := token.(string)
		if err == nil {
			err = d.Decode(&value)
		}
		if err != nil {
			return isNone
		}
		if seen[name] {
			return fmt.Errorf("%w: it says something twice", ErrBad)
		}
		seen[name] = true
		if err := each(name, value); err != nil {
			return err
		}
	}
	return nil
}

// seconds reads a time of at most maxTTL; a longer one is that.
func seconds(field string, n float64) (time.Duration, error) {
	if !(n >= 0) {
		return 0, fmt.Errorf("%w: %q is below zero", ErrBad, field)
	}
	return time.Duration(min(n, maxTTL.Seconds()) * float64(time.Second)), nil
}

func checkHeaders(field string, h map[string]*string) error {
	if len(h) > maxHeaders {
		return fmt.Errorf("%w: %q has more than %d", ErrBad, field, maxHeaders)
	}
	for name, value := range h {
		if name == "" || strings.ContainsFunc(name, isNoToken) || value != nil && strings.ContainsFunc(*value, isNoValue) {
			return fmt.Errorf("%w: %q has a name or a value that HTTP does not allow", ErrBad, field)
		}
	}
	return nil
}

// isNoneOf tells whether c is neither a letter or digit of ASCII nor one of others.
func isNoneOf(others string, c rune) bool {
	return !('0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || strings.ContainsRune(others, c))
}

func isNoLabel(c rune) bool { return isNoneOf("-_.:/@", c) }

func isNoHost(c rune) bool { return isNoneOf("-_.:[]", c) }

func isNoPath(c rune) bool { return c <= ' ' || c >= 0x7f || c == '#' }

// isNoToken is for the names of fields (RFC 9110 section 5.6.2).
func isNoToken(c rune) bool { return isNoneOf("!#$%&'*+-.^_`|~", c) }

// isNoValue is for the values of fields (RFC 9110 section 5.5).
func isNoValue(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }
