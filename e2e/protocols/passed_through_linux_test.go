package protocols

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// A WebSocket that goes through to its backend is TCP after its 101, and the event
// loops relay it.

// passThrough opens a WebSocket that goes through to backend, inside TLS if there is a
// configuration for it, and sends more at once.
func passThrough(t testing.TB, p *harness.Process, config *tls.Config, backend, more string) net.Conn {
	t.Helper()
	c := harness.ConnectWith(t, p.Addr, config)
	harness.Send(t, c, harness.Upgrade("/play", "X-Cipher-Origin: "+harness.Sealed(backend))+more)
	harness.Expect(t, c, harness.Agreed+"\r\n")
	return c
}

func TestAPassedThroughWebSocketEndsAsATunnelDoes(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("0123456789abcdef", 1<<16)
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, append(flags, "-half-close-timeout=2s")...)
	leave := make(chan struct{}, 1)
	for _, tt := range []struct {
		name     string
		backend  func(c *net.TCPConn)
		client   func(t testing.TB, c net.Conn)
		by, how  string
		up, down int
	}{
		{
			"the client finishes first", func(c *net.TCPConn) {
				b, _ := io.ReadAll(c)
				c.Write(append(b, '!'))
			}, func(t testing.TB, c net.Conn) {
				harness.Send(t, c, big)
				harness.HalfClose(t, c)
				harness.Expect(t, c, "early"+big+"!")
				harness.ExpectEnd(t, c)
			}, "client", "fin", 5 + len(big), 6 + len(big),
		},
		{
			"the backend finishes first", func(c *net.TCPConn) {
				io.WriteString(c, big)
				c.CloseWrite()
				io.Copy(io.Discard, c)
			}, func(t testing.TB, c net.Conn) {
				harness.Expect(t, c, big)
				harness.ExpectEnd(t, c)
				harness.Send(t, c, "late")
				c.Close()
			}, "backend", "fin", 9, len(big),
		},
		{
			"the client resets", func(c *net.TCPConn) { io.Copy(io.Discard, c) },
			func(t testing.TB, c net.Conn) {
				harness.Reset(c)
			}, "client", "reset", 5, 0,
		},
		{
			"the backend resets", func(c *net.TCPConn) {
				io.WriteString(c, "last")
				io.ReadFull(c, make([]byte, len("earlygo")))
				c.SetLinger(0)
			}, func(t testing.TB, c net.Conn) {
				harness.Expect(t, c, "last")
				harness.Send(t, c, "go")
				harness.ExpectEnd(t, c)
			}, "backend", "reset", 7, 4,
		},
		{
			"one side has finished and nothing moves", func(c *net.TCPConn) {
				io.Copy(io.Discard, c) // up to the client's end
				<-leave
			}, func(t testing.TB, c net.Conn) {
				harness.HalfClose(t, c)
				harness.ExpectEnd(t, c)
				leave <- struct{}{}
			}, "gateway", "timeout", 5, 0,
		},
	} {
		for via, config := range map[string]*tls.Config{"upgrade": nil, "upgrade+tls": trusting} {
			t.Run(tt.name+"/"+via, func(t *testing.T) {
				backend := harness.StartBackend(t, func(c *net.TCPConn) {
					readHead(t, c)
					io.WriteString(c, harness.Agreed+"\r\n")
					tt.backend(c)
				})
				c := passThrough(t, p, config, backend, "early")
				tt.client(t, c)
				l := p.Log.WaitClient(t, "request", c.LocalAddr().String())
				if l["via"] != via || l["method"] != "GET" || l["status"] != 101.0 ||
					l["ended_by"] != tt.by || l["how"] != tt.how ||
					l["up"] != float64(tt.up) || l["down"] != float64(tt.down) {
					t.Errorf("logged as %v, want %+v", l, tt)
				}
			})
		}
	}
}

func TestAPassedThroughWebSocketAtRestHasTwoDescriptorsAndNoGoroutine(t *testing.T) {
	t.Parallel()
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		readHead(t, c)
		io.WriteString(c, harness.Agreed+"\r\n"+"hello") // in one segment
		io.Copy(c, struct{ io.Reader }{c})
	})
	p := harness.Start(t, harness.WithPprof)
	open := func() { harness.Expect(t, passThrough(t, p, nil, backend, "a"), "helloa") }
	open() // whatever is made once
	before, heap := p.Rest(t), p.LiveMemory(t)
	const count = 600
	for range count {
		open()
	}
	p.WaitForRest(t, harness.AtRest{Goroutines: before.Goroutines, Descriptors: before.Descriptors + 2*count})
	p.WaitForMemory(t, heap, count, 4<<10) // .6 KiB among many more
}
