package web

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"gateway/internal/address"
)

// What clients and backends do wrong, and when they are given up.

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

func (panicGate) Open(context.Context, []byte, *Request) (address.Route, *Changes, error) {
	panic("a bug")
}

// net/http panics when it is to write such a status.
func TestAStatusThatCannotBeIsTheBackendsFault(t *testing.T) {
	for _, status := range []string{"000", "099", "001"} {
		backend := tcpBackend(t, func(c *net.TCPConn) {
			c.Read(make([]byte, 4096))
			io.WriteString(c, "HTTP/1.1 "+status+" Odd\r\nContent-Length: 0\r\n\r\n")
			io.Copy(io.Discard, c)
		})
		f := start(t, testOptions, map[string]string{"ok": backend})
		if resp := f.rawGet(t, "GET / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\n\r\n"); resp.StatusCode != 502 {
			t.Errorf("%s became %s", status, resp.Status)
		}
		if e := receive(t, f.served); e.Status != 502 || e.Err != errNoResponse {
			t.Errorf("account %+v", e)
		}
		if log := f.log.String(); strings.Contains(log, "panic") {
			t.Error(log)
		}
	}
}

func TestWhatConcernsTheBackendsConnectionIsTakenFromA1xxToo(t *testing.T) {
	backend := tcpBackend(t, func(c *net.TCPConn) {
		c.Read(make([]byte, 4096))
		io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=7\r\n"+
			"Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\nContent-Length: 7\r\nTrailer: X\r\n\r\n"+
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	_, br := f.raw(t, "GET / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\n\r\n")
	if got := headerLines(br); len(got) != 2 || got[1] != "Link: </a>" {
		t.Errorf("the client got %q", got)
	}
}
