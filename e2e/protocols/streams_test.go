package protocols

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/coder/websocket"

	"gateway/internal/harness"
)

// Bytes through every form, and how their streams end.

// cargo is what each side of a test sends to the other.
const cargo = 10 << 20

var fromClient, fromBackend = lazyNoise(1), lazyNoise(2)

func lazyNoise(seed uint64) func() []byte {
	return sync.OnceValue(func() []byte { return harness.Noise(seed, cargo) })
}

// trade sends goods while it reads those of the other side, and compares.
func trade(r io.Reader, w io.Writer, goods, want []byte) error {
	written := make(chan error, 1)
	go func() {
		for rest := goods; len(rest) > 0; {
			n := min(len(rest), 64<<10)
			if _, err := w.Write(rest[:n]); err != nil {
				written <- fmt.Errorf("writing: %w", err)
				return
			}
			rest = rest[n:]
		}
		written <- nil
	}()
	h := sha256.New()
	n, err := io.CopyN(h, r, int64(len(want)))
	if err == nil {
		err = <-written
	}
	if err != nil {
		return fmt.Errorf("%d bytes read: %w", n, err)
	}
	if [sha256.Size]byte(h.Sum(nil)) != sha256.Sum256(want) {
		return fmt.Errorf("%d bytes of something else", n)
	}
	return nil
}

// startTraders returns backends that trade, and see that the stream ends.
func startTraders(t testing.TB) backends {
	return backends{
		echo: harness.StartBackend(t, func(c *net.TCPConn) {
			err := trade(c, c, fromBackend(), fromClient())
			if err == nil {
				var rest []byte
				if rest, err = io.ReadAll(c); err == nil && len(rest) > 0 {
					err = fmt.Errorf("%d bytes too many", len(rest))
				}
			}
			if err != nil {
				t.Errorf("the backend: %v", err)
			}
		}),
		http: harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			rc.EnableFullDuplex()
			rc.Flush()
			err := trade(r.Body, w, fromBackend(), fromClient())
			if rest, _ := io.ReadAll(r.Body); err != nil || len(rest) > 0 {
				t.Errorf("the backend: %v, and %d bytes too many", err, len(rest))
			}
		}),
	}
}

func TestMegabytesArriveWholeBothWaysInEachForm(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	wantNoErrors(t, p)
	b := startTraders(t)
	inEachForm(t, trusting, func(t *testing.T, v harness.Form, config *tls.Config) {
		var err error
		switch {
		case v.HTTP:
			err = tradeByHTTP(t, p.Addr, config, v, b.http)
		case v.IsWebSocket():
			ws := openWebSocket(t, p.Addr, config, v, b.echo)
			ctx, cancel := context.WithTimeout(t.Context(), 2*harness.Patience)
			defer cancel()
			c := websocket.NetConn(ctx, ws, websocket.MessageBinary)
			if err = trade(c, c, fromClient(), fromBackend()); err == nil {
				err = c.Close()
			}
		default:
			c := harness.ConnectWith(t, p.Addr, config)
			harness.Send(t, c, v.Text(b.echo))
			harness.Expect(t, c, v.Welcome)
			if err = trade(c, c, fromClient(), fromBackend()); err == nil {
				harness.HalfClose(t, c)
				harness.ExpectEnd(t, c)
			}
		}
		if err != nil {
			t.Errorf("the client: %v", err)
		}
	})
}

// httpClient returns a client whose every request goes to the gateway.
func httpClient(t testing.TB, gateway string, config *tls.Config) *http.Client {
	transport := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return net.Dial("tcp", gateway)
		},
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			return tls.Dial("tcp", gateway, config)
		},
		DisableCompression: true,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// target returns URL and header of a request for a backend.
func target(v harness.Form, config *tls.Config, backend string) (string, http.Header) {
	line := harness.Sealed(v.Scheme + backend)
	address, header := "http://game.test/", http.Header{}
	if config != nil {
		address = "https://game.test/"
	}
	switch {
	case strings.HasSuffix(v.Name, "query"):
		address += "?x-cipher-origin=" + url.QueryEscape(line)
	case strings.HasSuffix(v.Name, "header"):
		header.Set("X-Cipher-Origin", line)
	case strings.HasSuffix(v.Name, "Server-Identify"):
		header.Set("Server-Identify", line)
	}
	return address, header
}

func tradeByHTTP(t testing.TB, gateway string, config *tls.Config, v harness.Form, backend string) error {
	address, header := target(v, config, backend)
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	body, goods := io.Pipe()
	// The client's transport waits for a body that nobody ends.
	defer context.AfterFunc(ctx, func() { body.Close() })()
	r, err := http.NewRequestWithContext(ctx, "POST", address, body) // chunked: its length is unknown
	if err != nil {
		return err
	}
	r.Header = header
	resp, err := httpClient(t, gateway, config).Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || len(resp.TransferEncoding) != 1 {
		return fmt.Errorf("response %v, %v", resp.Status, resp.TransferEncoding)
	}
	if err := trade(resp.Body, goods, fromClient(), fromBackend()); err != nil {
		return err
	}
	goods.Close()
	rest, err := io.ReadAll(resp.Body)
	if len(rest) > 0 {
		return fmt.Errorf("%d bytes too many", len(rest))
	}
	return err
}

// openWebSocket connects a browser's way, up to the backend.
func openWebSocket(t testing.TB, gateway string, config *tls.Config, v harness.Form, backend string) *websocket.Conn {
	t.Helper()
	address, header := target(v, config, backend)
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, address, &websocket.DialOptions{
		HTTPClient: httpClient(t, gateway, config), HTTPHeader: header,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.CloseNow() })
	ws.SetReadLimit(-1)
	if v.Name == "WebSocket message" {
		if err := ws.Write(ctx, websocket.MessageText, []byte(harness.Line(backend))); err != nil {
			t.Fatal(err)
		}
		if _, status, err := ws.Read(ctx); string(status) != "200" || err != nil {
			t.Fatalf("answered %q, %v", status, err)
		}
	}
	return ws
}

func TestTheClientsHalfCloseLeavesTheOtherDirectionOpen(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	answer := string(harness.Noise(3, 1<<20))
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		if got, err := io.ReadAll(c); string(got) != "question" || err != nil {
			t.Errorf("the backend read %q, %v", got, err)
		}
		io.WriteString(c, answer)
	})
	inForms(t, trusting, harness.Form.IsStream, func(t *testing.T, v harness.Form, config *tls.Config) {
		for _, early := range []bool{false, true} { // the end comes with the request
			c := harness.ConnectWith(t, p.Addr, config)
			harness.Send(t, c, v.Text(backend))
			if !early {
				harness.Expect(t, c, v.Welcome)
			}
			harness.Send(t, c, "question")
			harness.HalfClose(t, c)
			if early {
				harness.Expect(t, c, v.Welcome)
			}
			harness.ExpectAll(t, c, answer)
		}
	})
}

func TestTheBackendsHalfCloseLeavesTheOtherDirectionOpen(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	more := string(harness.Noise(4, 1<<20))
	inForms(t, trusting, harness.Form.IsStream, func(t *testing.T, v harness.Form, config *tls.Config) {
		heard := make(chan string, 1)
		backend := harness.StartBackend(t, func(c *net.TCPConn) {
			io.WriteString(c, "answer")
			c.CloseWrite()
			got, err := io.ReadAll(c)
			if err != nil {
				t.Errorf("the backend: %v", err)
			}
			heard <- string(got)
		})
		c := harness.ConnectWith(t, p.Addr, config)
		harness.Send(t, c, v.Text(backend))
		harness.Expect(t, c, v.Welcome)
		harness.ExpectAll(t, c, "answer")
		harness.Send(t, c, more)
		harness.HalfClose(t, c)
		if got := <-heard; got != more {
			t.Errorf("the backend read %d bytes, want %d", len(got), len(more))
		}
	})
}

func TestAClientsResetIsPassedOnInEachForm(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	tunnels := func(v harness.Form) bool { return !v.HTTP }
	inForms(t, trusting, tunnels, func(t *testing.T, v harness.Form, config *tls.Config) {
		ends := make(chan error, 1)
		backend := harness.StartBackend(t, func(c *net.TCPConn) {
			_, err := io.Copy(io.Discard, struct{ io.Reader }{c})
			ends <- err
		})
		c := harness.ConnectWith(t, p.Addr, config)
		harness.Send(t, c, v.Text(backend))
		harness.ExpectAnswer(t, c, v.Welcome)
		harness.Reset(c)
		if err := <-ends; !harness.IsReset(err) {
			t.Errorf("the backend read %v, want a reset", err)
		}
		l := p.Log.WaitClient(t, "tunnel", c.LocalAddr().String())
		if l["ended_by"] != "client" || l["how"] != "reset" {
			t.Errorf("logged as %v", l)
		}
	})
}

// The first two bytes of a Close frame's payload (RFC 6455 section 7.4.1).
const (
	closeNormal    = "\x03\xe8" // 1000
	closeGoingAway = "\x03\xe9" // 1001
	closeInternal  = "\x03\xf3" // 1011
)

func TestAWebSocketsEndIsTheBackendsEnd(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
			t.Errorf("the backend read %q, %v", got, err)
		}
	})
	inForms(t, trusting, harness.Form.IsWebSocket, func(t *testing.T, v harness.Form, config *tls.Config) {
		var clients []string
		for _, code := range []string{closeNormal, closeGoingAway, "\x0f\xa0own reason", ""} {
			c := harness.ConnectWith(t, p.Addr, config)
			clients = append(clients, c.LocalAddr().String())
			harness.Send(t, c, v.Text(backend)+v.Say+harness.Masked(harness.CloseFrame, code))
			harness.ExpectAnswer(t, c, v.Welcome)
			harness.ExpectAll(t, c, harness.Frame(harness.CloseFrame, code))
		}
		for _, client := range clients {
			if l := p.Log.WaitClient(t, "tunnel", client); l["ended_by"] != "client" || l["how"] != "fin" {
				t.Errorf("logged as %v", l)
			}
		}
	})
}

func TestAWebSocketThatHasClosedIsHungUpThoughItsBackendStays(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	stay := make(chan struct{})
	backend := harness.StartBackend(t, func(c *net.TCPConn) { <-stay })
	t.Cleanup(func() { close(stay) })
	inForms(t, trusting, harness.Form.IsWebSocket, func(t *testing.T, v harness.Form, config *tls.Config) {
		c := harness.ConnectWith(t, p.Addr, config)
		harness.Send(t, c, v.Text(backend)+v.Say+harness.Masked(harness.CloseFrame, closeNormal))
		harness.ExpectAnswer(t, c, v.Welcome)
		harness.ExpectAll(t, c, harness.Frame(harness.CloseFrame, closeNormal))
	})
}

func TestTheBackendsEndIsAWebSocketsEnd(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	data := string(harness.Noise(5, 1<<20))
	finishes := harness.StartBackend(t, func(c *net.TCPConn) {
		io.WriteString(c, data)
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "hello" || err != nil { // which came after its end
			t.Errorf("the backend read %q, %v", got, err)
		}
	})
	breaks := harness.StartBackend(t, func(c *net.TCPConn) {
		io.WriteString(c, data)
		io.ReadFull(c, make([]byte, len("hello"))) // the client has it all
		c.SetLinger(0)
	})
	inForms(t, trusting, harness.Form.IsWebSocket, func(t *testing.T, v harness.Form, config *tls.Config) {
		for _, tt := range []struct{ backend, code, how string }{
			{finishes, closeNormal, "fin"},
			{breaks, closeInternal, "reset"},
		} {
			c := harness.ConnectWith(t, p.Addr, config)
			harness.Send(t, c, v.Text(tt.backend))
			harness.ExpectAnswer(t, c, v.Welcome)
			for got := 0; got < len(data); {
				var head [4]byte
				if _, err := io.ReadFull(c, head[:2]); err != nil || head[0] != harness.BinaryFrame {
					t.Fatalf("read %x, %v after %d bytes", head, err, got)
				}
				n := int(head[1])
				if n == 127 {
					t.Fatal("a frame of more than 64 KiB")
				}
				if n == 126 {
					io.ReadFull(c, head[2:])
					n = int(head[2])<<8 | int(head[3])
				}
				harness.Expect(t, c, data[got:got+n])
				got += n
			}
			harness.Send(t, c, harness.Masked(harness.BinaryFrame, "hello"))
			harness.Expect(t, c, harness.Frame(harness.CloseFrame, tt.code))
			harness.Send(t, c, harness.Masked(harness.CloseFrame, tt.code))
			harness.ExpectEnd(t, c)
			l := p.Log.WaitClient(t, "tunnel", c.LocalAddr().String())
			if l["ended_by"] != "backend" || l["how"] != tt.how {
				t.Errorf("logged as %v", l)
			}
		}
	})
}

func TestWebSocketsAreToldThatTheGatewayLeaves(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, append(flags, "-drain=3s")...)
	backend := harness.StartEcho(t)
	var open []net.Conn
	for _, v := range harness.Forms() {
		for _, config := range []*tls.Config{nil, trusting} {
			if v.IsWebSocket() {
				c := harness.ConnectWith(t, p.Addr, config)
				harness.Send(t, c, v.Text(backend))
				harness.ExpectAnswer(t, c, v.Welcome)
				open = append(open, c)
			}
		}
	}
	p.Signal(t, syscall.SIGTERM)
	harness.WaitRefused(t, p.Addr)
	for _, c := range open { // the drain is theirs
		harness.Send(t, c, harness.Masked(harness.BinaryFrame, "hello"))
		harness.Expect(t, c, harness.Frame(harness.BinaryFrame, "hello"))
	}
	for _, c := range open {
		harness.ExpectAll(t, c, harness.Frame(harness.CloseFrame, closeGoingAway))
		c.Close()
	}
	if code := p.Wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if cut := p.Log.WaitLine(t, "stopped", 1)["cut"]; cut != float64(len(open)) {
		t.Errorf("%v were cut, want %d", cut, len(open))
	}
}

// A second signal ends the drain.
func TestWebSocketsAreToldThatTheGatewayLeavesAtOnce(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	p := harness.Start(t, "-drain=1h")
	backend := harness.StartEcho(t)
	var open []net.Conn
	for _, v := range harness.Forms() {
		if v.IsWebSocket() {
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, v.Text(backend))
			harness.ExpectAnswer(t, c, v.Welcome)
			open = append(open, c)
		}
	}
	p.Signal(t, syscall.SIGTERM)
	p.Log.WaitLine(t, "draining", 1)
	p.SignalAgain(t, syscall.SIGTERM)
	for _, c := range open {
		harness.ExpectAll(t, c, harness.Frame(harness.CloseFrame, closeGoingAway))
		c.Close()
	}
	if code := p.Wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
