package roaming

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/coder/websocket"
	kcpgo "github.com/xtaci/kcp-go/v5"

	"gateway/clients/go/tunnel"
	"gateway/internal/harness"
)

// ways are how the client of a test gets to the gateway, each in turn.
type ways struct {
	dials []func(ctx context.Context) (net.Conn, error)
	next  int
}

func (w *ways) dial(ctx context.Context, _ string) (net.Conn, error) {
	dial := w.dials[w.next%len(w.dials)]
	w.next++
	return dial(ctx)
}

// socket is a WebSocket that is a stream, whose Close does not wait.
type socket struct {
	net.Conn
	ws *websocket.Conn
}

func (s socket) Close() error { return s.ws.CloseNow() }

func overWebSocket(url string, trusting *tls.Config) func(ctx context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		transport := &http.Transport{TLSClientConfig: trusting, DisableKeepAlives: true}
		ws, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
		if err != nil {
			return nil, err
		}
		ws.SetReadLimit(16 << 20)
		return socket{websocket.NetConn(context.Background(), ws, websocket.MessageBinary), ws}, nil
	}
}

func overTCP(addr string) func(ctx context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", addr) }
}

func overTLS(addr string, trusting *tls.Config) func(ctx context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return (&tls.Dialer{Config: trusting}).DialContext(ctx, "tcp", addr)
	}
}

func overKCP(addr string) func(ctx context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		s, err := kcpgo.DialWithOptions(addr, nil, 0, 0)
		if err != nil {
			return nil, err
		}
		s.SetStreamMode(true) //lint:ignore SA1019 kcp-go's own clients call it
		s.SetNoDelay(1, 10, 2, 1)
		s.SetWindowSize(1024, 1024)
		return undated{s}, nil
	}
}

// undated has no deadlines: kcp-go reads them in Write without its lock, and so races
// with who sets one.
type undated struct{ net.Conn }

func (undated) SetDeadline(time.Time) error { return nil }

// behindLength speaks the form whose requests and answers stand behind a length.
type behindLength struct {
	net.Conn
	asked, answered bool
}

func (c *behindLength) Write(b []byte) (int, error) {
	if c.asked {
		return c.Conn.Write(b)
	}
	c.asked = true
	_, err := io.WriteString(c.Conn, harness.Prefixed(string(b[:len(b)-1])))
	return len(b), err
}

func (c *behindLength) Read(b []byte) (int, error) {
	if !c.answered {
		var length [4]byte
		if _, err := io.ReadFull(c.Conn, length[:]); err != nil {
			return 0, err
		}
		c.answered = true
	}
	return c.Conn.Read(b)
}

func TestATunnelMovesBetweenTheWaysIn(t *testing.T) {
	harness.BothWays(t, func(t *testing.T, way string) {
		flags, trusting := harness.TLSFlags(t)
		b := startCounted(t, echo)
		addr := harness.ClosedPort(t)
		g := harness.Start(t, append(flags, "-resume=1", "-kcp="+addr, "-addr="+addr, way)...)
		w := &ways{dials: []func(ctx context.Context) (net.Conn, error){
			overTCP(addr), overWebSocket("wss://"+addr, trusting), overKCP(addr), overTLS(addr, trusting),
			overWebSocket("ws://"+addr, nil),
			func(ctx context.Context) (net.Conn, error) {
				c, err := overTCP(addr)(ctx)
				return &behindLength{Conn: c}, err
			},
		}}
		for first := range w.dials {
			w.next = first
			c, _ := open(t, &tunnel.Dialer{Gateways: []string{addr}, DialContext: w.dial, Timeout: 20 * time.Second}, b.addr)
			for i := range len(w.dials) + 1 {
				both(t, c, uint64(i), 200_000)
				reconnect(t, c)
			}
			both(t, c, 9, 200_000)
			c.CloseWrite()
			harness.ExpectAll(t, c, "")
			<-c.Done()
			if n := b.conns.Load(); n != int32(first)+1 {
				t.Fatalf("the backend saw %d connections of %d tunnels", n, first+1)
			}
		}
		g.Log.WaitLine(t, "tunnel", len(w.dials))
		for _, line := range g.Log.Lines("tunnel") {
			if line["how"] != "fin" {
				t.Errorf("logged %v", line)
			}
		}
	})
}
