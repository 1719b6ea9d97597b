package web

import (
	"net/http"
	"net/http/httptrace"
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
		if b := x.via.Load(); err == nil || x.ctx.Err() != nil || b == nil || !b.mayGoElsewhere() {
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
	x.via.Store(nil)
	x.answered.Store(false)
	resp, err := t.RoundTrip(out)
	x.answered.Store(true)
	if err != nil {
		if b := x.via.Load(); b != nil && b.reused.Load() && b.sent.Load() > 0 && x.ctx.Err() == nil {
			seen.add(r.URL.Host, idle)
		}
		return nil, err
	}
	x.via.Load().keep(resp.Header)
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
