package protocols

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"gateway/internal/harness"
)

// HTTP clients, as far as it takes the whole gateway to serve them.

// visitor is an HTTP client that keeps its connection.
type visitor struct {
	net.Conn
	br *bufio.Reader
}

func visitHTTP(t testing.TB, addr string, config *tls.Config) *visitor {
	c := harness.ConnectWith(t, addr, config)
	return &visitor{c, bufio.NewReader(c)}
}

// get asks for what a sealed line leads to, and returns status and body.
func (v *visitor) get(t testing.TB, line string, headers ...string) (int, string) {
	t.Helper()
	harness.Send(t, v, "GET / HTTP/1.1\r\nHost: game.test\r\nX-Cipher-Origin: "+line+"\r\n"+strings.Join(append(headers, "\r\n"), "\r\n"))
	return v.read(t)
}

func (v *visitor) read(t testing.TB) (int, string) {
	t.Helper()
	resp, err := http.ReadResponse(v.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	return statusAndBody(t, resp)
}

// statusAndBody reads an answer to its end.
func statusAndBody(t testing.TB, resp *http.Response) (int, string) {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// startNamed starts an HTTP backend that answers with its name, and counts its
// connections.
func startNamed(t testing.TB, name string) (addr string, conns *atomic.Int64) {
	conns = new(atomic.Int64)
	return harness.StartBackend(t, func(c *net.TCPConn) {
		conns.Add(1)
		for br := bufio.NewReader(c); ; {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(name), name)
		}
	}), conns
}

func TestEachRequestOfAConnectionHasItsOwnAddress(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	red, reds := startNamed(t, "red")
	blue, blues := startNamed(t, "blue")
	p := harness.Start(t, flags...) // ends first, and so its connections
	requests := []struct {
		line   string
		status int
		body   string
	}{
		{harness.Sealed(red), 200, "red"},
		{harness.Sealed("http://" + blue), 200, "blue"},
		{harness.GoldenLine, 401, "401 Unauthorized\n"},
		{harness.Sealed(red), 200, "red"},
		{harness.Sealed(harness.ClosedPort(t)), 502, "502 Bad Gateway\n"},
		{"", 400, "400 Bad Request\n"},
		{harness.Sealed(blue), 200, "blue"},
	}
	for i, config := range []*tls.Config{nil, trusting} {
		v := visitHTTP(t, p.Addr, config)
		for _, r := range requests {
			if status, body := v.get(t, r.line); status != r.status || body != r.body {
				t.Errorf("%d %q, want %d %q", status, body, r.status, r.body)
			}
		}
		p.Log.WaitLine(t, "request", (i+1)*len(requests))
	}
	if reds.Load() != 1 || blues.Load() != 1 {
		t.Errorf("the backends had %d and %d connections, want one each", reds.Load(), blues.Load())
	}
	for i, l := range p.Log.Lines("request") {
		if want := requests[i%len(requests)].status; l["status"] != float64(want) {
			t.Errorf("logged as %v, want status %d", l, want)
		}
	}
}

func TestTheLogOfARequestHoldsNothingOfIt(t *testing.T) {
	t.Parallel()
	p := harness.Start(t, "-log-level=debug")
	backend := harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("X-Secret", "unrecognized")
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "unrecognized body")
	})
	line := harness.Sealed(backend)
	v := visitHTTP(t, p.Addr, nil)
	harness.Send(t, v, "POST /unrecognized?unrecognized=unrecognized&x-cipher-origin="+url.QueryEscape(line)+" HTTP/1.1\r\n"+
		"Host: unrecognized\r\nCookie: unrecognized\r\nReferer: http://unrecognized/?x-cipher-origin="+line+"\r\n"+
		"Content-Length: 12\r\n\r\nunrecognized")
	if status, _ := v.read(t); status != http.StatusTeapot {
		t.Errorf("status %d", status)
	}
	l := p.Log.WaitLine(t, "request", 1) // before the others have theirs
	for _, wrong := range []string{
		"UNRECOGNIZED / HTTP/1.1\r\nHost: a\r\n\r\n", // a line
		"GET / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: unrecognized\r\n\r\n",
		"GET /?x-cipher-origin=%unrecognized HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nunrecognized\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: unrecognized\r\n\r\n",
	} {
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, wrong)
		c.CloseWrite()
		io.Copy(io.Discard, c)
	}
	for key, want := range map[string]any{
		"client": v.LocalAddr().String(), "method": "POST", "status": 418.0, "backend": backend,
		"up": 12.0, "down": 17.0, "via": "http", "level": "INFO",
	} {
		if l[key] != want {
			t.Errorf("%s is %v, want %v", key, l[key], want)
		}
	}
	if ms, ok := l["duration_ms"].(float64); !ok || ms < 0 || ms > 60_000 {
		t.Errorf("duration_ms is %v", l["duration_ms"])
	}
	p.Log.WaitLine(t, "request", 3)
	p.Log.WaitLine(t, "refused", 1)
	if text := p.Log.String(); strings.Contains(strings.ToLower(text), "unrecognized") || strings.Contains(text, line[:20]) {
		t.Errorf("the log repeats what it should not:\n%s", text)
	}
}

func TestThePolicyHoldsForHTTPToo(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	backend, conns := startNamed(t, "forbidden")
	p := harness.Start(t, "-deny="+strings.Replace(backend, ":", "/32:", 1))
	n := 0
	for _, v := range harness.Forms() {
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, v.Text(backend))
		expectRefusal(t, c, v, "502", "denied")
		n++
	}
	v := visitHTTP(t, p.Addr, nil)
	if status, _ := v.get(t, harness.Sealed(p.Addr)); status != 502 { // the gateway itself
		t.Errorf("status %d", status)
	}
	v.Close()
	n++
	p.Signal(t, syscall.SIGTERM)
	p.Wait(t)
	if denied := p.Log.WaitLine(t, "stopped", 1)["denied"]; denied != float64(n) || conns.Load() > 0 {
		t.Errorf("%v were denied, want %d; %d got there", denied, n, conns.Load())
	}
	for _, msg := range []string{"request", "refused"} {
		for _, l := range p.Log.Lines(msg) {
			if l["reason"] != "denied" {
				t.Errorf("logged as %v", l)
			}
		}
	}
}

func TestASpoofedClientNeverComesLast(t *testing.T) {
	t.Parallel()
	told := make(chan http.Header, 1)
	backend := harness.StartHTTP(t, func(_ http.ResponseWriter, r *http.Request) { told <- r.Header })
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	for proto, config := range map[string]*tls.Config{"http": nil, "https": trusting} {
		v := visitHTTP(t, p.Addr, config)
		for _, tt := range []struct {
			headers []string
			want    string
		}{
			{nil, "127.0.0.1"},
			{[]string{"X-Forwarded-For: 203.0.113.1"}, "203.0.113.1, 127.0.0.1"},
			{[]string{"X-Forwarded-For: 203.0.113.1", "X-Forwarded-For: 203.0.113.2"}, "203.0.113.1, 203.0.113.2, 127.0.0.1"},
			{[]string{"X-Forwarded-For: 203.0.113.1", "X-Forwarded-Proto: gopher", "Connection: X-Forwarded-For, X-Forwarded-Proto"}, "203.0.113.1, 127.0.0.1"},
		} {
			v.get(t, harness.Sealed(backend), tt.headers...)
			h := <-told
			if got := h.Get("X-Forwarded-For"); got != tt.want || len(h["X-Forwarded-For"]) != 1 || h.Get("X-Forwarded-Proto") != proto {
				t.Errorf("%q: the backend was told %v", tt.headers, h)
			}
			if h.Get("X-Cipher-Origin") != "" {
				t.Error("the backend was told the sealed address")
			}
		}
	}
}

func TestAHeaderHasAtMostHTTPHeaderMaxBytes(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	backend, _ := startNamed(t, "red")
	for _, limit := range []int{8192, 5000} {
		args := flags
		if limit != 8192 { // the default
			args = append(args, fmt.Sprintf("-http-header-max=%d", limit))
		}
		p := harness.Start(t, args...)
		head := "GET / HTTP/1.1\r\nHost: game.test\r\nX-Cipher-Origin: " + harness.Sealed(backend) + "\r\nX-Filler: "
		for size, want := range map[int]int{limit: 200, limit + 1: 431} {
			request := head + strings.Repeat("x", size-len(head)-4) + "\r\n\r\n"
			for _, config := range []*tls.Config{nil, trusting} {
				for how, write := range deliveries {
					v := visitHTTP(t, p.Addr, config)
					write(t, v.Conn, request)
					if status, _ := v.read(t); status != want {
						t.Errorf("%d bytes %s of at most %d: status %d, want %d", size, how, limit, status, want)
					}
				}
			}
		}
	}
}

func TestAConnectionAtRestEndsAtOnceWhenTheGatewayEnds(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	flags, trusting := harness.TLSFlags(t)
	backend, _ := startNamed(t, "red")
	for _, config := range []*tls.Config{nil, trusting} {
		p := harness.Start(t, append(flags, "-drain=1h")...)
		v := visitHTTP(t, p.Addr, config)
		if status, body := v.get(t, harness.Sealed(backend)); status != 200 || body != "red" {
			t.Fatalf("%d %q", status, body)
		}
		p.Signal(t, syscall.SIGTERM)
		harness.ExpectAll(t, v, "")
		v.Close()
		if code := p.Wait(t); code != harness.ExitOK {
			t.Errorf("exit code %d", code)
		}
	}
}

func TestARequestUnderWayIsFinishedWhenTheGatewayEnds(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	started, release := make(chan bool), make(chan bool)
	backend := harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		started <- true
		<-release
		io.WriteString(w, "late")
	})
	p := harness.Start(t, "-drain=1h")
	v, half := visitHTTP(t, p.Addr, nil), visitHTTP(t, p.Addr, nil)
	request := "GET / HTTP/1.1\r\nHost: game.test\r\nX-Cipher-Origin: " + harness.Sealed(backend) + "\r\n\r\n"
	harness.Send(t, v, request)
	harness.Send(t, half, request[:40])
	harness.Delivered(t, half.Conn.(*net.TCPConn))
	<-started
	p.Signal(t, syscall.SIGTERM)
	harness.WaitRefused(t, p.Addr)
	harness.Send(t, half, request[40:])
	<-started
	release <- true
	release <- true
	for _, v := range []*visitor{v, half} {
		if status, body := v.read(t); status != 200 || body != "late" {
			t.Errorf("%d %q", status, body)
		}
		if rest, err := io.ReadAll(v.br); len(rest) > 0 || err != nil {
			t.Errorf("then %q, %v", rest, err)
		}
	}
	if code := p.Wait(t); code != harness.ExitOK {
		t.Errorf("exit code %d", code)
	}
}

func TestAnAnswerMayComeBeforeTheEndOfItsRequest(t *testing.T) {
	t.Parallel()
	hasty := harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "5")
		io.WriteString(w, "hasty")
	})
	red, _ := startNamed(t, "red")
	p := harness.Start(t, "-log-level=debug")
	wantNoErrors(t, p)
	for _, size := range []int{1, 100_000, 1_000_000} {
		for _, backend := range []string{hasty, harness.ClosedPort(t)} {
			v := visitHTTP(t, p.Addr, nil)
			body := strings.Repeat("x", size)
			sent := make(chan error, 1)
			go func() { // the answer may end the connection
				_, err := io.WriteString(v, "POST / HTTP/1.1\r\nHost: game.test\r\nX-Cipher-Origin: "+harness.Sealed(backend)+
					fmt.Sprintf("\r\nContent-Length: %d\r\n\r\n%s", size, body))
				sent <- err
			}()
			status, answer := v.read(t)
			if backend == hasty && (status != 200 || answer != "hasty") || backend != hasty && status != 502 {
				t.Errorf("%d bytes: %d %q", size, status, answer)
			}
			if err := <-sent; err != nil {
				continue
			}
			// Either the connection has ended or it is as good as new.
			io.WriteString(v, "GET / HTTP/1.1\r\nHost: game.test\r\nX-Cipher-Origin: "+harness.Sealed(red)+"\r\n\r\n")
			resp, err := http.ReadResponse(v.br, nil)
			if err == nil && resp.StatusCode != 200 {
				t.Errorf("after %d bytes: %v", size, resp.Status)
			}
		}
	}
}

func TestAClientThatHasFinishedSendingGetsItsAnswer(t *testing.T) {
	t.Parallel()
	stop := make(chan struct{})
	defer close(stop)
	silent := harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	})
	red, _ := startNamed(t, "red")
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, append(flags, "-half-close-timeout=2s")...)
	for _, config := range []*tls.Config{nil, trusting} {
		for _, tt := range []struct {
			backend, body string
			status        int
		}{
			{red, "red", 200},
			{silent, "504 Gateway Timeout\n", 504}, // it may as well be gone
		} {
			v := visitHTTP(t, p.Addr, config)
			harness.Send(t, v, "POST / HTTP/1.1\r\nHost: game.test\r\nContent-Length: 5\r\nX-Cipher-Origin: "+harness.Sealed(tt.backend)+"\r\n\r\nhello")
			harness.HalfClose(t, v.Conn)
			if status, body := v.read(t); status != tt.status || body != tt.body {
				t.Errorf("%d %q, want %d", status, body, tt.status)
			}
			harness.ExpectEnd(t, v.Conn)
		}
	}
}

func TestOnlyPagesOfTheseOriginsMayOpenWebSockets(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	for flag, allowed := range map[string]map[string]bool{
		"": {"https://anywhere.test": true, "": true},
		"-ws-origins=game.test,*.pages.test": {
			"https://game.test": true, "https://a.pages.test": true, "http://elsewhere.test": false, "": true,
		},
	} {
		args := []string{}
		if flag != "" {
			args = append(args, flag)
		}
		p := harness.Start(t, args...)
		for origin, ok := range allowed {
			headers := []string{"Server-Identify: " + harness.Sealed(backend)}
			if origin != "" {
				headers = append(headers, "Origin: "+origin)
			}
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, strings.Replace(harness.Upgrade("/", headers...), "Host: game.test", "Host: gateway.test", 1))
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			if want := map[bool]int{true: 101, false: 403}[ok]; resp.StatusCode != want {
				t.Errorf("%q, of %q: %v", flag, origin, resp.Status)
			}
		}
	}
}

// The log is JSON whatever a client sends.
func TestEveryLineOfTheLogIsJSON(t *testing.T) {
	t.Parallel()
	p := harness.Start(t, "-log-level=debug")
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: \x00\xff\"\r\n\r\n",
		"GET /\"\x01 HTTP/1.1\r\n\r\n",
		"POST / HTTP/9.9\r\n\r\n",
		harness.Upgrade("/", "X-Cipher-Origin: \"\xff"),
	} {
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, request)
		c.CloseWrite()
		io.Copy(io.Discard, c)
	}
	c := harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))
	c.Close()
	p.Log.WaitLine(t, "tunnel", 1)
	for line := range strings.Lines(p.Log.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("logged: %s", line)
		}
	}
}
