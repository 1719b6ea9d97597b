package process

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
)

// setLimit sets how many descriptors a running process may have.
func setLimit(t testing.TB, pid int, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur = n
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
}

func TestAGatewayWithoutDescriptorsWaitsAndServesAgain(t *testing.T) {
	t.Parallel()
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, way)
		backend := harness.StartEcho(t)
		c := harness.OpenTunnel(t, p.Addr, backend)
		harness.Echo(t, c, "hello")
		setLimit(t, p.PID(), uint64(harness.Descriptors(p.PID()))+8)

		const warning = "cannot accept, trying again"
		began := time.Now()
		for range 2 {
			// Each takes a descriptor, for as long as its request is awaited; the
			// last few wait to be accepted.
			var taking []net.Conn
			for range 16 {
				taking = append(taking, harness.Connect(t, p.Addr))
			}
			p.Log.WaitLine(t, warning, 1)
			// The tunnel goes on, through several attempts to accept. There is no
			// descriptor for a pipe either.
			bulk := strings.Repeat("bulk", 16<<10)
			for until := time.Now().Add(100 * time.Millisecond); time.Now().Before(until); {
				go io.WriteString(c, bulk)
				harness.Expect(t, c, bulk)
			}
			for _, c := range taking {
				c.Close()
			}
			harness.Eventually(t, "the gateway serves again", func() bool {
				return tunnelWorks(t, p.Addr, backend)
			})
		}
		warned := len(p.Log.Lines(warning))
		if atMost := 1 + int(time.Since(began)/(10*time.Second)); warned > atMost {
			t.Errorf("warned %d times in %v", warned, time.Since(began))
		}
		harness.Echo(t, c, "still here")
		harness.Finish(t, c)
		p.End(t)
	})
}

// tunnelWorks tries to get an answer out of a gateway and its backend.
func tunnelWorks(t testing.TB, gateway, backend string) bool {
	t.Helper()
	c, err := net.Dial("tcp", gateway)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(harness.Patience))
	io.WriteString(c, harness.Line(backend)+"ping")
	answer := make([]byte, len("200ping"))
	io.ReadFull(c, answer)
	return string(answer) == "200ping"
}

func TestGatewaysThatShareAPortAllGetConnections(t *testing.T) {
	t.Parallel()
	a := harness.Start(t, "-reuse=1")
	b := harness.Start(t, "-reuse=1", "-addr="+a.Addr)
	backend := harness.StartEcho(t)
	harness.Eventually(t, "both have had a tunnel", func() bool {
		harness.Finish(t, harness.OpenTunnel(t, a.Addr, backend))
		return len(a.Log.Lines("tunnel")) > 0 && len(b.Log.Lines("tunnel")) > 0
	})
	// The kernel may let go of one with connects in its queue, so none here.
	b.End(t)
	for range 10 {
		harness.Finish(t, harness.OpenTunnel(t, a.Addr, backend))
	}
}

// stopped reports whether a process has been stopped by SIGSTOP.
func stopped(pid int) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "T")
}

// A listener that closes resets what waits in its queue.
// Not in parallel with others: these take processors from a gateway that is to deal
// with a whole queue at once.
func TestWhatWaitsInTheQueueAtASignalIsServed(t *testing.T) {
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, way, "-drain=1h", "-timeout=20s")
		backend := harness.StartEcho(t)
		harness.Finish(t, harness.OpenTunnel(t, p.Addr, backend)) // it has begun to accept
		// A stopped gateway accepts nothing, but its kernel does.
		p.Signal(t, unix.SIGSTOP)
		harness.Eventually(t, "the gateway stands still", func() bool { return stopped(p.PID()) })
		line := harness.Line(backend)
		clients := make([]*net.TCPConn, queue(t))
		for i := range clients {
			clients[i] = harness.Connect(t, p.Addr)
			harness.Send(t, clients[i], line)
		}
		p.Signal(t, unix.SIGTERM) // is seen when it goes on
		p.Signal(t, unix.SIGCONT)
		for _, c := range clients {
			harness.Expect(t, c, "200")
			harness.Finish(t, c)
		}
		if code := p.Wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}

// queue returns how many connections a test may leave in the queue of a
// listener.
func queue(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	fmt.Sscan(string(text), &n)
	var limit unix.Rlimit // package os raises it as far as it goes
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// The backend is in this process, and takes as many.
	return min(n, int(limit.Cur)/3, 200)
}

// The queue is emptied before the listener closes, and a flood keeps filling
// it.
func TestAFloodOfConnectsCannotKeepListening(t *testing.T) {
	harness.Long(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, way, "-drain=1h")
		harness.Finish(t, harness.OpenTunnel(t, p.Addr, harness.StartEcho(t)))
		const tooMany = 20_000
		var connects atomic.Int64
		var flood sync.WaitGroup
		for range 4 {
			flood.Go(func() {
				for connects.Add(1) < tooMany {
					c, err := net.DialTimeout("tcp", p.Addr, harness.Patience)
					if errors.Is(err, unix.ECONNREFUSED) {
						return
					}
					if errors.Is(err, unix.ECONNRESET) { // the listener closed between SYN and ACK
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					c.(*net.TCPConn).SetLinger(0) // ports are not endless
					c.Close()
				}
			})
		}
		p.Signal(t, unix.SIGTERM)
		flood.Wait()
		if connects.Load() >= tooMany {
			t.Errorf("the gateway still listens after %d connects", tooMany)
		}
		if code := p.Wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}
