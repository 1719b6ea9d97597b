package process

import (
	"crypto/tls"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

// A WebSocket that ends here behaves the same by every way that its bytes may go: in
// a loop with an io_uring, in one without, and by goroutines.

var waysOfWebSockets = map[string][]string{
	"io_uring":   {"-io-uring=1"},
	"epoll":      {"-io-uring=0"},
	"goroutines": {"-loops=-1"},
}

// A client's frames of RFC 6455 section 5.2, as harness.Masked makes them.
const (
	fragment     = 0x02 // of a binary message, the first of several
	continuation = 0x00
	lastFragment = 0x80
	pingFrame    = 0x89
	pongFrame    = 0x8a
	binaryFrame  = 0x82
)

// openWebSocket opens one on a connection that leads to a backend, and sends more at once.
func openWebSocket[C net.Conn](t testing.TB, c C, backend, more string) C {
	t.Helper()
	harness.Send(t, c, harness.Upgrade("/", "Server-Identify: "+harness.Sealed(backend))+more)
	head := make([]byte, 0, 256)
	for one := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); head = append(head, one...) {
		if _, err := io.ReadFull(c, one); err != nil {
			t.Fatalf("read %q, %v; want a 101", head, err)
		}
	}
	return c
}

func TestAWebSocketBehavesTheSameByEveryWay(t *testing.T) {
	t.Parallel()
	tlsFlags, trusting := harness.TLSFlags(t)
	closing := func(code, reason string) string { return harness.Frame(harness.CloseFrame, code+reason) }
	answer := func(code string) string { return harness.Masked(harness.CloseFrame, code) }
	const normal, away, protocol, invalid, tooBig, internal = "\x03\xe8", "\x03\xe9", "\x03\xea", "\x03\xef", "\x03\xf1", "\x03\xf3"
	// refused has a client send what is answered by a code, behind what its backend has echoed.
	refused := func(sent, echoed, code string) func(testing.TB, net.Conn) {
		return func(t testing.TB, c net.Conn) {
			harness.Send(t, c, sent)
			b, err := io.ReadAll(c) // the echo may come too late
			if err != nil || string(b) != echoed+closing(code, "") && string(b) != closing(code, "") {
				t.Errorf("read %q, %v; want %q", b, err, closing(code, ""))
			}
		}
	}
	big := strings.Repeat("0123456789abcdef", 1<<14)
	echoes := func(c *net.TCPConn) { io.Copy(c, struct{ io.Reader }{c}) }
	for _, tt := range []struct {
		name    string
		backend func(c *net.TCPConn)
		client  func(t testing.TB, c net.Conn)
		by, how string
		up      int
	}{
		{"messages, fragments and pings among them", echoes, func(t testing.TB, c net.Conn) {
			harness.Send(t, c, harness.Masked(fragment, "a")+harness.Masked(pingFrame, "p")+harness.Masked(lastFragment, ""))
			want := map[string]bool{"\x8a\x01p\x82\x01a": true, "\x82\x01a\x8a\x01p": true}
			b := make([]byte, 6)
			if _, err := io.ReadFull(c, b); err != nil || !want[string(b)] {
				t.Errorf("read %q, %v", b, err)
			}
			for _, b := range []byte(harness.Masked(binaryFrame, "bytes") + harness.Masked(pongFrame, "x")) {
				harness.Send(t, c, string([]byte{b}))
			}
			for heard := ""; heard != "bytes"; { // each came by itself
				head := make([]byte, 2)
				io.ReadFull(c, head)
				payload := make([]byte, head[1])
				if _, err := io.ReadFull(c, payload); err != nil {
					t.Fatalf("heard %q, %v", heard, err)
				}
				heard += string(payload)
			}
			harness.Send(t, c, answer(normal+"bye"))
			harness.ExpectAll(t, c, closing(normal, "bye"))
		}, "client", "fin", 6},
		{"much, and more behind the end", func(c *net.TCPConn) {
			io.Copy(io.Discard, c)
			io.WriteString(c, big) // is dropped
		}, func(t testing.TB, c net.Conn) {
			harness.Send(t, c, harness.Masked(binaryFrame, big)+answer(away))
			harness.ExpectAll(t, c, closing(away, ""))
		}, "client", "fin", len(big)},
		{"the client closes, and then its socket without reading", func(c *net.TCPConn) {
			if _, err := io.Copy(io.Discard, c); err != nil {
				t.Errorf("the backend read %v", err)
			}
			io.WriteString(c, big)
		}, func(t testing.TB, c net.Conn) {
			harness.Send(t, c, harness.Masked(binaryFrame, "x")+answer(normal))
			c.SetReadDeadline(time.Now().Add(harness.Patience))
			c.Read(make([]byte, 1)) // of the answer, which lies unread else
			c.Close()
		}, "client", "fin", 1},
		{"the client closes with an error", echoes, func(t testing.TB, c net.Conn) {
			harness.Send(t, c, answer(internal))
			harness.ExpectAll(t, c, closing(internal, ""))
		}, "client", "reset", 0},
		{"the client leaves without a word", echoes, func(t testing.TB, c net.Conn) { c.Close() }, "client", "reset", 0},
		{"the client resets", echoes, func(t testing.TB, c net.Conn) { harness.Reset(c) }, "client", "reset", 0},
		{"the backend finishes", func(c *net.TCPConn) { io.WriteString(c, "x") }, func(t testing.TB, c net.Conn) {
			harness.Expect(t, c, "\x82\x01x"+closing(normal, ""))
			harness.Send(t, c, answer(normal))
			harness.ExpectEnd(t, c)
		}, "backend", "fin", 0},
		{"the backend resets", func(c *net.TCPConn) {
			io.WriteString(c, "x")
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
		}, func(t testing.TB, c net.Conn) {
			harness.Expect(t, c, "\x82\x01x")
			harness.Send(t, c, harness.Masked(binaryFrame, "y"))
			harness.ExpectAll(t, c, closing(internal, ""))
		}, "backend", "reset", 1},
		{"a frame that is not masked", echoes, func(t testing.TB, c net.Conn) {
			harness.Send(t, c, "\x82\x01x")
			harness.ExpectAll(t, c, closing(protocol, ""))
		}, "client", "error", 0},
		{"a continuation of nothing", echoes, func(t testing.TB, c net.Conn) {
			harness.Send(t, c, harness.Masked(continuation, "x"))
			harness.ExpectAll(t, c, closing(protocol, ""))
		}, "client", "error", 0},
		{"a message within a message", echoes, refused(harness.Masked(fragment, "x")+harness.Masked(binaryFrame, "y"), "\x82\x01x", protocol), "client", "error", 1},
		{"reserved bits", echoes, refused(harness.Masked(0xc2, "x"), "", protocol), "client", "error", 0},
		{"an opcode that is none", echoes, refused(harness.Masked(0x83, "x"), "", protocol), "client", "error", 0},
		{"a ping in fragments", echoes, refused(harness.Masked(0x09, "x"), "", protocol), "client", "error", 0},
		{"a ping of 126 bytes", echoes, refused(harness.FrameHead(pingFrame, 126, 0x80), "", protocol), "client", "error", 0},
		{"a frame of 2^63 bytes", echoes, refused("\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00mask", "", protocol), "client", "error", 0},
		{"a frame of 2^64 - 1 bytes", echoes, refused("\x82\xff\xff\xff\xff\xff\xff\xff\xff\xffmask", "", protocol), "client", "error", 0},
		{"a frame of 2^63 - 1 bytes", echoes, refused("\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xffmask", "", tooBig), "client", "error", 0},
		{"a message that is too large by a byte", echoes, refused(harness.FrameHead(binaryFrame, 16<<20+1, 0x80)+"mask", "", tooBig), "client", "error", 0},
		{"the same by its second fragment", echoes, refused(harness.Masked(fragment, "x")+harness.FrameHead(lastFragment, 16<<20, 0x80)+"mask", "\x82\x01x", tooBig), "client", "error", 1},
		{"a close of one byte", echoes, refused(answer("\x03"), "", protocol), "client", "error", 0},
		{"a close with a code that must not be sent", echoes, refused(answer("\x03\xed"), "", protocol), "client", "error", 0},
		{"a reason that is no text", echoes, func(t testing.TB, c net.Conn) {
			harness.Send(t, c, answer(normal+"\xff"))
			harness.ExpectAll(t, c, closing(invalid, ""))
		}, "client", "error", 0},
	} {
		for way, flags := range waysOfWebSockets {
			for via, config := range map[string]*tls.Config{"websocket": nil, "websocket+tls": trusting} {
				t.Run(tt.name+"/"+way+"/"+via, func(t *testing.T) {
					t.Parallel()
					p := harness.Start(t, slices.Concat(tlsFlags, flags)...)
					c := openWebSocket(t, harness.ConnectWith(t, p.Addr, config), harness.StartBackend(t, tt.backend), "")
					tt.client(t, c)
					l := p.Log.WaitClient(t, "tunnel", c.LocalAddr().String())
					if l["via"] != via || l["ended_by"] != tt.by || l["how"] != tt.how || l["up"] != float64(tt.up) {
						t.Errorf("logged as %v, want %s %s, %d up", l, tt.by, tt.how, tt.up)
					}
				})
			}
		}
	}
}

// Whatever a client has sent before its tunnel goes to a loop comes before its end.
func TestWhatComesWithTheHandshakeComesBeforeTheEnd(t *testing.T) {
	t.Parallel()
	tlsFlags, trusting := harness.TLSFlags(t)
	for way, flags := range waysOfWebSockets {
		for inside, config := range map[string]*tls.Config{"": nil, " inside TLS": trusting} {
			for name, tt := range map[string]struct{ end, code, how string }{
				"a close":          {harness.Masked(harness.CloseFrame, "\x03\xe8"), "\x03\xe8", "fin"},
				"an error":         {harness.Masked(harness.CloseFrame, "\x03\xf3"), "\x03\xf3", "reset"},
				"what is no frame": {"\xff\xff", "\x03\xea", "error"},
			} {
				t.Run(name+"/"+way+inside, func(t *testing.T) {
					t.Parallel()
					p := harness.Start(t, slices.Concat(tlsFlags, flags)...)
					got := make(chan string, 1)
					backend := harness.StartBackend(t, func(c *net.TCPConn) {
						b, _ := io.ReadAll(c)
						got <- string(b)
					})
					c := openWebSocket(t, harness.ConnectWith(t, p.Addr, config), backend, harness.Masked(binaryFrame, "first")+tt.end)
					harness.ExpectAll(t, c, harness.Frame(harness.CloseFrame, tt.code))
					l := p.Log.WaitClient(t, "tunnel", c.LocalAddr().String())
					if l["how"] != tt.how || l["ended_by"] != "client" || l["up"] != 5.0 {
						t.Errorf("logged as %v", l)
					}
					if b := <-got; b != "first" && tt.how == "fin" { // a reset may overtake it
						t.Errorf("the backend got %q", b)
					}
				})
			}
		}
	}
}

func TestASilentWebSocketIsPingedByEveryWay(t *testing.T) {
	t.Parallel()
	tlsFlags, trusting := harness.TLSFlags(t)
	for way, flags := range waysOfWebSockets {
		for inside, config := range map[string]*tls.Config{"": nil, " inside TLS": trusting} {
			t.Run(way+inside, func(t *testing.T) {
				t.Parallel()
				p := harness.Start(t, slices.Concat(tlsFlags, flags, []string{"-keepalive=400ms"})...)
				backend := harness.StartBackend(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
				c := openWebSocket(t, harness.ConnectWith(t, p.Addr, config), backend, "")
				for range 2 {
					harness.Expect(t, c, "\x89\x00")
					harness.Send(t, c, harness.Masked(pongFrame, ""))
				}
				harness.Expect(t, c, "\x89\x00\x88\x02\x03\xe9")
				harness.ExpectEnd(t, c)
				l := p.Log.WaitClient(t, "tunnel", c.LocalAddr().String())
				if l["ended_by"] != "client" || l["how"] != "timeout" {
					t.Errorf("logged as %v", l)
				}
			})
		}
	}
}

func TestAWebSocketAtRestHasTwoDescriptorsAndNoGoroutine(t *testing.T) {
	t.Parallel()
	backend := harness.StartBackend(t, func(c *net.TCPConn) { io.Copy(c, struct{ io.Reader }{c}) })
	p := harness.Start(t, harness.WithPprof)
	open := func() {
		c := openWebSocket(t, harness.Connect(t, p.Addr), backend, harness.Masked(binaryFrame, "x"))
		harness.Expect(t, c, "\x82\x01x")
	}
	open() // whatever is made once
	before, heap := p.Rest(t), p.LiveMemory(t)
	const count = 600
	for range count {
		open()
	}
	p.WaitForRest(t, harness.AtRest{Goroutines: before.Goroutines, Descriptors: before.Descriptors + 2*count})
	p.WaitForMemory(t, heap, count, 4<<10) // 1.3 KiB; goroutines would add 8
}

// Wherever a WebSocket is when its process is replaced, the next one goes on.
func TestWebSocketsMoveInAnUpgrade(t *testing.T) {
	t.Parallel()
	u := harness.StartUpgradable(t, "-keepalive=1h")
	gate := make(chan struct{})
	backend := harness.StartBackend(t, func(c *net.TCPConn) { io.Copy(c, struct{ io.Reader }{c}) })
	silent := harness.StartBackend(t, func(c *net.TCPConn) { <-gate; io.Copy(c, struct{ io.Reader }{c}) })
	stream := harness.Masked(fragment, "one ") + harness.Masked(pingFrame, "ping") + harness.Masked(lastFragment, "two ") +
		harness.Masked(binaryFrame, strings.Repeat("three", 100)) + harness.Masked(harness.CloseFrame, "\x03\xe8")
	var clients []*net.TCPConn
	var sent []int
	for at := 0; at < len(stream); at += 7 { // within heads, keys, payloads and control frames
		c := openWebSocket(t, harness.Connect(t, u.Addr), backend, stream[:at])
		clients, sent = append(clients, c), append(sent, at)
	}
	full := openWebSocket(t, harness.Connect(t, u.Addr), silent, "") // whose ping waits until something is read
	const pieces = 64
	piece := harness.Masked(binaryFrame, strings.Repeat("p", 1<<10))
	harness.Send(t, full, strings.Repeat(piece, pieces))
	for range 2 {
		old := u.Main
		u.Upgrade(t)
		harness.WaitGone(t, old)
	}
	for i, c := range clients {
		harness.Send(t, c, stream[sent[i]:])
		var got, pong, end string
		for end == "" {
			first, payload := readFrame(t, c)
			switch first {
			case pongFrame:
				pong += payload
			case binaryFrame:
				got += payload
			default:
				end = harness.Frame(first, payload)
			}
		}
		want := "one two " + strings.Repeat("three", 100)
		if !strings.HasPrefix(want, got) || pong != "ping" || end != "\x88\x02\x03\xe8" {
			t.Errorf("cut at %d: %q, pong %q, end %q", sent[i], got, pong, end)
		}
	}
	close(gate)
	for got := 0; got < pieces<<10; {
		first, payload := readFrame(t, full)
		if first != binaryFrame || strings.Trim(payload, "p") != "" {
			t.Fatalf("a frame of %q is %.40q", first, payload)
		}
		got += len(payload)
	}
	full.Close()
	u.EndMain(t)
}

// readFrame reads a frame of a server.
func readFrame(t testing.TB, c net.Conn) (first byte, payload string) {
	t.Helper()
	head := make([]byte, 4)
	if _, err := io.ReadFull(c, head[:2]); err != nil {
		t.Fatal(err)
	}
	n := int(head[1])
	if n == 126 {
		io.ReadFull(c, head[2:])
		n = int(head[2])<<8 | int(head[3])
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return head[0], string(b)
}

// TestTheAccountHasWhatTheClientGotAndNoMore has a backend go on to speak to a client
// that has said Close.
func TestTheAccountHasWhatTheClientGotAndNoMore(t *testing.T) {
	t.Parallel()
	for way, flags := range waysOfWebSockets {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			p := harness.Start(t, flags...)
			backend := harness.StartBackend(t, func(c *net.TCPConn) {
				io.WriteString(c, "hello")
				io.Copy(io.Discard, c)
				io.WriteString(c, strings.Repeat("late", 1000))
			})
			c := openWebSocket(t, harness.Connect(t, p.Addr), backend, "")
			harness.Expect(t, c, "\x82\x05hello")
			harness.Send(t, c, harness.Masked(harness.CloseFrame, "\x03\xe8"))
			rest, err := io.ReadAll(c)
			if err != nil {
				t.Fatal(err)
			}
			got := len("hello") + strings.Count(string(rest), "late")*len("late")
			line := p.Log.WaitClient(t, "tunnel", c.LocalAddr().String())
			if line["down"] != float64(got) {
				t.Errorf("the client got %d bytes, the log says %v", got, line)
			}
		})
	}
}
