package main

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

func TestEachFormHasEachStatus(t *testing.T) {
	flags, trusting := tlsFlags(t)
	p := startProcess(t, flags...)
	wantNoErrors(t, p)
	b := startBackends(t)
	inEachTongue(t, trusting, func(t *testing.T, v tongue, config *tls.Config) {
		for how, write := range deliveries {
			c := connectWith(t, p.addr, config)
			write(t, c, v.text(t, b.of(v))+v.say)
			expectAnswer(t, c, v.welcome+v.hear)
			v.leave(t, c)

			for status, request := range map[string]string{
				"400": v.wrong,
				"401": v.ask(goldenLine), // of another secret
				"502": v.text(t, b.refusing),
			} {
				c := connectWith(t, p.addr, config)
				write(t, c, request)
				expectRefusal(t, c, v, status, how)
			}
		}
	})
}

func expectRefusal(t testing.TB, c net.Conn, v tongue, status, how string) {
	t.Helper()
	// It stands in one place or another; that it is true shows at the end.
	const closing = "Connection: close\r\n"
	want := strings.ReplaceAll(v.refusal(status), closing, "")
	got, err := io.ReadAll(c)
	got = bytes.ReplaceAll(got, []byte(closing), nil)
	if got = anyDate.ReplaceAll(got, []byte(aDate)); string(got) != want || err != nil {
		t.Errorf("%s %s: read %q, %v; want %q and the end", status, how, got, err, want)
	}
	c.Close()
}

func TestEachFormTellsWhoIsTooSlow(t *testing.T) {
	flags, trusting := tlsFlags(t)
	p := startProcess(t, append(flags, "-handshake-timeout=500ms")...)
	var checks []func()
	for _, v := range tongues() {
		for _, config := range []*tls.Config{nil, trusting} {
			c := connectWith(t, p.addr, config)
			if v.half == "" { // net/http closes without an answer
				send(t, c, "GET / HTTP/1.1\r\nHost:")
				checks = append(checks, func() { expectEnd(t, c) })
				continue
			}
			send(t, c, v.half)
			checks = append(checks, func() { expectRefusal(t, c, v, "400", "too slow") })
		}
	}
	for _, check := range checks {
		check()
	}
}

func TestTheLogTellsOfTheForm(t *testing.T) {
	flags, trusting := tlsFlags(t)
	p := startProcess(t, flags...)
	b := startBackends(t)
	inEachTongue(t, trusting, func(t *testing.T, v tongue, config *tls.Config) {
		via, msg := v.via, "tunnel"
		if v.http {
			msg = "request"
		}
		if config != nil {
			via = strings.TrimPrefix(v.via+"+tls", "+")
			if v.via == "" {
				via = "line+tls"
			}
		}
		c := connectWith(t, p.addr, config)
		send(t, c, v.text(t, b.of(v))+v.say)
		expectAnswer(t, c, v.welcome+v.hear)
		v.leave(t, c)
		l := logOf(t, &p.log, msg, c.LocalAddr().String())
		if got, _ := l["via"].(string); got != via || l["backend"] != v.scheme+b.of(v) || l["up"] != 5.0 || l["down"] != 5.0 {
			t.Errorf("logged as %v, want via %q", l, via)
		}
	})
}

// logOf waits for a client's line in a log.
func logOf(t testing.TB, log *logBuffer, msg, client string) (line map[string]any) {
	t.Helper()
	eventually(t, fmt.Sprintf("a line %q of %s", msg, client), func() bool {
		for _, line = range log.lines(msg) {
			if line["client"] == client {
				return true
			}
		}
		return false
	})
	return line
}

func TestAnAddressMayNameItsScheme(t *testing.T) {
	p := startProcess(t)
	b := startBackends(t)
	for _, v := range tongues() {
		for scheme, fits := range map[string]bool{"tcp://": !v.http, "http://": v.http} {
			backend := scheme + b.of(v)
			c := connect(t, p.addr)
			send(t, c, v.ask(strings.TrimSuffix(sealed(t, backend), "\n")))
			switch {
			case fits:
				send(t, c, v.say)
				expectAnswer(t, c, v.welcome+v.hear)
				v.leave(t, c)
			case v.scheme != "": // is how a WebSocket is passed through
				c.Close()
			default:
				expectRefusal(t, c, v, "401", scheme+" by "+v.name)
			}
		}
	}
}

func TestAWebSocketForAnHTTPBackendIsPassedThrough(t *testing.T) {
	backend := startBackend(t, func(c *net.TCPConn) {
		head := readHead(t, c)
		if strings.Contains(head, "Cipher") || !strings.Contains(head, "Sec-Websocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n") {
			t.Errorf("the backend read %q", head)
		}
		io.WriteString(c, agreed+"\r\n")
		io.Copy(c, struct{ io.Reader }{c}) // not even frames are looked at
	})
	flags, trusting := tlsFlags(t)
	p := startProcess(t, flags...)
	for _, config := range []*tls.Config{nil, trusting} {
		for _, scheme := range []string{"", "http://"} {
			for _, write := range deliveries {
				c := connectWith(t, p.addr, config)
				write(t, c, upgrade("/play", "X-Cipher-Origin: "+strings.TrimSuffix(sealed(t, scheme+backend), "\n"))+"raw bytes")
				expect(t, c, agreed+"\r\nraw bytes")
				halfClose(t, c)
				expectEnd(t, c)
				l := logOf(t, &p.log, "request", c.LocalAddr().String())
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
	flags, _ := tlsFlags(t)
	withTLS, without := startProcess(t, flags...), startProcess(t)
	for _, tt := range []struct {
		p               *process
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
			c := connect(t, tt.p.addr)
			write(t, c, tt.request)
			c.CloseWrite()
			if got, err := io.ReadAll(c); string(got) != tt.status || err != nil {
				t.Errorf("%q %s: read %q, %v; want %s", tt.request, how, got, err, tt.status)
			}
		}
	}
}

func TestASealedLineMayHoldWhatLooksLikeHTTP(t *testing.T) {
	p := startProcess(t)
	backend := startEcho(t)
	salt, err := base64.StdEncoding.DecodeString("GETHTTPx")
	if err != nil {
		t.Fatal(err)
	}
	line := referenceEncrypt(kdfSHA256, testSecret, append([]byte("x"), append(salt, 'x')...), pad(backend))
	if !strings.Contains(line, "GETHTTP") {
		t.Fatal(line)
	}
	for _, write := range deliveries {
		c := connect(t, p.addr)
		write(t, c, line+"\nGET / HTTP/1.1\r\n")
		expect(t, c, "200GET / HTTP/1.1\r\n")
	}
}

func TestHandshakeMaxBoundsTheLineInEachForm(t *testing.T) {
	b := startBackends(t)
	for _, v := range tongues() {
		line := strings.TrimSuffix(sealed(t, v.scheme+b.of(v)), "\n")
		size := len(line)
		if v.name == "binary" {
			size = len(inBinary(line)) - 2
		}
		for limit, status := range map[int]string{size: "", size - 1: "400"} {
			p := startProcess(t, fmt.Sprintf("-handshake-max=%d", limit))
			c := connect(t, p.addr)
			send(t, c, v.ask(line))
			if status != "" {
				expectRefusal(t, c, v, status, "of a line one byte too long by "+v.name)
				continue
			}
			send(t, c, v.say)
			expectAnswer(t, c, v.welcome+v.hear)
			v.leave(t, c)
		}
	}
}
