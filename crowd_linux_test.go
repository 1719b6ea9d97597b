package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needDescriptors skips a test that this process has not descriptors enough for.
func needDescriptors(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < n {
		t.Skipf("the test needs %d descriptors, the limit is %d", n, limit.Cur)
	}
}

// startLimited starts a gateway with a limit of descriptors.
func startLimited(t *testing.T, limit uint64) *process {
	t.Helper()
	cmd := gatewayCommand(t, nil, "-secret="+testSecret, "-addr=127.0.0.1:0", "-pidfile=", "-log-format=json")
	cmd.Args = append([]string{"sh", "-c", fmt.Sprintf("ulimit -n %d && exec \"$0\" \"$@\"", limit), cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	return startCommand(t, cmd)
}

func TestAReconnectStormLosesAndRefusesNobody(t *testing.T) {
	const clients = 10000
	needDescriptors(t, clients+500)
	p := startLimited(t, 20000)
	line := sealed(t, startBackendProcess(t, "echo"))
	start := make(chan struct{})
	var failed atomic.Int32
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			<-start
			if err := visit(p.addr, line, fmt.Sprintf("client %d", i)); err != nil && failed.Add(1) <= 5 {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	close(start)
	wg.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of %d clients were lost or refused", n, clients)
	}
}

// visit opens a tunnel, says something and hears it, and leaves.
func visit(gateway, line, text string) error {
	c, err := net.Dial("tcp", gateway)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(4 * patience))
	if _, err := io.WriteString(c, line+text); err != nil {
		return err
	}
	want := "200" + text
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); string(got[:n]) != want {
		return fmt.Errorf("read %q, %v", got[:n], err)
	}
	return nil
}

func TestNineThousandTunnelsFitIntoTwentyThousandDescriptors(t *testing.T) {
	const tunnels = 9000
	needDescriptors(t, tunnels+500)
	p := startLimited(t, 20000)
	line := sealed(t, startBackendProcess(t, "echo"))
	conns := make([]net.Conn, tunnels)
	churn(tunnels, 100, func(i int) {
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Error(err)
			return
		}
		conns[i] = c
		c.SetDeadline(time.Now().Add(4 * patience))
		io.WriteString(c, line+"hi")
		got := make([]byte, 5)
		if n, err := io.ReadFull(c, got); string(got[:n]) != "200hi" {
			t.Errorf("tunnel %d: read %q, %v", i, got[:n], err)
		}
	})
	for i, c := range conns {
		if c == nil {
			continue
		}
		if i%100 == 0 {
			send(t, c, "still here")
			expect(t, c, "still here")
		}
		c.Close()
	}
}

// memoryOf returns the resident memory of a process in KiB.
func memoryOf(t testing.TB, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(text)
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// pipesOf counts the pipe descriptors of a process.
func pipesOf(pid int) (n int) {
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if to, err := os.Readlink(dir + e.Name()); err == nil && strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

// A stalled reader may cost one copy buffer, which the README says, and what a
// tunnel costs at rest; the pipes are bounded for all together.
func TestStalledReadersCostABoundedAmountEach(t *testing.T) {
	const stalled = 1000
	p := startProcess(t)
	pid := p.cmd.Process.Pid
	flood, echo := sealed(t, startBackendProcess(t, "flood")), startEcho(t)
	openTunnel(t, p.addr, echo).Close()
	before := memoryOf(t, pid)
	churn(stalled, 20, func(int) {
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { c.Close() })
		c.(*net.TCPConn).SetReadBuffer(4096)
		c.SetDeadline(time.Now().Add(4 * patience))
		io.WriteString(c, flood)
		if _, err := io.ReadFull(c, make([]byte, 3+1000)); err != nil {
			t.Error(err)
		}
	})
	other := openTunnel(t, p.addr, echo) // others are served meanwhile
	send(t, other, "hello")
	expect(t, other, "hello")

	// The race detector's shadow makes memory several times dearer.
	const perReader, race = 16 + 4, 6
	if grown := memoryOf(t, pid) - before; grown > stalled*perReader*race {
		t.Errorf("%d stalled readers cost %d KiB, want at most %d each", stalled, grown, perReader*race)
	} else {
		t.Logf("%d stalled readers cost %d KiB", stalled, grown)
	}
	if n := pipesOf(pid); n > 2*maxPipes+8 {
		t.Errorf("%d descriptors of pipes", n)
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
			samples := []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}
			metrics.Read(samples)
			before := append([]uint64(nil), samples[0].Value.Float64Histogram().Counts...)
			for range 100 {
				runtime.GC()
			}
			metrics.Read(samples)
			close(stop)
			clients.Wait()
			h := samples[0].Value.Float64Histogram()
			var all, seen uint64
			for i, n := range h.Counts {
				all += n - before[i]
			}
			quantile := func(q float64) float64 {
				seen = 0
				for i, n := range h.Counts {
					if seen += n - before[i]; float64(seen) >= q*float64(all) {
						return h.Buckets[i+1]
					}
				}
				return 0
			}
			t.Logf("%d pauses: half within %.3f ms, 90 %% within %.3f ms, 99 %% within %.3f ms",
				all, 1e3*quantile(.5), 1e3*quantile(.9), 1e3*quantile(.99))
			if p90 := quantile(.9); p90 > 20e-3 {
				t.Errorf("90 %% of the pauses are within %.1f ms only", 1e3*p90)
			}
		})
	}
}
