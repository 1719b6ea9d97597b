package admin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/harness"
)

// fake is a Source that remembers what it was told.
type fake struct {
	mu      sync.Mutex
	unready string
	dead    error
	drained []bool
	level   slog.Level
	cuts    []Filter
	tunnelN int // how many there are, named 1, 2, …
	fails   error
	asked   Query
	started atomic.Int32  // lists that wait for
	slow    chan struct{} // until it is closed, no tunnel is found; nil: at once
}

func (f *fake) Alive(context.Context) error { return f.dead }
func (f *fake) Unready() string             { return f.unready }

func (f *fake) Status() Status {
	return Status{
		Listeners: []Listener{{Name: "127.0.0.1:8000", Accepted: 3}},
		Connections: []ConnectionCount{
			{"127.0.0.1:8000", "tls", "none", 1}, {"127.0.0.1:8000", "tls", "none", 1},
		},
		Tunnels: Tunnels{Active: 7},
	}
}

var since = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func (f *fake) Tunnels(_ context.Context, q Query, yield func(*Tunnel) bool) (bool, error) {
	if f.slow != nil {
		f.started.Add(1)
		<-f.slow
	} else {
		f.asked = q
	}
	for i := range f.tunnelN {
		if i == q.Limit {
			return true, f.fails
		}
		if !yield(&Tunnel{ID: string(rune('1' + i)), Client: "192.0.2.1:4000", Backend: "10.0.0.7:4000", Since: since, State: "open"}) {
			break
		}
	}
	return false, f.fails
}

func (f *fake) Cut(_ context.Context, what Filter) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cuts = append(f.cuts, what)
	return 2, f.fails
}

func (f *fake) Drain(on bool)                { f.drained = append(f.drained, on) }
func (f *fake) SetLogLevel(level slog.Level) { f.level = level }
func (f *fake) Reload() error                { return f.fails }

// served is a server of a fake, and a client of it.
type served struct {
	*fake
	t       testing.TB
	log     harness.Log
	client  http.Client
	base    string
	unix    bool
	metrics *Metrics
	stop    func()
}

// serveTCP and serveUnix serve a fake until the test ends.
func serveTCP(t testing.TB, o Options) *served {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, ln, o)
}

func serveUnix(t testing.TB, o Options) *served {
	t.Helper()
	ln, err := ListenUnix(filepath.Join(t.TempDir(), "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, ln, o)
}

func serve(t testing.TB, ln net.Listener, o Options) *served {
	t.Helper()
	s := &served{fake: &fake{}, t: t, base: "http://gateway", unix: ln.Addr().Network() == "unix"}
	o.Log = slog.New(slog.NewJSONHandler(&s.log, nil))
	o.Metrics = NewMetrics()
	s.metrics = o.Metrics
	network, addr := ln.Addr().Network(), ln.Addr().String()
	if !s.unix {
		s.base = "http://" + addr
	}
	s.client = http.Client{Timeout: harness.Patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}}
	stop := Serve(ln, s.fake, o)
	s.stop = sync.OnceFunc(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // at once
		stop(ctx)
	})
	t.Cleanup(func() {
		s.client.CloseIdleConnections()
		s.stop()
	})
	return s
}

// do sends a request with headers, as pairs, and returns the status and the body.
func (s *served) do(method, path, body string, headers ...string) (int, string) {
	s.t.Helper()
	r, err := http.NewRequest(method, s.base+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for pair := range slices.Chunk(headers, 2) {
		r.Header.Set(pair[0], pair[1])
	}
	resp, err := s.client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// want does what do does, and checks what came of it.
func (s *served) want(status int, says, method, path, body string, headers ...string) {
	s.t.Helper()
	got, text := s.do(method, path, body, headers...)
	if got != status || !strings.Contains(text, says) {
		s.t.Errorf("%s %s %s %q: status %d, %q; want %d and %q", method, path, body, headers, got, text, status, says)
	}
}

var errFake = errors.New("it fails")
