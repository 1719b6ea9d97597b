package process

import (
	"bytes"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"gateway/internal/harness"
)

// A tunnel whose client speaks TLS behaves the same by every way that its bytes may go:
// in a loop with an io_uring, in one without, and by goroutines (waysOfWebSockets).

// openTLS opens a tunnel inside TLS that leads to a backend, and sends more at once.
func openTLS(t testing.TB, addr string, config *tls.Config, backend, more string) *tls.Conn {
	t.Helper()
	c := harness.Handshake(t, harness.Connect(t, addr), config)
	harness.Send(t, c, harness.Line(backend)+more)
	harness.Expect(t, c, "200")
	return c
}

// versionsOfTLS returns a configuration for each version.
func versionsOfTLS(config *tls.Config) map[string]*tls.Config {
	all := make(map[string]*tls.Config)
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		all[tls.VersionName(v)] = config.Clone()
		all[tls.VersionName(v)].MinVersion, all[tls.VersionName(v)].MaxVersion = v, v
	}
	return all
}

// lastRecord reads the records that a client's socket still gets, and returns the type
// and the length of the last.
func lastRecord(t testing.TB, c net.Conn) (kind byte, size int) {
	t.Helper()
	for head := make([]byte, 5); ; {
		if _, err := io.ReadFull(c, head); err == io.EOF || err != nil && harness.IsReset(err) {
			return kind, size
		} else if err != nil {
			t.Fatal(err)
		}
		kind, size = head[0], int(head[3])<<8|int(head[4])
		if _, err := io.CopyN(io.Discard, c, int64(size)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestATunnelInsideTLSBehavesTheSameByEveryWay(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	big := strings.Repeat("0123456789abcdef", 1<<16)
	echoes := func(c *net.TCPConn) { io.Copy(c, struct{ io.Reader }{c}) }
	for _, tt := range []struct {
		name     string
		backend  func(c *net.TCPConn)
		client   func(t testing.TB, c *tls.Conn)
		by, how  string
		up, down int
	}{
		{"messages", echoes, func(t testing.TB, c *tls.Conn) {
			for _, message := range []string{"one", "two", strings.Repeat("three", 5000)} {
				harness.Echo(t, c, message)
			}
			harness.HalfClose(t, c)
			harness.ExpectEnd(t, c)
		}, "client", "fin", 25006, 25006},
		{"the client finishes first, and reads on", func(c *net.TCPConn) {
			b, _ := io.ReadAll(c)
			io.WriteString(c, string(b)+big)
		}, func(t testing.TB, c *tls.Conn) {
			harness.Send(t, c, big)
			harness.HalfClose(t, c)
			harness.Expect(t, c, big+big)
			harness.ExpectEnd(t, c)
		}, "client", "fin", 1 << 20, 2 << 20},
		{"the backend finishes first, and reads on", func(c *net.TCPConn) {
			io.WriteString(c, big)
			c.CloseWrite()
			if n, err := io.Copy(io.Discard, c); n != 1<<20 || err != nil {
				t.Errorf("the backend read %d bytes, %v", n, err)
			}
		}, func(t testing.TB, c *tls.Conn) {
			harness.Expect(t, c, big)
			harness.ExpectEnd(t, c)
			harness.Send(t, c, big)
			c.Close()
		}, "backend", "fin", 1 << 20, 1 << 20},
		{"the client finishes by a FIN alone", func(c *net.TCPConn) {
			b, _ := io.ReadAll(c)
			io.WriteString(c, string(b)+"!")
		}, func(t testing.TB, c *tls.Conn) {
			harness.Send(t, c, "last")
			harness.Socket(c).CloseWrite()
			harness.Expect(t, c, "last!")
			harness.ExpectEnd(t, c)
		}, "client", "fin", 4, 5},
		{"a FIN within a record", func(c *net.TCPConn) {
			b, _ := io.ReadAll(c)
			io.WriteString(c, string(b)+"!")
		}, func(t testing.TB, c *tls.Conn) {
			harness.Send(t, c, "last")
			harness.Send(t, harness.Socket(c), "\x17\x03\x03\x40\x00half of it")
			harness.Socket(c).CloseWrite()
			harness.Expect(t, c, "last!")
			harness.ExpectEnd(t, c)
		}, "client", "fin", 4, 5},
		{"the client resets", echoes, func(t testing.TB, c *tls.Conn) { harness.Reset(c) }, "client", "reset", 0, 0},
		{"the backend resets", func(c *net.TCPConn) {
			io.WriteString(c, "last")
			io.ReadFull(c, make([]byte, 2))
			c.SetLinger(0)
		}, func(t testing.TB, c *tls.Conn) {
			harness.Expect(t, c, "last")
			harness.Send(t, c, "go")
			// A FIN, and no close_notify: that what came is all nobody has said.
			if kind, _ := lastRecord(t, harness.Socket(c)); kind != 0 {
				t.Errorf("the client got a record of type %d", kind)
			}
		}, "backend", "reset", 2, 4},
		{"a record that is none", echoes, func(t testing.TB, c *tls.Conn) {
			harness.Echo(t, c, "x")
			harness.Send(t, harness.Socket(c), "\x17\x03\x03\x00\x20"+strings.Repeat("*", 32))
			if kind, size := lastRecord(t, harness.Socket(c)); kind != 0x15 && kind != 0x17 || size < 2 {
				t.Errorf("the client got a record of type %d, of %d bytes, no alert", kind, size)
			}
		}, "client", "error", 1, 1},
		{"no TLS at all", echoes, func(t testing.TB, c *tls.Conn) {
			harness.Echo(t, c, "x")
			harness.Send(t, harness.Socket(c), "GET / HTTP/1.1\r\n\r\n")
			if kind, size := lastRecord(t, harness.Socket(c)); kind != 0x15 && kind != 0x17 || size < 2 {
				t.Errorf("the client got a record of type %d, of %d bytes, no alert", kind, size)
			}
		}, "client", "error", 1, 1},
	} {
		for way, more := range waysOfWebSockets {
			for version, config := range versionsOfTLS(trusting) {
				t.Run(tt.name+"/"+way+"/"+version, func(t *testing.T) {
					t.Parallel()
					p := harness.Start(t, slices.Concat(flags, more)...)
					c := openTLS(t, p.Addr, config, harness.StartBackend(t, tt.backend), "")
					tt.client(t, c)
					l := p.Log.WaitClient(t, "tunnel", c.LocalAddr().String())
					if l["via"] != "line+tls" || l["ended_by"] != tt.by || l["how"] != tt.how ||
						l["up"] != float64(tt.up) || l["down"] != float64(tt.down) {
						t.Errorf("logged as %v, want %s %s, %d up, %d down", l, tt.by, tt.how, tt.up, tt.down)
					}
				})
			}
		}
	}
}

// What the gateway itself ends gets no close_notify: it was not the backend's end.
func TestTheGatewayEndsTunnelsInsideTLSAsOthersByEveryWay(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	for _, tt := range []struct {
		name, flag string
		end        func(t testing.TB, p *harness.Process, c *tls.Conn)
		how, limit string
	}{
		{"idle", "-idle-timeout=500ms", func(testing.TB, *harness.Process, *tls.Conn) {}, "timeout", "idle"},
		{"half-closed", "-half-close-timeout=500ms", func(t testing.TB, _ *harness.Process, c *tls.Conn) { harness.HalfClose(t, c) }, "timeout", "half_close"},
		{"drained", "-drain=300ms", func(t testing.TB, p *harness.Process, _ *tls.Conn) { p.Signal(t, syscall.SIGTERM) }, "shutdown", "drain"},
		{"cut", "-log-tunnels=end", func(t testing.TB, p *harness.Process, _ *tls.Conn) {
			stdout, stderr, code := harness.Run(t, nil, "-admin="+adminOf(p), "-cut=client=127.0.0.0/8")
			if code != harness.ExitOK || stdout != "tunnels cut: 1\n" {
				t.Errorf("exit %d, %q, %q", code, stdout, stderr)
			}
		}, "cut", ""},
	} {
		for way, more := range waysOfWebSockets {
			t.Run(tt.name+"/"+way, func(t *testing.T) {
				t.Parallel()
				admin := "-admin=unix:" + filepath.Join(t.TempDir(), "admin")
				p := harness.Start(t, slices.Concat(flags, more, []string{tt.flag, admin})...)
				leave := make(chan struct{})
				c := openTLS(t, p.Addr, trusting, harness.StartBackend(t, func(*net.TCPConn) { <-leave }), "")
				defer close(leave)
				tt.end(t, p, c)
				if kind, _ := lastRecord(t, harness.Socket(c)); kind != 0 && kind != 0x17 { // tickets
					t.Errorf("the client got a record of type %d", kind)
				}
				l := p.Log.WaitClient(t, "tunnel", c.LocalAddr().String())
				if limit, _ := l["limit"].(string); l["ended_by"] != "gateway" || l["how"] != tt.how || limit != tt.limit {
					t.Errorf("logged as %v", l)
				}
			})
		}
	}
}

// adminOf returns the admin address that a process was started with.
func adminOf(p *harness.Process) string {
	for _, arg := range p.Cmd.Args {
		if addr, ok := strings.CutPrefix(arg, "-admin="); ok {
			return addr
		}
	}
	return ""
}

// A client that does not read is waited for, and what is for it stays in its backend.
func TestAStalledReaderInsideTLSHoldsItsBackend(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	const much = 64 << 20
	for way, more := range waysOfWebSockets {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			p := harness.Start(t, slices.Concat(flags, more, []string{harness.WithPprof})...)
			var sent atomic.Int64
			c := openTLS(t, p.Addr, trusting, harness.StartBackend(t, func(c *net.TCPConn) {
				for piece := make([]byte, 64<<10); sent.Load() < much; sent.Add(int64(len(piece))) {
					if _, err := c.Write(piece); err != nil {
						t.Errorf("the backend: %v", err)
						return
					}
				}
			}), "")
			var last int64
			same := 0
			harness.Eventually(t, "the backend is held", func() bool {
				now := sent.Load()
				if same++; now != last || now == 0 {
					last, same = now, 0
				}
				return same == 10
			})
			if last == much {
				t.Fatal("everything was taken from the backend")
			}
			if heap := p.LiveHeap(t); heap > 16<<20 {
				t.Errorf("the gateway holds %d bytes", heap)
			}
			n, err := io.Copy(io.Discard, c)
			if n != much || err != nil {
				t.Errorf("read %d bytes, %v", n, err)
			}
		})
	}
}

func TestWhatRestsInsideTLSHasTwoDescriptorsAndNoGoroutine(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	echo := harness.StartEcho(t)
	speaks := harness.StartBackend(t, func(c *net.TCPConn) {
		for head := ""; !strings.HasSuffix(head, "\r\n\r\n"); {
			one := make([]byte, 1)
			if _, err := io.ReadFull(c, one); err != nil {
				return
			}
			head += string(one)
		}
		io.WriteString(c, harness.Agreed+"\r\n")
		io.Copy(c, struct{ io.Reader }{c})
	})
	for _, tt := range []struct {
		name string
		most int // bytes of each
		open func(t testing.TB, p *harness.Process)
	}{
		{"a tunnel", 8 << 10, func(t testing.TB, p *harness.Process) {
			harness.Echo(t, openTLS(t, p.Addr, trusting, echo, ""), strings.Repeat("x", 20_000))
		}},
		{"a WebSocket that ends here", 10 << 10, func(t testing.TB, p *harness.Process) {
			c := openWebSocket(t, harness.Handshake(t, harness.Connect(t, p.Addr), trusting), echo, harness.Masked(binaryFrame, "x"))
			harness.Expect(t, c, "\x82\x01x")
		}},
		{"a WebSocket that is passed through", 8 << 10, func(t testing.TB, p *harness.Process) {
			c := harness.Handshake(t, harness.Connect(t, p.Addr), trusting)
			harness.Send(t, c, harness.Upgrade("/play", "X-Cipher-Origin: "+harness.Sealed(speaks)))
			harness.Expect(t, c, harness.Agreed+"\r\n")
			harness.Echo(t, c, "x")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := harness.Start(t, slices.Concat(flags, []string{harness.WithPprof})...)
			tt.open(t, p) // whatever is made once
			before, heap := p.Rest(t), p.LiveMemory(t)
			const count = 400
			for range count {
				tt.open(t, p)
			}
			p.WaitForRest(t, harness.AtRest{Goroutines: before.Goroutines, Descriptors: before.Descriptors + 2*count})
			p.WaitForMemory(t, heap, count, tt.most)
		})
	}
}

// Messages of many tunnels go in batches, in slots of 2 KiB: records may have more than
// those have room for, and a message and its answer may be in one batch.
func TestManyInsideTLSGetTheirOwnBytesInBatches(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	backend := harness.StartEcho(t)
	for way, more := range waysOfWebSockets {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			p := harness.Start(t, slices.Concat(flags, []string{"-loops=1"}, more)...)
			var all sync.WaitGroup
			for i := range 16 {
				c := openTLS(t, p.Addr, trusting, backend, "")
				r := rand.New(rand.NewPCG(uint64(i), 0))
				goods := harness.Noise(uint64(i), 100_000)
				all.Go(func() {
					for rest := goods; len(rest) > 0; {
						n := min(len(rest), 1+r.IntN(100))
						if r.IntN(4) > 0 {
							n = min(len(rest), 1900+r.IntN(300))
						}
						if _, err := c.Write(rest[:n]); err != nil {
							t.Error(err)
							return
						}
						rest = rest[n:]
						if r.IntN(8) == 0 {
							runtime.Gosched()
						}
					}
				})
				all.Go(func() {
					back := make([]byte, len(goods))
					if _, err := io.ReadFull(c, back); err != nil || !bytes.Equal(back, goods) {
						t.Errorf("others came back, or none: %v", err)
					}
				})
			}
			all.Wait()
		})
	}
}

// What is inside TLS cannot move to another process: crypto/tls does not tell what it
// knows. It goes on in the old one, which ends with the last of it.
func TestWhatIsInsideTLSStaysInTheOldProcessOfAnUpgrade(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	backend := harness.StartEcho(t)
	u := harness.StartUpgradable(t, flags...)
	old := u.Main
	plain := harness.OpenTunnel(t, u.Addr, backend)
	tunnel := openTLS(t, u.Addr, trusting, backend, "")
	ws := openWebSocket(t, harness.Handshake(t, harness.Connect(t, u.Addr), trusting), backend, "")
	say := func() {
		t.Helper()
		harness.Echo(t, plain, "moves")
		harness.Echo(t, tunnel, "stays")
		harness.Send(t, ws, harness.Masked(binaryFrame, "so does this"))
		harness.Expect(t, ws, "\x82\x0cso does this")
	}
	say()
	u.Upgrade(t)
	say()
	after := openTLS(t, u.Addr, trusting, backend, "")
	harness.Echo(t, after, "new")
	harness.HalfClose(t, tunnel)
	harness.ExpectEnd(t, tunnel)
	harness.Send(t, ws, harness.Masked(harness.CloseFrame, "\x03\xe8"))
	harness.Expect(t, ws, "\x88\x02\x03\xe8")
	harness.WaitGone(t, old)
	harness.Echo(t, after, "goes on")
	harness.HalfClose(t, after)
	harness.ExpectEnd(t, after)
	harness.Echo(t, plain, "has moved")
	harness.Finish(t, plain)
	for _, c := range []net.Conn{tunnel, ws} {
		if l := u.Log.WaitClient(t, "tunnel", c.LocalAddr().String()); l["how"] != "fin" || l["ended_by"] != "client" {
			t.Errorf("logged as %v", l)
		}
	}
	u.EndMain(t)
}
