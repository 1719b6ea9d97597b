package web

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// sealed names one address in all its schemes.
func sealed(addr string) map[string]string {
	return map[string]string{"plain": addr, "tcp": "tcp://" + addr, "http": "http://" + addr}
}

func TestEachFormOfATerminatedWebSocketRelaysBytes(t *testing.T) {
	f := start(t, testOptions, sealed(tcpBackend(t, echo)))
	for name, open := range map[string]func() *websocket.Conn{
		"query":      func() *websocket.Conn { return f.ws(t, "/?x-cipher-origin=plain") },
		"query, tcp": func() *websocket.Conn { return f.ws(t, "/?x-cipher-origin=tcp") },
		"ident":      func() *websocket.Conn { return f.ws(t, "/", "Server-Identify", "plain") },
		"ident, tcp": func() *websocket.Conn { return f.ws(t, "/", "Server-Identify", "tcp") },
		"header":     func() *websocket.Conn { return f.ws(t, "/", "X-Cipher-Origin", "tcp") },
		"first message": func() *websocket.Conn {
			c := f.ws(t, "/")
			send(t, c, websocket.MessageText, "plain")
			expect(t, c, "200")
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := open()
			send(t, c, websocket.MessageText, "text ")
			send(t, c, websocket.MessageBinary, "binary")
			send(t, c, websocket.MessageBinary, "")
			expect(t, c, "text binary")
			c.Close(websocket.StatusNormalClosure, "")
			if err := receive(t, f.relayed); err != nil {
				t.Errorf("the client's close was read as %v", err)
			}
		})
	}
	if len(f.served) > 0 {
		t.Errorf("%d exchanges accounted for, besides their relays", len(f.served))
	}
}

func TestTheFirstMessageIsTheLineInAnyShape(t *testing.T) {
	f := start(t, testOptions, sealed(tcpBackend(t, echo)))
	for name, tt := range map[string]struct {
		frames string
		back   string
	}{
		"bare":             {frame(0x82, "plain"), ""},
		"newline":          {frame(0x82, "plain\n"), ""},
		"CRLF":             {frame(0x81, "plain\r\n"), ""},
		"CR":               {frame(0x81, "plain\r"), ""},
		"early":            {frame(0x82, "plain\nearly\n") + frame(0x82, "late"), "early\nlate"},
		"much early":       {frame(0x82, "plain\n"+strings.Repeat("e", 9000)), strings.Repeat("e", 9000)},
		"fragments":        {frame(0x01, "pl") + frame(0x89, "") + frame(0x00, "a") + frame(0x80, "in"), ""},
		"first of several": {frame(0x01, "plain\nea") + frame(0x80, "rly"), "early"},
	} {
		t.Run(name, func(t *testing.T) {
			_, br := f.rawWS(t, "/", tt.frames+frame(0x88, "\x03\xe8"))
			if strings.Contains(tt.frames, frame(0x89, "")) {
				expectFrame(t, br, framePong, "")
			}
			expectFrame(t, br, 0x82, "200")
			receive(t, f.relayed)
		})
		t.Run(name+" and back", func(t *testing.T) {
			c, br := f.rawWS(t, "/", tt.frames)
			ws := payloads(t, br, len("200")+len(tt.back))
			if want := "200" + tt.back; ws != want {
				t.Errorf("%.60q, want %.60q", ws, want)
			}
			c.Close()
			receive(t, f.relayed)
		})
	}
}

// payloads reads n bytes of the payloads of data frames.
func payloads(t *testing.T, r io.Reader, n int) string {
	t.Helper()
	var got []byte
	for len(got) < n {
		head := make([]byte, 2, 4)
		if _, err := io.ReadFull(r, head); err != nil {
			t.Fatalf("%v behind %q", err, got)
		}
		size := int(head[1])
		if size == 126 {
			io.ReadFull(r, head[2:4])
			size = int(head[:4][2])<<8 | int(head[:4][3])
		}
		p := make([]byte, size)
		if _, err := io.ReadFull(r, p); err != nil {
			t.Fatal(err)
		}
		if head[0] == 0x82 {
			got = append(got, p...)
		}
	}
	return string(got)
}

func TestAFirstMessageThatIsNoLineIsAnsweredWithItsStatus(t *testing.T) {
	backend := tcpBackend(t, echo)
	o := testOptions
	o.HeaderTimeout = 100 * time.Millisecond
	addrs := sealed(backend)
	addrs["down"] = unused(t)
	f := start(t, o, addrs)
	slow := start(t, testOptions, addrs)
	slow.dialErr = statusError(504)
	gone := start(t, testOptions, addrs)
	gone.dialErr = statusError(0)

	for name, tt := range map[string]struct {
		f      *front
		first  string
		status string
	}{
		"bad":          {f, "bad", "401"},
		"empty":        {f, "", "401"},
		"newline":      {f, "\n", "401"},
		"http":         {f, "http", "401"},
		"long":         {f, strings.Repeat("A", 1024), "401"},
		"long line":    {f, strings.Repeat("A", 1024) + "\r\n", "401"},
		"too long":     {f, strings.Repeat("A", 1025), "400"},
		"longer":       {f, strings.Repeat("A", 1026), "400"},
		"much longer":  {f, strings.Repeat("A", 1<<17), "400"},
		"late newline": {f, strings.Repeat("A", 1025) + "\n", "400"},
		"refused":      {f, "down", "502"},
		"timeout":      {slow, "plain", "504"},
		"nobody there": {gone, "plain", ""},
		"nothing":      {f, "-", "400"},
	} {
		t.Run(name, func(t *testing.T) {
			c := tt.f.ws(t, "/")
			if tt.first != "-" {
				send(t, c, websocket.MessageText, tt.first)
			}
			code := websocket.StatusNormalClosure
			if tt.status == "" {
				code = websocket.StatusGoingAway
			} else {
				expect(t, c, tt.status)
			}
			expectClose(t, c, code)
			e := receive(t, tt.f.served)
			if tt.status != "" && fmt.Sprint(e.Status) != tt.status || e.Err == nil || e.Kind != "websocket" {
				t.Errorf("account %+v", e)
			}
		})
	}
	t.Run("gone", func(t *testing.T) {
		waiting := start(t, testOptions, addrs)
		waiting.dialing = make(chan context.Context, 1)
		c, _ := waiting.rawWS(t, "/", frame(0x81, "plain"))
		receive(t, waiting.dialing)
		c.Close()
		if e := receive(t, waiting.served); e.Status != 0 || e.Err != errClientGone {
			t.Errorf("account %+v", e)
		}
	})
	t.Run("half a frame", func(t *testing.T) {
		_, br := f.rawWS(t, "/", frame(0x82, "plain")[:8])
		expectFrame(t, br, 0x82, "400")
		expectFrame(t, br, frameClose, "\x03\xe8")
		receive(t, f.served)
	})
	t.Run("closed instead", func(t *testing.T) {
		c := f.ws(t, "/")
		c.Close(websocket.StatusNormalClosure, "")
		if e := receive(t, f.served); e.Err != errEOF || e.Status != 0 {
			t.Errorf("account %+v", e)
		}
	})
}

func TestAClientThatLeavesEndsItsDialAfterTheFirstMessage(t *testing.T) {
	f := start(t, testOptions, sealed("127.0.0.1:1"))
	f.dialing = make(chan context.Context)
	c, _ := f.rawWS(t, "/", frame(0x82, "plain"))
	receive(t, f.dialing)
	c.Close()
	if e := receive(t, f.served); e.Status != 0 || e.Route.Len() != 1 {
		t.Errorf("account %+v", e)
	}
}

func TestAWebSocketIsRefusedBeforeItIsOne(t *testing.T) {
	addrs := sealed(tcpBackend(t, echo))
	addrs["down"] = unused(t)
	o := testOptions
	o.Origins = []string{"*.good.example", "https://only.example"}
	f := start(t, o, addrs)
	slow := start(t, o, addrs)
	slow.dialErr = statusError(504)
	for name, tt := range map[string]struct {
		f       *front
		target  string
		headers []string
		status  int
	}{
		"bad":                  {f, "/?x-cipher-origin=bad", nil, 401},
		"empty":                {f, "/?x-cipher-origin=", nil, 400},
		"two":                  {f, "/?x-cipher-origin=plain&x-cipher-origin=plain", nil, 400},
		"http in query":        {f, "/?x-cipher-origin=http", nil, 401},
		"http in ident":        {f, "/", []string{"Server-Identify", "http"}, 401},
		"bad ident":            {f, "/", []string{"Server-Identify", "bad"}, 401},
		"bad header":           {f, "/", []string{"X-Cipher-Origin", "bad"}, 401},
		"too long":             {f, "/?x-cipher-origin=" + strings.Repeat("A", 1025), nil, 400},
		"refused":              {f, "/?x-cipher-origin=down", nil, 502},
		"timeout":              {slow, "/?x-cipher-origin=plain", nil, 504},
		"other page":           {f, "/?x-cipher-origin=plain", []string{"Origin", "https://bad.example"}, 403},
		"other scheme":         {f, "/?x-cipher-origin=plain", []string{"Origin", "http://only.example"}, 403},
		"no page":              {f, "/", []string{"Origin", "null"}, 403},
		"other page, passed":   {f, "/", []string{"Origin", "https://bad.example", "X-Cipher-Origin", "plain"}, 403},
		"right page":           {f, "/?x-cipher-origin=plain", []string{"Origin", "https://A.good.Example"}, 101},
		"right scheme":         {f, "/?x-cipher-origin=plain", []string{"Origin", "https://only.example"}, 101},
		"the gateway's page":   {f, "/?x-cipher-origin=plain", []string{"Origin", "http://" + f.addr}, 101},
		"the page of no frame": {f, "/?x-cipher-origin=plain", nil, 101},
	} {
		t.Run(name, func(t *testing.T) {
			_, resp, _ := tt.f.dialWS(t, tt.target, tt.headers...)
			if resp == nil || resp.StatusCode != tt.status {
				t.Fatalf("%v, want %d", resp, tt.status)
			}
			if tt.status == 101 {
				return
			}
			if e := receive(t, tt.f.served); e.Status != tt.status || e.Err == nil {
				t.Errorf("account %+v", e)
			}
			if want := fmt.Sprintf("%d %s\n", tt.status, http.StatusText(tt.status)); text(t, resp) != want {
				t.Errorf("want body %q", want)
			}
		})
	}
	good := handshake("/?x-cipher-origin=plain")
	for _, bad := range [][2]string{
		{"GET", "POST"}, {"HTTP/1.1", "HTTP/1.0"}, {"Version: 13", "Version: 8"}, {"MDEy", "!"},
		{"Sec-WebSocket-Key: ", "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Key: "},
	} {
		for _, request := range []string{good, handshake("/")} {
			resp := f.rawGet(t, strings.Replace(request, bad[0], bad[1], 1))
			if resp.StatusCode != 400 || resp.Header.Get("Sec-WebSocket-Version") != "13" {
				t.Errorf("with %q: %s", bad[1], resp.Status)
			}
		}
	}
}

func TestASubprotocolIsAccepted(t *testing.T) {
	f := start(t, testOptions, sealed(tcpBackend(t, echo)))
	_, resp, err := f.dialWS(t, "/?x-cipher-origin=plain",
		"Sec-WebSocket-Protocol", "binary", "Sec-WebSocket-Protocol", "base64")
	if err != nil || resp.Header.Get("Sec-WebSocket-Protocol") != "binary" {
		t.Errorf("%v, %v", resp, err)
	}
}

func TestFramesThatComeWithTheRequestAreNotLost(t *testing.T) {
	f := start(t, testOptions, sealed(tcpBackend(t, echo)))
	_, br := f.rawWS(t, "/?x-cipher-origin=plain", frame(0x82, "with the request"))
	expectFrame(t, br, 0x82, "with the request")
}

func TestTenMegabytesPassBothWaysThroughEachForm(t *testing.T) {
	data := make([]byte, 10<<20)
	rand.NewChaCha8([32]byte{}).Read(data)
	want := sha256.Sum256(data)
	mirror := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		c.SetReadLimit(-1)
		nc := websocket.NetConn(r.Context(), c, websocket.MessageBinary)
		io.Copy(nc, nc)
		nc.Close()
	})
	addrs := sealed(tcpBackend(t, echo))
	addrs["mirror"] = mirror
	f := start(t, testOptions, addrs)
	for name, open := range map[string]func() *websocket.Conn{
		"terminated":     func() *websocket.Conn { return f.ws(t, "/?x-cipher-origin=plain") },
		"passed through": func() *websocket.Conn { return f.ws(t, "/", "X-Cipher-Origin", "mirror") },
	} {
		t.Run(name, func(t *testing.T) {
			c := open()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			var sending sync.WaitGroup
			sending.Go(func() {
				sizes := rand.New(rand.NewPCG(1, 2))
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 1+sizes.IntN(1<<(1+sizes.IntN(20))))
					if err := c.Write(ctx, websocket.MessageBinary, rest[:n]); err != nil {
						t.Error(err)
						return
					}
					rest = rest[n:]
				}
			})
			h := sha256.New()
			for got := 0; got < len(data); {
				_, p, err := c.Read(ctx)
				if err != nil {
					t.Fatalf("%v after %d bytes", err, got)
				}
				h.Write(p)
				got += len(p)
			}
			sending.Wait()
			if !bytes.Equal(h.Sum(nil), want[:]) {
				t.Error("other bytes came back")
			}
			c.Close(websocket.StatusNormalClosure, "")
		})
	}
	if e := receive(t, f.served); e.Kind != "upgrade" || e.Status != 101 ||
		e.Up < int64(len(data)) || e.Down < int64(len(data)) || e.Err != nil {
		t.Errorf("account %+v", e)
	}
}

func TestOriginsThatCannotBeParsedAreForeign(t *testing.T) {
	for origin, want := range map[string]bool{
		"":                true,
		"http://h":        true,
		"http://H":        true,
		"http://x.a":      true,
		"http://a":        false,
		"://":             false,
		"%zz":             false,
		"null":            false,
		"https://s":       true,
		"http://s":        false,
		"http://x.a:8080": false,
	} {
		r := &http.Request{Host: "h", Header: http.Header{"Origin": {origin}}}
		if got := originAllowed(r, []string{"*.a", "https://s", "[bad"}); got != want {
			t.Errorf("%q: %v", origin, got)
		}
		if !originAllowed(r, []string{"*"}) {
			t.Errorf("%q is not any page", origin)
		}
	}
}

func FuzzTheFirstMessageIsReadLikeALine(f *testing.F) {
	f.Add([]byte("line"), byte(3))
	f.Add([]byte("line\r\nearly\n"), byte(0))
	f.Add([]byte("12345678\r\n"), byte(9))
	f.Add([]byte("123456789"), byte(1))
	f.Fuzz(func(t *testing.T, message []byte, cut byte) {
		const limit = 8
		client, server := net.Pipe()
		defer client.Close()
		defer server.Close()
		c := pipeConn(server)
		at := min(int(cut), len(message))
		go io.WriteString(client, frame(0x02, string(message[:at]))+frame(0x80, string(message[at:])))

		line, early, err := c.readLine(limit, nil, 0)
		want, behind, found := bytes.Cut(message, []byte("\n"))
		want = bytes.TrimSuffix(want, []byte("\r"))
		if len(want) > limit {
			if err != errTooLong {
				t.Fatalf("%q: %q, %v", message, line, err)
			}
			return
		}
		if err != nil || !bytes.Equal(line, want) {
			t.Fatalf("%q: %q, %v; want %q", message, line, err, want)
		}
		rest := make([]byte, len(behind)-len(early))
		if _, err := io.ReadFull(c, rest); found && (err != nil || !bytes.Equal(append(early, rest...), behind)) {
			t.Fatalf("%q: behind the line %q and %q, %v", message, early, rest, err)
		}
	})
}

// pipeConn returns a Conn without the HTTP before it.
func pipeConn(nc net.Conn) *Conn {
	x := &exchange{Server: &Server{}}
	x.conn = newConn(context.Background(), func() {}, x.Server, nc, nil)
	r, _ := http.NewRequest("GET", "/", nil)
	for line := range strings.SplitSeq(handshake("/"), "\r\n") {
		if k, v, ok := strings.Cut(line, ": "); ok {
			r.Header.Set(k, v)
		}
	}
	c, err := x.accept(&response{&pipeWriter{nc}, x}, r)
	if err != nil {
		panic(err)
	}
	return c
}

type pipeWriter struct{ nc net.Conn }

func (w *pipeWriter) Header() http.Header         { return make(http.Header) }
func (w *pipeWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w *pipeWriter) WriteHeader(int)             {}
func (w *pipeWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.nc, bufio.NewReadWriter(bufio.NewReader(w.nc), bufio.NewWriter(w.nc)), nil
}
