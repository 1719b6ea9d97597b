package web

import (
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"time"
)

// transports are two: where there are several backends, each request makes its
// own choice, and so a connection of its own, which nobody else could use.
type transports struct {
	shared, unshared *http.Transport
	seen             lifetimes
}

func (t *transports) RoundTrip(r *http.Request) (*http.Response, error) {
	x := exchangeOf(r.Context())
	if _, ok := x.route.Single(); !ok {
		return x.roundTrip(t.unshared, r, &t.seen)
	}
	resp, err := x.roundTrip(t.shared, r, &t.seen)
	// Each time, one connection that was kept is gone.
	for range maxIdlePerBackend {
		if err == nil || x.ctx.Err() != nil || !x.mayGoElsewhere() {
			break
		}
		resp, err = x.roundTrip(t.shared, r, &t.seen)
	}
	return resp, err
}

// roundTrip sends the request once, as far as can be told.
func (x *exchange) roundTrip(t *http.Transport, r *http.Request, seen *lifetimes) (*http.Response, error) {
	var idle time.Duration
	out := r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			b := info.Conn.(*backendConn)
			idle = info.IdleTime
			if x.via.Load() != nil && x.sent.Load() > 0 {
				x.lost.Store(true)
			}
			b.begin(x, r, info, seen.fresh(r.URL.Host))
			x.via.Store(b)
		},
		PutIdleConn: func(err error) {
			if b := x.via.Load(); err == nil && b != nil {
				b.last.Store(&rest{time.Now(), seen, r.URL.Host})
				b.resting.Store(true)
			}
		},
	}))
	if r.Body != nil && r.Body != http.NoBody {
		out.Body = unclosed{r.Body} // for the next connection
	}
	hideIdempotencyKeys(out.Header)
	x.via.Store(nil)
	x.answered.Store(false)
	resp, err := t.RoundTrip(out)
	x.answered.Store(true)
	if err != nil {
		if x.via.Load() != nil && x.reused.Load() && x.sent.Load() > 0 && x.ctx.Err() == nil {
			seen.add(r.URL.Host, idle)
		}
		return nil, err
	}
	x.via.Load().keep(resp.Header)
	if resp.StatusCode < 100 {
		resp.Body.Close()
		return nil, errStatus
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		// Whoever dials closes: the proxy does not (golang/go#80875).
		if !isSwitch(r, resp) {
			resp.Body.Close()
			return nil, errSwitch
		}
		cleanSwitch(resp.Header)
	}
	return resp, nil
}

// hideIdempotencyKeys spells them so that the transport does not know them: it would
// repeat whatever has one, which is the client's word and not the backend's, and a
// proxy must not (RFC 9110 section 9.2.2). The case of a name means nothing.
func hideIdempotencyKeys(h http.Header) {
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if values, ok := h[name]; ok {
			delete(h, name)
			h[strings.ToLower(name)] = values
		}
	}
}

// lifetimes remembers after what rest backends were seen to close connections.
// Between a backend's decision to close and its FIN there may be milliseconds,
// in which nothing tells that a request will be lost.
type lifetimes struct {
	mu   sync.Mutex
	seen map[string]lifetime // by the name of the transport
}

type lifetime struct {
	rest  time.Duration
	until time.Time // it is remembered
}

const (
	maxLifetimes = 1024
	rememberFor  = time.Minute
)

// add is told that a backend has closed a connection after a rest.
func (l *lifetimes) add(host string, rest time.Duration) {
	if rest >= 2*freshFor {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	old, known := l.seen[host]
	switch {
	case known && time.Now().Before(old.until):
		rest = min(rest, old.rest)
	case l.seen == nil, !known && len(l.seen) >= maxLifetimes:
		l.seen = make(map[string]lifetime)
	}
	l.seen[host] = lifetime{rest, time.Now().Add(rememberFor)}
}

// fresh returns after what rest a connection may not be given a request any more
// that cannot be repeated: half of the shortest that was seen, at most freshFor.
func (l *lifetimes) fresh(host string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := l.seen[host]; ok && time.Now().Before(s.until) {
		return min(freshFor, s.rest/2)
	}
	return freshFor
}
