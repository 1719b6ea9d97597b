package web

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/coder/websocket"
)

func TestShutdownLetsRequestsAndWebSocketsFinish(t *testing.T) {
	entered, leave := make(chan bool), make(chan bool)
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			entered <- true
			<-leave
		}
		io.WriteString(w, "done")
	})
	f := start(t, testOptions, map[string]string{"http": backend, "tcp": tcpBackend(t, echo)})

	const request = " HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: http\r\n\r\n"
	_, idle := f.raw(t, "GET /"+request)
	resp, err := http.ReadResponse(idle, nil)
	if err != nil || text(t, resp) != "done" {
		t.Fatal(resp, err)
	}
	_, busy := f.raw(t, "GET /slow"+request)
	receive(t, entered)
	ws := f.ws(t, "/?x-cipher-origin=tcp")

	f.Shutdown()
	if _, err := idle.ReadByte(); err != io.EOF {
		t.Errorf("an idle connection: %v, want its end", err)
	}
	close(leave)
	resp, err = http.ReadResponse(busy, nil)
	if err != nil || text(t, resp) != "done" || !resp.Close {
		t.Errorf("a request under way: %v, %v", resp, err)
	}
	if _, err := busy.ReadByte(); err != io.EOF {
		t.Errorf("after its request: %v, want the end", err)
	}
	if resp := f.rawGet(t, "GET /"+request); text(t, resp) != "done" || !resp.Close {
		t.Errorf("a last request: %v", resp)
	}
	send(t, ws, websocket.MessageText, "still here")
	expect(t, ws, "still here")
}

func TestCloseEndsEverythingAndSays1001(t *testing.T) {
	entered := make(chan bool, 1)
	slow := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		entered <- true
		<-r.Context().Done()
	})
	through := switching(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	f := start(t, testOptions, map[string]string{
		"slow": slow, "through": through, "tcp": tcpBackend(t, echo),
	})
	_, busy := f.raw(t, "GET / HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: slow\r\n\r\n")
	receive(t, entered)
	terminated := f.ws(t, "/?x-cipher-origin=tcp")
	waiting := f.ws(t, "/")
	_, passed := f.raw(t, handshake("/", "X-Cipher-Origin", "through"))
	if resp, err := http.ReadResponse(passed, nil); err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	c, mute := f.rawWS(t, "/?x-cipher-origin=tcp", "") // does not answer the Close frame
	io.WriteString(c, frame(0x82, "relayed"))
	expectFrame(t, mute, 0x82, "relayed")

	began := time.Now()
	f.Server.Close()
	expectClose(t, terminated, websocket.StatusGoingAway)
	expectClose(t, waiting, websocket.StatusGoingAway)
	expectFrame(t, mute, frameClose, close1001)
	for _, r := range []io.Reader{busy, passed, mute} {
		if b, _ := io.ReadAll(r); len(b) > 0 {
			t.Errorf("the last words were %q", b)
		}
	}
	for range 3 {
		receive(t, f.served)
	}
	if d := time.Since(began); d > 4*lingerTime {
		t.Errorf("it took %v", d)
	}
	_, br := f.raw(t, "GET / HTTP/1.1\r\n\r\n")
	if b, _ := io.ReadAll(br); len(b) > 0 {
		t.Errorf("after Close: %q", b)
	}
}

func TestCloseEndsADial(t *testing.T) {
	f := start(t, testOptions, map[string]string{"ok": "127.0.0.1:1"})
	f.dialing = make(chan context.Context)
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: h\r\nX-Cipher-Origin: ok\r\n\r\n",
		handshake("/?x-cipher-origin=ok"),
		handshake("/") + frame(0x82, "ok"),
	} {
		f.raw(t, request)
		receive(t, f.dialing)
	}
	f.Server.Close()
	for range 3 {
		if e := receive(t, f.served); e.Status != 0 {
			t.Errorf("account %+v", e)
		}
	}
}

func TestServeConnReturnsWhenAllIsDone(t *testing.T) {
	g := &fakeGate{t: t, served: make(chan Exchange, 1)}
	s := NewServer(g, testOptions)
	defer s.Close()
	type key struct{}
	client, server := loopback(t)
	done := make(chan bool)
	go func() {
		s.ServeConn(context.WithValue(t.Context(), key{}, 1), server, nil)
		close(done)
	}()
	io.WriteString(client, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
	if b, err := io.ReadAll(client); err != nil || len(b) == 0 {
		t.Errorf("%q, %v", b, err)
	}
	client.Close()
	receive(t, done)
	if len(g.served) != 1 {
		t.Error("not accounted for")
	}
	if _, err := server.Write([]byte("x")); err == nil {
		t.Error("not closed")
	}
}
