package web

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Where a request ends, and what in its head can be read in two ways (RFC 9112).

// answers returns the statuses of all that comes back for what is sent, and
// how many of them a backend has answered.
func (f *front) answers(t *testing.T, sent string) (statuses []int, end error) {
	t.Helper()
	c, br := f.raw(t, sent)
	for {
		// A connection that is kept says nothing more; the client ends it.
		c.SetReadDeadline(time.Now().Add(patience))
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return statuses, err
		}
		io.Copy(io.Discard, resp.Body)
		statuses = append(statuses, resp.StatusCode)
		if !resp.Close {
			c.CloseWrite()
		}
	}
}

func TestWhatCanBeReadInTwoWaysIsRefusedAndEndsTheConnection(t *testing.T) {
	backend, heads := capture(t)
	f := start(t, testOptions, map[string]string{"ok": backend})
	const (
		to    = "Host: a\r\nX-Cipher-Origin: ok\r\n"
		next  = "GET /smuggled HTTP/1.1\r\n" + to + "\r\n"
		chunk = "5\r\nhello\r\n0\r\n\r\n"
	)
	for _, tt := range []struct {
		name, sent string
		want       int
	}{
		// Section 6.1.
		{"both framings", "POST / HTTP/1.1\r\n" + to + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk, 400},
		{"the other way round", "POST / HTTP/1.1\r\n" + to + "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n" + chunk, 400},
		{"chunks in HTTP/1.0", "POST / HTTP/1.0\r\n" + to + "Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n" + chunk, 400},
		{"unknown coding in HTTP/1.0", "POST / HTTP/1.0\r\n" + to + "Transfer-Encoding: x\r\n\r\n", 501},
		{"chunked is not last", "POST / HTTP/1.1\r\n" + to + "Transfer-Encoding: chunked, identity\r\n\r\n" + chunk, 400},
		{"chunked twice", "POST / HTTP/1.1\r\n" + to + "Transfer-Encoding: chunked, chunked\r\n\r\n" + chunk, 400},
		{"chunked in two fields", "POST / HTTP/1.1\r\n" + to + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk, 400},
		{"identity beside it", "POST / HTTP/1.1\r\n" + to + "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk, 501},
		{"xchunked", "POST / HTTP/1.1\r\n" + to + "Transfer-Encoding: xchunked\r\n\r\n" + chunk, 501},
		{"quoted", "POST / HTTP/1.1\r\n" + to + "Transfer-Encoding: \"chunked\"\r\n\r\n" + chunk, 501},
		{"gzip first", "POST / HTTP/1.1\r\n" + to + "Transfer-Encoding: gzip, chunked\r\n\r\n" + chunk, 501},
		{"no coding", "POST / HTTP/1.1\r\n" + to + "Transfer-Encoding:\r\n\r\n" + chunk, 400},
		{"vertical tab", "POST / HTTP/1.1\r\n" + to + "Transfer-Encoding: \vchunked\r\n\r\n" + chunk, 400},
		{"space before the colon", "POST / HTTP/1.1\r\n" + to + "Transfer-Encoding : chunked\r\n\r\n" + chunk, 400},
		// Section 6.3, RFC 9110 section 8.6.
		{"two lengths", "POST / HTTP/1.1\r\n" + to + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400},
		{"two equal lengths", "POST / HTTP/1.1\r\n" + to + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400},
		{"a list of lengths", "POST / HTTP/1.1\r\n" + to + "Content-Length: 5, 5\r\n\r\nhello", 400},
		{"signed length", "POST / HTTP/1.1\r\n" + to + "Content-Length: +5\r\n\r\nhello", 400},
		{"negative length", "POST / HTTP/1.1\r\n" + to + "Content-Length: -5\r\n\r\nhello", 400},
		{"hexadecimal length", "POST / HTTP/1.1\r\n" + to + "Content-Length: 0x5\r\n\r\nhello", 400},
		{"length with underscore", "POST / HTTP/1.1\r\n" + to + "Content-Length: 1_0\r\n\r\nhello", 400},
		{"no length", "POST / HTTP/1.1\r\n" + to + "Content-Length:\r\n\r\nhello", 400},
		{"huge length", "POST / HTTP/1.1\r\n" + to + "Content-Length: 18446744073709551621\r\n\r\nhello", 400},
		// Section 2.2 and 5.
		{"bare LF before the framing", "POST / HTTP/1.1\r\n" + to + "A: b\nTransfer-Encoding: chunked\r\n\r\n" + chunk, 400},
		{"bare LF behind the framing", "POST / HTTP/1.1\r\n" + to + "Transfer-Encoding: chunked\n\r\n" + chunk, 400},
		{"bare LF before the length", "POST / HTTP/1.1\n" + "Content-Length: 5\r\n" + to + "\r\nhello", 400},
		{"bare LF behind the length", "POST / HTTP/1.1\r\n" + to + "Content-Length: 5\n\r\nhello", 400},
		{"bare CR in a value", "GET / HTTP/1.1\r\nA: b\rX: c\r\n" + to + "\r\n", 400},
		{"CR CR LF", "GET / HTTP/1.1\r\nA: b\r\r\n" + to + "\r\n", 400},
		{"NUL", "GET / HTTP/1.1\r\nA: b\x00c\r\n" + to + "\r\n", 400},
		{"a control character", "GET / HTTP/1.1\r\nA: b\x01c\r\n" + to + "\r\n", 400},
		{"a folded line", "GET / HTTP/1.1\r\nA: b\r\n c\r\n" + to + "\r\n", 400},
		{"a folded framing", "POST / HTTP/1.1\r\n" + to + "Transfer-Encoding:\r\n chunked\r\n\r\n" + chunk, 400},
		{"white space first", "GET / HTTP/1.1\r\n " + to + "\r\n", 400},
		{"no name", "GET / HTTP/1.1\r\n: b\r\n" + to + "\r\n", 400},
		{"no colon", "GET / HTTP/1.1\r\nA b\r\n" + to + "\r\n", 400},
		{"a name that is no token", "GET / HTTP/1.1\r\nA[1]: b\r\n" + to + "\r\n", 400},
		{"a name beyond ASCII", "GET / HTTP/1.1\r\nÄ: b\r\n" + to + "\r\n", 400},
		// Section 3.
		{"two spaces", "GET  / HTTP/1.1\r\n" + to + "\r\n", 400},
		{"a tab", "GET\t/ HTTP/1.1\r\n" + to + "\r\n", 400},
		{"space at the end", "GET / HTTP/1.1 \r\n" + to + "\r\n", 400},
		{"HTTP/0.9", "GET /\r\n" + to + "\r\n", 400},
		{"a version of two digits", "GET / HTTP/1.10\r\n" + to + "\r\n", 400},
		{"lower case", "GET / http/1.1\r\n" + to + "\r\n", 400},
		{"a later version", "GET / HTTP/2.0\r\n" + to + "\r\n", 505},
		{"a method that is no token", "GE(T / HTTP/1.1\r\n" + to + "\r\n", 400},
		{"an authority", "GET a:80 HTTP/1.1\r\n" + to + "\r\n", 400},
		{"asterisk", "GET * HTTP/1.1\r\n" + to + "\r\n", 400},
		{"no slash", "GET x HTTP/1.1\r\n" + to + "\r\n", 400},
		{"another scheme", "GET file:///etc/passwd HTTP/1.1\r\n" + to + "\r\n", 400},
		{"no host in the URI", "GET http:///x HTTP/1.1\r\n" + to + "\r\n", 400},
		{"a port alone in the URI's place for it", "GET http://?x HTTP/1.1\r\n" + to + "\r\n", 400},
		{"a user without a host", "GET http://a@/ HTTP/1.1\r\n" + to + "\r\n", 400},
		{"a control character in the target", "GET /\x7f HTTP/1.1\r\n" + to + "\r\n", 400},
		// Section 3.2.
		{"two hosts", "GET / HTTP/1.1\r\n" + to + "Host: b\r\n\r\n", 400},
		{"two equal hosts", "GET / HTTP/1.1\r\n" + to + "Host: a\r\n\r\n", 400},
		{"two hosts and a URI", "GET http://a/ HTTP/1.1\r\n" + to + "Host: b\r\n\r\n", 400},
		{"no host", "GET / HTTP/1.1\r\nX-Cipher-Origin: ok\r\n\r\n", 400},
		{"no host but in the URI", "GET http://a/ HTTP/1.1\r\nX-Cipher-Origin: ok\r\n\r\n", 400},
		{"a host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\nX-Cipher-Origin: ok\r\n\r\n", 400},
		{"a host with a user", "GET / HTTP/1.1\r\nHost: a@b\r\nX-Cipher-Origin: ok\r\n\r\n", 400},
		{"a host with a space", "GET / HTTP/1.1\r\nHost: a b\r\nX-Cipher-Origin: ok\r\n\r\n", 400},
		// RFC 9110 section 10.1.1.
		{"another expectation", "POST / HTTP/1.1\r\n" + to + "Expect: x\r\nContent-Length: 5\r\n\r\nhello", 417},
		{"one beside it", "POST / HTTP/1.1\r\n" + to + "Expect: 100-continue, x\r\nContent-Length: 5\r\n\r\nhello", 417},
	} {
		// As the first request, and as a later one.
		for _, before := range []string{"", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"} {
			statuses, end := f.answers(t, before+tt.sent+next)
			want := []int{400, tt.want}
			if before == "" {
				want = want[1:]
			}
			if fmt.Sprint(statuses) != fmt.Sprint(want) || end != io.EOF && end != io.ErrUnexpectedEOF {
				t.Errorf("%s: %v and %v, want %v and the end", tt.name, statuses, end, want)
			}
			if before != "" {
				receive(t, f.served)
			}
			if e := receive(t, f.served); e.Status != tt.want || e.Err != errBadRequest {
				t.Errorf("%s: account %+v", tt.name, e)
			}
		}
	}
	if len(heads) > 0 {
		t.Errorf("a backend got %q", <-heads)
	}
}

func TestWhatCanBeReadInOneWayOnlyPasses(t *testing.T) {
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %q %v %v", r.RequestURI, b, err, len(r.Trailer))
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	const to = " HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\n"
	const chunked = "POST /" + to + "Transfer-Encoding: chunked\r\n"
	for sent, want := range map[string]string{
		"POST /" + to + "Content-Length: 005\r\n\r\nhello":                                                 `/ "hello" <nil> 0`,
		"POST /" + to + "content-length:5\r\n\r\nhello":                                                    `/ "hello" <nil> 0`,
		"POST /" + to + "Content-Length: \t5 \t\r\n\r\nhello":                                              `/ "hello" <nil> 0`,
		"POST /" + to + "Transfer-Encoding:\tCHUNKED \r\n\r\n5\r\nhello\r\n0\r\n\r\n":                      `/ "hello" <nil> 0`,
		chunked + "\r\n5;a=b;c=\"d \\\" e\"\r\nhello\r\n0;x\r\n\r\n":                                       `/ "hello" <nil> 0`,
		chunked + "\r\n0000000000000005 \r\nhello\r\n00\r\n\r\n":                                           `/ "hello" <nil> 0`,
		chunked + "\r\n1\r\nh\r\n4\r\nello\r\n0\r\n\r\n":                                                   `/ "hello" <nil> 0`,
		chunked + "Trailer: A, B\r\n\r\n5\r\nhello\r\n0\r\nA: 1\r\nB:\t2 \r\n\r\n":                         `/ "hello" <nil> 2`,
		"GET /?" + to + "A:\r\nB: \xe4\t\xff\r\n\r\n":                                                      `/? "" <nil> 0`,
		"GET / HTTP/1.1\nHost: a\nX-Cipher-Origin: ok\n\n":                                                 `/ "" <nil> 0`,
		"POST /" + to + "Content-Length: 5\r\nX-A: b\n\r\nhello":                                           `/ "hello" <nil> 0`,
		"GET http://a/x" + to + "\r\n":                                                                     `/x "" <nil> 0`,
		"GET /" + to + "Expect: 100-Continue\r\n\r\n":                                                      `/ "" <nil> 0`,
		"POST / HTTP/1.0\r\nX-Cipher-Origin: ok\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello": `/ "hello" <nil> 0`,
	} {
		resp := f.rawGet(t, sent)
		if got := text(t, resp); resp.StatusCode != 200 || got != want {
			t.Errorf("%q: %s %q, want %q", sent, resp.Status, got, want)
		}
	}
}

func TestChunksAreTakenAsTheGrammarHasThem(t *testing.T) {
	const next = "GET /smuggled HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\n\r\n"
	smuggled := make(chan bool, 1)
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/smuggled" {
			smuggled <- true
		}
		io.Copy(io.Discard, r.Body)
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	for _, chunks := range []string{
		"5\nhello\r\n0\r\n\r\n",
		"5\r\nhello\n0\r\n\r\n",
		"5\r\nhello0\r\n\r\n",
		"5\r\nhellox\r\n0\r\n\r\n",
		"5\rhello\r\n0\r\n\r\n",
		"\r\n5\r\nhello\r\n0\r\n\r\n",
		" 5\r\nhello\r\n0\r\n\r\n",
		"0x5\r\nhello\r\n0\r\n\r\n",
		"+5\r\nhello\r\n0\r\n\r\n",
		"-5\r\nhello\r\n0\r\n\r\n",
		"5_\r\nhello\r\n0\r\n\r\n",
		"5,\r\nhello\r\n0\r\n\r\n",
		";a\r\nhello\r\n0\r\n\r\n",
		"5;a\nb\r\nhello\r\n0\r\n\r\n",
		"5;a\rb\r\nhello\r\n0\r\n\r\n",
		"5;\x00\r\nhello\r\n0\r\n\r\n",
		"5;" + strings.Repeat("a", 5000) + "\r\nhello\r\n0\r\n\r\n",
		"10000000000000005\r\nhello\r\n0\r\n\r\n",
		"ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
		"00000000000000005\r\nhello\r\n0\r\n\r\n",
		"0\r\n\n",
		"0\n\r\n",
		"0\r\nA: b\n\r\n",
		"0\r\nA: b\r\n\n",
		"0\r\nA: b\r\n c\r\n\r\n",
		"0\r\n A: b\r\n\r\n",
		"0\r\nA : b\r\n\r\n",
		"0\r\n: b\r\n\r\n",
		"0\r\nA\r\n\r\n",
		"0\r\nA: b\x00\r\n\r\n",
		"0\r\nA: b\rc: d\r\n\r\n",
		"0\r\nA: " + strings.Repeat("a", 5000) + "\r\n\r\n",
	} {
		sent := "POST / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + next
		statuses, _ := f.answers(t, sent)
		if len(statuses) != 1 || statuses[0] != 400 {
			t.Errorf("%.40q: %v, want 400", chunks, statuses)
		}
		if e := receive(t, f.served); e.Err != errBody {
			t.Errorf("%.40q: account %+v", chunks, e)
		}
	}
	if len(smuggled) > 0 {
		t.Error("the rest of a body has reached the backend as a request")
	}
}

// Every way to cut what is sent into segments gives the same requests.
func TestRequestsAreToldApartHoweverTheyArrive(t *testing.T) {
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s|", r.URL.Path, b)
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	const to = " HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\n"
	sent := "POST /a" + to + "Content-Length: 3\r\n\r\nGET" +
		"\r\n\r\n" + // section 2.2
		"POST /b" + to + "Transfer-Encoding: chunked\r\n\r\n3;x\r\nPUT\r\n0\r\nA: b\r\n\r\n" +
		"\r\n" +
		"GET /c" + to + "\r\n" +
		"GET /d" + to + "Expect: 100-continue\r\nConnection: close\r\n\r\n"
	for _, step := range []int{1, 2, 3, 7, 50, 99, 100, 101, len(sent)} {
		c, br := f.raw(t, "")
		go func() {
			for rest := sent; rest != ""; rest = rest[min(step, len(rest)):] {
				if _, err := io.WriteString(c, rest[:min(step, len(rest))]); err != nil {
					return
				}
				time.Sleep(time.Microsecond) // so that segments are apart, mostly
			}
		}()
		got := ""
		for range 4 {
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatalf("by %d bytes: %v behind %q", step, err, got)
			}
			got += text(t, resp)
		}
		if got != "/a GET|/b PUT|/c |/d |" {
			t.Errorf("by %d bytes: %q", step, got)
		}
		if _, err := br.ReadByte(); err != io.EOF {
			t.Errorf("by %d bytes: %v, want the end", step, err)
		}
	}
}

func TestEmptyLinesAloneAreNoRequest(t *testing.T) {
	o := testOptions
	o.KeepAliveTimeout = 50 * time.Millisecond
	f := start(t, o, nil)
	c, br := f.raw(t, "GET / HTTP/1.1\r\nHost: h\r\n\r\n\r\n\r\n")
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 400 {
		t.Fatal(resp, err)
	} else {
		io.Copy(io.Discard, resp.Body)
	}
	if e := receive(t, f.served); e.Err != errNoAddress {
		t.Errorf("account %+v", e)
	}
	if b, err := io.ReadAll(br); len(b) > 0 || err != nil { // when the rest is over
		t.Errorf("%q, %v", b, err)
	}
	c.Close()
	if len(f.served) > 0 {
		t.Errorf("account %+v", <-f.served)
	}
	// Not even these may come without end.
	_, br = f.raw(t, strings.Repeat("\r\n", testOptions.HeaderMax))
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 400 {
		t.Error(resp, err)
	}
}

func TestASmallHeaderMaxIsKeptToTheByte(t *testing.T) {
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {})
	for _, limit := range []int{100, 1024, 4096, 4097, 10000} {
		o := testOptions
		o.HeaderMax = limit
		f := start(t, o, map[string]string{"ok": backend})
		for extra, want := range map[int]int{0: 200, 1: 431} {
			// With lines that net/http does not see, and that do not count.
			for _, lines := range []string{"", "Expect: 100-continue\r\n"} {
				request := "GET / HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: ok\r\n" + lines + "Pad: \r\n\r\n"
				pad := strings.Repeat("a", limit-len(request)+extra)
				request = strings.Replace(request, "Pad: ", "Pad: "+pad, 1)
				if resp := f.rawGet(t, "\r\n\r\n"+request); resp.StatusCode != want {
					t.Errorf("%d bytes of at most %d: %s, want %d", limit+extra, limit, resp.Status, want)
				}
			}
		}
	}
}

func TestTheNamesOfTheGatewayAreNobodyElsesHoweverSpelled(t *testing.T) {
	backend, heads := capture(t)
	f := start(t, testOptions, map[string]string{"ok": backend})
	f.rawGet(t, "GET / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\nX-Fine: 1\r\nSnake_case: 1\r\n"+
		"X_Forwarded_For: evil\r\nX-Forwarded_For: evil\r\nx_forwarded-for: evil\r\nX_FORWARDED_PROTO: evil\r\n"+
		"X_Forwarded-Host: evil\r\nX_Cipher_Origin: evil\r\nServer_Identify: evil\r\nForwarded: evil\r\n"+
		"X.Forwarded.For: evil\r\nX~Forwarded!For: evil\r\nX-Real.IP: evil\r\nTransfer.Encoding: evil\r\nProxy_Connection: evil\r\n"+
		"X-Real-IP: evil\r\nX_Real_Ip: evil\r\nX-Forwarded-Port: evil\r\nX_Forwarded_Port: evil\r\nProxy: evil\r\n"+
		"Transfer_Encoding: evil\r\nContent_Length: 5\r\nHost_: 1\r\nKeep_Alive: evil\r\nTE_: 1\r\n\r\n")
	got := strings.Join(receive(t, heads), "\n")
	for _, unwanted := range []string{"evil", "Content_"} {
		if strings.Contains(got, unwanted) {
			t.Errorf("the backend got\n%s", got)
		}
	}
	for _, wanted := range []string{"X-Fine: 1", "Snake_case: 1", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http"} {
		if !strings.Contains(got, wanted) {
			t.Errorf("the backend got no %q:\n%s", wanted, got)
		}
	}
}

func TestNothingButWebSocketIsAskedForWithUpgrade(t *testing.T) {
	backend, heads := capture(t)
	f := start(t, testOptions, map[string]string{"ok": backend})
	for upgrade, want := range map[string]string{
		"Upgrade: h2c\r\n":                                 "",
		"Upgrade: foo, h2c\r\n":                            "",
		"Upgrade: foo\r\nUpgrade: h2c\r\n":                 "",
		"Upgrade: HTTP/2.0, TLS/1.2\r\n":                   "",
		"Upgrade: websocket, h2c\r\n":                      "websocket",
		"Upgrade: h2c,WebSocket\r\n":                       "websocket",
		"Upgrade: h2c\r\nUpgrade: websocket\r\n":           "websocket",
		"Upgrade: websocket\r\nHTTP2-Settings: AAMAAA\r\n": "websocket",
	} {
		resp := f.rawGet(t, "GET / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\nConnection: Upgrade, HTTP2-Settings\r\n"+upgrade+"\r\n")
		if resp.StatusCode != 200 {
			t.Errorf("%q: %s", upgrade, resp.Status)
		}
		got := ""
		for _, line := range receive(t, heads) {
			name, value, _ := strings.Cut(line, ": ")
			switch strings.ToLower(name) {
			case "upgrade":
				got += value
			case "http2-settings":
				t.Errorf("%q: the backend got %q", upgrade, line)
			}
		}
		if got != want {
			t.Errorf("%q: the backend was asked for %q, want %q", upgrade, got, want)
		}
	}
	// HTTP/1.0 knows no upgrade (RFC 9110 section 7.8).
	f.rawGet(t, "GET / HTTP/1.0\r\nX-Cipher-Origin: ok\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	for _, line := range receive(t, heads) {
		if strings.HasPrefix(line, "Upgrade") {
			t.Errorf("the backend got %q from a client of HTTP/1.0", line)
		}
	}
}

// FuzzHead compares with net/http: what passes here is a request there too,
// and both say the same of its end.
func FuzzHead(f *testing.F) {
	f.Add("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	f.Add("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET")
	f.Add("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nA: b\r\n\r\nrest")
	f.Add("\r\nPOST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
	f.Fuzz(func(t *testing.T, sent string) {
		const limit = 4096
		in := intake{buf: []byte(sent)}
		if status, whole := in.scan(limit); status != 0 || !whole {
			return
		}
		var taken []byte
		rest := in.buf
		for !in.msg.ended() && len(rest) > 0 {
			step := min(len(rest), 3)
			n, err := in.msg.take(rest[:step])
			taken, rest = append(taken, rest[:n]...), rest[n:]
			if err != nil || n == 0 {
				break
			}
		}
		br := bufio.NewReader(strings.NewReader(string(taken)))
		r, err := http.ReadRequest(br)
		if err != nil {
			return // net/http refuses more than that
		}
		_, err = io.Copy(io.Discard, r.Body)
		if in.msg.ended() != (err == nil) {
			t.Fatalf("ended: %v, but net/http says %v of %q", in.msg.ended(), err, taken)
		}
		if left, _ := br.Peek(1); err == nil && len(left) > 0 {
			t.Fatalf("net/http leaves %q of %q", left, taken)
		}
	})
}
