package web

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"gateway/internal/address"
	"gateway/internal/harness"
)

// otherProcess tells whether this process was started to be something else than
// a test, and was it.
var otherProcess func() bool

func TestMain(m *testing.M) {
	if otherProcess != nil && otherProcess() {
		return
	}
	harness.Main(m, func() error {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		return nil
	})
}

const patience = harness.Patience

var eventually = harness.Eventually

// statusError is what the fake gate's Open and Dial fail with.
type statusError int

func (e statusError) Error() string { return fmt.Sprint(int(e)) }

// fakeGate opens what is in its map and relays in the plainest way.
type fakeGate struct {
	t       testing.TB
	sealed  map[string]address.Route
	dialErr error
	dialing chan context.Context // if not nil, Dial tells it and waits for the end
	hold    chan struct{}        // if not nil, Dial goes on at its end, or fails at the context's
	served  chan Exchange
	relayed chan error // what ended the reading from a client

	changes *Changes // what Open says

	mu    sync.Mutex
	dials int
	asked *Request // the last that Open was told of
}

func (g *fakeGate) Open(_ context.Context, sealed []byte, r *Request) (address.Route, *Changes, error) {
	g.mu.Lock()
	g.asked = r
	g.mu.Unlock()
	if a, ok := g.sealed[string(sealed)]; ok {
		return a, g.changes, nil
	}
	return address.Route{}, nil, statusError(401)
}

func (g *fakeGate) Dial(ctx context.Context, route address.Route) (net.Conn, error) {
	g.mu.Lock()
	g.dials++
	g.mu.Unlock()
	if g.dialing != nil {
		g.dialing <- ctx
		<-ctx.Done()
		return nil, statusError(0)
	}
	if g.hold != nil {
		select {
		case <-g.hold:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	if g.dialErr != nil {
		return nil, g.dialErr
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", route.Target(0).Addr.HostPort())
}

func (g *fakeGate) Status(err error) int {
	if se, ok := errors.AsType[statusError](err); ok {
		return int(se)
	}
	return 502
}

func (g *fakeGate) Relay(_ context.Context, client *Conn, backend net.Conn, early []byte) {
	defer client.Close()
	defer backend.Close()
	var down sync.WaitGroup
	down.Go(func() {
		if _, err := io.Copy(client, backend); err == nil {
			client.CloseWrite()
		} else {
			client.FailWrite()
		}
	})
	backend.Write(early)
	_, err := io.Copy(writerOnly{backend}, client)
	if err == nil {
		backend.(*net.TCPConn).CloseWrite()
	} else {
		backend.(*net.TCPConn).SetLinger(0)
		backend.Close()
	}
	down.Wait()
	g.relayed <- err
}

func (g *fakeGate) Served(_ context.Context, e Exchange) { g.served <- e }

func (g *fakeGate) dialCount() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dials
}

// front is a server under test behind a listener.
type front struct {
	*fakeGate
	*Server
	addr string
	log  *syncBuffer
}

var testOptions = Options{
	HeaderMax:     8192,
	LineMax:       1024,
	HeaderTimeout: patience,
	Origins:       []string{"*"},
	ShareBackends: true,
	Readable:      readable,
}

// start starts a server that knows the sealed addresses.
func start(t testing.TB, o Options, sealed map[string]string) *front {
	return startTLS(t, o, sealed, nil)
}

func startTLS(t testing.TB, o Options, sealed map[string]string, cfg *tls.Config) *front {
	t.Helper()
	g := &fakeGate{
		t:       t,
		sealed:  make(map[string]address.Route),
		served:  make(chan Exchange, 100),
		relayed: make(chan error, 100),
	}
	for k, v := range sealed {
		a, err := address.ParseRoute(v)
		if err != nil {
			t.Fatal(err)
		}
		g.sealed[k] = a
	}
	log := new(syncBuffer)
	o.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	f := &front{fakeGate: g, Server: NewServer(g, o), log: log}
	ln := listen(t)
	f.addr = ln.Addr().String()
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				if cfg != nil {
					tc := tls.Server(c, cfg)
					if err := tc.Handshake(); err != nil {
						c.Close()
						return
					}
					c = tc
				}
				f.ServeConn(t.Context(), c, nil)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		f.Server.Close()
		serving.Wait()
	})
	return f
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// tcpBackend serves each connection by f in a goroutine.
func tcpBackend(t testing.TB, f func(*net.TCPConn)) string {
	t.Helper()
	ln := listen(t)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				f(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	return ln.Addr().String()
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

func httpBackend(t testing.TB, f http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// unused returns an address at which nobody listens.
func unused(t testing.TB) string {
	ln := listen(t)
	defer ln.Close()
	return ln.Addr().String()
}

// client returns an HTTP client that keeps a single connection.
func client(t testing.TB) *http.Client {
	tr := &http.Transport{MaxConnsPerHost: 1}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// get sends a request with headers given in pairs.
func (f *front) get(t testing.TB, c *http.Client, target string, headers ...string) *http.Response {
	t.Helper()
	return f.do(t, c, "GET", target, nil, headers...)
}

func (f *front) do(t testing.TB, c *http.Client, method, target string, body io.Reader, headers ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+f.addr+target, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func text(t testing.TB, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// raw sends bytes and returns a connection to read the rest from.
func (f *front) raw(t testing.TB, s string) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), bufio.NewReader(c)
}

// rawGet returns the response to what is sent.
func (f *front) rawGet(t testing.TB, s string) *http.Response {
	t.Helper()
	_, br := f.raw(t, s)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatalf("no response to %.80q: %v", s, err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// ws opens a WebSocket; it must succeed.
func (f *front) ws(t testing.TB, target string, headers ...string) *websocket.Conn {
	t.Helper()
	c, _, err := f.dialWS(t, target, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (f *front) dialWS(t testing.TB, target string, headers ...string) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	h := make(http.Header)
	for i := 0; i < len(headers); i += 2 {
		h.Add(headers[i], headers[i+1])
	}
	o := &websocket.DialOptions{HTTPHeader: h, Subprotocols: h["Sec-Websocket-Protocol"]}
	c, resp, err := websocket.Dial(t.Context(), "ws://"+f.addr+target, o)
	if err == nil {
		c.SetReadLimit(-1)
		t.Cleanup(func() { c.CloseNow() })
	}
	return c, resp, err
}

// rawWS opens a WebSocket of which the test sends the frames itself.
func (f *front) rawWS(t testing.TB, target string, behind string) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	c, br := f.raw(t, handshake(target)+behind)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v, %v; want 101", resp, err)
	}
	return c, br
}

func handshake(target string, headers ...string) string {
	s := "GET " + target + " HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
	for i := 0; i < len(headers); i += 2 {
		s += headers[i] + ": " + headers[i+1] + "\r\n"
	}
	return s + "\r\n"
}

// frame returns a masked frame, as clients send them; the mask is all zeros.
func frame(first byte, payload string) string {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = append(b, 0x80|126, byte(n>>8), byte(n))
	default:
		b = append(b, 0x80|127, 0, 0, 0, 0, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return string(append(b, 0, 0, 0, 0)) + payload
}

// expectFrame reads one short frame of the server.
func expectFrame(t testing.TB, br *bufio.Reader, first byte, payload string) {
	t.Helper()
	head := make([]byte, 2)
	if _, err := io.ReadFull(br, head); err != nil {
		t.Fatalf("want frame %#x %q, got %v", first, payload, err)
	}
	b := make([]byte, head[1])
	if _, err := io.ReadFull(br, b); err != nil {
		t.Fatal(err)
	}
	if head[0] != first || string(b) != payload {
		t.Fatalf("frame %#x %q, want %#x %q", head[0], b, first, payload)
	}
}

func send(t testing.TB, c *websocket.Conn, typ websocket.MessageType, s string) {
	t.Helper()
	if err := c.Write(t.Context(), typ, []byte(s)); err != nil {
		t.Fatal(err)
	}
}

// expect reads messages until want has come, and no more than that.
func expect(t testing.TB, c *websocket.Conn, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var got []byte
	for len(got) < len(want) {
		typ, p, err := c.Read(ctx)
		if err != nil || typ != websocket.MessageBinary {
			t.Fatalf("message %v, %v behind %q; want %q", typ, err, got, want)
		}
		got = append(got, p...)
	}
	if string(got) != want {
		t.Fatalf("got %.80q, want %.80q", got, want)
	}
}

// expectClose reads up to the Close frame.
func expectClose(t testing.TB, c *websocket.Conn, want websocket.StatusCode) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		_, _, err := c.Read(ctx)
		if err == nil {
			continue
		}
		if got := websocket.CloseStatus(err); got != want {
			t.Fatalf("closed by %v (%v), want %v", got, err, want)
		}
		return
	}
}

func receive[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("waited in vain")
		panic("unreachable")
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// headerLines returns a request's head as a backend got it.
func headerLines(br *bufio.Reader) []string {
	var lines []string
	for {
		line, err := br.ReadString('\n')
		if line = strings.TrimRight(line, "\r\n"); line == "" || err != nil {
			return lines
		}
		lines = append(lines, line)
	}
}
