package web

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/address"
)

// Backends that close, that answer early, and that switch where they should not.

// counting counts the connections to backends that are open.
type counting struct {
	*fakeGate
	open atomic.Int32
}

func (g *counting) Dial(ctx context.Context, route address.Route) (net.Conn, error) {
	c, err := g.fakeGate.Dial(ctx, route)
	if err != nil {
		return nil, err
	}
	g.open.Add(1)
	return &countedConn{TCPConn: c.(*net.TCPConn), g: g}, nil
}

type countedConn struct {
	*net.TCPConn
	g    *counting
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.g.open.Add(-1) })
	return c.TCPConn.Close()
}

func TestASwitchThatWasNotAskedForIs502AndClosesTheBackend(t *testing.T) {
	for name, tt := range map[string]struct{ upgrade, answer string }{
		"a plain request":      {"", "Connection: Upgrade\r\nUpgrade: websocket"},
		"another protocol":     {"Connection: Upgrade\r\nUpgrade: websocket\r\n", "Connection: Upgrade\r\nUpgrade: h2c"},
		"a list":               {"Connection: Upgrade\r\nUpgrade: websocket\r\n", "Connection: Upgrade\r\nUpgrade: websocket, h2c"},
		"two fields":           {"Connection: Upgrade\r\nUpgrade: websocket\r\n", "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c"},
		"none":                 {"Connection: Upgrade\r\nUpgrade: websocket\r\n", "Connection: Upgrade"},
		"without a connection": {"Connection: Upgrade\r\nUpgrade: websocket\r\n", "Upgrade: websocket"},
		"garbage":              {"Connection: Upgrade\r\nUpgrade: websocket\r\n", "Connection: Upgrade\r\nUpgrade: \xe4"},
		"what was not chosen":  {"Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n", "Connection: Upgrade\r\nUpgrade: h2c"},
		"what was stripped":    {"Connection: Upgrade\r\nUpgrade: h2c\r\n", "Connection: Upgrade\r\nUpgrade: h2c"},
	} {
		t.Run(name, func(t *testing.T) {
			backend := tcpBackend(t, func(c *net.TCPConn) {
				headerLines(bufio.NewReader(c))
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n"+tt.answer+"\r\n\r\n")
				io.Copy(io.Discard, c) // does not close first
			})
			f := start(t, testOptions, map[string]string{"ok": backend})
			g := &counting{fakeGate: f.fakeGate}
			f.Server.gate = g
			for range 5 {
				resp := f.rawGet(t, "GET / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\n"+tt.upgrade+"\r\n")
				if resp.StatusCode != 502 {
					t.Fatal(resp.Status)
				}
				if e := receive(t, f.served); e.Status != 502 || e.Err != errNoResponse {
					t.Errorf("account %+v", e)
				}
			}
			eventually(t, "the backend's connections are closed", func() bool { return g.open.Load() == 0 })
		})
	}
}

func TestASwitchShowsNothingThatIsBetweenBackendAndGateway(t *testing.T) {
	backend := tcpBackend(t, func(c *net.TCPConn) {
		headerLines(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: keep-alive, Upgrade, X-Secret\r\nUpgrade: WebSocket\r\n"+
			"Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nProxy-Connection: x\r\nTrailer: x\r\nTE: x\r\nX-Secret: 1\r\n"+
			"Set-Cookie: a=b\r\nSec-WebSocket-Accept: x\r\n\r\nhello")
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	g := &counting{fakeGate: f.fakeGate}
	f.Server.gate = g
	c, br := f.raw(t, handshake("/", "X-Cipher-Origin", "ok"))
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	if b, err := io.ReadAll(br); string(b) != "hello" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	c.Close()
	want := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Set-Cookie": {"a=b"}, "Sec-Websocket-Accept": {"x"}}
	if fmt.Sprint(resp.Header) != fmt.Sprint(want) {
		t.Errorf("the client got %v, want %v", resp.Header, want)
	}
	eventually(t, "the backend's connection is closed", func() bool { return g.open.Load() == 0 })
}

func TestTheBackendsWordIsPassedOnThoughItDoesNotTakeTheBody(t *testing.T) {
	for name, answer := range map[string]string{
		"413": "413 Content Too Large\r\nContent-Length: 2\r\n\r\nno",
		"417": "417 Expectation Failed\r\nContent-Length: 0\r\n\r\n",
		"303": "303 See Other\r\nLocation: /\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			backend := tcpBackend(t, func(c *net.TCPConn) {
				headerLines(bufio.NewReader(c))
				c.Read(make([]byte, 1000)) // so that the body has begun
				io.WriteString(c, "HTTP/1.1 "+answer)
				c.CloseWrite()
				c.SetLinger(0) // a reset, with most of the body still coming
			})
			f := start(t, testOptions, map[string]string{"ok": backend})
			body := bytes.Repeat([]byte("x"), 1<<20)
			for range 30 {
				c, br := f.raw(t, "POST / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\nContent-Length: 100000000\r\n\r\n")
				go func() {
					for {
						if _, err := c.Write(body); err != nil {
							return
						}
					}
				}()
				resp, err := http.ReadResponse(br, nil)
				if err != nil || fmt.Sprint(resp.StatusCode) != name[:3] {
					t.Fatal(resp, err)
				}
				if b, err := io.ReadAll(resp.Body); err != nil || strings.HasSuffix(answer, "no") != (string(b) == "no") {
					t.Errorf("%q, %v", b, err)
				}
				c.Close()
				if e := receive(t, f.served); fmt.Sprint(e.Status) != name[:3] || e.Err != nil {
					t.Errorf("account %+v", e)
				}
			}
		})
	}
}

// With an early answer the connection has ended, or is as good as new.
func TestABodyThatIsThereAlreadyDoesNotOutliveAnEarlyAnswer(t *testing.T) {
	backend := tcpBackend(t, func(c *net.TCPConn) {
		headerLines(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhasty")
		io.Copy(io.Discard, c)
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	for _, size := range []int{1, 5000, 100_000, 1_000_000} {
		for range 20 {
			c, br := f.raw(t, "")
			go io.WriteString(c, fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size))+
				"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.StatusCode != 200 || text(t, resp) != "hasty" {
				t.Fatal(size, resp, err)
			}
			if resp, err := http.ReadResponse(br, nil); err == nil && resp.StatusCode != 400 { // no address
				t.Errorf("after %d bytes: %s", size, resp.Status)
			}
			c.Close()
			for len(f.served) > 0 {
				<-f.served
			}
		}
	}
	if strings.Contains(f.log.String(), "panic") {
		t.Errorf("log: %s", f.log)
	}
}

func TestOnlyTheBackendSays100(t *testing.T) {
	got := make(chan string, 1)
	backend := tcpBackend(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		for {
			lines := headerLines(br)
			if lines == nil {
				return
			}
			if !strings.Contains(strings.Join(lines, "\n"), "Expect: 100-continue") {
				io.WriteString(c, "HTTP/1.1 500 No Expect\r\nContent-Length: 0\r\n\r\n")
				return
			}
			body := make([]byte, 5)
			switch _, path, _ := strings.Cut(lines[0], " "); strings.Fields(path)[0] {
			case "/refuse":
				io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
				n, _ := io.ReadFull(br, body)
				got <- string(body[:n])
				return
			case "/continue":
				io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
			case "/close":
				return
			}
			io.ReadFull(br, body)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"+string(body))
		}
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	expect := func(path string) (*net.TCPConn, *bufio.Reader) {
		return f.raw(t, "POST "+path+" HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	}
	status := func(br *bufio.Reader, want int) *http.Response {
		t.Helper()
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != want {
			t.Fatal(resp, err)
		}
		return resp
	}

	c, br := expect("/continue")
	status(br, 100)
	io.WriteString(c, "hello")
	if resp := status(br, 200); text(t, resp) != "hello" || resp.Close {
		t.Error(resp)
	}

	// The client need not wait (RFC 9110 section 10.1.1), nor the backend ask.
	c, br = expect("/silent")
	io.WriteString(c, "hello")
	if resp := status(br, 200); text(t, resp) != "hello" {
		t.Error(resp)
	}

	// It says nothing, so nothing is heard, and nothing is sent there.
	c, br = expect("/silent")
	c.SetReadDeadline(time.Now().Add(1500 * time.Millisecond))
	if b, err := br.ReadByte(); err == nil {
		t.Errorf("%q from nobody", b)
	}
	c.Close()

	c, br = expect("/refuse")
	if resp := status(br, 413); !resp.Close {
		t.Error("the connection is kept, and nobody knows whether a body comes")
	}
	if _, err := br.ReadByte(); err != io.EOF {
		t.Errorf("%v, want the end", err)
	}
	c.Close()
	if b := receive(t, got); b != "" {
		t.Errorf("the backend got %q", b)
	}

	// A backend that is gone cannot ask for the body any more.
	_, br = expect("/close")
	if resp := status(br, 502); !resp.Close {
		t.Error("the connection is kept")
	}
	f2 := start(t, testOptions, map[string]string{"ok": unused(t)})
	_, br = f2.raw(t, "POST / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	status(br, 502)
	_, br = f2.raw(t, "POST / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: bad\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	status(br, 401)
}

func TestAClientOfHTTP10GetsNoInformationalResponses(t *testing.T) {
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		io.WriteString(w, "done")
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	if resp := f.rawGet(t, "GET / HTTP/1.0\r\nX-Cipher-Origin: ok\r\n\r\n"); resp.StatusCode != 200 || text(t, resp) != "done" {
		t.Error(resp)
	}
}

// A client that sends requests and reads no answers is not waited for without end.
func TestAClientThatReadsNoAnswersIsGivenUp(t *testing.T) {
	o := testOptions
	o.HeaderTimeout = 100 * time.Millisecond
	f := start(t, o, nil)
	g := &silentGate{fakeGate: f.fakeGate}
	f.Server.gate = g
	c, _ := f.raw(t, "")
	requests := []byte(strings.Repeat("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1000))
	for {
		if _, err := c.Write(requests); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Error("it is waited for")
			}
			break
		}
	}
	if g.served.Load() == 0 {
		t.Error("nothing was answered")
	}
}

type silentGate struct {
	*fakeGate
	served atomic.Int32
}

func (g *silentGate) Served(context.Context, Exchange) { g.served.Add(1) }
