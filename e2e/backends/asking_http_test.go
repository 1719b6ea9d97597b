package backends

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// TestAnAnswerChangesTheRequestAndItsResponse has the service say for each request what
// becomes of it, after the flags have.
func TestAnAnswerChangesTheRequestAndItsResponse(t *testing.T) {
	t.Parallel()
	backend := harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "backend")
		fmt.Fprintf(w, "%s of %s for %s in %s, %q", r.RequestURI, r.Host, r.Header.Get("X-Player"), r.Header.Get("X-Region"), r.Header["Cookie"])
	})
	var answer map[string]any
	o := startOperator(t, func(w http.ResponseWriter, q question) {
		if q.text("method") != "GET" || q.text("path") != "/api/shop?item=7" {
			t.Errorf("it was asked %v", q)
		}
		json.NewEncoder(w).Encode(answer)
	})
	p := harness.Start(t, "-ask="+o.url(), "-http-strip-prefix=/api", "-http-set=X-Region: eu", "-http-set=response Server:", "-http-set=X-Player: nobody")
	for _, tt := range []struct {
		says   map[string]any
		status int
		body   string
		server string
		reason string
	}{
		{map[string]any{}, 200, `/shop?item=7 of play for nobody in eu, ["a=b"]`, "", ""},
		{map[string]any{"request_headers": map[string]any{"x-player": "ann", "cookie": nil}, "response_headers": map[string]any{"Server": "gateway"},
			"path": "/room/42", "host": "room.internal"}, 200, `/room/42?item=7 of room.internal for ann in eu, []`, "gateway", ""},
		{map[string]any{"request_headers": map[string]any{"Content-Length": "0"}}, 502, "", "", "ask_bad"},
		{map[string]any{"response_headers": map[string]any{"X-Cipher-Origin": "x"}}, 502, "", "", "ask_bad"},
		{map[string]any{"request_headers": map[string]any{"A": "x\r\nB: y"}}, 502, "", "", "ask_bad"},
		{map[string]any{"path": "/%zz"}, 502, "", "", "ask_bad"},
	} {
		answer = map[string]any{"backend": "http://" + backend}
		for k, v := range tt.says {
			answer[k] = v
		}
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, "GET /api/shop?item=7 HTTP/1.1\r\nHost: play\r\nCookie: a=b\r\nConnection: close\r\nX-Cipher-Origin: "+harness.Sealed("ask:shop")+"\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		c.Close()
		if resp.StatusCode != tt.status || tt.status == 200 && (string(body) != tt.body || resp.Header.Get("Server") != tt.server) {
			t.Errorf("%v: %d, %q, server %q", tt.says, resp.StatusCode, body, resp.Header.Get("Server"))
		}
		line := p.Log.WaitClient(t, "request", c.LocalAddr().String())
		if reason, _ := line["reason"].(string); reason != tt.reason || tt.reason != "" && line["level"] != "ERROR" {
			t.Errorf("%v: %v", tt.says, line)
		}
	}
}

func TestAClientCannotSpellAHeaderSoThatItOutlivesTheService(t *testing.T) {
	t.Parallel()
	backend := harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%q %q %q", r.Header["X-User"], r.Header["X_user"], r.Trailer)
	})
	o := startOperator(t, text(fmt.Sprintf(`{"backend": %q, "request_headers": {"x-user": "ann"}}`, backend)))
	p := harness.Start(t, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String())
	got := fate(t, p.Addr, "POST / HTTP/1.1\r\nHost: play\r\nX-User: root\r\nX_User: root\r\nConnection: close\r\nTrailer: X-User\r\nTransfer-Encoding: chunked\r\n"+
		"X-Cipher-Origin: "+harness.Sealed("ask:shop")+"\r\n\r\n0\r\nX-User: root\r\n\r\n")
	if want := `["ann"] [] map[]`; !strings.HasSuffix(got, "\r\n\r\n"+want) {
		t.Errorf("got %s", got)
	}
}

// TestEachRequestOfAConnectionIsAskedAnew has one connection bring several requests, whose
// answers are the service's at that time; one with a ttl is kept for the name.
func TestEachRequestOfAConnectionIsAskedAnew(t *testing.T) {
	t.Parallel()
	backend := harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s for %s", r.RequestURI, r.Header.Get("X-Player"))
	})
	o := startOperator(t, nil)
	p := harness.Start(t, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String())
	c := harness.Connect(t, p.Addr)
	br := bufio.NewReader(c)
	for i, tt := range []struct {
		name, answer, want string
		asked              int
	}{
		{"shop", `"request_headers": {"X-Player": "ann"}`, "/x for ann", 1},
		{"shop", `"request_headers": {"X-Player": "bob"}, "path": "/y"`, "/y for bob", 1},
		{"shop", `"request_headers": {}`, "/x for client", 1},
		{"kept", `"request_headers": {"X-Player": "ann"}, "ttl": 600`, "/x for ann", 1},
		{"kept", `"request_headers": {"X-Player": "bob"}`, "/x for ann", 0},
	} {
		o.says(text(fmt.Sprintf(`{"backend": %q, %s}`, "http://"+backend, tt.answer)))
		before := o.count()
		harness.Send(t, c, "GET /x HTTP/1.1\r\nHost: play\r\nX-Player: client\r\nX-Cipher-Origin: "+harness.Sealed("ask:"+tt.name)+"\r\n\r\n")
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if n := o.count() - before; string(body) != tt.want || n != tt.asked {
			t.Errorf("request %d: %d, %q, and %d questions; want %q and %d", i, resp.StatusCode, body, n, tt.want, tt.asked)
		}
	}
}

// TestAnAnswerSetsHeadersOfAWebSocketThatEndsHere: its 101 is the gateway's, and has what the
// service says of responses but for what belongs to the handshake.
func TestAnAnswerSetsHeadersOfAWebSocketThatEndsHere(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	o := startOperator(t, nil)
	p := harness.Start(t, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String())

	for _, tt := range []struct {
		says, offers string
		status       int
		has, lacks   []string
	}{
		{`{"X-Room": "42", "set-cookie": "a=b", "X-None": null, "Upgrade-Insecure-Requests": "1"}`, "", 101,
			[]string{"X-Room: 42", "Set-Cookie: a=b", "Upgrade-Insecure-Requests: 1"}, []string{"X-None", "Sec-WebSocket-Protocol"}},
		{`{"Sec-WebSocket-Protocol": "other", "sec-websocket-anything": "x"}`, "", 101, nil, []string{"Sec-WebSocket-Protocol", "Sec-Websocket-Anything"}},
		{`{"Sec-WebSocket-Protocol": "other", "X-Room": "7"}`, "game", 101, []string{"Sec-WebSocket-Protocol: game", "X-Room: 7"}, []string{"other"}},
		{`{"Sec-WebSocket-Protocol": null}`, "game", 101, []string{"Sec-WebSocket-Protocol: game"}, nil},
		{`{"Sec-WebSocket-Accept": "x"}`, "", 502, nil, nil},
		{`{"Connection": null}`, "", 502, nil, nil},
		{`{"Upgrade": "h2c"}`, "", 502, nil, nil},
		{`{"X-Room": "4\r\n2"}`, "", 502, nil, []string{"X-Room"}},
	} {
		o.says(text(fmt.Sprintf(`{"backend": %q, "response_headers": %s}`, backend, tt.says)))
		for _, place := range []string{"Server-Identify", "X-Cipher-Origin"} {
			address := harness.Sealed("ask:room")
			if place == "X-Cipher-Origin" { // such a WebSocket is the backend's unless that speaks no HTTP
				o.says(text(fmt.Sprintf(`{"backend": %q, "response_headers": %s}`, "tcp://"+backend, tt.says)))
			}
			headers := []string{place + ": " + address}
			if tt.offers != "" {
				headers = append(headers, "Sec-WebSocket-Protocol: "+tt.offers)
			}
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, harness.Upgrade("/", headers...))
			br := bufio.NewReader(c)
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatalf("%s: %v", tt.says, err)
			}
			var head strings.Builder
			resp.Header.Write(&head)
			ok := resp.StatusCode == tt.status
			for _, field := range tt.has {
				ok = ok && strings.Contains(strings.ToLower(head.String()), strings.ToLower(field))
			}
			for _, field := range tt.lacks {
				ok = ok && !strings.Contains(strings.ToLower(head.String()), strings.ToLower(field))
			}
			if tt.status == 101 {
				ok = ok && strings.Contains(strings.ToLower(head.String()), "sec-websocket-accept: ") && resp.Header.Get("Connection") == "Upgrade" && resp.Header.Get("Upgrade") == "websocket"
				harness.Send(t, c, harness.Masked(harness.BinaryFrame, "hello"))
				frame := make([]byte, len("\x82\x05hello"))
				if _, err := io.ReadFull(br, frame); err != nil || string(frame) != "\x82\x05hello" {
					t.Errorf("%s: read %q, %v", tt.says, frame, err)
				}
			}
			if !ok {
				t.Errorf("%s by %s: %s, %s", tt.says, place, resp.Status, head.String())
			}
			c.Close()
		}
	}
}
