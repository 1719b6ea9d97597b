package web

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/address"
)

// Bodies that a client does not finish, or not well.

func TestAClientThatDoesNotFinishItsBodyIsNotWaitedForLong(t *testing.T) {
	backend := tcpBackend(t, func(c *net.TCPConn) { // answers before it has read all
		c.Read(make([]byte, 4096))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		io.Copy(io.Discard, c)
	})
	for name, tt := range map[string]struct {
		head string
		want int
	}{
		"without an address":      {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc", 400},
		"with a bad one":          {"POST / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: bad\r\nContent-Length: 100\r\n\r\nabc", 401},
		"in chunks":               {"POST / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: bad\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", 401},
		"for another proxy":       {"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc", 501},
		"answered before the end": {"POST / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\nContent-Length: 100\r\n\r\nabc", 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t, testOptions, map[string]string{"ok": backend})
			c, br := f.raw(t, tt.head)
			c.SetDeadline(time.Now().Add(patience / 2))
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.StatusCode != tt.want {
				t.Fatalf("%v, %v; want %d", resp, err, tt.want)
			}
			if _, err := io.Copy(io.Discard, br); err != nil { // the end of the connection
				t.Error(err)
			}
		})
	}
}

// Whoever brings no address has so long for it, however often it asks, and whatever it goes
// on to send.
func TestAClientWithoutAnAddressIsNotServedForEver(t *testing.T) {
	o := testOptions
	o.HeaderTimeout = 200 * time.Millisecond
	o.HealthPath = "/healthz"
	get := "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	for name, tt := range map[string]struct{ first, more string }{
		"asks again":               {get, get},
		"asks by tens":             {get, strings.Repeat(get, 10)},
		"asks whether all is well": {"", "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"},
		"sends empty lines":        {get, "\r\n"},
		"begins another head":      {get, "G"},
		"goes on with a body":      {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", "x"},
		"goes on with chunks":      {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"},
		"goes on behind nonsense":  {"GET / HTTP/9.9\r\n\r\n", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := start(t, o, nil)
			go func() {
				for {
					select {
					case <-f.served:
					case <-t.Context().Done():
						return
					}
				}
			}()
			c, _ := f.raw(t, tt.first)
			go io.Copy(io.Discard, c)
			began := time.Now()
			for {
				if _, err := io.WriteString(c, tt.more); err != nil {
					break
				}
				time.Sleep(5 * time.Millisecond) // the client's pace
				if time.Since(began) > patience/6 {
					t.Fatalf("it is served after %v", time.Since(began))
				}
			}
			// The header's time, that of a body, and that of the last answer.
			if took, most := time.Since(began), o.HeaderTimeout+2*lingerTime; took > most+time.Second {
				t.Errorf("it took %v, want %v", took, most)
			}
		})
	}
}

func TestNothingBehindABrokenBodyIsARequest(t *testing.T) {
	var smuggled atomic.Bool
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/smuggled" {
			smuggled.Store(true)
		}
		io.Copy(io.Discard, r.Body)
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	for _, chunk := range []string{"zz\r\n", "1\n", "1\r\nxyz", "1\r\nx\n\n", "0\r\nno trailer\r\n\r\n"} {
		_, br := f.raw(t, "POST / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\nTransfer-Encoding: chunked\r\n\r\n"+chunk+
			"GET /smuggled HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\n\r\n")
		got, _ := io.ReadAll(br) // it may end in a reset
		if n := strings.Count(string(got), "HTTP/1.1 "); n != 1 || !strings.Contains(string(got), "400 Bad Request") {
			t.Errorf("%q: %d responses: %q", chunk, n, got)
		}
	}
	if smuggled.Load() {
		t.Error("the rest of a body has reached the backend as a request")
	}
}

func TestNoTrailerPassesForAHeaderOfTheGateways(t *testing.T) {
	got := make(chan http.Header, 1)
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		got <- r.Trailer
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	f.rawGet(t, "POST / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\nTransfer-Encoding: chunked\r\n"+
		"Trailer: X-Cipher-Origin, Server-Identify, X-Forwarded-For, X-Sum\r\n\r\n"+
		"0\r\nX-Cipher-Origin: ok\r\nServer-Identify: ok\r\nX-Forwarded-For: 6.6.6.6\r\nX-Sum: 1\r\n\r\n")
	if trailer := <-got; len(trailer) != 1 || trailer.Get("X-Sum") != "1" {
		t.Errorf("the backend got %v", trailer)
	}
}

func TestARefusedUpgradeOfSeveralBackendsLeavesNoConnection(t *testing.T) {
	closed := make(chan struct{})
	backend := tcpBackend(t, func(c *net.TCPConn) {
		c.Read(make([]byte, 4096))
		io.WriteString(c, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
		io.Copy(io.Discard, c)
		close(closed)
	})
	f := start(t, testOptions, map[string]string{"ok": backend + "," + backend})
	resp := f.rawGet(t, "GET / HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if resp.StatusCode != 404 {
		t.Fatal(resp.Status)
	}
	select {
	case <-closed:
	case <-time.After(patience / 2):
		t.Error("the connection to the backend is kept, and nobody can use it")
	}
}

func TestABackendOfSeveralIsToldAHostThatExists(t *testing.T) {
	got := make(chan string, 1)
	backend := httpBackend(t, func(w http.ResponseWriter, r *http.Request) { got <- r.Host })
	f := start(t, testOptions, map[string]string{"ok": backend + "," + backend})
	f.rawGet(t, "GET / HTTP/1.0\r\nX-Cipher-Origin: ok\r\n\r\n")
	if host := <-got; host != f.addr {
		t.Errorf("Host is %q, want %q", host, f.addr)
	}
}

// overlapGate has its second dial wait for its end, and sees whether another
// begins meanwhile.
type overlapGate struct {
	*fakeGate
	begun      chan int
	n, active  atomic.Int32
	overlapped atomic.Bool
}

func (g *overlapGate) Dial(ctx context.Context, route address.Route) (net.Conn, error) {
	if g.active.Add(1) > 1 {
		g.overlapped.Store(true)
	}
	defer g.active.Add(-1)
	n := int(g.n.Add(1))
	g.begun <- n
	if n == 2 {
		<-ctx.Done()
		return nil, statusError(0)
	}
	return g.fakeGate.Dial(ctx, route)
}

func TestARequestDialsOneBackendAtATime(t *testing.T) {
	release, arrived := make(chan struct{}), make(chan struct{}, 1)
	backend := tcpBackend(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if r.URL.Path == "/first" {
				arrived <- struct{}{}
				<-release
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			if r.URL.Path == "/first" {
				br.ReadByte() // the next request of this connection is not answered
				return
			}
		}
	})
	f := start(t, testOptions, map[string]string{"ok": backend})
	g := &overlapGate{fakeGate: f.fakeGate, begun: make(chan int, 10)}
	f.Server.gate = g
	ask := func(path string) chan int {
		_, br := f.raw(t, "GET "+path+" HTTP/1.1\r\nHost: a\r\nX-Cipher-Origin: ok\r\n\r\n")
		status := make(chan int, 1)
		go func() {
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				status <- 0
				return
			}
			status <- resp.StatusCode
		}()
		return status
	}
	first := ask("/first")
	<-g.begun
	<-arrived // so that its dial is over
	second := ask("/second")
	<-g.begun // it waits in the dial, until it gets the first one's connection
	close(release)
	if a, b := <-first, <-second; a != 200 || b != 200 {
		t.Errorf("statuses %d and %d", a, b)
	}
	if g.overlapped.Load() {
		t.Error("two dials of one request at a time: the Gate keeps account of one")
	}
}

func TestWhoeverBreaksTheRulesOfWebSocketIsTold1002(t *testing.T) {
	backend := tcpBackend(t, echo)
	f := start(t, testOptions, map[string]string{"ok": backend})
	for name, frame := range map[string]string{
		"unmasked":        "\x82\x02hi",
		"negative length": "\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02\x03\x04aaaa",
		"reserved bit":    "\xc2\x80\x01\x02\x03\x04",
		"unknown opcode":  "\x83\x80\x01\x02\x03\x04",
	} {
		_, br := f.raw(t, "GET / HTTP/1.1\r\nHost: a\r\nServer-Identify: ok\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"+frame)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 101 {
			t.Fatal(resp, err)
		}
		got, err := io.ReadAll(br)
		if len(got) < 4 || got[0] != frameClose || string(got[2:4]) != "\x03\xea" || len(got) != 2+int(got[1]) {
			t.Errorf("%s: %q, %v; want one Close frame with 1002", name, got, err)
		}
	}
}
