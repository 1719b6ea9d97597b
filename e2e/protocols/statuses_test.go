package protocols

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"gateway/internal/harness"
)

func TestEachFormHasEachStatus(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	wantNoErrors(t, p)
	b := startBackends(t)
	inEachForm(t, trusting, func(t *testing.T, v harness.Form, config *tls.Config) {
		for how, write := range deliveries {
			c := harness.ConnectWith(t, p.Addr, config)
			write(t, c, v.Text(b.of(v))+v.Say)
			v.ExpectHello(t, c)
			v.Leave(t, c)

			for status, request := range map[string]string{
				"400": v.Wrong,
				"401": v.Ask(harness.GoldenLine), // of another secret
				"502": v.Text(b.refusing),
			} {
				c := harness.ConnectWith(t, p.Addr, config)
				write(t, c, request)
				expectRefusal(t, c, v, status, how)
			}
		}
	})
}

func expectRefusal(t testing.TB, c net.Conn, v harness.Form, status, how string) {
	t.Helper()
	// It stands in one place or another; that it is true shows at the end.
	const closing = "Connection: close\r\n"
	want := strings.ReplaceAll(v.Refusal(status), closing, "")
	got, err := io.ReadAll(c)
	got = bytes.ReplaceAll(got, []byte(closing), nil)
	if got = harness.AnyDate.ReplaceAll(got, []byte(harness.ADate)); string(got) != want || err != nil {
		t.Errorf("%s %s: read %q, %v; want %q and the end", status, how, got, err, want)
	}
	c.Close()
}

func TestEachFormTellsWhoIsTooSlow(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, append(flags, "-handshake-timeout=3s")...)
	var checks []func()
	for _, v := range harness.Forms() {
		for _, config := range []*tls.Config{nil, trusting} {
			c := harness.ConnectWith(t, p.Addr, config)
			if v.Half == "" { // net/http closes without an answer
				harness.Send(t, c, "GET / HTTP/1.1\r\nHost:")
				checks = append(checks, func() { harness.ExpectEnd(t, c) })
				continue
			}
			harness.Send(t, c, v.Half)
			checks = append(checks, func() { expectRefusal(t, c, v, "400", "too slow") })
		}
	}
	for _, check := range checks {
		check()
	}
}

func TestTheLogTellsOfTheForm(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	b := startBackends(t)
	inEachForm(t, trusting, func(t *testing.T, v harness.Form, config *tls.Config) {
		via, msg := v.Via, "tunnel"
		if v.HTTP {
			msg = "request"
		}
		if config != nil {
			via = strings.TrimPrefix(v.Via+"+tls", "+")
			if v.Via == "" {
				via = "line+tls"
			}
		}
		c := harness.ConnectWith(t, p.Addr, config)
		harness.Send(t, c, v.Text(b.of(v))+v.Say)
		v.ExpectHello(t, c)
		v.Leave(t, c)
		l := p.Log.WaitClient(t, msg, c.LocalAddr().String())
		if got, _ := l["via"].(string); got != via || l["backend"] != v.Scheme+b.of(v) || l["up"] != 5.0 || l["down"] != 5.0 {
			t.Errorf("logged as %v, want via %q", l, via)
		}
	})
}

func TestAnAddressMayNameItsScheme(t *testing.T) {
	t.Parallel()
	p := harness.Start(t)
	b := startBackends(t)
	for _, v := range harness.Forms() {
		for scheme, fits := range map[string]bool{"tcp://": !v.HTTP, "http://": v.HTTP} {
			backend := scheme + b.of(v)
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, v.Ask(harness.Sealed(backend)))
			switch {
			case fits:
				harness.Send(t, c, v.Say)
				v.ExpectHello(t, c)
				v.Leave(t, c)
			case v.Scheme != "": // is how a WebSocket is passed through
				c.Close()
			default:
				expectRefusal(t, c, v, "401", scheme+" by "+v.Name)
			}
		}
	}
}

func TestAWebSocketForAnHTTPBackendIsPassedThrough(t *testing.T) {
	t.Parallel()
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		head := readHead(t, c)
		if strings.Contains(head, "Cipher") || !strings.Contains(head, "Sec-Websocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n") {
			t.Errorf("the backend read %q", head)
		}
		io.WriteString(c, harness.Agreed+"\r\n")
		io.Copy(c, struct{ io.Reader }{c}) // not even frames are looked at
	})
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	for _, config := range []*tls.Config{nil, trusting} {
		for _, scheme := range []string{"", "http://"} {
			for _, write := range deliveries {
				c := harness.ConnectWith(t, p.Addr, config)
				write(t, c, harness.Upgrade("/play", "X-Cipher-Origin: "+harness.Sealed(scheme+backend))+"raw bytes")
				harness.Expect(t, c, harness.Agreed+"\r\nraw bytes")
				harness.HalfClose(t, c)
				harness.ExpectEnd(t, c)
				l := p.Log.WaitClient(t, "request", c.LocalAddr().String())
				if via, _ := l["via"].(string); !strings.HasPrefix(via, "upgrade") || l["status"] != 101.0 || l["up"] != 9.0 || l["down"] != 9.0 {
					t.Errorf("logged as %v", l)
				}
			}
		}
	}
}

// readHead reads an HTTP request's header, and nothing behind it.
func readHead(t testing.TB, c net.Conn) string {
	t.Helper()
	var head []byte
	for one := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); head = append(head, one...) {
		if _, err := io.ReadFull(c, one); err != nil {
			t.Errorf("read %q, %v; want a header", head, err)
			break
		}
	}
	return string(head)
}

func TestWhatLooksLikeAnotherFormIsALine(t *testing.T) {
	t.Parallel()
	flags, _ := harness.TLSFlags(t)
	withTLS, without := harness.Start(t, flags...), harness.Start(t)
	for _, tt := range []struct {
		p               *harness.Process
		request, status string
	}{
		{without, "GETmore\n", "401"},
		{without, "GET\n", "401"},
		{without, "GET/HTTP/1.1\n", "401"},
		{without, "U2FsHTTP/1.1\n", "401"},
		{without, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "401"},
		{without, "get / HTTP/1.1\r\n\r\n", "401"},
		{without, "BREW / HTTP/1.1\r\n\r\n", "401"},
		{without, "SSH-2.0-OpenSSH_9.6\r\n", "401"},
		{without, "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "401"},
		{without, "ab\x00\n", "401"},
		{without, "a\n\x00\x00", "401"},
		{without, "\xff\xfe\xfd\n", "401"},
		{without, "\x16\x03\x01\x02\x00\x01\n", "401"},
		{without, "\x16\x03\x01\x02\x00\x01", "400"},
		{without, "GET", "400"},
		{without, "\x16", "400"},
		{withTLS, "\x16\n", "401"},
		{withTLS, "\x16\x02\x01\n", "401"},
		{withTLS, "\x16\x03", "400"},
		{withTLS, "\x15\x03\x01\n", "401"},
	} {
		for how, write := range deliveries {
			c := harness.Connect(t, tt.p.Addr)
			write(t, c, tt.request)
			c.CloseWrite()
			if got, err := io.ReadAll(c); string(got) != tt.status || err != nil {
				t.Errorf("%q %s: read %q, %v; want %s", tt.request, how, got, err, tt.status)
			}
		}
	}
}

func TestASealedLineMayHoldWhatLooksLikeHTTP(t *testing.T) {
	t.Parallel()
	p := harness.Start(t)
	backend := harness.StartEcho(t)
	salt, err := base64.StdEncoding.DecodeString("GETHTTPx")
	if err != nil {
		t.Fatal(err)
	}
	line := harness.SealWith("sha256", harness.Secret, append([]byte("x"), append(salt, 'x')...), backend)
	if !strings.Contains(line, "GETHTTP") {
		t.Fatal(line)
	}
	for _, write := range deliveries {
		c := harness.Connect(t, p.Addr)
		write(t, c, line+"\nGET / HTTP/1.1\r\n")
		harness.Expect(t, c, "200GET / HTTP/1.1\r\n")
	}
}

func TestHandshakeMaxBoundsTheLineInEachForm(t *testing.T) {
	t.Parallel()
	b := startBackends(t)
	for _, v := range harness.Forms() {
		line := harness.Sealed(v.Scheme + b.of(v))
		size := len(line)
		if v.Name == "binary" {
			size = len(harness.InBinary(line)) - 2
		}
		for limit, status := range map[int]string{size: "", size - 1: "400"} {
			p := harness.Start(t, fmt.Sprintf("-handshake-max=%d", limit))
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, v.Ask(line))
			if status != "" {
				expectRefusal(t, c, v, status, "of a line one byte too long by "+v.Name)
				continue
			}
			harness.Send(t, c, v.Say)
			v.ExpectHello(t, c)
			v.Leave(t, c)
		}
	}
}
