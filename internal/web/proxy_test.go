package web

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"gateway/internal/address"
)

func TestEachErrorIsAnHTTPStatusWithOneLine(t *testing.T) {
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	mute := tcpBackend(t, func(c *net.TCPConn) {}) // closes at once
	f := start(t, testOptions, map[string]string{
		"ok": backend, "http": "http://" + backend, "tcp": "tcp://" + backend, "mute": mute, "down": unused(t),
	})
	slow := start(t, testOptions, map[string]string{"ok": backend})
	slow.dialErr = statusError(504)

	for name, tt := range map[string]struct {
		f       *front
		target  string
		headers []string
		status  int
	}{
		"plain":            {f, "/", []string{"X-Cipher-Origin", "ok"}, 200},
		"http scheme":      {f, "/", []string{"X-Cipher-Origin", "http"}, 200},
		"query":            {f, "/?x-cipher-origin=ok", nil, 200},
		"no address":       {f, "/", nil, 400},
		"ident is for ws":  {f, "/", []string{"Server-Identify", "ok"}, 400},
		"two addresses":    {f, "/", []string{"X-Cipher-Origin", "ok", "X-Cipher-Origin", "ok"}, 400},
		"too long":         {f, "/", []string{"X-Cipher-Origin", strings.Repeat("A", 1025)}, 400},
		"not to be opened": {f, "/", []string{"X-Cipher-Origin", "bad"}, 401},
		"tcp":              {f, "/", []string{"X-Cipher-Origin", "tcp"}, 401},
		"refused":          {f, "/", []string{"X-Cipher-Origin", "down"}, 502},
		"no response":      {f, "/", []string{"X-Cipher-Origin", "mute"}, 502},
		"too slow":         {slow, "/", []string{"X-Cipher-Origin", "ok"}, 504},
	} {
		t.Run(name, func(t *testing.T) {
			resp := tt.f.get(t, client(t), tt.target, tt.headers...)
			body := text(t, resp)
			if resp.StatusCode != tt.status {
				t.Fatalf("status %d, want %d", resp.StatusCode, tt.status)
			}
			e := receive(t, tt.f.served)
			if e.Status != tt.status || (e.Err == nil) != (tt.status == 200) || e.Kind != "http" || e.Method != "GET" {
				t.Errorf("account %+v", e)
			}
			if tt.status == 200 {
				if body != "hello" || e.Down != 5 {
					t.Errorf("body %q, account %+v", body, e)
				}
				return
			}
			want := fmt.Sprintf("%d %s\n", tt.status, http.StatusText(tt.status))
			if body != want || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
				t.Errorf("body %q of %q, want %q", body, resp.Header.Get("Content-Type"), want)
			}
		})
	}
}

func TestRequestsThatAreMeantForOtherKindsOfProxies(t *testing.T) {
	var method, uri, host atomic.Value
	backend := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		method.Store(r.Method)
		uri.Store(r.RequestURI)
		host.Store(r.Host)
	}))
	backend.Config.DisableGeneralOptionsHandler = true
	backend.Start()
	defer backend.Close()
	f := start(t, testOptions, map[string]string{"ok": backend.Listener.Addr().String()})

	const tail = " HTTP/1.1\r\nHost: game\r\nX-Cipher-Origin: ok\r\n\r\n"
	for request, want := range map[string]string{
		"GET http://user:pw@other:1/x?a=b" + tail:       "200 GET /x?a=b other:1",
		"GET https://other/" + tail:                     "200 GET / other",
		"OPTIONS *" + tail:                              "200 OPTIONS * game",
		"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n":         "400",
		"GET //x/..//%2F/" + tail:                       "200 GET //x/..//%2F/ game",
		"GET /?" + tail:                                 "200 GET /? game",
		"BREW /" + tail:                                 "200 BREW / game",
		"TRACE /" + tail:                                "501",
		"CONNECT other:1" + tail:                        "501",
		"CONNECT /x" + tail:                             "501",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":              "400",
		"GET / HTTP/1.0\r\nX-Cipher-Origin: ok\r\n\r\n": "200 GET / " + backend.Listener.Addr().String(),
		"GET / HTTP/1.1\r\nX-Cipher-Origin: ok\r\n\r\n": "400", // no Host
	} {
		resp := f.rawGet(t, request)
		got := fmt.Sprint(resp.StatusCode)
		if resp.StatusCode == 200 {
			got += fmt.Sprintf(" %s %s %s", method.Load(), uri.Load(), host.Load())
		}
		if got != want {
			t.Errorf("%q: %s, want %s", request, got, want)
		}
	}
}

// capture is a backend that shows the heads of requests as they came.
func capture(t *testing.T) (addr string, heads chan []string) {
	heads = make(chan []string, 10)
	return tcpBackend(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		for {
			lines := headerLines(br)
			if lines == nil {
				return
			}
			heads <- lines
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nDate: x\r\n\r\nx")
		}
	}), heads
}

func TestABackendGetsTheRequestAndTheClientsRealAddress(t *testing.T) {
	backend, heads := capture(t)
	f := start(t, testOptions, map[string]string{"ok+/=": backend})
	for _, request := range []string{
		"GET /p?b=%zz&x-cipher-origin=other&a=1;2 HTTP/1.1\r\nX-Cipher-Origin: ok+/=\r\n",
		"GET /p?b=%zz&x-cipher-origin=ok+/=&a=1;2 HTTP/1.1\r\n",
		"GET /p?x-cipher-origin=ok%2B%2f%3D&b=%zz&a=1;2 HTTP/1.1\r\n",
	} {
		resp := f.rawGet(t, request+"Host: game.example\r\n"+
			"Server-Identify: secret\r\n"+
			"X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n"+
			"X-Forwarded-Proto: https\r\nX-Forwarded-Host: spoofed\r\nForwarded: for=3.3.3.3\r\n"+
			"Connection: X-Forwarded-For, X-Forwarded-Proto, Drop-Me, close\r\nDrop-Me: 1\r\n"+
			"Keep-Alive: 1\r\nProxy-Connection: 1\r\nTE: gzip\r\nUpgrade: nothing\r\n"+
			"Referer: http://game.example/?x-cipher-origin=ok\r\n\r\n")
		if resp.StatusCode != 200 {
			t.Fatal(resp.Status)
		}
		got := receive(t, heads)
		slices.Sort(got[1:])
		want := []string{
			"GET /p?b=%zz&a=1;2 HTTP/1.1",
			"Host: game.example",
			"Referer: http://game.example/",
			"X-Forwarded-For: 1.1.1.1, 2.2.2.2, 127.0.0.1",
			"X-Forwarded-Host: game.example",
			"X-Forwarded-Proto: http",
		}
		if !slices.Equal(got, want) {
			t.Errorf("%.60q: the backend got\n%s", request, strings.Join(got, "\n"))
		}
		if _, guessed := resp.Header["Content-Type"]; guessed {
			t.Error("a Content-Type was added")
		}
	}
}

func TestH2cIsNotPassedOn(t *testing.T) {
	backend, heads := capture(t)
	f := start(t, testOptions, map[string]string{"ok": backend})
	f.rawGet(t, "GET / HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: ok\r\nConnection: Upgrade, HTTP2-Settings\r\n"+
		"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n")
	for _, line := range receive(t, heads) {
		if strings.Contains(strings.ToLower(line), "upgrade") || strings.Contains(line, "HTTP2") {
			t.Errorf("the backend got %q", line)
		}
	}
	resp := f.rawGet(t, "GET / HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: ok\r\nConnection: Upgrade\r\nUpgrade: \xe4\r\n\r\n")
	if resp.StatusCode != 400 {
		t.Errorf("an upgrade to garbage got %s, want 400", resp.Status)
	}
}

func TestAllOfItWorksInsideTLSOfWhichTheBackendIsTold(t *testing.T) {
	proto := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Header.Get("X-Forwarded-Proto"))
	})
	// Borrow a certificate.
	other := httptest.NewTLSServer(nil)
	defer other.Close()
	f := startTLS(t, testOptions, map[string]string{"ok": proto, "tcp": tcpBackend(t, echo)}, &tls.Config{Certificates: other.TLS.Certificates})
	c := other.Client()
	defer c.CloseIdleConnections()
	resp, err := c.Get("https://" + f.addr + "/?x-cipher-origin=ok")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := text(t, resp); got != "https" {
		t.Errorf("X-Forwarded-Proto %q", got)
	}
	ws, _, err := websocket.Dial(t.Context(), "wss://"+f.addr+"/?x-cipher-origin=tcp", &websocket.DialOptions{HTTPClient: c})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	send(t, ws, websocket.MessageText, "hello")
	expect(t, ws, "hello")
	f.Server.Close()
	expectClose(t, ws, websocket.StatusGoingAway)
}

func TestOneConnectionReachesADifferentBackendByEachRequest(t *testing.T) {
	var names = map[string]string{}
	for _, name := range []string{"a", "b"} {
		names[name] = httpBackend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name) })
	}
	f := start(t, testOptions, names)
	c := client(t)
	for i, name := range []string{"a", "b", "a", "a", "none", "b"} {
		var reused bool
		r, _ := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused },
		}), "POST", "http://"+f.addr, strings.NewReader("body"))
		r.Header.Set("X-Cipher-Origin", name)
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		got := text(t, resp)
		resp.Body.Close()
		if name == "none" {
			name = "401 Unauthorized\n"
		}
		if got != name || reused != (i > 0) {
			t.Errorf("request %d: %q on a used connection: %v", i, got, reused)
		}
	}
	if n := f.dialCount(); n != 2 {
		t.Errorf("%d dials for two backends", n)
	}
}

func TestBackendConnectionsAreNotSharedIfTheyNameTheirClient(t *testing.T) {
	var closing atomic.Int32
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Close {
			closing.Add(1)
		}
	})
	o := testOptions
	o.ShareBackends = false
	f := start(t, o, map[string]string{"ok": backend})
	c := client(t)
	for range 3 {
		text(t, f.get(t, c, "/", "X-Cipher-Origin", "ok"))
	}
	if n := f.dialCount(); n != 3 || closing.Load() != 3 {
		t.Errorf("%d dials for three requests, of which %d said that they are the last", n, closing.Load())
	}
}

func TestEventsArriveAsTheyAreSent(t *testing.T) {
	next := make(chan bool, 1)
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "30") // not even then is anything held back
		for range next {
			io.WriteString(w, "data: event\n\n\n\n"[:15])
			w.(http.Flusher).Flush()
		}
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	next <- true
	resp := f.get(t, client(t), "/", "X-Cipher-Origin", "ok")
	buf := make([]byte, 15)
	for i := range 2 {
		if i > 0 {
			next <- true
		}
		if _, err := io.ReadFull(resp.Body, buf); err != nil {
			t.Fatal(err)
		}
	}
	close(next)
}

func TestBodiesAndTrailersPassBothWays(t *testing.T) {
	data := make([]byte, 10<<20)
	rand.NewChaCha8([32]byte{}).Read(data)
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Trailer", "Announced")
		h := sha256.New()
		io.Copy(io.MultiWriter(w, h), r.Body)
		w.Header().Set("Announced", fmt.Sprintf("%x", h.Sum(nil)))
		w.Header().Set(http.TrailerPrefix+"Request-Trailer", r.Trailer.Get("Request-Trailer"))
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	r, _ := http.NewRequest("POST", "http://"+f.addr, io.NopCloser(bytes.NewReader(data)))
	r.Header.Set("X-Cipher-Origin", "ok")
	r.Trailer = http.Header{"Request-Trailer": {"carried"}}
	resp, err := client(t).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if want := fmt.Sprintf("%x", sha256.Sum256(data)); resp.Trailer.Get("Announced") != want ||
		resp.Trailer.Get("Request-Trailer") != "carried" {
		t.Errorf("trailers %v", resp.Trailer)
	}
	if e := receive(t, f.served); e.Up != int64(len(data)) || e.Down != int64(len(data)) || e.Err != nil {
		t.Errorf("account %+v", e)
	}
}

func TestInformationalResponsesPass(t *testing.T) {
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style>")
		w.WriteHeader(http.StatusEarlyHints)
		b, _ := io.ReadAll(r.Body) // sends 100
		w.Write(b)
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	var hints, continues atomic.Int32
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			if code == http.StatusEarlyHints && h.Get("Link") == "</style>" {
				hints.Add(1)
			}
			return nil
		},
		Got100Continue: func() { continues.Add(1) },
	})
	r, _ := http.NewRequestWithContext(ctx, "POST", "http://"+f.addr, strings.NewReader("body"))
	r.Header.Set("X-Cipher-Origin", "ok")
	r.Header.Set("Expect", "100-continue")
	c := client(t)
	c.Transport.(*http.Transport).ExpectContinueTimeout = patience
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := text(t, resp); got != "body" || hints.Load() != 1 || continues.Load() != 1 {
		t.Errorf("%q after %d early hints and %d times 100", got, hints.Load(), continues.Load())
	}
}

func TestARefusedRequestIsAnsweredThoughItsBodyIsUnread(t *testing.T) {
	f := start(t, testOptions, nil)
	resp := f.do(t, client(t), "POST", "/", bytes.NewReader(make([]byte, 4<<20)), "X-Cipher-Origin", "bad")
	if resp.StatusCode != 401 {
		t.Error(resp.Status)
	}
}

func TestABadBodyIsTheClientsFault(t *testing.T) {
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	f := start(t, testOptions, map[string]string{"ok": backend})
	resp := f.rawGet(t, "POST / HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: ok\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
	if resp.StatusCode != 400 {
		t.Error(resp.Status)
	}
	if e := receive(t, f.served); e.Err != errBody {
		t.Errorf("account %+v", e)
	}
}

func TestHeadersAreBoundedToTheByte(t *testing.T) {
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {})
	f := start(t, testOptions, map[string]string{"ok": backend})
	for extra, want := range map[int]int{0: 200, 1: 431} {
		request := "GET / HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: ok\r\nPad: \r\n\r\n"
		pad := strings.Repeat("a", testOptions.HeaderMax-len(request)+extra)
		resp := f.rawGet(t, strings.Replace(request, "Pad: ", "Pad: "+pad, 1))
		if resp.StatusCode != want {
			t.Errorf("%d bytes of headers: %s, want %d", testOptions.HeaderMax+extra, resp.Status, want)
		}
	}
}

func TestAHeadThatIsNoRequestIsAccountedFor(t *testing.T) {
	f := start(t, testOptions, nil)
	const good = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
	for head, want := range map[string]int{
		"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: strange\r\n\r\n": 501,
		"GET / HTTP/1.1\r\n\r\n":            400,
		"GET / HTTP/9.9\r\nHost: h\r\n\r\n": 505,
		"GET / HTTP/1.1\r\nHost: h\r\nPad: " + strings.Repeat("a", 20000) + "\r\n\r\n": 431,
	} {
		for _, before := range []int{0, 2} {
			c, br := f.raw(t, strings.Repeat(good, before)+head)
			for range before {
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				if e := receive(t, f.served); e.Err != errNoAddress {
					t.Errorf("account %+v", e)
				}
			}
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.StatusCode != want {
				t.Fatal(head[:20], resp, err)
			}
			if e := receive(t, f.served); e.Status != want || e.Err != errBadRequest || e.Kind != "http" || e.Method != "other" {
				t.Errorf("%d: account %+v", want, e)
			}
			c.Close()
		}
	}
	c, _ := f.raw(t, good[:20])
	c.Close()
	if e := receive(t, f.served); e.Err != errEOF {
		t.Errorf("account of half a head: %+v", e)
	}
	f.Server.Close()
	if len(f.served) > 0 {
		t.Errorf("accounted twice: %+v", <-f.served)
	}
}

func TestAHeadThatDribblesIsWaitedForOnlySoLong(t *testing.T) {
	o := testOptions
	o.HeaderTimeout = 50 * time.Millisecond
	f := start(t, o, nil)
	_, br := f.raw(t, "GET / HT")
	if b, err := io.ReadAll(br); err != nil || len(b) > 0 && !bytes.HasPrefix(b, []byte("HTTP/1.1 400 ")) {
		t.Errorf("%q, %v; want the end", b, err)
	}
	if e := receive(t, f.served); e.Status != 0 && e.Status != 400 || e.Err != errTooSlow {
		t.Errorf("account %+v", e)
	}
}

func TestAResponseThatBreaksOffIsNotPassedOnAsWhole(t *testing.T) {
	backend := tcpBackend(t, func(c *net.TCPConn) {
		headerLines(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	resp := f.get(t, client(t), "/", "X-Cipher-Origin", "ok")
	b, err := io.ReadAll(resp.Body)
	if string(b) != "half" || err == nil {
		t.Errorf("%q, %v; want half and an error", b, err)
	}
	if e := receive(t, f.served); e.Status != 200 || e.Err != errCutShort || e.Down != 4 {
		t.Errorf("account %+v", e)
	}
	if strings.Contains(f.log.String(), "panic") {
		t.Errorf("log: %s", f.log)
	}
}

func TestAClientThatLeavesEndsItsDial(t *testing.T) {
	f := start(t, testOptions, map[string]string{"ok": "127.0.0.1:1"})
	f.dialing = make(chan context.Context)
	c, _ := f.raw(t, "GET / HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: ok\r\n\r\n")
	receive(t, f.dialing)
	c.SetLinger(0)
	c.Close()
	if e := receive(t, f.served); e.Status != 0 || !errors.Is(e.Err, errClientGone) {
		t.Errorf("account %+v", e)
	}
}

func TestAClientThatFinishesSendingStillGetsItsAnswer(t *testing.T) {
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-time.After(20 * time.Millisecond):
			fmt.Fprintf(w, "%s %v", b, err)
		}
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	for request, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: ok\r\n\r\n":                           " <nil>",
		"POST / HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: ok\r\nContent-Length: 4\r\n\r\nbody": "body <nil>",
	} {
		c, br := f.raw(t, request)
		c.CloseWrite()
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := text(t, resp); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if _, err := br.ReadByte(); err != io.EOF {
			t.Errorf("%v behind the answer, want the end", err)
		}
		if e := receive(t, f.served); e.Err != nil {
			t.Errorf("account %+v", e)
		}
	}
	c, br := f.raw(t, "POST / HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: ok\r\nContent-Length: 4\r\n\r\nbo")
	c.CloseWrite()
	if resp, err := http.ReadResponse(br, nil); err == nil && resp.StatusCode == 200 {
		t.Error("half a body was taken for a whole one")
	}
	if e := receive(t, f.served); e.Err == nil {
		t.Errorf("account %+v", e)
	}
}

func TestARequestInWhichNothingMovesIsGivenUp(t *testing.T) {
	o := testOptions
	o.IdleTimeout = 50 * time.Millisecond
	silent := tcpBackend(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	f := start(t, o, map[string]string{"ok": silent})
	resp := f.rawGet(t, "POST / HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: ok\r\nContent-Length: 10\r\n\r\nhalf")
	if resp.StatusCode != 504 {
		t.Error(resp.Status)
	}
	if e := receive(t, f.served); e.Status != 504 || e.Err != errIdle || e.Up != 4 {
		t.Errorf("account %+v", e)
	}
}

func TestNothingThatAClientSendsIsLogged(t *testing.T) {
	backend := tcpBackend(t, func(c *net.TCPConn) {
		headerLines(bufio.NewReader(c))
		io.WriteString(c, "SECRET garbage\r\n\r\n")
	})
	f := start(t, testOptions, map[string]string{"SECRET": backend})
	f.rawGet(t, "GET /SECRET?SECRET;SECRET HTTP/1.1\r\nHost: SECRET\r\nX-Cipher-Origin: SECRET\r\nSECRET: SECRET\r\n\r\n")
	f.rawGet(t, "SECRET / HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: SECRETBAD\r\nConnection: Upgrade\r\nUpgrade: SECRET\r\n\r\n")
	f.rawGet(t, "GET /SECRET HTTP/1.1\r\nSECRET\r\n\r\n")
	log := f.log.String()
	for range 2 {
		e := receive(t, f.served)
		log += fmt.Sprintf(" %v %v", e.Method, e.Err)
	}
	if strings.Contains(log, "SECRET") {
		t.Errorf("log: %s", log)
	}
}

func TestAPanicEndsOneConnection(t *testing.T) {
	f := start(t, testOptions, nil)
	f.Server.gate = panicGate{f.fakeGate}
	_, br := f.raw(t, "GET / HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: x\r\n\r\n")
	if b, err := io.ReadAll(br); err != nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
	eventually(t, "the panic is logged", func() bool {
		return strings.Contains(f.log.String(), "level=ERROR") && strings.Contains(f.log.String(), "bug")
	})
	if resp := f.get(t, client(t), "/"); resp.StatusCode != 400 {
		t.Error(resp.Status)
	}
}

type panicGate struct{ *fakeGate }

func (panicGate) Open(context.Context, []byte) (address.Route, error) { panic("a bug") }
