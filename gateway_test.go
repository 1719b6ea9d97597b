package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
	"gateway/internal/relay"
	"gateway/internal/token"
)

func TestASealedLineBecomesATunnel(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	c := openTunnel(t, g.addr, startEcho(t))
	send(t, c, "hello")
	expect(t, c, "hello")
	c.CloseWrite()
	expectAll(t, c, "")
	line := g.log.waitLine(t, "tunnel", 1)
	if line["client"] != c.LocalAddr().String() || line["up"] != 5.0 || line["down"] != 5.0 ||
		line["ended_by"] != "client" || line["how"] != "fin" {
		t.Errorf("account: %v", line)
	}
}

func TestTheGoldenLineReachesItsBackend(t *testing.T) {
	t.Parallel()
	var ln net.Listener
	eventually(t, "port 62863 is free", func() bool {
		var err error
		ln, err = net.Listen("tcp", "127.0.0.1:62863")
		return err == nil
	})
	defer ln.Close()
	p := startProcess(t, "-secret=p0S8rX680*48")
	c := connect(t, p.addr)
	send(t, c, "U2FsdGVkX19KIJ9OQJKT/yHGMrS+5SsBAAjetomptQ0=\n")
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	send(t, b, "from the backend")
	expect(t, c, "200from the backend")
}

func TestEachFailureHasItsStatus(t *testing.T) {
	t.Parallel()
	impatient := startConfigured(t, func(cfg *Config) { cfg.HandshakeTimeout = 200 * time.Millisecond }, nil)
	patient := startConfigured(t, func(cfg *Config) { cfg.HandshakeTimeout = time.Hour }, func(g *Gateway) {
		g.dialer.resolver = resolver(t, func(query []byte) []byte { return answer(query, noSuchName) })
	})
	valid := sealed(t, startEcho(t))
	for _, tt := range []struct {
		name, request string
		finish        bool // send FIN
		want, reason  string
	}{
		{"the end before the newline", strings.TrimSuffix(valid, "\n"), true, "400", "eof"},
		{"the end after part of it", "U2FsdGVk", true, "400", "eof"},
		{"no newline in time", strings.TrimSuffix(valid, "\n"), false, "400", "too_slow"},
		{"a line of 1025 bytes", strings.Repeat("A", 1025) + "\n", false, "400", "too_long"},
		{"1025 bytes without an end", strings.Repeat("A", 1025), false, "400", "too_long"},
		{"a line of 1024 bytes", strings.Repeat("A", 1024) + "\n", false, "401", "bad_format"},
		{"an empty line", "\n", false, "401", "bad_format"},
		{"a line that is not base64", "HELO gateway\r\n", false, "401", "bad_base64"},
		{"an address in clear", "127.0.0.1:80\n", false, "401", "bad_base64"},
		{"a line under another secret", "U2FsdGVkX19KIJ9OQJKT/yHGMrS+5SsBAAjetomptQ0=\n", false, "401", "bad_padding"},
		{"a port where nobody listens", sealed(t, closedPort(t)), false, "502", "refused"},
		{"a name that does not exist", sealed(t, "nobody.test:80"), false, "502", "unknown_host"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := patient
			if tt.reason == "too_slow" {
				g = impatient
			}
			c := connect(t, g.addr)
			send(t, c, tt.request)
			if tt.finish {
				c.CloseWrite()
			}
			expectAll(t, c, tt.want)
			eventually(t, "the log has the reason", func() bool {
				for _, l := range g.log.lines("refused") {
					if l["client"] == c.LocalAddr().String() {
						if harness.Status(l) != tt.want || l["reason"] != tt.reason {
							t.Fatalf("log: %v", l)
						}
						return true
					}
				}
				return false
			})
		})
	}
}

func TestTheRequestMayComeInAnyPieces(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	backend := startEcho(t)
	line := sealed(t, backend)
	if len(line) > 50 {
		t.Fatalf("line of %d bytes", len(line))
	}
	request := line + "early"
	for cut := 1; cut < len(request); cut++ {
		c := connect(t, g.addr)
		send(t, c, request[:cut])
		if cut <= len(line)-1 { // the gateway has this part by the time it is idle again
			harness.Delivered(t, c)
		}
		send(t, c, request[cut:])
		expect(t, c, "200early")
	}
	t.Run("a byte at a time", func(t *testing.T) {
		c := connect(t, g.addr)
		for i := range len(request) {
			send(t, c, request[i:i+1])
			harness.Delivered(t, c)
		}
		expect(t, c, "200early")
	})
	t.Run("with CRLF", func(t *testing.T) {
		c := connect(t, g.addr)
		send(t, c, strings.TrimSuffix(line, "\n")+"\r\nearly")
		expect(t, c, "200early")
	})
	t.Run("with 64 KiB behind the newline", func(t *testing.T) {
		early := string(noise(6, 64<<10))
		c := connect(t, g.addr)
		send(t, c, line+early)
		expect(t, c, "200"+early)
	})
	t.Run("with the client's end behind the newline", func(t *testing.T) {
		c := connect(t, g.addr)
		send(t, c, request)
		c.CloseWrite()
		expectAll(t, c, "200early")
	})
}

func TestTheClientSees200BeforeAnyByteOfTheBackend(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	greets := startBackend(t, func(b *net.TCPConn) { io.WriteString(b, "welcome"); io.Copy(io.Discard, b) })
	closes := startBackend(t, func(b *net.TCPConn) {})
	for range 50 {
		c := connect(t, g.addr)
		send(t, c, sealed(t, greets))
		expect(t, c, "200welcome")
		c.Close()
		c = connect(t, g.addr)
		send(t, c, sealed(t, closes))
		expectAll(t, c, "200")
	}
}

func TestTheStatusArrivesThoughTheClientHasMoreInFlight(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	more := string(noise(7, 64<<10))
	for name, tt := range map[string]struct{ request, want string }{
		"401": {"nonsense\n" + more, "401"},
		"400": {strings.Repeat("A", 2000) + more, "400"},
		"502": {sealed(t, closedPort(t)) + more, "502"},
	} {
		t.Run(name, func(t *testing.T) {
			for range 50 {
				c := connect(t, g.addr)
				send(t, c, tt.request)
				expectAll(t, c, tt.want)
				c.Close()
			}
		})
	}
}

func TestAConnectionWithoutAByteIsNoRequest(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	c := connect(t, g.addr)
	c.CloseWrite()
	expectAll(t, c, "400")
	if line := g.log.waitLine(t, "no request", 1); line["level"] != "DEBUG" {
		t.Errorf("logged as %v", line)
	}
}

func TestDribblingDoesNotStretchTheHandshake(t *testing.T) {
	t.Parallel()
	const bound = 300 * time.Millisecond
	g := startConfigured(t, func(cfg *Config) { cfg.HandshakeTimeout = bound }, nil)
	c := connect(t, g.addr)
	start := time.Now()
	go func() {
		for { // ends when the gateway closes
			if _, err := c.Write([]byte("A")); err != nil {
				return
			}
			time.Sleep(bound / 30)
		}
	}()
	expect(t, c, "400")
	if d := time.Since(start); d < bound/2 || d > bound+5*time.Second {
		t.Errorf("cut after %v, want %v", d, bound)
	}
	c.Close()
}

// stuckLookup returns a resolver with which every name lookup lasts until its
// context ends or release is called, and a channel that tells of each.
func stuckLookup() (r *net.Resolver, started chan context.Context, release func()) {
	started, open := make(chan context.Context, 16), make(chan struct{})
	var once sync.Once
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		select {
		case started <- ctx:
		default:
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-open:
			return nil, errors.New("no server")
		}
	}}, started, func() { once.Do(func() { close(open) }) }
}

func TestAClientsResetCancelsTheDial(t *testing.T) {
	t.Parallel()
	r, started, release := stuckLookup()
	defer release()
	g := startGateway(t, func(g *Gateway) { g.dialer.resolver = r; g.rules.Load().timeout = time.Hour })
	for _, behind := range []string{"", "early bytes"} {
		c := connect(t, g.addr)
		send(t, c, sealed(t, "game.test:80")+behind)
		<-started
		c.SetLinger(0)
		c.Close()
		eventually(t, "the dial is cancelled", func() bool {
			for _, l := range g.log.lines("refused") {
				if l["client"] == c.LocalAddr().String() {
					return l["reason"] == "client_gone" && harness.Status(l) == ""
				}
			}
			return false
		})
	}
}

func TestAClientsFINDoesNotCancelTheDial(t *testing.T) {
	t.Parallel()
	r, started, release := stuckLookup()
	defer release()
	g := startGateway(t, func(g *Gateway) { g.dialer.resolver = r; g.rules.Load().timeout = time.Hour })
	c := connect(t, g.addr)
	send(t, c, sealed(t, "game.test:80")+"early")
	ctx := <-started
	c.CloseWrite()
	harness.Delivered(t, c)
	if ctx.Err() != nil {
		t.Error("the lookup was cancelled")
	}
	release()
	expectAll(t, c, "502")
}

// theSlowWay has loops leave every request to a goroutine.
func theSlowWay(cfg *Config) { cfg.KDFs = append(cfg.KDFs, kdfPBKDF2) }

func TestShutdownLetsConnectionsFinish(t *testing.T) {
	t.Parallel()
	g := startConfigured(t, theSlowWay, nil)
	backend := startEcho(t)
	open := openTunnel(t, g.addr, backend)
	half := connect(t, g.addr) // still in its handshake
	line := sealed(t, backend)
	send(t, half, line[:10])
	eventually(t, "both are accepted", func() bool { return g.goroutinesServe() == 1 })

	done := make(chan error, 1)
	go func() { done <- g.Shutdown(context.Background()) }()
	eventually(t, "it listens no more", func() bool {
		c, err := net.Dial("tcp", g.addr)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	send(t, half, line[10:])
	expect(t, half, "200")
	for _, c := range []*net.TCPConn{open, half} {
		send(t, c, "still here")
		expect(t, c, "still here")
		select {
		case err := <-done:
			t.Fatalf("Shutdown returned %v before the tunnels ended", err)
		default:
		}
		c.CloseWrite()
		expectAll(t, c, "")
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestShutdownReturnsWhenItsTimeIsOverAndCloseCuts(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	c := openTunnel(t, g.addr, startEcho(t))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.Shutdown(ctx); err != context.Canceled {
		t.Errorf("Shutdown returned %v", err)
	}
	send(t, c, "still here")
	expect(t, c, "still here")
	g.Close()
	if _, err := io.ReadAll(c); err != nil && !isReset(err) {
		t.Error(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Serve(ln); err != ErrGatewayClosed {
		t.Errorf("Serve after Close returned %v", err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve did not close its listener: %v", err)
	}
}

func TestCloseEndsHandshakesAndDials(t *testing.T) {
	t.Parallel()
	r, started, release := stuckLookup()
	defer release()
	g := startGateway(t, func(g *Gateway) {
		g.dialer.resolver = r
		g.rules.Load().timeout, g.rules.Load().handshakeTimeout = time.Hour, time.Hour
	})
	send(t, connect(t, g.addr), "half a li")
	send(t, connect(t, g.addr), sealed(t, "game.test:80"))
	<-started
	connect(t, g.addr)
	g.Close() // returns
}

// flakyListener fails as often as it is told, then accepts.
type flakyListener struct {
	net.Listener
	failures atomic.Int64
}

func (l *flakyListener) Accept() (net.Conn, error) {
	if l.failures.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestAcceptErrorsNeverEndTheServing(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := &flakyListener{Listener: inner}
	ln.failures.Store(5)
	served := make(chan error, 1)
	go func() { served <- g.Serve(ln) }()
	c := openTunnel(t, inner.Addr().String(), startEcho(t))
	c.Close()
	if n := len(g.log.lines("cannot accept, trying again")); n != 1 {
		t.Errorf("5 failures in a row were logged %d times, want once", n)
	}
	g.Close() // an embedded Listener has no SetDeadline
	if err := <-served; err != ErrGatewayClosed {
		t.Errorf("Serve returned %v", err)
	}
}

// lastWish is a client that does something when the gateway closes it.
type lastWish struct {
	net.Conn
	onClose func()
}

func (c *lastWish) Close() error {
	c.onClose()
	return c.Conn.Close()
}

// TestATunnelThatBeginsWhileTheGatewayClosesIsCut has one begin when the clients that
// have none yet are closed: it was told 200 just before, and its client has done nothing.
func TestATunnelThatBeginsWhileTheGatewayClosesIsCut(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	client, backend := net.Pipe()
	client.Close()
	backend.Close()
	var end relay.End
	c := &lastWish{client, func() { end = g.relay.Run(client, backend, nil) }}
	g.clients.add(c)
	g.Close()
	if end.By != relay.Gateway || end.How != relay.Shutdown {
		t.Errorf("it was ended by %s: %s", end.By, end.How)
	}
}

// anyToken has the form of a token, so that a key is looked for.
const anyToken = "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..AAAAAAAAAAAAAAAA.AAAA.AAAAAAAAAAAAAAAAAAAAAA\n"

func TestABugInOneHandshakeEndsOnlyThatConnection(t *testing.T) {
	t.Parallel()
	g := startGateway(t, func(g *Gateway) { g.rules.Load().opener.tokens = new(token.Keys) }) // which panics
	for i := range 3 {
		c := connect(t, g.addr)
		send(t, c, anyToken)
		expectCut(t, c)
		g.log.waitLine(t, "panic", i+1)
	}
}

func TestManyClientsAtOnceAreAllServed(t *testing.T) {
	t.Parallel()
	g := startGateway(t, nil)
	backend := startEcho(t)
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			c, err := net.Dial("tcp", g.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			text := fmt.Sprintf("client %d", i)
			io.WriteString(c, sealed(t, backend)+text)
			c.(*net.TCPConn).CloseWrite()
			if got, err := io.ReadAll(c); string(got) != "200"+text || err != nil {
				t.Errorf("client %d read %q, %v", i, got, err)
			}
		})
	}
	wg.Wait()
}

func TestNoCounterFallsWhileATunnelsPROXYHeaderIsNotMoved(t *testing.T) {
	t.Parallel()
	tg := startConfigured(t, func(cfg *Config) { cfg.SendProxy = "v2" }, nil)
	o := &overview{gateway: tg.Gateway}
	c := openTunnel(t, tg.addr, startEcho(t))
	harness.Send(t, c, strings.Repeat("x", 1000))
	var moved int64
	harness.Eventually(t, "1000 bytes are told of", func() bool { moved = o.bytes().Up.Copied; return moved == 1000 })
	// Another tunnel begins, and its header has not been moved yet.
	const header = 60
	tg.ledger.prefaced.Add(header)
	if now := o.bytes().Up.Copied; now != moved {
		t.Errorf("%d bytes, and %d before", now, moved)
	}
	tg.ledger.prefaced.Add(-header)
	harness.Send(t, c, "more")
	harness.Eventually(t, "4 more bytes are told of", func() bool { return o.bytes().Up.Copied == 1004 })
}
