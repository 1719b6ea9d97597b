package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
)

// onEveryRelay runs a test against each relayer, and on Linux with splicing
// and without, all at once; with -short on one loop and on goroutines only.
func onEveryRelay(t *testing.T, test func(t *testing.T, g *testGateway)) {
	onEveryRelayWith(t, func(*Config) {}, test)
}

func onEveryRelayWith(t *testing.T, configure func(*Config), test func(t *testing.T, g *testGateway)) {
	for name, choose := range map[string]func(*Config){
		"goroutines":   func(cfg *Config) { cfg.Loops = -1 },
		"one loop":     func(cfg *Config) { cfg.Loops = 1 },
		"three loops":  func(cfg *Config) { cfg.Loops = 3 },
		"no io_uring":  func(cfg *Config) { cfg.IOUring = false },
		"only copying": func(cfg *Config) { cfg.Splice = false },
		"tiny buffer":  func(cfg *Config) { cfg.Buffer = 100 },
	} {
		if testing.Short() && name != "goroutines" && name != "one loop" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, startConfigured(t, func(cfg *Config) { choose(cfg); configure(cfg) }, nil))
		})
	}
	for name, disturb := range disturbances {
		if testing.Short() {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := startConfigured(t, func(cfg *Config) { cfg.Loops = 2; configure(cfg) }, nil)
			disturb(t, g)
			test(t, g)
		})
	}
}

// disturbances are what tunnels should not notice.
var disturbances = map[string]func(testing.TB, *testGateway){}

// noise returns n bytes that differ everywhere.
func noise(seed uint64, n int) []byte {
	var key [32]byte
	key[0] = byte(seed)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

// isReset tells a reset from a FIN.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func TestBytesOfEverySizeArriveWholeBothWays(t *testing.T) {
	t.Parallel()
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		backend := startEcho(t)
		for _, n := range []int{0, 1, 3, 16383, 16384, 16385, 65536, 1<<20 + 1, 10 << 20} {
			want := noise(uint64(n), n)
			c := openTunnel(t, g.addr, backend)
			go func() {
				c.Write(want)
				c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(want) {
				t.Errorf("of %d bytes %d came back, not the same (%v)", n, len(got), err)
			}
		}
	})
}

func TestAClientMayFinishFirstAndStillGetEverything(t *testing.T) {
	t.Parallel()
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		reply := string(noise(1, 3<<20))
		c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
			request, err := io.ReadAll(b) // ends with the client's FIN alone
			if string(request) != "a question" || err != nil {
				t.Errorf("backend read %q, %v", request, err)
			}
			io.WriteString(b, reply)
		}))
		send(t, c, "a question")
		c.CloseWrite()
		expectAll(t, c, reply)
	})
}

func TestABackendMayFinishFirstAndStillGetEverything(t *testing.T) {
	t.Parallel()
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		upload := string(noise(2, 3<<20))
		got := make(chan string, 1)
		c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
			io.WriteString(b, "I am done")
			b.CloseWrite()
			all, err := io.ReadAll(b)
			if err != nil {
				t.Errorf("backend: %v", err)
			}
			got <- string(all)
		}))
		expectAll(t, c, "I am done") // the FIN came through, this way only
		send(t, c, upload)
		c.CloseWrite()
		if <-got != upload {
			t.Error("the backend got something else than the client sent after its FIN")
		}
		if line := g.log.waitLine(t, "tunnel", 1); line["ended_by"] != "backend" || line["how"] != "fin" {
			t.Errorf("account: %v", line)
		}
	})
}

func TestNothingIsLostWhenTheBackendClosesRightAfterItsLastByte(t *testing.T) {
	t.Parallel()
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		for i := range 20 {
			payload := string(noise(uint64(i), 1+i*i*7919))
			c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
				io.WriteString(b, payload)
				b.Close()
			}))
			expectAll(t, c, payload)
		}
	})
}

func TestNothingIsLostWhenTheBackendResetsRightAfterItsLastByte(t *testing.T) {
	t.Parallel()
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		for i := range 20 {
			payload := string(noise(uint64(i), 1+i*7919))
			resets := make(chan struct{})
			c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
				io.ReadFull(b, make([]byte, 1)) // the tunnel stands
				io.WriteString(b, payload)
				harness.Delivered(t, b) // or this kernel would drop it
				b.SetLinger(0)
				b.Close()
				close(resets)
			}))
			send(t, c, "?")
			<-resets // and only now the client reads
			expectAll(t, c, payload)
		}
	})
}

func TestASlowReaderGetsEverythingFromABackendThatIsGone(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"close", "reset"} {
		t.Run(end, func(t *testing.T) {
			onEveryRelay(t, func(t *testing.T, g *testGateway) {
				payload := noise(3, 1<<20)
				gone := make(chan struct{})
				c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
					b.Write(payload)
					harness.Delivered(t, b)
					if end == "reset" {
						b.SetLinger(0)
					}
					b.Close()
					close(gone)
				}))
				// A client that goes on sending must not bring a reset on
				// itself, although its backend is not there any more.
				stop := make(chan struct{})
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					for {
						select {
						case <-stop:
							return
						case <-time.After(time.Millisecond):
							if _, err := c.Write([]byte("are you there?")); err != nil {
								return
							}
						}
					}
				}()
				var got bytes.Buffer
				buf := make([]byte, 64<<10)
				for i := 0; ; i++ {
					n, err := c.Read(buf)
					got.Write(buf[:n])
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Fatalf("after %d of %d bytes: %v", got.Len(), len(payload), err)
					}
					if i == 2 {
						<-gone // with most of it still to be read
					}
				}
				close(stop)
				<-sent
				if !bytes.Equal(got.Bytes(), payload) {
					t.Errorf("got %d of %d bytes, or others", got.Len(), len(payload))
				}
			})
		})
	}
}

func TestTheClientsResetReachesTheBackendAsAReset(t *testing.T) {
	t.Parallel()
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		ended := make(chan error, 1)
		c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
			_, err := io.Copy(io.Discard, b)
			ended <- err
		}))
		send(t, c, "x")
		c.SetLinger(0)
		c.Close()
		if err := <-ended; !isReset(err) {
			t.Errorf("the backend's read ended with %v, want a reset", err)
		}
		if line := g.log.waitLine(t, "tunnel", 1); line["ended_by"] != "client" || line["how"] != "reset" {
			t.Errorf("account: %v", line)
		}
	})
}

func TestTheClientsResetAfterTheBackendsFINReachesTheBackend(t *testing.T) {
	t.Parallel()
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		ended := make(chan error, 1)
		c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
			b.CloseWrite()
			_, err := io.Copy(io.Discard, b)
			ended <- err
		}))
		expectAll(t, c, "")
		c.SetLinger(0)
		c.Close()
		if err := <-ended; !isReset(err) {
			t.Errorf("the backend's read ended with %v, want a reset", err)
		}
	})
}

func TestTheBackendsResetBecomesAFIN(t *testing.T) {
	t.Parallel()
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
			io.ReadFull(b, make([]byte, 2))
			b.SetLinger(0)
		}))
		send(t, c, "hi")
		expectAll(t, c, "")
		// A client that keeps its end open does not keep the tunnel.
		if line := g.log.waitLine(t, "tunnel", 1); line["ended_by"] != "backend" || line["how"] != "reset" {
			t.Errorf("account: %v", line)
		}
	})
}

func TestAStalledReaderStopsNeitherTheOtherDirectionNorOtherTunnels(t *testing.T) {
	t.Parallel()
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		pushes := make(chan struct{})
		backend := startBackend(t, func(b *net.TCPConn) {
			go func() {
				defer close(pushes)
				b.Write(make([]byte, 16<<20)) // more than the client will take
			}()
			io.Copy(io.Discard, b)
			b.Close()
			<-pushes
		})
		stalled := openTunnel(t, g.addr, backend)
		harness.SmallBuffers(stalled)
		// It reads nothing, yet everything that it sends gets through.
		if n, err := stalled.Write(noise(4, 4<<20)); err != nil {
			t.Errorf("wrote %d: %v", n, err)
		}
		other := openTunnel(t, g.addr, startEcho(t))
		send(t, other, "hello")
		expect(t, other, "hello")
		stalled.SetLinger(0)
		stalled.Close()
	})
}

// SPLICE_F_MORE, or any other corking, makes a small message wait 200 ms for more.
// What half of them take says so on a machine that is busy, too.
func TestSmallMessagesArrivePromptlyEvenAfterLargeOnes(t *testing.T) {
	t.Parallel()
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		c := openTunnel(t, g.addr, startEcho(t))
		large := string(noise(5, 300<<10))
		var took []time.Duration
		for range 21 {
			go io.WriteString(c, large)
			expect(t, c, large)
			start := time.Now()
			send(t, c, "a small one")
			expect(t, c, "a small one")
			took = append(took, time.Since(start))
		}
		if slices.Sort(took); took[10] > 150*time.Millisecond {
			t.Errorf("half of the small messages took more than %v: are they corked?", took[10])
		}
	})
}

func TestAHalfClosedTunnelEndsByInactivityNotByAge(t *testing.T) {
	t.Parallel()
	const bound = time.Second
	onEveryRelayWith(t, func(cfg *Config) { cfg.HalfCloseTimeout = bound }, func(t *testing.T, g *testGateway) {
		silent := make(chan time.Time, 1)
		seen := make(chan struct{})
		c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
			io.Copy(io.Discard, b) // until the client's FIN
			var last time.Time
			for start := time.Now(); time.Since(start) < 2*bound; time.Sleep(bound / 10) {
				last = time.Now() // at the latest
				b.Write([]byte("."))
			}
			silent <- last
			<-seen // keep the connection
		}))
		c.CloseWrite()
		got, _ := io.ReadAll(c)
		end, last := time.Now(), <-silent
		close(seen)
		if end.Sub(last) < bound/2 {
			t.Errorf("the tunnel ended %v after its last byte (%d bytes), want about %v", end.Sub(last), len(got), bound)
		}
		if line := g.log.waitLine(t, "tunnel", 1); line["ended_by"] != "gateway" || line["how"] != "timeout" {
			t.Errorf("account: %v", line)
		}
	})
}

func TestAnUploadThatIsCutDoesNotLookComplete(t *testing.T) {
	t.Parallel()
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		backend, release, ended := harness.StartStalled(t)
		c := openTunnel(t, g.addr, backend)
		harness.Fill(c)
		g.Close()
		release()
		if err := <-ended; !isReset(err) {
			t.Errorf("the backend was told %v, want a reset", err)
		}
	})
}

func TestAnIdleTunnelThatIsWholeIsLeftAlone(t *testing.T) {
	t.Parallel()
	onEveryRelayWith(t, func(cfg *Config) { cfg.HalfCloseTimeout = time.Millisecond }, func(t *testing.T, g *testGateway) {
		c := openTunnel(t, g.addr, startEcho(t))
		hangs := make(chan struct{})
		defer close(hangs)
		backend := startBackend(t, func(b *net.TCPConn) { <-hangs })
		other := openTunnel(t, g.addr, backend)
		other.CloseWrite()
		g.log.waitLine(t, "tunnel", 1) // the sweep has been
		send(t, c, "still here")
		expect(t, c, "still here")
	})
}

func TestAnIdleTunnelEndsWhereSoConfigured(t *testing.T) {
	t.Parallel()
	const bound = time.Second
	onEveryRelayWith(t, func(cfg *Config) { cfg.IdleTimeout = bound }, func(t *testing.T, g *testGateway) {
		c := openTunnel(t, g.addr, startEcho(t))
		var last time.Time
		for start := time.Now(); time.Since(start) < 2*bound; time.Sleep(bound / 10) {
			last = time.Now() // at the latest
			send(t, c, "busy")
			expect(t, c, "busy")
		}
		io.ReadAll(c)
		if idle := time.Since(last); idle < bound/2 {
			t.Errorf("the tunnel ended after %v of silence, want about %v", idle, bound)
		}
		if line := g.log.waitLine(t, "tunnel", 1); line["ended_by"] != "gateway" || line["how"] != "timeout" {
			t.Errorf("account: %v", line)
		}
	})
}

func TestCloseCutsTunnelsAndCountsThem(t *testing.T) {
	t.Parallel()
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		backend := startEcho(t)
		var clients []net.Conn
		for range 5 {
			clients = append(clients, openTunnel(t, g.addr, backend))
		}
		g.Close()
		for _, c := range clients {
			if _, err := io.ReadAll(c); err != nil && !isReset(err) {
				t.Error(err)
			}
		}
		line := g.log.waitLine(t, "tunnel", 5)
		if line["ended_by"] != "gateway" || line["how"] != "shutdown" || g.cuts() != 5 {
			t.Errorf("%d cut, account: %v", g.cuts(), line)
		}
	})
}
