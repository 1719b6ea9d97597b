package web

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
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

	"github.com/coder/websocket"
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
