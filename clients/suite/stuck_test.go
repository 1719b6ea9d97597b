package suite

import (
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/harness"
)

// testStuck has the network path go dead while a kit writes: what carries the tunnel takes
// nothing more, and says nothing. So it is with the first attempt to resume, in the frames
// behind its line. A kit gets on when it is told of another network, when its time is over,
// and when it is to end: closing never waits for a write. The milliseconds are those of an
// attempt to resume.
func testStuck(t *testing.T, k *kit, command []string) {
	const size = "200000" // less than the session's window, more than the sockets take
	line := harness.Sealed(harness.StartEcho(t))
	stick := func(scheme, gateway string, command []string, opening int64) {
		for mode, want := range map[string]string{"told": "ok " + size + " resumed", "silent": "ok " + size + " resumed", "leave": "closed in time"} {
			proxy := holes(t, gateway, opening+1000, opening+400)
			if got := run(t, "", command, mode, scheme+proxy, line, "1500", size); got != want {
				t.Errorf("%s by %q: the driver prints %q, want %q", mode, scheme, got, want)
			}
		}
	}
	stick("", harness.Start(t, "-resume=1").Addr, command, 0)
	if !slices.Contains(k.without, "TLS") {
		cert, key, _ := harness.TLSFiles(t)
		command = append([]string{"env", "CA=" + cert, "CA_NAME=play.example.com"}, command...)
		stick("tls://", harness.Start(t, "-resume=1", "-tls-cert="+cert, "-tls-key="+key).Addr, command, 2000)
	}
}

// holes is a proxy in front of a gateway whose first connections take nothing more after so
// many bytes from the client. The first one falls silent then; the others are from the
// beginning, else they were answered, and waited for once more.
func holes(t *testing.T, gateway string, after ...int64) string {
	t.Helper()
	ln := narrow(t)
	end := make(chan struct{})
	var relaying sync.WaitGroup
	t.Cleanup(func() {
		close(end)
		ln.Close()
		relaying.Wait()
	})
	relay := func(c net.Conn, n int64, mute bool) {
		defer c.Close()
		g, err := net.Dial("tcp", gateway)
		if err != nil {
			t.Error(err)
			return
		}
		defer g.Close()
		back := make(chan struct{})
		var silent atomic.Bool
		silent.Store(mute)
		relaying.Go(func() {
			defer close(back)
			for b := make([]byte, 4096); ; {
				m, err := g.Read(b)
				if silent.Load() {
					return
				}
				if _, failed := c.Write(b[:m]); err != nil || failed != nil {
					c.(*net.TCPConn).CloseWrite()
					return
				}
			}
		})
		if n > 0 {
			io.CopyN(g, c, n)
			silent.Store(true)
			<-end
		} else {
			c.(*net.TCPConn).SetReadBuffer(1 << 20) // a narrow one takes what it takes slowly
			io.Copy(g, c)
			g.(*net.TCPConn).CloseWrite()
			<-back
		}
	}
	relaying.Go(func() {
		for conn := 0; ; conn++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			n := int64(0)
			if conn < len(after) {
				n = after[conn]
			}
			relaying.Go(func() { relay(c, n, n > 0 && conn > 0) })
		}
	})
	return ln.Addr().String()
}

// testFlapping has a gateway answer each attempt to resume by 200, and end it at once: a kit
// must not try again without a pause, and goes on when the gateway is well again.
func testFlapping(t *testing.T, _ *kit, command []string) {
	const ill = 3 * time.Second
	// 50 ms, 100 ms and so on up to 1 s, before what is added by chance.
	const most, least = 8, 3
	gateway := harness.Start(t, "-resume=1").Addr
	var since atomic.Int64
	var attempts atomic.Int32
	through, _ := cutter(t, gateway, func(conn int) (up, down int) {
		if conn == 0 {
			return 8000, 8000
		}
		return -1, -1
	})
	proxy := harness.StartBackend(t, func(c *net.TCPConn) {
		line := make([]byte, 4)
		if _, err := io.ReadFull(c, line); err != nil {
			return
		}
		if strings.HasPrefix(string(line), "~1R") {
			since.CompareAndSwap(0, time.Now().UnixNano())
			if time.Since(time.Unix(0, since.Load())) < ill {
				attempts.Add(1)
				io.WriteString(c, "200")
				c.CloseWrite()
				io.Copy(io.Discard, c)
				return
			}
		}
		g, err := net.Dial("tcp", through)
		if err != nil {
			t.Error(err)
			return
		}
		defer g.Close()
		g.Write(line)
		var copying sync.WaitGroup
		copying.Go(func() {
			io.Copy(g, struct{ io.Reader }{c})
			g.(*net.TCPConn).CloseWrite()
		})
		io.Copy(c, struct{ io.Reader }{g})
		c.CloseWrite()
		copying.Wait()
	})
	expect(t, "ok 65536 resumed", run(t, "", command, "bulk", proxy, harness.Sealed(harness.StartEcho(t)), ms, "65536"))
	if n := attempts.Load(); n > most || n < least {
		t.Errorf("%d attempts in %v, want %d to %d", n, ill, least, most)
	}
}
