package protocols

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"gateway/internal/harness"
)

// A bearer is a way to bring a token, and what comes of it: the status.
type bearer struct {
	name  string
	max   int // bytes of a token
	bring func(t testing.TB, gateway, token string) string
}

// bearers are all forms of requests. Behind 200 each sees that the backend
// answers, which is startEcho's, or startPages' over HTTP.
var bearers = []bearer{
	{"line", 2048, func(t testing.TB, gateway, token string) string {
		return bringBytes(t, gateway, token+"\n", 0)
	}},
	{"line with CR", 2048, func(t testing.TB, gateway, token string) string {
		return bringBytes(t, gateway, token+"\r\n", 0)
	}},
	{"binary", 255, func(t testing.TB, gateway, token string) string {
		return bringBytes(t, gateway, string([]byte{0, byte(len(token))})+token, 0)
	}},
	{"length-prefixed", 2048, func(t testing.TB, gateway, token string) string {
		return bringBytes(t, gateway, string(binary.LittleEndian.AppendUint32(nil, uint32(len(token))))+token, 4)
	}},
	{"HTTP header", 2048, func(t testing.TB, gateway, token string) string {
		return bringHTTP(t, gateway, "/", "X-Cipher-Origin: "+token+"\r\n")
	}},
	{"HTTP query", 2048, func(t testing.TB, gateway, token string) string {
		return bringHTTP(t, gateway, "/?x-cipher-origin="+token, "") // needs no escapes
	}},
	{"WebSocket message", 2048, func(t testing.TB, gateway, token string) string {
		return bringMessage(t, gateway, websocket.MessageText, token)
	}},
	{"WebSocket binary message", 2048, func(t testing.TB, gateway, token string) string {
		return bringMessage(t, gateway, websocket.MessageBinary, token+"\n")
	}},
}

// bringBytes sends a request and returns the status behind lead bytes.
func bringBytes(t testing.TB, gateway, request string, lead int) string {
	t.Helper()
	c := harness.Connect(t, gateway)
	defer c.Close()
	harness.Send(t, c, request)
	answer := make([]byte, lead+3)
	if _, err := io.ReadFull(c, answer); err != nil {
		t.Fatalf("no status: %v", err)
	}
	if got := string(answer[lead:]); got != "200" {
		harness.ExpectAll(t, c, "")
		return got
	}
	harness.Echo(t, c, "hello")
	harness.Finish(t, c)
	return "200"
}

func bringHTTP(t testing.TB, gateway, path, header string) string {
	t.Helper()
	c := harness.Connect(t, gateway)
	defer c.Close()
	harness.Send(t, c, "GET "+path+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"+header+"\r\n")
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	status := strings.TrimPrefix(string(answer), "HTTP/1.1 ")[:3]
	if served := strings.HasSuffix(string(answer), "a page"); served != (status == "200") {
		t.Errorf("read %q", answer)
	}
	return status
}

func bringMessage(t testing.TB, gateway string, kind websocket.MessageType, message string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, "ws://"+gateway, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	if err := ws.Write(ctx, kind, []byte(message)); err != nil {
		t.Fatal(err)
	}
	_, status, err := ws.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if string(status) == "200" {
		if err := ws.Write(ctx, websocket.MessageBinary, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, got, err := ws.Read(ctx); string(got) != "hello" {
			t.Errorf("read %q, %v; want hello", got, err)
		}
	}
	return string(status)
}

// startPages starts a backend that speaks HTTP.
func startPages(t testing.TB) string {
	return harness.StartBackend(t, func(c *net.TCPConn) {
		c.Read(make([]byte, 4096))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\na page")
	})
}

// bring brings a token as a line.
func bring(t testing.TB, gateway, token string) string {
	t.Helper()
	return bringBytes(t, gateway, token+"\n", 0)
}
