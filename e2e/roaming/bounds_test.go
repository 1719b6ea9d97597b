package roaming

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gateway/clients/go/tunnel"
	"gateway/internal/harness"
	"gateway/internal/resume"
)

// What a resumable tunnel costs, and how far it goes. ROAMING=full has these as long and as
// large as they can be; otherwise they are scaled down:
//
//	ROAMING=full go test -run 'Messages|ForLong|4GiB|AwayAtOnce' -timeout 20m ./e2e/roaming
var full = os.Getenv("ROAMING") == "full"

func TestATunnelAtRestHoldsLittleMoreThanAPlainOne(t *testing.T) {
	harness.Long(t)
	if harness.RaceEnabled {
		t.Skip("the race detector holds more")
	}
	const n = 1000
	backend := harness.StartEcho(t)
	perTunnel := func(open func(g *harness.Process)) int {
		g := harness.Start(t, "-resume=1", "-resume-hold=500ms", harness.WithPprof)
		for range 100 { // what the first ones have made stays
			open(g)
		}
		before := g.LiveMemory(t)
		for range n {
			open(g)
		}
		time.Sleep(2500 * time.Millisecond) // all is acknowledged, and two sweeps have passed
		return (g.LiveMemory(t) - before) / n
	}
	plain := perTunnel(func(g *harness.Process) { harness.Echo(t, harness.OpenTunnel(t, g.Addr, backend), "x") })
	resumable := perTunnel(func(g *harness.Process) {
		r := openRaw(t, harness.Connect(t, g.Addr), backend)
		r.echo(t, "x")
		harness.Send(t, r.conn, string(r.Output(nil, 100, 2*time.Second))) // the acknowledgement
	})
	t.Logf("%d bytes for a plain tunnel, %d for a resumable one", plain, resumable)
	if resumable > plain+1024 {
		t.Errorf("a resumable tunnel at rest holds %d bytes, a plain one %d", resumable, plain)
	}
}

// Guessing is no dearer than to send lines that do not open.
func TestAThousandGuessesCostWhatAThousandBadLinesCost(t *testing.T) {
	harness.Long(t)
	const n = 1000
	g := harness.Start(t, "-resume=1", "-resume-hold=500ms")
	backend := harness.StartEcho(t) // which ends after its client
	r := openRaw(t, harness.Connect(t, g.Addr), backend)
	cost := func(request, status string) time.Duration {
		before := cpuTime(t, g.PID())
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				for range n / 20 {
					if got := answer(t, g.Addr, request); got != status {
						t.Errorf("answered %q", got)
					}
				}
			})
		}
		all.Wait()
		return cpuTime(t, g.PID()) - before
	}
	forged := []byte(r.request(9, 0, 0))
	forged[len(forged)-10] ^= 1
	altered := []byte(r.request(9, 0, 0))
	altered[10] ^= 1
	cost(harness.GoldenLine+"\n", "401") // the first ones pay for what is new
	lines := min(cost(harness.GoldenLine+"\n", "401"), cost(harness.GoldenLine+"\n", "401"))
	for name, request := range map[string]string{"forged": string(forged), "altered": string(altered), "used": r.request(0, 0, 0)} {
		took := min(cost(request, "401"), cost(request, "401"))
		t.Logf("%s: %v, bad lines %v", name, took, lines)
		if took > 2*lines+50*time.Millisecond { // in ticks of 10 ms
			t.Errorf("%d requests, %s, took %v of CPU time; as many bad lines %v", n, name, took, lines)
		}
	}
	r.echo(t, "undisturbed")
}

// cpuTime is what a process has used (proc_pid_stat(5): in ticks of 10 ms).
func cpuTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Skip(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	user, err := strconv.Atoi(fields[11])
	system, serr := strconv.Atoi(fields[12])
	if err := errors.Join(err, serr); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

// A message every millisecond, and a resume every 59.
func TestMessagesThroughManyResumesAreAllThere(t *testing.T) {
	length, least := 1500*time.Millisecond, 5
	if full {
		length, least = 10*time.Second, 100
	}
	harness.BothWays(t, func(t *testing.T, way string) {
		g := harness.Start(t, "-resume=1", way)
		c, _ := open(t, through(g), lastingEcho(t))
		stop := make(chan struct{})
		var other sync.WaitGroup
		other.Go(func() {
			for n := uint64(1); ; n++ {
				select {
				case <-stop:
					c.CloseWrite()
					return
				case <-time.After(time.Millisecond):
					c.Write(binary.BigEndian.AppendUint64(nil, n))
				}
			}
		})
		other.Go(func() {
			for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(59 * time.Millisecond) {
				c.Reconnect()
			}
			close(stop)
		})
		var b [8]byte
		n := uint64(0)
		for {
			if _, err := io.ReadFull(c, b[:]); err != nil {
				if err != io.EOF {
					t.Error(err)
				}
				break
			}
			if n++; binary.BigEndian.Uint64(b[:]) != n {
				t.Fatalf("message %d came as number %d", binary.BigEndian.Uint64(b[:]), n)
			}
		}
		other.Wait()
		t.Logf("%d messages through %d resumes", n, c.Resumes())
		if c.Resumes() < least || n < 100 {
			t.Errorf("%d messages through %d resumes", n, c.Resumes())
		}
	})
}

// For as long as it is resumed every 50 to 100 ms, both directions go on at full speed.
func TestResumesForLongLeaveRoomForProgress(t *testing.T) {
	if !full {
		t.Skip("ROAMING=full")
	}
	g := harness.Start(t, "-resume=1")
	c, _ := open(t, through(g), lastingEcho(t))
	c.SetDeadline(time.Now().Add(5 * time.Minute))
	end := time.Now().Add(time.Minute)
	var roaming sync.WaitGroup
	roaming.Go(func() {
		for time.Now().Before(end) {
			time.Sleep(time.Duration(50+rand.IntN(51)) * time.Millisecond)
			c.Reconnect()
		}
	})
	moved := 0
	for seed := uint64(0); time.Now().Before(end); seed++ {
		both(t, c, seed, 8<<20)
		moved += 8 << 20
	}
	roaming.Wait()
	t.Logf("%d MiB each way through %d resumes", moved>>20, c.Resumes())
	if c.Resumes() < 400 {
		t.Errorf("%d resumes", c.Resumes())
	}
}

// lastingEcho is an echo without a deadline.
func lastingEcho(t testing.TB) string {
	return harness.StartBackend(t, func(c *net.TCPConn) {
		c.SetDeadline(time.Time{})
		echo(c)
	})
}

// Offsets have 64 bits, and acknowledgements 32.
func TestPast4GiBATunnelIsResumedLikeAnyOther(t *testing.T) {
	size := int64(32 << 20)
	if full {
		size = 4<<30 + 100<<20
	}
	g := harness.Start(t, "-resume=1")
	block := harness.Noise(1, 1<<20)
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		c.SetDeadline(time.Time{})
		for n := int64(0); n < size; n += int64(len(block)) {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
		io.Copy(c, struct{ io.Reader }{c})
		c.CloseWrite()
	})
	c, _ := open(t, through(g), backend)
	c.SetDeadline(time.Now().Add(15 * time.Minute))
	got := make([]byte, len(block))
	for n := int64(0); n < size; n += int64(len(got)) {
		if n%(1<<30) == 16<<20 {
			c.Reconnect()
		}
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, block) {
			t.Fatalf("at %d: %v", n, err)
		}
	}
	for i := range uint64(3) {
		reconnect(t, c)
		both(t, c, i, 300_000)
	}
}

// What a backend does not read, and what it says to a client that is away, is bounded.
func TestTheMemoryOfATunnelIsBoundedWhileNobodyReads(t *testing.T) {
	const buffer = 64 << 10
	a := harness.NewAdmin(t)
	g := harness.Start(t, "-resume=1", "-resume-buffer=65536", a.Flag)
	read := make(chan struct{})
	received := make(chan []byte, 1)
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		var both sync.WaitGroup
		both.Go(func() { c.Write(harness.Noise(1, 16<<20)); c.CloseWrite() })
		<-read
		got, _ := io.ReadAll(c)
		received <- got
		both.Wait()
	})
	k := new(cutter)
	c, _ := open(t, &tunnel.Dialer{Gateways: []string{k.listen(t, g.Addr)}}, backend)
	var writing sync.WaitGroup
	writing.Go(func() { c.Write(harness.Noise(2, 16<<20)); c.CloseWrite() })
	memory := func() float64 { return a.Metrics(t).Sum("gateway_resume_memory_bytes") }
	harness.Eventually(t, "the backend's side is full", func() bool { return memory() >= buffer })
	k.cut()
	g.Log.WaitLine(t, "detached", 1)
	most := 0.0
	for range 20 {
		most = max(most, memory())
		time.Sleep(10 * time.Millisecond)
	}
	if most > 2*buffer {
		t.Errorf("a tunnel holds %.0f bytes", most)
	}
	close(read)
	k.up()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, harness.Noise(1, 16<<20)) {
		t.Errorf("the client got %d bytes, %v", len(got), err)
	}
	writing.Wait()
	if got := <-received; !bytes.Equal(got, harness.Noise(2, 16<<20)) {
		t.Errorf("the backend got %d bytes", len(got))
	}
	<-c.Done()
	harness.Eventually(t, "the memory is given back", func() bool { return memory() == 0 })
}

// The backend hears of a CLOSE within 100 ms, at least in one of some trials: the machine
// may have other things to do.
func TestACloseReachesTheBackendQuickly(t *testing.T) {
	harness.BothWays(t, func(t *testing.T, way string) {
		g := harness.Start(t, "-resume=1", way)
		how := make(chan error, 1)
		backend := harness.StartBackend(t, func(c *net.TCPConn) {
			harness.Send(t, c, "x")
			_, err := io.ReadAll(c)
			how <- err
		})
		best := time.Hour
		for range 10 {
			r := openRaw(t, harness.Connect(t, g.Addr), backend)
			r.read(t, func() bool { return r.Buffered() == 1 })
			start := time.Now()
			r.CloseNow(resume.ByApplication)
			harness.Send(t, r.conn, string(r.Output(nil, 100, 0)))
			if err := <-how; !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("the backend's read ended with %v", err)
			}
			if best = min(best, time.Since(start)); best < 100*time.Millisecond {
				return
			}
		}
		t.Errorf("it took %v at best", best)
	})
}
