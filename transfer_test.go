package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"gateway/internal/layer"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/coder/websocket"
)

// Bytes through every form, and how their streams end.

// cargo is what each side of a test sends to the other.
const cargo = 10 << 20

var fromClient, fromBackend = lazyNoise(1), lazyNoise(2)

func lazyNoise(seed uint64) func() []byte {
	return sync.OnceValue(func() []byte { return noise(seed, cargo) })
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
		echo: startBackend(t, func(c *net.TCPConn) {
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
		http: startHTTP(t, func(w http.ResponseWriter, r *http.Request) {
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
	flags, trusting := tlsFlags(t)
	p := startProcess(t, flags...)
	wantNoErrors(t, p)
	b := startTraders(t)
	inEachTongue(t, trusting, func(t *testing.T, v tongue, config *tls.Config) {
		var err error
		switch {
		case v.http:
			err = tradeByHTTP(t, p.addr, config, v, b.http)
		case v.isWebSocket():
			ws := openWebSocket(t, p.addr, config, v, b.echo)
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			c := websocket.NetConn(ctx, ws, websocket.MessageBinary)
			if err = trade(c, c, fromClient(), fromBackend()); err == nil {
				err = c.Close()
			}
		default:
			c := connectWith(t, p.addr, config)
			send(t, c, v.text(t, b.echo))
			expect(t, c, v.welcome)
			if err = trade(c, c, fromClient(), fromBackend()); err == nil {
				halfClose(t, c)
				expectEnd(t, c)
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
func (v *tongue) target(t testing.TB, config *tls.Config, backend string) (string, http.Header) {
	t.Helper()
	line := strings.TrimSuffix(sealed(t, v.scheme+backend), "\n")
	address, header := "http://game.test/", http.Header{}
	if config != nil {
		address = "https://game.test/"
	}
	switch {
	case strings.HasSuffix(v.name, "query"):
		address += "?x-cipher-origin=" + url.QueryEscape(line)
	case strings.HasSuffix(v.name, "header"):
		header.Set("X-Cipher-Origin", line)
	case strings.HasSuffix(v.name, "Server-Identify"):
		header.Set("Server-Identify", line)
	}
	return address, header
}

func tradeByHTTP(t testing.TB, gateway string, config *tls.Config, v tongue, backend string) error {
	address, header := v.target(t, config, backend)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
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
func openWebSocket(t testing.TB, gateway string, config *tls.Config, v tongue, backend string) *websocket.Conn {
	t.Helper()
	address, header := v.target(t, config, backend)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ws, _, err := websocket.Dial(ctx, address, &websocket.DialOptions{
		HTTPClient: httpClient(t, gateway, config), HTTPHeader: header,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.CloseNow() })
	ws.SetReadLimit(-1)
	if v.name == "WebSocket message" {
		if err := ws.Write(ctx, websocket.MessageText, []byte(sealed(t, backend))); err != nil {
			t.Fatal(err)
		}
		if _, status, err := ws.Read(ctx); string(status) != "200" || err != nil {
			t.Fatalf("answered %q, %v", status, err)
		}
	}
	return ws
}

func TestTheClientsHalfCloseLeavesTheOtherDirectionOpen(t *testing.T) {
	flags, trusting := tlsFlags(t)
	p := startProcess(t, flags...)
	answer := string(noise(3, 1<<20))
	backend := startBackend(t, func(c *net.TCPConn) {
		if got, err := io.ReadAll(c); string(got) != "question" || err != nil {
			t.Errorf("the backend read %q, %v", got, err)
		}
		io.WriteString(c, answer)
	})
	inTongues(t, trusting, tongue.isStream, func(t *testing.T, v tongue, config *tls.Config) {
		for _, early := range []bool{false, true} { // the end comes with the request
			c := connectWith(t, p.addr, config)
			send(t, c, v.text(t, backend))
			if !early {
				expect(t, c, v.welcome)
			}
			send(t, c, "question")
			halfClose(t, c)
			if early {
				expect(t, c, v.welcome)
			}
			expectAll(t, c, answer)
		}
	})
}

func TestTheBackendsHalfCloseLeavesTheOtherDirectionOpen(t *testing.T) {
	flags, trusting := tlsFlags(t)
	p := startProcess(t, flags...)
	more := string(noise(4, 1<<20))
	inTongues(t, trusting, tongue.isStream, func(t *testing.T, v tongue, config *tls.Config) {
		heard := make(chan string, 1)
		backend := startBackend(t, func(c *net.TCPConn) {
			io.WriteString(c, "answer")
			c.CloseWrite()
			got, err := io.ReadAll(c)
			if err != nil {
				t.Errorf("the backend: %v", err)
			}
			heard <- string(got)
		})
		c := connectWith(t, p.addr, config)
		send(t, c, v.text(t, backend))
		expect(t, c, v.welcome)
		expectAll(t, c, "answer")
		send(t, c, more)
		halfClose(t, c)
		if got := <-heard; got != more {
			t.Errorf("the backend read %d bytes, want %d", len(got), len(more))
		}
	})
}

func TestAClientsResetIsPassedOnInEachForm(t *testing.T) {
	flags, trusting := tlsFlags(t)
	p := startProcess(t, flags...)
	tunnels := func(v tongue) bool { return !v.http }
	inTongues(t, trusting, tunnels, func(t *testing.T, v tongue, config *tls.Config) {
		ends := make(chan error, 1)
		backend := startBackend(t, func(c *net.TCPConn) {
			_, err := io.Copy(io.Discard, struct{ io.Reader }{c})
			ends <- err
		})
		c := connectWith(t, p.addr, config)
		send(t, c, v.text(t, backend))
		expectAnswer(t, c, v.welcome)
		layer.ResetOnClose(c)
		layer.Socket(c).Close()
		if err := <-ends; !isReset(err) {
			t.Errorf("the backend read %v, want a reset", err)
		}
		l := logOf(t, &p.log, "tunnel", c.LocalAddr().String())
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
	flags, trusting := tlsFlags(t)
	p := startProcess(t, flags...)
	backend := startBackend(t, func(c *net.TCPConn) {
		if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
			t.Errorf("the backend read %q, %v", got, err)
		}
	})
	inTongues(t, trusting, tongue.isWebSocket, func(t *testing.T, v tongue, config *tls.Config) {
		var clients []string
		for _, code := range []string{closeNormal, closeGoingAway, "\x0f\xa0own reason", ""} {
			c := connectWith(t, p.addr, config)
			clients = append(clients, c.LocalAddr().String())
			send(t, c, v.text(t, backend)+v.say+masked(closeFrame, code))
			expectAnswer(t, c, v.welcome)
			expectAll(t, c, frame(closeFrame, code))
		}
		for _, client := range clients {
			if l := logOf(t, &p.log, "tunnel", client); l["ended_by"] != "client" || l["how"] != "fin" {
				t.Errorf("logged as %v", l)
			}
		}
	})
}

func TestTheBackendsEndIsAWebSocketsEnd(t *testing.T) {
	flags, trusting := tlsFlags(t)
	p := startProcess(t, flags...)
	data := string(noise(5, 1<<20))
	finishes := startBackend(t, func(c *net.TCPConn) {
		io.WriteString(c, data)
		c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "hello" || err != nil { // which came after its end
			t.Errorf("the backend read %q, %v", got, err)
		}
	})
	breaks := startBackend(t, func(c *net.TCPConn) {
		io.WriteString(c, data)
		io.ReadFull(c, make([]byte, len("hello"))) // the client has it all
		c.SetLinger(0)
	})
	inTongues(t, trusting, tongue.isWebSocket, func(t *testing.T, v tongue, config *tls.Config) {
		for _, tt := range []struct{ backend, code, how string }{
			{finishes, closeNormal, "fin"},
			{breaks, closeInternal, "reset"},
		} {
			c := connectWith(t, p.addr, config)
			send(t, c, v.text(t, tt.backend))
			expectAnswer(t, c, v.welcome)
			for got := 0; got < len(data); {
				var head [4]byte
				if _, err := io.ReadFull(c, head[:2]); err != nil || head[0] != binaryFrame {
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
				expect(t, c, data[got:got+n])
				got += n
			}
			send(t, c, masked(binaryFrame, "hello"))
			expect(t, c, frame(closeFrame, tt.code))
			send(t, c, masked(closeFrame, tt.code))
			expectEnd(t, c)
			l := logOf(t, &p.log, "tunnel", c.LocalAddr().String())
			if l["ended_by"] != "backend" || l["how"] != tt.how {
				t.Errorf("logged as %v", l)
			}
		}
	})
}

func TestWebSocketsAreToldThatTheGatewayLeaves(t *testing.T) {
	needSignals(t)
	flags, trusting := tlsFlags(t)
	p := startProcess(t, append(flags, "-drain=300ms")...)
	backend := startEcho(t)
	var open []net.Conn
	for _, v := range tongues() {
		for _, config := range []*tls.Config{nil, trusting} {
			if v.isWebSocket() {
				c := connectWith(t, p.addr, config)
				send(t, c, v.text(t, backend))
				expectAnswer(t, c, v.welcome)
				open = append(open, c)
			}
		}
	}
	p.signal(t, syscall.SIGTERM)
	waitRefused(t, p.addr)
	for _, c := range open { // the drain is theirs
		send(t, c, masked(binaryFrame, "hello"))
		expect(t, c, frame(binaryFrame, "hello"))
	}
	for _, c := range open {
		expectAll(t, c, frame(closeFrame, closeGoingAway))
		c.Close()
	}
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if cut := p.log.waitLine(t, "stopped", 1)["cut"]; cut != float64(len(open)) {
		t.Errorf("%v were cut, want %d", cut, len(open))
	}
}

func TestCloseTellsWebSocketsThatTheGatewayLeaves(t *testing.T) {
	g := startGateway(t, nil)
	backend := startEcho(t)
	var open []net.Conn
	for _, v := range tongues() {
		if v.isWebSocket() {
			c := connect(t, g.addr)
			send(t, c, v.text(t, backend))
			expectAnswer(t, c, v.welcome)
			open = append(open, c)
		}
	}
	closed := make(chan struct{})
	go func() {
		g.Close()
		close(closed)
	}()
	for _, c := range open {
		expectAll(t, c, frame(closeFrame, closeGoingAway))
		c.Close()
	}
	<-closed
}
