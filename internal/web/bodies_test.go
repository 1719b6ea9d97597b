package web

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestAHandshakeWithABodyIsRefusedAtOnce(t *testing.T) {
	f := start(t, testOptions, map[string]string{"ok": tcpBackend(t, echo), "http": "http://" + unused(t)})
	for _, body := range []string{
		"Content-Length: 5\r\n",
		"Content-Length: 5000000\r\n",
		"Transfer-Encoding: chunked\r\n",
		"Expect: 100-continue\r\nContent-Length: 5\r\n",
		"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n",
		"Expect: 100-continue\r\n",
	} {
		for where, kind := range map[string]string{
			"/":                       "websocket",
			"/?x-cipher-origin=ok":    "websocket",
			"/ Server-Identify":       "websocket",
			"/ X-Cipher-Origin":       "upgrade", // a stream's address
			"/http X-Cipher-Origin":   "upgrade",
			"/?x-cipher-origin=wrong": "websocket",
		} {
			target, header, _ := strings.Cut(where, " ")
			request := strings.TrimSuffix(handshake(target), "\r\n") + body
			if name, isHTTP := "ok", strings.HasPrefix(target, "/http"); header != "" {
				if isHTTP {
					name = "http"
				}
				request += header + ": " + name + "\r\n"
			}
			began := time.Now()
			c, br := f.raw(t, request+"\r\n")
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.StatusCode != 400 {
				t.Fatalf("%s %q: %v, %v; want 400", where, body, resp, err)
			}
			if d := time.Since(began); d > patience/2 {
				t.Errorf("%s %q: it took %v", where, body, d)
			}
			io.Copy(io.Discard, resp.Body)
			if resp.Close != (body != "Expect: 100-continue\r\n") {
				t.Errorf("%s %q: the connection is closed: %v", where, body, resp.Close)
			}
			if resp.Close {
				if _, err := br.ReadByte(); err != io.EOF {
					t.Errorf("%s %q: %v, want the end", where, body, err)
				}
			}
			c.Close()
			if e := receive(t, f.served); e.Status != 400 || e.Err != errHandshake || e.Kind != kind {
				t.Errorf("%s %q: account %+v", where, body, e)
			}
		}
	}
	if n := f.dialCount(); n > 0 {
		t.Errorf("%d dials", n)
	}
	// No body is no harm.
	request := strings.TrimSuffix(handshake("/?x-cipher-origin=ok"), "\r\n") + "Content-Length: 0\r\n\r\n"
	if resp := f.rawGet(t, request); resp.StatusCode != 101 {
		t.Error(resp.Status)
	}
}
