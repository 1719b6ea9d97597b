package protocols

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// What -http-host, -http-strip-prefix and -http-set make of requests and of what answers
// them.

// startTeller starts a backend that says what it was asked, and agrees to a WebSocket.
func startTeller(t *testing.T) string {
	return harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		said := fmt.Sprintf("%s of %s in %q for %q by %s", r.RequestURI, r.Host, r.Header["X-Region"], r.Header["Cookie"], r.Header.Get("X-Forwarded-Host"))
		if r.Header.Get("Upgrade") == "" {
			w.Header().Set("Server", "secret/1.0")
			io.WriteString(w, said)
			return
		}
		nc, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		if _, err := io.WriteString(nc, harness.Agreed+"Server: secret/1.0\r\n\r\n"+said); err != nil {
			t.Error(err)
		}
	})
}

func TestFlagsChangeEachRequestOfAConnectionAndItsResponse(t *testing.T) {
	t.Parallel()
	tlsFlags, trusting := harness.TLSFlags(t)
	backend := startTeller(t)
	p := harness.Start(t, append(tlsFlags, "-http-host=backend", "-http-strip-prefix=/api",
		"-http-set=X-Region: asia", "-http-set=X-Region: eu", "-http-set=request Cookie:", "-http-set=response Server:", "-http-set=response X-Via: gateway")...)
	for _, config := range []*tls.Config{nil, trusting} {
		c := visitHTTP(t, p.Addr, config)
		for _, tt := range []struct{ target, uri string }{
			{"/api/a%2Fb/../c?d=%20e", "/a%2Fb/../c?d=%20e"},
			{"/api/a\"b%2Fc", "/a%22b%2Fc"},
			{"/api", "/"},
			{"/api?", "/?"},
			{"/api//x", "//x"},
			{"/apis", "/apis"},
			{"/%61pi/x", "/%61pi/x"},
		} {
			harness.Send(t, c, "GET "+tt.target+" HTTP/1.1\r\nHost: game.test\r\nX-Region: us\r\nx_region: us\r\nCookie: a=b\r\nX-Cipher-Origin: "+harness.Sealed("http://"+backend)+"\r\n\r\n")
			resp, err := http.ReadResponse(c.br, nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf(`%s of %s in ["eu"] for [] by game.test`, tt.uri, backend)
			if string(body) != want || resp.Header["Server"] != nil || resp.Header.Get("X-Via") != "gateway" {
				t.Errorf("%s, TLS %v: %d, %q with %v, want %q", tt.target, config != nil, resp.StatusCode, body, resp.Header, want)
			}
		}
	}
}

func TestFlagsChangeAWebSocketThatPassesThrough(t *testing.T) {
	t.Parallel()
	tlsFlags, trusting := harness.TLSFlags(t)
	backend := startTeller(t)
	p := harness.Start(t, append(tlsFlags, "-http-host=backend", "-http-strip-prefix=/api",
		"-http-set=X-Region: eu", "-http-set=Cookie:", "-http-set=response Server:")...)
	for _, config := range []*tls.Config{nil, trusting} {
		c := harness.ConnectWith(t, p.Addr, config)
		harness.Send(t, c, harness.Upgrade("/api/play?seat=1", "Cookie: a=b", "X-Cipher-Origin: "+harness.Sealed("http://"+backend)))
		br := bufio.NewReader(c)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header["Server"] != nil || resp.Header.Get("Sec-WebSocket-Accept") == "" {
			t.Fatalf("TLS %v: %d with %v", config != nil, resp.StatusCode, resp.Header)
		}
		said := make([]byte, len(fmt.Sprintf(`/play?seat=1 of %s in ["eu"] for [] by game.test`, backend)))
		if _, err := io.ReadFull(br, said); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf(`/play?seat=1 of %s in ["eu"] for [] by game.test`, backend); string(said) != want {
			t.Errorf("TLS %v: %q, want %q", config != nil, said, want)
		}
	}
}

func TestChangesThatMayNotBeAreRefusedByCheck(t *testing.T) {
	t.Parallel()
	for _, flag := range []string{
		"-http-set=Host: a", "-http-set=Connection: close", "-http-set=response Content-Length: 1", "-http-set=transfer_encoding: chunked",
		"-http-set=X-Cipher-Origin:", "-http-set=a b: c", "-http-set=a", "-http-set=A: b\x01", "-http-set=A: b\r\nC: d",
		"-http-host=mine", "-http-strip-prefix=api", "-http-strip-prefix=/", "-http-strip-prefix=/api/", "-http-strip-prefix=/a?b",
		"-http-strip-prefix=/%zz", "-http-strip-prefix=/a\"b",
	} {
		name, _, _ := strings.Cut(flag, "=")
		_, stderr, code := harness.Run(t, nil, "-secret="+harness.Secret, flag, "-check")
		if code != harness.ExitUsage || !strings.Contains(stderr, name) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit %d, %q", flag, code, stderr)
		}
	}
}
