package web

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/address"
)

// Connections to backends that are kept.

// deafGate dials connections whose end nobody reads once deaf is set.
type deafGate struct {
	*fakeGate
	deaf atomic.Bool
}

type deafConn struct {
	net.Conn
	g      *deafGate
	closed chan struct{}
	once   sync.Once
}

func (g *deafGate) Dial(ctx context.Context, route address.Route) (net.Conn, error) {
	c, err := g.fakeGate.Dial(ctx, route)
	if err != nil {
		return nil, err
	}
	return &deafConn{Conn: c, g: g, closed: make(chan struct{})}, nil
}

func (c *deafConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n == 0 && c.g.deaf.Load() {
		<-c.closed
	}
	return n, err
}

func (c *deafConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// The transport may not have read the backend's FIN when it chooses a
// connection for the next request.
func TestNothingIsSentWhereTheBackendHasFinished(t *testing.T) {
	for name, body := range map[string]string{"without a body": "", "with a body": "body", "with a large body": strings.Repeat("x", 1<<20)} {
		t.Run(name, func(t *testing.T) {
			closed := make(chan struct{}, 1)
			var requests atomic.Int32
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				b, _ := io.ReadAll(r.Body)
				w.Write(b)
			}))
			s.Config.IdleTimeout = time.Millisecond
			s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
				if state == http.StateClosed {
					closed <- struct{}{}
				}
			}
			s.Start()
			defer s.Close()
			o := testOptions
			finished := make(chan net.Conn, 10)
			o.Readable = func(c net.Conn) bool {
				finished <- c
				return readable(c.(*deafConn).Conn)
			}
			f := start(t, o, map[string]string{"ok": s.Listener.Addr().String()})
			g := &deafGate{fakeGate: f.fakeGate}
			f.Server.gate = g
			g.deaf.Store(true)
			c := client(t)
			for range 2 {
				resp := f.do(t, c, "POST", "/", strings.NewReader(body), "X-Cipher-Origin", "ok")
				if got := text(t, resp); resp.StatusCode != 200 || got != body {
					t.Errorf("%s with %d bytes", resp.Status, len(got))
				}
				receive(t, closed)
			}
			if f.dialCount() != 2 || requests.Load() != 2 || len(finished) == 0 {
				t.Errorf("%d dials for %d requests, asked %d times", f.dialCount(), requests.Load(), len(finished))
			}
		})
	}
}

func TestItIsRememberedWhenABackendCloses(t *testing.T) {
	var l lifetimes
	if got := l.fresh("a"); got != freshFor {
		t.Error(got)
	}
	l.add("a", 300*time.Millisecond)
	l.add("a", 60*time.Millisecond)
	l.add("a", 500*time.Millisecond)
	l.add("b", 2*freshFor)
	if a, b := l.fresh("a"), l.fresh("b"); a != 30*time.Millisecond || b != freshFor {
		t.Error(a, b)
	}
	l.seen["a"] = lifetime{time.Millisecond, time.Now()}
	if got := l.fresh("a"); got != freshFor {
		t.Error("remembered for ever")
	}
	for i := range 2 * maxLifetimes {
		l.add(strings.Repeat("x", i), time.Millisecond)
	}
	if len(l.seen) > maxLifetimes {
		t.Errorf("%d remembered", len(l.seen))
	}
}

func TestAfterABackendHasClosedSoonARequestThatCannotBeRepeatedGoesAfresh(t *testing.T) {
	const idle = 200 * time.Millisecond
	var requests atomic.Int32
	f := start(t, testOptions, map[string]string{"ok": closing(t, idle, &requests)})
	c := client(t)
	post := func() { text(t, f.do(t, c, "POST", "/", nil, "X-Cipher-Origin", "ok")) }
	post()
	transports := f.Server.proxy.Transport.(*transports)
	eventually(t, "the end is noticed", func() bool { return transports.seen.fresh(f.sealed["ok"].String()) < freshFor })
	post()
	time.Sleep(idle * 6 / 10)
	if post(); f.dialCount() != 3 {
		t.Errorf("%d dials, want 3", f.dialCount())
	}
}

// closing is a backend that closes a connection some time after its last request.
func closing(t *testing.T, after time.Duration, requests *atomic.Int32) string {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.Header.Get("X-Test") == t.Name() { // another test's closed port may be this one by now
			requests.Add(1)
		}
	}))
	s.Config.IdleTimeout = after
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestNoRequestIsLostOnAConnectionThatItsBackendCloses(t *testing.T) {
	const idle = 20 * time.Millisecond
	var requests atomic.Int32
	f := start(t, testOptions, map[string]string{"ok": closing(t, idle, &requests)})
	const each = 150
	var clients sync.WaitGroup
	var bad atomic.Int32
	for i := range 4 {
		c := client(t)
		clients.Go(func() {
			for n := range each {
				body := io.Reader(nil)
				if n%2 == 0 {
					body = strings.NewReader("body")
				}
				r, _ := http.NewRequestWithContext(t.Context(), "POST", "http://"+f.addr, body)
				r.Header.Set("X-Cipher-Origin", "ok")
				r.Header.Set("X-Test", t.Name())
				resp, err := c.Do(r)
				if err != nil || resp.StatusCode != 200 {
					bad.Add(1)
				}
				if err == nil {
					resp.Body.Close()
				}
				select {
				case <-f.served:
				case <-time.After(patience):
					t.Error("not accounted for")
				}
				// About when the backend closes.
				time.Sleep(idle + time.Duration(n%20-10+i)*200*time.Microsecond)
			}
		})
	}
	clients.Wait()
	// A few may be lost between the backend's decision and its FIN, until it is
	// known when it closes. None may come twice.
	if n := requests.Load(); bad.Load() > 4*each/50 || n > 4*each {
		t.Errorf("%d of %d requests failed, and the backend saw %d", bad.Load(), 4*each, n)
	}
	if n := f.dialCount(); n == 4*each {
		t.Error("no connection was used twice, so nothing was tried")
	}
}

func TestHowLongABackendConnectionIsKept(t *testing.T) {
	for name, tt := range map[string]struct {
		method    string
		keepAlive string
		bound     time.Duration // Options.BackendIdleTimeout
		rest      time.Duration
		dials     int
	}{
		"at once":                       {"POST", "", 0, 0, 1},
		"a GET after a second":          {"GET", "", 0, freshFor + 100*time.Millisecond, 1},
		"a POST after a second":         {"POST", "", 0, freshFor + 100*time.Millisecond, 2},
		"a DELETE after a second":       {"DELETE", "", 0, freshFor + 100*time.Millisecond, 2},
		"as long as the backend says":   {"GET", "timeout=1, max=5", 0, 600 * time.Millisecond, 2},
		"not at all if it says so":      {"GET", "timeout=0", 0, 10 * time.Millisecond, 2},
		"within what it says":           {"GET", "timeout=5", 0, 600 * time.Millisecond, 1},
		"no longer than the bound":      {"GET", "timeout=50", 50 * time.Millisecond, 500 * time.Millisecond, 2},
		"not at all without a bound":    {"GET", "", -1, 0, 2},
		"what the backend says in vain": {"GET", "timeout=x, max", 0, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
				if tt.keepAlive != "" {
					w.Header().Set("Keep-Alive", tt.keepAlive)
				}
			})
			o := testOptions
			o.BackendIdleTimeout = tt.bound
			f := start(t, o, map[string]string{"ok": backend})
			c := client(t)
			for range 2 {
				resp := f.do(t, c, tt.method, "/", nil, "X-Cipher-Origin", "ok")
				if text(t, resp); resp.StatusCode != 200 {
					t.Error(resp.Status)
				}
				time.Sleep(tt.rest)
			}
			if n := f.dialCount(); n != tt.dials {
				t.Errorf("%d dials, want %d", n, tt.dials)
			}
		})
	}
	if defaultBackendIdle >= 5*time.Second {
		t.Error("Node.js closes after 5 s")
	}
}

// deadly answers what asks for /warm, once as many ask at a time as it is told to wait
// for, and breaks off what asks for more.
type deadly struct {
	together sync.WaitGroup
	fatal    atomic.Int32
}

func (d *deadly) serve(c *net.TCPConn) {
	for br := bufio.NewReader(c); ; {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if r.URL.Path != "/warm" {
			d.fatal.Add(1)
			return
		}
		d.together.Done()
		d.together.Wait()
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	}
}

// A request may be what makes the backend close, and each repetition does so again.
func TestARequestThatWasLostIsSentOnceMoreAtMost(t *testing.T) {
	for name, tt := range map[string]struct {
		method, header string
		want           int32
	}{
		"a GET":                            {"GET", "X-Other", 2},
		"a POST":                           {"POST", "X-Other", 1},
		"a POST with an idempotency key":   {"POST", "Idempotency-Key", 1},
		"a DELETE with the other spelling": {"DELETE", "X-Idempotency-Key", 1},
	} {
		t.Run(name, func(t *testing.T) {
			const kept = 8
			var d deadly
			d.together.Add(kept)
			f := start(t, testOptions, map[string]string{"ok": tcpBackend(t, d.serve)})
			var warm sync.WaitGroup
			for range kept {
				warm.Go(func() { text(t, f.do(t, client(t), "GET", "/warm", nil, "X-Cipher-Origin", "ok")) })
			}
			warm.Wait()
			resp := f.do(t, client(t), tt.method, "/fatal", nil, "X-Cipher-Origin", "ok", tt.header, "1")
			if n := d.fatal.Load(); resp.StatusCode != 502 || n != tt.want {
				t.Errorf("%s, and the backend got it %d times; want 502, %d times", resp.Status, n, tt.want)
			}
		})
	}
}

func TestAnIdempotencyKeyReachesTheBackend(t *testing.T) {
	keys := make(chan []string, 1)
	f := start(t, testOptions, map[string]string{"ok": httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		keys <- append(r.Header["Idempotency-Key"], r.Header["X-Idempotency-Key"]...)
	})})
	text(t, f.do(t, client(t), "POST", "/", nil, "X-Cipher-Origin", "ok", "Idempotency-Key", "a", "X-Idempotency-Key", "b"))
	if got := receive(t, keys); len(got) != 2 || got[0] != "a" || got[1] != "b" {
		t.Errorf("the backend got %q", got)
	}
}

// A connection may have been given to the next request before a request is told what
// became of its own, which was sent there.
func TestWhatWasSentIsNotSentAgainAlthoughTheConnectionServesTheNext(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	go io.Copy(io.Discard, far)
	r, err := http.NewRequest("POST", "http://a/", nil)
	if err != nil {
		t.Fatal(err)
	}
	b := newBackendConn(near)
	var first, next exchange
	first.Server, next.Server = &Server{}, &Server{}
	for _, x := range []*exchange{&first, &next} {
		b.begin(x, r, httptrace.GotConnInfo{Reused: true}, freshFor)
		x.via.Store(b)
		if !x.mayGoElsewhere() {
			t.Error("nothing was sent, and it may not be sent elsewhere")
		}
		if x == &first {
			io.WriteString(b, "POST / HTTP/1.1\r\n\r\n")
		}
	}
	if first.mayGoElsewhere() {
		t.Error("what was sent may be sent once more")
	}
	if !next.mayGoElsewhere() {
		t.Error("what was not sent is lost")
	}
}
