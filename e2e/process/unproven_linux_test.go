package process

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

// unproven are the states that a client without a valid address can be in: what it
// has sent before it falls silent. docs/operating.md says what bounds each.
func unproven(t *testing.T, trusting *tls.Config) []unprovenState {
	half := strings.Repeat("A", 500)
	plain := func(text string) func(*testing.T, net.Conn) {
		return func(t *testing.T, c net.Conn) { harness.Send(t, c, text) }
	}
	answered := func(text string) func(*testing.T, net.Conn) {
		return func(t *testing.T, c net.Conn) {
			harness.Send(t, c, text)
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil { // it has been computed then
				t.Error(err)
			}
		}
	}
	inTLS := func(text string) func(*testing.T, net.Conn) {
		return func(t *testing.T, c net.Conn) {
			inside := tls.Client(c, trusting)
			if err := inside.Handshake(); err != nil {
				t.Error(err)
			}
			harness.Send(t, inside, text)
		}
	}
	hello := clientHello(t, trusting)
	upgrade := "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	head := "GET / HTTP/1.1\r\nHost: a\r\nCookie: " + strings.Repeat("x", 8100)
	return []unprovenState{
		{"nothing", plain("")},
		{"half a line", plain(half)},
		{"half a length", plain("\x00\x02")},
		{"half behind a length", plain("\x00\x02\x00\x00" + half)},
		{"half of binary", plain("\x00\xff" + half[:200])},
		{"a head but for its end", plain(head)},
		{"the beginning of a head", plain("GET / HTTP/1.1\r\n")},
		{"a request without an address", plain("GET / HTTP/1.1\r\nHost: a\r\n\r\n")},
		{"a WebSocket that says nothing", plain(upgrade)},
		{"half a WebSocket message", plain(upgrade + "\x81\xfe\x02\x00\x00\x00\x00\x00" + half)},
		{"the first byte of a frame", plain(upgrade + "\x82")},
		{"a WebSocket that only pings", plain(upgrade + "\x89\x80\x00\x00\x00\x00")},
		{"a WebSocket that announced a body", plain(strings.Replace(upgrade, "Host: a", "Host: a\r\nContent-Length: 100", 1))},
		{"a request with half a body", plain("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + half)},
		{"a request with half a chunk", plain("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + half)},
		{"a request that waits for leave to send its body", plain("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n")},
		{"half a token", plain("eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0.." + half)},
		{"half a ClientHello", plain(string(hello[:len(hello)/2]))},
		{"a ClientHello", answered(string(hello))},
		{"a ClientHello and the header of a record", answered(string(hello) + "\x17\x03\x03\x40\x00" + strings.Repeat("x", 16000))},
		{"TLS and nothing", inTLS("")},
		{"half a line inside TLS", inTLS(half)},
		{"a head but for its end inside TLS", inTLS(head)},
		{"a WebSocket that says nothing inside TLS", inTLS(upgrade)},
		{"half a length inside TLS", inTLS("\x00\x02")},
		{"a request without an address inside TLS", inTLS("GET / HTTP/1.1\r\nHost: a\r\n\r\n")},
		{"half a WebSocket message inside TLS", inTLS(upgrade + "\x81\xfe\x02\x00\x00\x00\x00\x00" + half)},
		{"TLS and half a record", func(t *testing.T, c net.Conn) {
			inTLS("")(t, c)
			harness.Send(t, c, "\x17\x03\x03\x40\x00"+strings.Repeat("x", 16000))
		}},
	}
}

type unprovenState struct {
	name  string
	enter func(*testing.T, net.Conn)
}

// behindProxies are the same for clients of trusted proxies.
func behindProxies() []unprovenState {
	return []unprovenState{
		{"half a PROXY header", func(t *testing.T, c net.Conn) { harness.Send(t, c, "PROXY TCP4 192.0.2.1 ") }},
		{"half a binary PROXY header", func(t *testing.T, c net.Conn) {
			harness.Send(t, c, "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x01\x00"+strings.Repeat("x", 200))
		}},
		{"a PROXY header and nothing", func(t *testing.T, c net.Conn) {
			harness.Send(t, c, "PROXY TCP4 192.0.2.1 198.51.100.7 4321 443\r\n")
		}},
	}
}

// TestTheDocumentsListEveryStateOfAnUnprovenClient holds the table of docs/operating.md,
// whose bounds the tests below hold.
func TestTheDocumentsListEveryStateOfAnUnprovenClient(t *testing.T) {
	text, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	_, _, trusting := harness.TLSFiles(t)
	for _, state := range append(unproven(t, trusting), behindProxies()...) {
		most := mostOf(state.name)
		_, rest, ok := strings.Cut(string(text), "\n| "+state.name+" | `-handshake-timeout` | ")
		kib, _ := strconv.Atoi(strings.SplitN(rest, " KiB |\n", 2)[0])
		if !ok || kib == 0 || kib<<10 > most {
			t.Errorf("docs/operating.md has no row for %q, or not the time and %d KiB at most", state.name, most>>10)
		}
	}
}

// What an unproven client may cost, in bytes. Live memory is what it takes;
// resident is with the collector's leave. A head of 8 KiB inside TLS costs both. In
// the middle of its handshake crypto/tls has keys, transcripts, and a stack of 8 KiB,
// since that has grown by computing them and what rests on it is too much for less.
const mostLive, mostResident, mostInTLS, mostInHandshake = 16 << 10, 32 << 10, 24 << 10, 24 << 10

func mostOf(state string) int {
	switch {
	case strings.HasSuffix(state, " inside TLS"):
		return mostInTLS
	case strings.HasPrefix(state, "a ClientHello"):
		return mostInHandshake
	}
	return mostLive
}

// clientHello returns the first bytes that crypto/tls sends.
func clientHello(t *testing.T, config *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go tls.Client(a, config).Handshake()
	buf := make([]byte, 8192)
	n, err := b.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf[:n])
}

// resident returns the resident memory of a process in bytes (proc(5)).
func resident(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

func TestAnUnprovenClientCostsLittleWhateverItHasSent(t *testing.T) {
	const clients = 500
	if harness.RaceEnabled {
		t.Skip("the race detector takes memory of its own")
	}
	certFile, keyFile, trusting := harness.TLSFiles(t)
	for _, state := range unproven(t, trusting) {
		t.Run(state.name, func(t *testing.T) {
			p := harness.Start(t, "-tls-cert="+certFile, "-tls-key="+keyFile, "-handshake-timeout=1h", "-max-pending=100000", harness.WithPprof)
			enter := func(n int) {
				for range n {
					state.enter(t, harness.Connect(t, p.Addr))
				}
			}
			enter(100) // what is made once is made
			live, rss := p.LiveMemory(t), resident(t, p.PID())
			enter(clients)
			most := mostOf(state.name)
			liveEach, rssEach := 0, 0
			for end := time.Now().Add(harness.Patience); ; time.Sleep(50 * time.Millisecond) {
				// Until all that they have sent is dealt with.
				liveEach, rssEach = (p.LiveMemory(t)-live)/clients, (resident(t, p.PID())-rss)/clients
				if liveEach <= most && rssEach <= mostResident+most-mostLive || time.Now().After(end) {
					break
				}
			}
			t.Logf("%d bytes live, %d resident, each", liveEach, rssEach)
			live, rss = liveEach, rssEach
			if live > most || rss > mostResident+most-mostLive {
				t.Errorf("%d bytes live, %d resident, want at most %d and %d", live, rss, most, mostResident+most-mostLive)
			}
		})
	}
}

func TestAnUnprovenClientOfAProxyCostsLittleAndIsGoneInTime(t *testing.T) {
	t.Parallel()
	const clients = 500
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-trusted-proxies=127.0.0.1", "-handshake-timeout=2s", "-max-pending=100000", harness.WithPprof, way)
		for _, state := range behindProxies() {
			t.Run(state.name, func(t *testing.T) {
				for range 50 { // what is made once is made
					state.enter(t, harness.Connect(t, p.Addr))
				}
				live := p.LiveMemory(t)
				var all []net.Conn
				for range clients {
					c := harness.Connect(t, p.Addr)
					state.enter(t, c)
					all = append(all, c)
				}
				each := (p.LiveMemory(t) - live) / clients
				if t.Logf("%d bytes live, each", each); each > mostLive && !harness.RaceEnabled {
					t.Errorf("%d bytes live, each, want at most %d", each, mostLive)
				}
				for _, c := range all {
					if _, err := io.Copy(io.Discard, c); os.IsTimeout(err) {
						t.Fatal("it is still served")
					}
				}
			})
		}
	})
}

func TestAnUnprovenClientIsGoneInTimeWhateverItHasSent(t *testing.T) {
	t.Parallel()
	certFile, keyFile, trusting := harness.TLSFiles(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-tls-cert="+certFile, "-tls-key="+keyFile, "-handshake-timeout=1s", way)
		for _, state := range unproven(t, trusting) {
			t.Run(state.name, func(t *testing.T) {
				t.Parallel()
				c := harness.Connect(t, p.Addr) // whose reads end after harness.Patience
				state.enter(t, c)
				if _, err := io.Copy(io.Discard, c); os.IsTimeout(err) {
					t.Error("it is still served")
				}
			})
		}
	})
}

func TestTheOldestUnprovenClientGivesWay(t *testing.T) {
	t.Parallel()
	certFile, keyFile, trusting := harness.TLSFiles(t)
	for _, state := range unproven(t, trusting) {
		t.Run(state.name, func(t *testing.T) {
			p := harness.Start(t, "-tls-cert="+certFile, "-tls-key="+keyFile, "-handshake-timeout=1h", "-max-pending=3", "-loops=1")
			stays := harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))
			var conns []net.Conn
			for range 4 {
				c := harness.Connect(t, p.Addr)
				state.enter(t, c)
				conns = append(conns, c)
			}
			// They are taken in at about the same time, so any may be the oldest.
			ended := make(chan struct{}, len(conns))
			for _, c := range conns {
				go func() {
					io.Copy(io.Discard, c)
					ended <- struct{}{}
				}()
			}
			<-ended
			harness.Send(t, stays, "hello")
			harness.Expect(t, stays, "hello")
			harness.OpenTunnel(t, p.Addr, harness.StartEcho(t)).Close()
		})
	}
}

// The descriptors are enough for 86 connections here. Who proves nothing gives way to who comes.
func TestUnprovenClientsLeaveDescriptorsToOthers(t *testing.T) {
	t.Parallel()
	certFile, keyFile, trusting := harness.TLSFiles(t)
	backend := harness.StartEcho(t)
	for name, text := range map[string]string{
		"nothing":         "",
		"half a line":     "U2FsdGVkX1",
		"a bad line":      "nonsense\n",
		"half a hello":    string(clientHello(t, trusting)[:100]),
		"half a head":     "GET / HTTP/1.1\r\nHost: a\r\n",
		"a bad request":   "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"a bad WebSocket": "GET /?a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-pidfile=", "-log-format=json",
				"-trusted-proxies=127.0.0.1", "-handshake-timeout=1h", "-tls-cert="+certFile, "-tls-key="+keyFile)
			cmd.Args = append([]string{"sh", "-c", `ulimit -n 400 && exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
			cmd.Path = "/bin/sh"
			p := harness.StartCommand(t, cmd)
			tunnel := harness.Connect(t, p.Addr)
			harness.Send(t, tunnel, behind("192.0.2.1", backend))
			harness.Expect(t, tunnel, "200")
			for i := range 300 {
				c := harness.Connect(t, p.Addr)
				harness.Send(t, c, fmt.Sprintf("PROXY TCP4 192.0.2.%d 198.51.100.7 4321 443\r\n%s", 2+i%50, text))
			}
			honest := harness.Connect(t, p.Addr)
			harness.Send(t, honest, behind("192.0.2.200", backend))
			harness.Expect(t, honest, "200")
			harness.Echo(t, tunnel, "still there")
		})
	}
}

// A client that was refused, and stays, is waited for a second. An address has eight of the
// 64 places here.
func TestRefusedClientsThatStayGiveWay(t *testing.T) {
	t.Parallel()
	p := harness.Start(t, "-loops=1", "-max-pending=64")
	before := harness.Descriptors(p.PID())
	for range 60 {
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, "nonsense\n")
		harness.Expect(t, c, "401")
	}
	if now := harness.Descriptors(p.PID()); now > before+8+12 { // the last may just be on its way
		t.Errorf("%d descriptors, and %d before", now, before)
	}
}
