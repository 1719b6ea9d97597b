package process

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
)

// Many clients at once: none is lost, and what they cost is bounded.

// needDescriptors skips a test that this process has not descriptors enough for.
func needDescriptors(t *testing.T, n uint64) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < n {
		t.Skipf("the test needs %d descriptors, the limit is %d", n, limit.Cur)
	}
}

// startLimited starts a gateway with a limit of descriptors.
func startLimited(t *testing.T, limit uint64) *harness.Process {
	t.Helper()
	cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-pidfile=", "-log-format=json", "-timeout=1m")
	cmd.Args = append([]string{"sh", "-c", fmt.Sprintf("ulimit -n %d && exec \"$0\" \"$@\"", limit), cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	return harness.StartCommand(t, cmd)
}

func TestAReconnectStormLosesAndRefusesNobody(t *testing.T) {
	harness.Long(t)
	const clients = 3000
	needDescriptors(t, clients+500)
	p := startLimited(t, 20000)
	line := harness.Line(harness.StartBackendProcess(t, harness.RoleEcho))
	start := make(chan struct{})
	var failed atomic.Int32
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			<-start
			if err := visit(p.Addr, line, fmt.Sprintf("client %d", i)); err != nil && failed.Add(1) <= 5 {
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

// A tunnel has two descriptors, and the gateway puts some by for pipes and the rest.
func TestTwoThousandTunnelsFitIntoFiveThousandDescriptors(t *testing.T) {
	const tunnels, atOnce = 2000, 50
	needDescriptors(t, tunnels+500)
	p := startLimited(t, 5000)
	line := harness.Line(harness.StartBackendProcess(t, harness.RoleEcho))
	conns := make([]*net.TCPConn, tunnels)
	var next atomic.Int64
	var clients sync.WaitGroup
	for range atOnce {
		clients.Go(func() {
			for i := int(next.Add(1)) - 1; i < tunnels && !t.Failed(); i = int(next.Add(1)) - 1 {
				c, err := net.Dial("tcp", p.Addr)
				if err != nil {
					t.Error(err)
					return
				}
				conns[i] = c.(*net.TCPConn)
				c.SetDeadline(time.Now().Add(4 * harness.Patience))
				io.WriteString(c, line+"hi")
				got := make([]byte, 5)
				if n, err := io.ReadFull(c, got); string(got[:n]) != "200hi" {
					t.Errorf("tunnel %d: read %q, %v", i, got[:n], err)
				}
			}
		})
	}
	clients.Wait()
	for i, c := range conns {
		if c == nil {
			continue
		}
		if i%100 == 0 && !t.Failed() {
			harness.Echo(t, c, "still here")
		}
		c.Close()
	}
}

// A stalled reader may cost one copy buffer, which the README says, and what a
// tunnel costs at rest; the pipes are bounded for all together.
func TestStalledReadersCostABoundedAmountEach(t *testing.T) {
	harness.Long(t)
	const stalled = 60       // each may hold megabytes in the kernel, which has no room for hundreds
	const perReader = 16 + 4 // KiB
	const mostPipes = 256    // of all loops
	p := harness.Start(t, harness.WithPprof, "-timeout=1m")
	flood, echo := harness.Line(harness.StartBackendProcess(t, harness.RoleFlood)), harness.StartEcho(t)
	harness.OpenTunnel(t, p.Addr, echo).Close()
	before := p.LiveHeap(t)
	for range stalled {
		c := harness.Connect(t, p.Addr)
		c.SetReadBuffer(4096)
		harness.Send(t, c, flood)
		if _, err := io.ReadFull(c, make([]byte, 3+1000)); err != nil {
			t.Fatal(err)
		}
	}
	harness.Echo(t, harness.OpenTunnel(t, p.Addr, echo), "others are served meanwhile")

	grown := (p.LiveHeap(t) - before) >> 10
	t.Logf("%d stalled readers cost %d KiB", stalled, grown)
	if grown > stalled*perReader {
		t.Errorf("%d stalled readers cost %d KiB, want at most %d each", stalled, grown, perReader)
	}
	if n := harness.PipeEnds(p.PID()); n > 2*mostPipes+8 {
		t.Errorf("%d descriptors of pipes", n)
	}
}
