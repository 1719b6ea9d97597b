package main

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
)

// HTTP clients, as far as it takes the whole gateway to serve them.

// visitor is an HTTP client that keeps its connection.
type visitor struct {
	net.Conn
	br *bufio.Reader
}

func visitHTTP(t testing.TB, addr string, config *tls.Config) *visitor {
	c := connectWith(t, addr, config)
	return &visitor{c, bufio.NewReader(c)}
}

// get asks for what a sealed line leads to, and returns status and body.
func (v *visitor) get(t testing.TB, line string, headers ...string) (int, string) {
	t.Helper()
	send(t, v, "GET / HTTP/1.1\r\nHost: game.test\r\nX-Cipher-Origin: "+line+"\r\n"+strings.Join(append(headers, "\r\n"), "\r\n"))
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

// sealedTo is sealed without its newline.
func sealedTo(t testing.TB, backend string) string {
	t.Helper()
	return strings.TrimSuffix(sealed(t, backend), "\n")
}

// startNamed starts an HTTP backend that answers with its name, and counts its
// connections.
func startNamed(t testing.TB, name string) (addr string, conns *atomic.Int64) {
	conns = new(atomic.Int64)
	return startBackend(t, func(c *net.TCPConn) {
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
	flags, trusting := tlsFlags(t)
	red, reds := startNamed(t, "red")
	blue, blues := startNamed(t, "blue")
	p := startProcess(t, flags...) // ends first, and so its connections
	requests := []struct {
		line   string
		status int
		body   string
	}{
		{sealedTo(t, red), 200, "red"},
		{sealedTo(t, "http://"+blue), 200, "blue"},
		{goldenLine, 401, "401 Unauthorized\n"},
		{sealedTo(t, red), 200, "red"},
		{sealedTo(t, closedPort(t)), 502, "502 Bad Gateway\n"},
		{"", 400, "400 Bad Request\n"},
		{sealedTo(t, blue), 200, "blue"},
	}
	for i, config := range []*tls.Config{nil, trusting} {
		v := visitHTTP(t, p.addr, config)
		for _, r := range requests {
			if status, body := v.get(t, r.line); status != r.status || body != r.body {
				t.Errorf("%d %q, want %d %q", status, body, r.status, r.body)
			}
		}
		p.log.waitLine(t, "request", (i+1)*len(requests))
	}
	if reds.Load() != 1 || blues.Load() != 1 {
		t.Errorf("the backends had %d and %d connections, want one each", reds.Load(), blues.Load())
	}
	for i, l := range p.log.lines("request") {
		if want := requests[i%len(requests)].status; l["status"] != float64(want) {
			t.Errorf("logged as %v, want status %d", l, want)
		}
	}
}

func TestTheLogOfARequestHoldsNothingOfIt(t *testing.T) {
	p := startProcess(t, "-log-level=debug")
	backend := startHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("X-Secret", "unrecognized")
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "unrecognized body")
	})
	line := sealedTo(t, backend)
	v := visitHTTP(t, p.addr, nil)
	send(t, v, "POST /unrecognized?unrecognized=unrecognized&x-cipher-origin="+url.QueryEscape(line)+" HTTP/1.1\r\n"+
		"Host: unrecognized\r\nCookie: unrecognized\r\nReferer: http://unrecognized/?x-cipher-origin="+line+"\r\n"+
		"Content-Length: 12\r\n\r\nunrecognized")
	if status, _ := v.read(t); status != http.StatusTeapot {
		t.Errorf("status %d", status)
	}
	l := p.log.waitLine(t, "request", 1) // before the others have theirs
	for _, wrong := range []string{
		"UNRECOGNIZED / HTTP/1.1\r\nHost: a\r\n\r\n", // a line
		"GET / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: unrecognized\r\n\r\n",
		"GET /?x-cipher-origin=%unrecognized HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nunrecognized\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: unrecognized\r\n\r\n",
	} {
		c := connect(t, p.addr)
		send(t, c, wrong)
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
	p.log.waitLine(t, "request", 3)
	p.log.waitLine(t, "refused", 1)
	if text := p.log.String(); strings.Contains(strings.ToLower(text), "unrecognized") || strings.Contains(text, line[:20]) {
		t.Errorf("the log repeats what it should not:\n%s", text)
	}
}

func TestThePolicyHoldsForHTTPToo(t *testing.T) {
	needSignals(t)
	backend, conns := startNamed(t, "forbidden")
	p := startProcess(t, "-deny="+strings.Replace(backend, ":", "/32:", 1))
	n := 0
	for _, v := range tongues() {
		c := connect(t, p.addr)
		send(t, c, v.text(t, backend))
		expectRefusal(t, c, v, "502", "denied")
		n++
	}
	v := visitHTTP(t, p.addr, nil)
	if status, _ := v.get(t, sealedTo(t, p.addr)); status != 502 { // the gateway itself
		t.Errorf("status %d", status)
	}
	v.Close()
	n++
	p.signal(t, syscall.SIGTERM)
	p.wait(t)
	if denied := p.log.waitLine(t, "stopped", 1)["denied"]; denied != float64(n) || conns.Load() > 0 {
		t.Errorf("%v were denied, want %d; %d got there", denied, n, conns.Load())
	}
	for _, msg := range []string{"request", "refused"} {
		for _, l := range p.log.lines(msg) {
			if l["reason"] != "denied" {
				t.Errorf("logged as %v", l)
			}
		}
	}
}

func TestASpoofedClientNeverComesLast(t *testing.T) {
	told := make(chan http.Header, 1)
	backend := startHTTP(t, func(_ http.ResponseWriter, r *http.Request) { told <- r.Header })
	flags, trusting := tlsFlags(t)
	p := startProcess(t, flags...)
	for proto, config := range map[string]*tls.Config{"http": nil, "https": trusting} {
		v := visitHTTP(t, p.addr, config)
		for _, tt := range []struct {
			headers []string
			want    string
		}{
			{nil, "127.0.0.1"},
			{[]string{"X-Forwarded-For: 203.0.113.1"}, "203.0.113.1, 127.0.0.1"},
			{[]string{"X-Forwarded-For: 203.0.113.1", "X-Forwarded-For: 203.0.113.2"}, "203.0.113.1, 203.0.113.2, 127.0.0.1"},
			{[]string{"X-Forwarded-For: 203.0.113.1", "X-Forwarded-Proto: gopher", "Connection: X-Forwarded-For, X-Forwarded-Proto"}, "203.0.113.1, 127.0.0.1"},
		} {
			v.get(t, sealedTo(t, backend), tt.headers...)
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
	flags, trusting := tlsFlags(t)
	backend, _ := startNamed(t, "red")
	for _, limit := range []int{8192, 5000} {
		args := flags
		if limit != 8192 { // the default
			args = append(args, fmt.Sprintf("-http-header-max=%d", limit))
		}
		p := startProcess(t, args...)
		head := "GET / HTTP/1.1\r\nHost: game.test\r\nX-Cipher-Origin: " + sealedTo(t, backend) + "\r\nX-Filler: "
		for size, want := range map[int]int{limit: 200, limit + 1: 431} {
			request := head + strings.Repeat("x", size-len(head)-4) + "\r\n\r\n"
			for _, config := range []*tls.Config{nil, trusting} {
				for how, write := range deliveries {
					v := visitHTTP(t, p.addr, config)
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
	needSignals(t)
	flags, trusting := tlsFlags(t)
	backend, _ := startNamed(t, "red")
	for _, config := range []*tls.Config{nil, trusting} {
		p := startProcess(t, append(flags, "-drain=1h")...)
		v := visitHTTP(t, p.addr, config)
		if status, body := v.get(t, sealedTo(t, backend)); status != 200 || body != "red" {
			t.Fatalf("%d %q", status, body)
		}
		p.signal(t, syscall.SIGTERM)
		expectAll(t, v, "")
		v.Close()
		if code := p.wait(t); code != exitOK {
			t.Errorf("exit code %d", code)
		}
	}
}

func TestARequestUnderWayIsFinishedWhenTheGatewayEnds(t *testing.T) {
	needSignals(t)
	started, release := make(chan bool), make(chan bool)
	backend := startHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		started <- true
		<-release
		io.WriteString(w, "late")
	})
	p := startProcess(t, "-drain=1h")
	v, half := visitHTTP(t, p.addr, nil), visitHTTP(t, p.addr, nil)
	request := "GET / HTTP/1.1\r\nHost: game.test\r\nX-Cipher-Origin: " + sealedTo(t, backend) + "\r\n\r\n"
	send(t, v, request)
	send(t, half, request[:40])
	delivered(t, half.Conn.(*net.TCPConn))
	<-started
	p.signal(t, syscall.SIGTERM)
	waitRefused(t, p.addr)
	send(t, half, request[40:])
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
	if code := p.wait(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

func TestAnAnswerMayComeBeforeTheEndOfItsRequest(t *testing.T) {
	hasty := startHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "5")
		io.WriteString(w, "hasty")
	})
	red, _ := startNamed(t, "red")
	p := startProcess(t, "-log-level=debug")
	wantNoErrors(t, p)
	for _, size := range []int{1, 100_000, 1_000_000} {
		for _, backend := range []string{hasty, closedPort(t)} {
			v := visitHTTP(t, p.addr, nil)
			body := strings.Repeat("x", size)
			sent := make(chan error, 1)
			go func() { // the answer may end the connection
				_, err := io.WriteString(v, "POST / HTTP/1.1\r\nHost: game.test\r\nX-Cipher-Origin: "+sealedTo(t, backend)+
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
			io.WriteString(v, "GET / HTTP/1.1\r\nHost: game.test\r\nX-Cipher-Origin: "+sealedTo(t, red)+"\r\n\r\n")
			resp, err := http.ReadResponse(v.br, nil)
			if err == nil && resp.StatusCode != 200 {
				t.Errorf("after %d bytes: %v", size, resp.Status)
			}
		}
	}
}

func TestAClientThatHasFinishedSendingGetsItsAnswer(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	silent := startHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	})
	red, _ := startNamed(t, "red")
	flags, trusting := tlsFlags(t)
	p := startProcess(t, append(flags, "-half-close-timeout=300ms")...)
	for _, config := range []*tls.Config{nil, trusting} {
		for _, tt := range []struct {
			backend, body string
			status        int
		}{
			{red, "red", 200},
			{silent, "504 Gateway Timeout\n", 504}, // it may as well be gone
		} {
			v := visitHTTP(t, p.addr, config)
			send(t, v, "POST / HTTP/1.1\r\nHost: game.test\r\nContent-Length: 5\r\nX-Cipher-Origin: "+sealedTo(t, tt.backend)+"\r\n\r\nhello")
			halfClose(t, v.Conn)
			if status, body := v.read(t); status != tt.status || body != tt.body {
				t.Errorf("%d %q, want %d", status, body, tt.status)
			}
			expectEnd(t, v.Conn)
		}
	}
}

func TestOnlyPagesOfTheseOriginsMayOpenWebSockets(t *testing.T) {
	backend := startEcho(t)
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
		p := startProcess(t, args...)
		for origin, ok := range allowed {
			headers := []string{"Server-Identify: " + sealedTo(t, backend)}
			if origin != "" {
				headers = append(headers, "Origin: "+origin)
			}
			c := connect(t, p.addr)
			send(t, c, strings.Replace(upgrade("/", headers...), "Host: game.test", "Host: gateway.test", 1))
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
	p := startProcess(t, "-log-level=debug")
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: \x00\xff\"\r\n\r\n",
		"GET /\"\x01 HTTP/1.1\r\n\r\n",
		"POST / HTTP/9.9\r\n\r\n",
		upgrade("/", "X-Cipher-Origin: \"\xff"),
	} {
		c := connect(t, p.addr)
		send(t, c, request)
		c.CloseWrite()
		io.Copy(io.Discard, c)
	}
	c := openTunnel(t, p.addr, startEcho(t))
	c.Close()
	p.log.waitLine(t, "tunnel", 1)
	for line := range strings.Lines(p.log.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("logged: %s", line)
		}
	}
}
