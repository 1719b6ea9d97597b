package main

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"gateway/internal/balance"
	"gateway/internal/descriptors"
	"gateway/internal/harness"
	"gateway/internal/layer"
	"gateway/internal/relay"
	"gateway/internal/websocket"
)

// splice(2) stops at urgent data for good: what stood behind it was once left
// behind, and the receiver took the FIN for the end of it all.
func TestUrgentDataAmongBulkIsNoEnd(t *testing.T) {
	t.Parallel()
	piece := bytes.Repeat([]byte("0123456789abcdef"), 16<<10) // 256 KiB
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		sent := make(chan struct{})
		got := make(chan []byte, 1)
		backend := startBackend(t, func(b *net.TCPConn) {
			<-sent
			all, _ := io.ReadAll(b)
			got <- all
		})
		c := openTunnel(t, g.addr, backend)
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		send(t, c, string(piece))
		raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) })
		if err != nil {
			t.Fatal(err)
		}
		send(t, c, string(piece))
		c.CloseWrite()
		close(sent)
		if all := <-got; len(all) != 2*len(piece) || !bytes.Equal(all[:len(piece)], piece) || !bytes.Equal(all[len(piece):], piece) {
			t.Errorf("%d bytes arrived of %d", len(all), 2*len(piece))
		}
	})
}

// For want of splice or of pipes bulk is copied. Its share of a turn was then
// once without bounds: with 300 streams, a handshake took longer than 10 s.
func TestBulkThatIsCopiedWaitsForMessagesAndGoesOnInPortions(t *testing.T) {
	t.Parallel()
	const streams = 64
	for _, buffer := range []int64{4096, 64} {
		g := startLoops(t, 1, func(cfg *Config) { cfg.Splice, cfg.Buffer = false, int(buffer) })
		l := g.engine.(*loops).all[0]
		begin := make(chan struct{})
		backend := startBackend(t, func(b *net.TCPConn) {
			<-begin
			b.Write(make([]byte, 1<<20))
		})
		var clients []net.Conn
		for range streams {
			clients = append(clients, openTunnel(t, g.addr, backend))
		}
		message := openTunnel(t, g.addr, startEcho(t))

		release := hold(t, l)
		close(begin)
		for _, s := range l.slots { // held, it looks away
			if s.state == stateOpen && s.upstream.backend.String() == backend {
				eventually(t, "much can be read", func() bool {
					n, err := unix.IoctlGetInt(int(s.sockets[backendSide].fd), unix.TIOCINQ)
					return err == nil && n >= 32<<10
				})
			}
		}
		send(t, message, "hello")
		harness.Delivered(t, message)
		// A loop runs what it is sent behind the events that there are and
		// before bulk has its turn.
		var events, portion int64
		done := make(chan struct{})
		l.reactor.Post(func() {
			all := func() (n int64) {
				for side := range l.copied {
					n += l.totalCopied[side].Load() + l.copied[side]
				}
				return n
			}
			events = l.copied[clientSide] + l.copied[backendSide]
			so := all()
			l.reactor.Post(func() { portion = all() - so; close(done) })
		})
		release()
		inTime(t, done, "the loop does not go on")
		if most := streams*buffer + int64(len("hello")); events > most {
			t.Errorf("-buffer=%d: %d bytes were copied before messages had their turn; want at most %d", buffer, events, most)
		}
		if most := (bulkBytes + turnBytes) / max(buffer, leastCost) * buffer; portion > most {
			t.Errorf("-buffer=%d: %d bytes were copied in one turn; want at most %d", buffer, portion, most)
		}
		expect(t, message, "hello")
		for _, c := range clients {
			c.Close()
		}
	}
}

// slowLayer is a layer that takes its time for what a client sends without end.
type slowLayer struct {
	layer.Transform
	client, count int
}

func (l *slowLayer) In(b []byte) ([]byte, layer.State) {
	l.count++
	unix.Write(l.client, make([]byte, 4<<10))
	time.Sleep(2 * time.Millisecond)
	return nil, layer.Open
}

// What a turn has of bulk is bounded by time where that is much for so few bytes.
func TestOthersDoNotWaitForALayerThatTakesItsTime(t *testing.T) {
	d := drive(t, false, slog.DiscardHandler)
	d.bufferSize = 512
	slow := &slowLayer{Transform: websocket.New(1 << 20)}
	client, backend := d.layeredTunnelOf(t, slow)
	defer unix.Close(client)
	defer unix.Close(backend)
	slow.client = client
	unix.Write(slow.client, make([]byte, 4<<10))
	eventually(t, "it is bulk", func() bool { d.poll(); d.deal(); return slow.count > 1 })
	before := slow.count
	for range 3 {
		d.poll()
		d.deal()
	}
	if n := slow.count - before; n == 0 || n > 2*3 {
		t.Errorf("it had its turn %d times in three turns", n)
	}
}

func TestAHostThatIsGoneIsATimeOutWhateverTheNetworkSays(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if how := relay.HowOf(&net.OpError{Op: "read", Err: errno}); how != relay.Timeout {
			t.Errorf("%v is logged as %q", strings.ToLower(errno.Error()), how)
		}
	}
}

func TestThousandsOfTunnelsLeaveLoopsAsGoodAsNew(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	for name, configure := range map[string]func(*Config){
		"one loop":    func(cfg *Config) { cfg.Loops = 1 },
		"three loops": func(cfg *Config) { cfg.Loops = 3 },
		"no io_uring": func(cfg *Config) { cfg.Loops, cfg.IOUring = 1, false },
	} {
		t.Run(name, func(t *testing.T) {
			storm := harness.NewStorm(t, 1000, true)
			g := startConfigured(t, func(cfg *Config) { configure(cfg); cfg.Resolver = storm.Resolver }, nil)
			storm.Run(t, g.addr, (*harness.Log)(&g.log))
			wantAtRest(t, g)
		})
	}
}

// A bug in the account of a tunnel does not keep its target busy for ever.
func TestABugInAnAccountReleasesTheTarget(t *testing.T) {
	t.Parallel()
	for _, loops := range []int{3, -1} {
		var bug accountBug
		bug.on.Store(true)
		g := startConfigured(t, func(cfg *Config) {
			cfg.Loops, cfg.Balance = loops, balance.LeastConn
		}, bug.into)
		a, b := harness.StartGreeter(t, "a"), harness.StartGreeter(t, "b")
		route := a + "," + b
		group := occupy(t, g, route)
		for i := range 3 {
			c := openTunnel(t, g.addr, route)
			expect(t, c, "b")
			c.Close()
			g.log.waitLine(t, "panic", i+1)
			wantIdle(t, group, b)
		}
	}
}

// A loop that sleeps in a raw wait holds a processor that the collector has to
// stop; see loop.wait. The bound is coarse, for machines that are busy; what
// was measured is logged.
func TestTheWorldStopsQuicklyUnderLoadAndAtRest(t *testing.T) {
	for _, load := range []string{"at rest", "under load"} {
		t.Run(load, func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 1)) // as serve does
			g := startGateway(t, nil)
			backend := startEcho(t)
			stop := make(chan struct{})
			var clients sync.WaitGroup
			for range 16 {
				c := openTunnel(t, g.addr, backend)
				if load == "at rest" {
					continue
				}
				clients.Go(func() {
					buf := make([]byte, 64)
					for {
						select {
						case <-stop:
							return
						default:
							c.Write(buf)
							io.ReadFull(c, buf)
						}
					}
				})
			}
			// What other processes of a busy machine do to pauses comes and goes; what the
			// loops do stays: the middle one of several measures counts.
			var measured []float64
			for range 5 {
				measured = append(measured, pausesOf(t, 100))
			}
			close(stop)
			clients.Wait()
			slices.Sort(measured)
			if p90 := measured[len(measured)/2]; p90 > 20e-3 {
				t.Errorf("90 %% of the pauses are within %.1f ms only", 1e3*p90)
			}
		})
	}
}

// pausesOf collects so many times, and returns within how many seconds the world had
// stopped in 90 % of the pauses for that.
func pausesOf(t testing.TB, collections int) float64 {
	t.Helper()
	samples := []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}
	metrics.Read(samples)
	before := append([]uint64(nil), samples[0].Value.Float64Histogram().Counts...)
	for range collections {
		runtime.GC()
	}
	metrics.Read(samples)
	h := samples[0].Value.Float64Histogram()
	var all uint64
	for i, n := range h.Counts {
		all += n - before[i]
	}
	quantile := func(q float64) float64 {
		var seen uint64
		for i, n := range h.Counts {
			if seen += n - before[i]; float64(seen) >= q*float64(all) {
				return h.Buckets[i+1]
			}
		}
		return 0
	}
	t.Logf("%d pauses: half within %.3f ms, 90 %% within %.3f ms, 99 %% within %.3f ms",
		all, 1e3*quantile(.5), 1e3*quantile(.9), 1e3*quantile(.99))
	return quantile(.9)
}

// Pipes, and what passes through them.

// bulk sends size bytes through a tunnel and back, and returns how many of
// them the gateway spliced and how many it copied.
func bulk(t testing.TB, g *testGateway, backend string, size int) (spliced, copied int64) {
	t.Helper()
	s0, c0 := movedBy(g)
	c := openTunnel(t, g.addr, backend)
	text := string(noise(1, size))
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, text)
		c.CloseWrite()
		sent <- err
	}()
	expectAll(t, c, text)
	if err := <-sent; err != nil {
		t.Error(err)
	}
	eventually(t, "all is counted", func() bool {
		spliced, copied = movedBy(g)
		spliced, copied = spliced-s0, copied-c0
		return spliced+copied >= int64(2*size)
	})
	if spliced+copied != int64(2*size) {
		t.Errorf("%d bytes spliced and %d copied of %d", spliced, copied, 2*size)
	}
	return spliced, copied
}

func TestTheCountersTellSplicedFromCopied(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	for _, splice := range []bool{true, false} {
		g := startLoops(t, 1, func(cfg *Config) { cfg.Splice = splice })
		backend := startEcho(t)
		spliced, copied := bulk(t, g, backend, size)
		if splice && spliced < size || !splice && spliced != 0 {
			t.Errorf("with -splice=%v %d bytes were spliced, %d copied", splice, spliced, copied)
		}
		if spliced, _ := bulk(t, g, backend, 1000); spliced != 0 {
			t.Errorf("%d bytes of a message were spliced", spliced)
		}
	}
}

func TestWithoutAPipeTunnelsCopy(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, nil)
	backend := startEcho(t)
	inLoop(t, g.engine.(*loops).all[0], func() { g.engine.(*loops).pipes.Max = 0 })
	if spliced, _ := bulk(t, g, backend, 4<<20); spliced != 0 {
		t.Errorf("%d bytes were spliced", spliced)
	}
	inLoop(t, g.engine.(*loops).all[0], func() { g.engine.(*loops).pipes.Max = descriptors.MaxPipes })
	if spliced, _ := bulk(t, g, backend, 4<<20); spliced == 0 {
		t.Error("with pipes to be had again, nothing was spliced")
	}
	wantAtRest(t, g)
}

func TestWhereSpliceIsRefusedTunnelsCopy(t *testing.T) {
	t.Parallel()
	for _, errno := range []unix.Errno{unix.EPERM, unix.ENOSYS, unix.EINVAL} {
		g := startLoops(t, 1, nil)
		var err error
		inLoop(t, g.engine.(*loops).all[0], func() { err = refuse(unix.SYS_SPLICE, errno) }) // for this thread, which ends with its loop
		if err != nil {
			t.Skip("no seccomp here: ", err)
		}
		if spliced, _ := bulk(t, g, startEcho(t), 4<<20); spliced != 0 {
			t.Errorf("%d bytes were spliced", spliced)
		}
		wantAtRest(t, g)
	}
}

// refuse has a system call fail in the calling thread from now on, as a sandbox
// does. With seconds it fails only if its second argument is one of those.
func refuse(call uint32, errno unix.Errno, seconds ...uint32) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: call},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 24}, // args[1] of struct seccomp_data; its low half
	}
	for i, second := range seconds {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(seconds) - i), K: second})
	}
	if len(seconds) > 0 {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

// movedBy returns how many bytes the loops have spliced, and how many copied.
func movedBy(g *testGateway) (spliced, copied int64) {
	s, c := g.engine.movedFrom()
	return s[0] + s[1], c[0] + c[1]
}
