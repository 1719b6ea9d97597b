package web

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

func value(s string) *string { return &s }

func TestRequestsAndResponsesAreChangedInTheirOrder(t *testing.T) {
	got := make(chan *http.Request, 1)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Clone(t.Context())
		w.Header().Set("Server", "secret/1.0")
		w.Header().Set("X-Kept", "kept")
		w.Header().Add("X-Both", "backend")
		w.Header().Add("X-Both", "twice")
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "body")
	}))
	defer backend.Close()
	o := testOptions
	o.StripPrefix, o.BackendHost = "/api", true
	o.Changes = &Changes{
		RequestHeaders:  map[string]*string{"x-region": value("eu"), "Cookie": nil, "X-Over": value("flag")},
		ResponseHeaders: map[string]*string{"server": nil, "X-Both": value("flag")},
	}
	f := start(t, o, map[string]string{"open": backend.Listener.Addr().String()})
	for _, tt := range []struct {
		changes          *Changes
		target           string
		uri, host, over  string
		both, strictness string
	}{
		{nil, "/api/x%2Fy/../z?a=b%20c", "/x%2Fy/../z?a=b%20c", backend.Listener.Addr().String(), "flag", "flag", ""},
		{nil, "/api", "/", backend.Listener.Addr().String(), "flag", "flag", ""},
		{nil, "/api?q", "/?q", backend.Listener.Addr().String(), "flag", "flag", ""},
		{nil, "/api/a\"b%2Fc/{x}", "/a%22b%2Fc/%7Bx%7D", backend.Listener.Addr().String(), "flag", "flag", ""},
		{nil, "/api%2Fy\"", "/api%2Fy%22", backend.Listener.Addr().String(), "flag", "flag", ""},
		{nil, "/apix/y", "/apix/y", backend.Listener.Addr().String(), "flag", "flag", ""},
		{nil, "/API/y", "/API/y", backend.Listener.Addr().String(), "flag", "flag", ""},
		{nil, "/api//y", "//y", backend.Listener.Addr().String(), "flag", "flag", ""},
		{&Changes{Host: "room.internal", Path: "/room/42%2F?seat=1",
			RequestHeaders:  map[string]*string{"X-Over": value("answer")},
			ResponseHeaders: map[string]*string{"x-both": value("answer"), "Strict-Transport-Security": value("max-age=1")}},
			"/api/x?y=z", "/room/42%2F?seat=1", "room.internal", "answer", "answer", "max-age=1"},
		{&Changes{Path: "/only/path"}, "/x?y=z", "/only/path?y=z", backend.Listener.Addr().String(), "flag", "flag", ""},
		{&Changes{Path: "/no/query?"}, "/x?y=z", "/no/query?", backend.Listener.Addr().String(), "flag", "flag", ""},
		{&Changes{RequestHeaders: map[string]*string{"X-Over": nil}}, "/x", "/x", backend.Listener.Addr().String(), "", "flag", ""},
	} {
		f.changes = tt.changes
		c, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: client\r\nCookie: a=b\r\nX-Over: client\r\nX-Mine: mine\r\nX-Cipher-Origin: open\r\n\r\n", tt.target)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		c.Close()
		r := <-got
		if r.RequestURI != tt.uri || r.Host != tt.host {
			t.Errorf("%s: the backend got %s of %s, want %s of %s", tt.target, r.RequestURI, r.Host, tt.uri, tt.host)
		}
		h := r.Header
		if h.Get("X-Region") != "eu" || h["Cookie"] != nil || h.Get("X-Over") != tt.over || h.Get("X-Mine") != "mine" || h.Get("X-Cipher-Origin") != "" ||
			h.Get("X-Forwarded-Host") != "client" {
			t.Errorf("%s: the backend got %v", tt.target, h)
		}
		h = resp.Header
		if h["Server"] != nil || strings.Join(h["X-Both"], ",") != tt.both || h.Get("X-Kept") != "kept" || h.Get("Strict-Transport-Security") != tt.strictness ||
			resp.StatusCode != http.StatusTeapot || string(body) != "body" {
			t.Errorf("%s: the client got %d, %v, %q", tt.target, resp.StatusCode, h, body)
		}
	}
}

func TestAnUpgradeIsChangedTooAndStaysOne(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/socket" || r.Header.Get("X-Region") != "eu" || r.Header.Get("Sec-WebSocket-Key") == "" {
			t.Errorf("the backend got %s, %v", r.URL, r.Header)
		}
		nc, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nServer: secret\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
	}))
	defer backend.Close()
	o := testOptions
	o.StripPrefix = "/api"
	o.Changes = &Changes{RequestHeaders: map[string]*string{"X-Region": value("eu")}, ResponseHeaders: map[string]*string{"Server": nil}}
	f := start(t, o, map[string]string{"open": "http://" + backend.Listener.Addr().String()})
	c, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /api/socket HTTP/1.1\r\nHost: client\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Cipher-Origin: open\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 101 || resp.Header["Server"] != nil || resp.Header.Get("Upgrade") != "websocket" || resp.Header.Get("Sec-WebSocket-Accept") == "" {
		t.Errorf("the client got %d, %v", resp.StatusCode, resp.Header)
	}
}

func TestWhatMayNotBeChangedIsNamed(t *testing.T) {
	for name, want := range map[string]string{
		"X-Region": "", "x-forwarded-for": "", "Sec-WebSocket-Protocol": "", "Authorization": "", "X_Own": "",
		"": "a name has", "a b": "a name has", "a:": "a name has", "a\r\nb": "a name has", "ü": "a name has",
		"Host": "Host concerns", "content-length": "Content-Length concerns", "TRANSFER-ENCODING": "concerns", "Connection": "concerns",
		"upgrade": "concerns", "TE": "concerns", "Trailer": "concerns", "Expect": "concerns", "Sec-WebSocket-Key": "concerns",
		"transfer_encoding": "concerns", "X-Cipher-Origin": "sealed", "server-identify": "sealed", "X_Cipher_Origin": "concerns",
	} {
		for _, c := range []*Changes{{RequestHeaders: map[string]*string{name: nil}}, {ResponseHeaders: map[string]*string{name: value("v")}}} {
			err := c.Check()
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v, want %q", name, err, want)
			}
		}
	}
	for _, c := range []*Changes{
		{RequestHeaders: map[string]*string{"A": value("a\r\nX-Evil: 1")}},
		{ResponseHeaders: map[string]*string{"A": value("\x00")}},
		{RequestHeaders: map[string]*string{"a": nil, "A": value("1")}},
		{Path: "no/slash"}, {Path: "/%zz"}, {Path: "/a b"}, {Path: "/a#b"}, {Path: "/a\"b%2Fc"}, {Path: "/a\\b"}, {Path: "/a\r\nb"}, {Path: "http://evil/"},
	} {
		if c.Check() == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

func FuzzParseField(f *testing.F) {
	for _, s := range []string{"X-Region: eu", "response Server:", "request a: b", "Host: x", "a:\x01", ": "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		field, err := ParseField(s)
		if err != nil {
			return
		}
		again, err := ParseField(field.String())
		if err != nil || again != field {
			t.Errorf("%q is %+v, and as text %+v, %v", s, field, again, err)
		}
		if c := ChangesOf([]Field{field}); c.Check() != nil {
			t.Errorf("%q is taken, and may not be", s)
		}
	})
}

// FuzzStripPrefix sees that a path stays one, whatever is taken off it.
func FuzzStripPrefix(f *testing.F) {
	for _, s := range []string{"/api/x", "/api", "/api//x", "/ap%69/x", "/api/%2e%2e/x", "/x"} {
		f.Add(s, "/api")
	}
	f.Fuzz(func(t *testing.T, path, prefix string) {
		u, err := parseTarget("/" + strings.TrimPrefix(path, "/"))
		if err != nil || prefix == "" || prefix[0] != '/' || strings.Contains(path, "?") {
			return
		}
		before := u.EscapedPath()
		stripPrefix(u, prefix)
		after := u.EscapedPath()
		if after == "" || after[0] != '/' || after != before && prefix+after != before && prefix != before {
			t.Errorf("%q without %q is %q", before, prefix, after)
		}
		if _, err := url.ParseRequestURI(u.RequestURI()); err != nil {
			t.Errorf("%q is no request target: %v", u.RequestURI(), err)
		}
	})
}

// FuzzEscapeRest sees that what a client has escaped stays byte for byte, and that the whole
// means what it meant.
func FuzzEscapeRest(f *testing.F) {
	for _, s := range []string{"/a%2Fb\"", "/%c3%bc/ü", "/[x]{y}", "/a;b=c,d", "/a\\b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		decoded, err := url.PathUnescape(raw)
		if err != nil {
			return
		}
		escaped := escapeRest(raw)
		u := url.URL{Path: decoded, RawPath: escaped}
		if escaped != "*" && decoded != "" && u.EscapedPath() != escaped || escapeRest(escaped) != escaped {
			t.Errorf("%q is %q, and sent as %q", raw, escaped, u.EscapedPath())
		}
	})
}

func TestAHeaderThatIsTakenAwayComesNeitherAheadNorAsATrailer(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Secret", "hidden")
		w.Header().Set("Link", "</a>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("X-Secret")
		w.Header().Set("Trailer", "X-Secret, X-Sum")
		io.WriteString(w, "body")
		w.Header().Set("X-Secret", "hidden")
		w.Header().Set("X-Sum", "1")
		w.Header().Set(http.TrailerPrefix+"X-Late", "hidden")
	}))
	defer backend.Close()
	o := testOptions
	o.Changes = &Changes{ResponseHeaders: map[string]*string{"X-Secret": nil, "X-Late": value("flag")}}
	f := start(t, o, map[string]string{"open": backend.Listener.Addr().String()})
	c, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: client\r\nConnection: close\r\nX-Cipher-Origin: open\r\n\r\n")
	all, err := io.ReadAll(c)
	if got := string(all); err != nil || strings.Contains(got, "hidden") ||
		!strings.Contains(got, " 103 ") || !strings.Contains(got, "Link: </a>") || !strings.Contains(got, "X-Sum: 1") || !strings.Contains(got, "X-Late: flag") {
		t.Errorf("%v, %q", err, got)
	}
}
