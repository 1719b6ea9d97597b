package admin

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"gateway/internal/address"
)

// Tunnel is a live tunnel.
type Tunnel struct {
	ID        string    `json:"id"`
	Client    string    `json:"client"`               // IP:PORT
	Backend   string    `json:"backend"`              // as it was sealed
	BackendIP string    `json:"backend_ip,omitempty"` // IP:PORT, where a name led to
	Listener  string    `json:"listener"`             // by which it came
	Form      string    `json:"form"`                 // line, prefixed, binary, websocket or forward, with +tls or +kcp
	Since     time.Time `json:"since"`                // when the client was accepted
	Up        int64     `json:"up"`                   // bytes from the client to the backend
	Down      int64     `json:"down"`                 // bytes from the backend to the client
	IdleMS    int64     `json:"idle_ms"`              // for how long nothing has moved, in milliseconds
	State     string    `json:"state"`                // open, or half_closed: one side has finished
}

// Filter says which tunnels are meant. What is empty does not matter.
type Filter struct {
	ID       string          // of one tunnel
	Client   netip.Prefix    // that holds the client's address
	Backend  address.Address // as it was sealed, or the IP:PORT that its name led to; the scheme does not matter
	Listener string          // by its name
}

// Zero tells whether all tunnels are meant.
func (f Filter) Zero() bool { return f == Filter{} }

// Query is a page of the list of tunnels.
type Query struct {
	Filter
	After string // the id of the last tunnel of the page before; empty: the first page
	Limit int    // of tunnels; more than 0
}

const (
	defaultLimit = 1000
	// maxLimit bounds a page: about 20 MiB while it is made.
	maxLimit = 100_000
	// maxLists bounds the pages that are made at a time, since everybody may ask for one,
	// and read it slowly.
	maxLists = 8
)

// ParseClient reads an address, which may stand in brackets, or a network of clients. Clients
// of IPv4 are meant also where it is written as IPv6 (RFC 4291, 2.5.5.2).
func ParseClient(s string) (netip.Prefix, error) {
	bare := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		bare = s[1 : len(s)-1]
	}
	if ip, err := netip.ParseAddr(bare); err == nil && ip.Zone() == "" {
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("client: %q is no address and no network such as 192.0.2.0/24", s)
	}
	if mapped := 128 - 32; p.Addr().Is4In6() && p.Bits() >= mapped {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped)
	}
	return p.Masked(), nil
}

// ParseBackend reads the address of a backend.
func ParseBackend(s string) (address.Address, error) {
	a, err := address.Parse(s)
	if err != nil {
		return a, fmt.Errorf("backend: %w", err)
	}
	a.Scheme = ""
	if a.IP.IsValid() {
		a.IP = a.IP.Unmap()
	} else {
		a.Host = strings.ToLower(a.Host)
	}
	return a, nil
}

// Matches tells whether a backend, or where it led to, is the filter's.
func (f *Filter) MatchesBackend(a address.Address, led netip.AddrPort) bool {
	want := &f.Backend
	switch {
	case want.Port == 0:
		return true
	case want.IP.IsValid():
		return want.Port == a.Port && want.IP == a.IP.Unmap() || led == netip.AddrPortFrom(want.IP, want.Port)
	}
	return want.Port == a.Port && strings.EqualFold(want.Host, a.Host)
}

// parseQuery reads the parameters of a request.
func parseQuery(values url.Values) (q Query, err error) {
	q.Limit = defaultLimit
	for name, all := range values {
		if len(all) > 1 {
			return q, fmt.Errorf("%s is given more than once", name)
		}
		value := all[0]
		if value == "" {
			continue
		}
		switch name {
		case "id":
			q.ID = value
		case "client":
			q.Client, err = ParseClient(value)
		case "backend":
			q.Backend, err = ParseBackend(value)
		case "listener":
			q.Listener = value
		case "after":
			q.After = value
		case "limit":
			q.Limit, err = strconv.Atoi(value)
			if err != nil || q.Limit < 1 || q.Limit > maxLimit {
				err = fmt.Errorf("limit: want a whole number from 1 to %d", maxLimit)
			}
		default:
			err = fmt.Errorf("there is no parameter %q: want client, backend, listener, id, limit or after", name)
		}
		if err != nil {
			return q, err
		}
	}
	return q, nil
}

// ErrUnknownID is what a Source says of an id that is none of its own.
var ErrUnknownID = errors.New("after: that is no id of this gateway")

// streamTimeout is how long the reader of a list may take nothing of it.
const streamTimeout = 30 * time.Second

// tunnels writes a page of the list as it is found:
//
//	{"tunnels":[{…},{…}],"next":"ID"}
//
// where next is what to ask for with after, and missing on the last page.
func (s *server) tunnels(w http.ResponseWriter, r *http.Request) {
	// What is not understood must not look like a wish for all tunnels.
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		fail(w, http.StatusBadRequest, "the parameters are not URL-encoded: "+err.Error())
		return
	}
	q, err := parseQuery(values)
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	select {
	case s.lists <- struct{}{}:
		defer func() { <-s.lists }()
	default:
		w.Header().Set("Retry-After", "1")
		fail(w, http.StatusServiceUnavailable, fmt.Sprintf("%d lists are being made already: ask again", maxLists))
		return
	}
	rc := http.NewResponseController(w)
	out := bufio.NewWriterSize(w, 32<<10)
	line := json.NewEncoder(out)
	n, last := 0, ""
	begin := func() {
		w.Header().Set("Content-Type", "application/json")
		out.WriteString(`{"tunnels":[`)
	}
	more, err := s.source.Tunnels(r.Context(), q, func(t *Tunnel) bool {
		if n == 0 {
			begin()
		} else {
			out.WriteString(",")
		}
		if n%256 == 0 {
			rc.SetWriteDeadline(time.Now().Add(streamTimeout))
		}
		n, last = n+1, t.ID
		return line.Encode(t) == nil // and a newline
	})
	switch {
	case err != nil && n == 0:
		status := http.StatusServiceUnavailable
		if errors.Is(err, ErrUnknownID) {
			status = http.StatusBadRequest
		}
		fail(w, status, err.Error())
		return
	case err != nil:
		panic(http.ErrAbortHandler) // half a list must not look like all of it
	case n == 0:
		begin()
	}
	out.WriteString("]")
	if more {
		fmt.Fprintf(out, `,"next":%q`, last)
	}
	out.WriteString("}\n")
	out.Flush()
}

// cutRequest is the body of /api/tunnels/cut: one of its fields.
type cutRequest struct {
	ID      string `json:"id"`
	Client  string `json:"client"`  // CIDR or address
	Backend string `json:"backend"` // HOST:PORT
}

func (s *server) cut(r *http.Request) (any, []any, error) {
	var body cutRequest
	if err := decode(r, &body); err != nil {
		return nil, nil, err
	}
	var f Filter
	var err error
	var what, value string
	given := 0
	if body.ID != "" {
		given, what, value = given+1, "id", body.ID
		f.ID = body.ID
	}
	if body.Client != "" {
		given, what, value = given+1, "client", body.Client
		f.Client, err = ParseClient(body.Client)
	}
	if body.Backend != "" {
		given, what, value = given+1, "backend", body.Backend
		f.Backend, err = ParseBackend(body.Backend)
	}
	switch {
	case given != 1:
		return nil, nil, badRequest(`want one of {"id": …}, {"client": "CIDR"} and {"backend": "HOST:PORT"}`)
	case err != nil:
		return nil, nil, badRequest(err.Error())
	}
	n, err := s.source.Cut(r.Context(), f)
	return cutAnswer{n}, []any{what, value, "cut", n}, err
}

// cutAnswer tells how many tunnels were cut.
type cutAnswer struct {
	Cut int `json:"cut"`
}

func (s *server) drain(on bool) func(*http.Request) (any, []any, error) {
	return func(r *http.Request) (any, []any, error) {
		if err := decodeNothing(r); err != nil {
			return nil, nil, err
		}
		s.source.Drain(on)
		return drainAnswer{on, s.source.Unready()}, nil, nil
	}
}

// drainAnswer tells what was asked for, and what /readyz says: a gateway that ends goes on
// to drain, whatever is asked.
type drainAnswer struct {
	Draining bool   `json:"draining"`
	Reason   string `json:"reason,omitempty"`
}

func (s *server) logLevel(r *http.Request) (any, []any, error) {
	var body struct {
		Level string `json:"level"`
	}
	if err := decode(r, &body); err != nil {
		return nil, nil, err
	}
	var level slog.Level
	switch body.Level {
	case "debug", "info", "warn", "error":
		level.UnmarshalText([]byte(body.Level))
	default:
		return nil, nil, badRequest(`want {"level": "debug"}, or info, warn or error`)
	}
	s.source.SetLogLevel(level)
	return map[string]string{"level": body.Level}, []any{"level", body.Level}, nil
}

func (s *server) reload(r *http.Request) (any, []any, error) {
	if err := decodeNothing(r); err != nil {
		return nil, nil, err
	}
	if err := s.source.Reload(); err != nil {
		return nil, nil, badSettings{err}
	}
	return map[string]bool{"reloaded": true}, nil, nil
}

// Pages remember the numbers of tunnels with which pages have ended and whose names do
// not tell them: a Source may list tunnels by numbers of its own. The zero value remembers
// none; it is safe for concurrent use.
type Pages struct {
	mu   sync.Mutex
	ends map[string]uint64
}

// maxPages bounds them. What is asked for behind a page that was forgotten is unknown.
const maxPages = 4096

// End remembers that a page ended with a tunnel of this name and number.
func (p *Pages) End(name string, number uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ends == nil || len(p.ends) >= maxPages {
		p.ends = make(map[string]uint64)
	}
	p.ends[name] = number
}

// Number returns the number under which such a page ended.
func (p *Pages) Number(name string) (number uint64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	number, ok = p.ends[name]
	return number, ok
}
