package web

import (
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// Upgrades that are passed through to a backend, which speaks WebSocket itself.

func TestAnUpgradeIsPassedThroughUnlessTheAddressIsTCP(t *testing.T) {
	heads := make(chan []string, 1)
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		lines := []string{r.Host, r.RequestURI, r.Header.Get("X-Cipher-Origin"), r.Header.Get("X-Forwarded-For")}
		heads <- lines
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"chat"}, InsecureSkipVerify: true})
		if err != nil {
			return
		}
		typ, p, err := c.Read(r.Context())
		if err == nil {
			c.Write(r.Context(), typ, append([]byte("echo "), p...))
		}
		c.Close(4321, "done")
	})
	f := start(t, testOptions, sealed(backend))
	for _, name := range []string{"plain", "http"} {
		c, resp, err := f.dialWS(t, "/p?x-cipher-origin=other&q", "X-Cipher-Origin", name, "Sec-WebSocket-Protocol", "chat")
		if err != nil || resp.Header.Get("Sec-WebSocket-Protocol") != "chat" {
			t.Fatal(resp, err)
		}
		if got, want := receive(t, heads), []string{f.addr, "/p?q", "", "127.0.0.1"}; !slices.Equal(got, want) {
			t.Errorf("the backend got %q, want %q", got, want)
		}
		send(t, c, websocket.MessageText, "hello")
		typ, p, err := c.Read(t.Context())
		if typ != websocket.MessageText || string(p) != "echo hello" {
			t.Errorf("%v %q, %v", typ, p, err)
		}
		expectClose(t, c, 4321)
		if e := receive(t, f.served); e.Kind != "upgrade" || e.Status != 101 || e.Up == 0 || e.Down == 0 {
			t.Errorf("account %+v", e)
		}
	}
}

func TestABackendMayRefuseAnUpgrade(t *testing.T) {
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusTeapot) })
	f := start(t, testOptions, sealed(backend))
	if _, resp, err := f.dialWS(t, "/", "X-Cipher-Origin", "plain"); err == nil || resp.StatusCode != http.StatusTeapot {
		t.Errorf("%v, %v", resp, err)
	}
	if e := receive(t, f.served); e.Status != http.StatusTeapot || e.Kind != "upgrade" {
		t.Errorf("account %+v", e)
	}
}

// switching is a backend that agrees to any upgrade and goes on by f.
func switching(t *testing.T, f func(*net.TCPConn)) string {
	return tcpBackend(t, func(c *net.TCPConn) {
		var b [1]byte
		for head := ""; !strings.HasSuffix(head, "\r\n\r\n"); head += string(b[:]) {
			if _, err := c.Read(b[:]); err != nil {
				return
			}
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		f(c)
	})
}

func TestAnUpgradedConnectionPassesTheEndOfEachStream(t *testing.T) {
	f := start(t, testOptions, sealed(switching(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		c.Write(append(b, "!"...))
	})))
	c, br := f.raw(t, handshake("/", "X-Cipher-Origin", "plain")+"early ")
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	big := strings.Repeat("late", 50000)
	io.WriteString(c, big)
	c.CloseWrite()
	if b, err := io.ReadAll(br); string(b) != "early "+big+"!" || err != nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if e := receive(t, f.served); e.Up != int64(6+len(big)) || e.Down != e.Up+1 {
		t.Errorf("account %+v", e)
	}
}

func TestAHalfClosedUpgradeIsBoundedByInactivity(t *testing.T) {
	o := testOptions
	o.HalfCloseTimeout = 50 * time.Millisecond
	f := start(t, o, sealed(switching(t, func(c *net.TCPConn) {
		io.Copy(io.Discard, c)
		<-t.Context().Done() // deaf to the client's end
	})))
	c, br := f.raw(t, handshake("/", "X-Cipher-Origin", "plain"))
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	c.CloseWrite()
	if e := receive(t, f.served); e.Status != 101 {
		t.Errorf("account %+v", e)
	}
}
