package main

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
	bothWays(t, func(t *testing.T, way string) {
		p := startProcess(t, way)
		backend := startEcho(t)
		c := openTunnel(t, p.addr, backend)
		echo(t, c, "hello")
		setLimit(t, p.pid(), uint64(descriptorsOf(p.pid()))+8)

		const warning = "cannot accept, trying again"
		began := time.Now()
		for range 2 {
			// Each takes a descriptor, for as long as its request is awaited; the
			// last few wait to be accepted.
			var taking []net.Conn
			for range 16 {
				taking = append(taking, connect(t, p.addr))
			}
			p.log.waitLine(t, warning, 1)
			// The tunnel goes on, through several attempts to accept. There is no
			// descriptor for a pipe either.
			bulk := strings.Repeat("bulk", 16<<10)
			for until := time.Now().Add(100 * time.Millisecond); time.Now().Before(until); {
				go io.WriteString(c, bulk)
				expect(t, c, bulk)
			}
			for _, c := range taking {
				c.Close()
			}
			eventually(t, "the gateway serves again", func() bool {
				return tunnelWorks(t, p.addr, backend)
			})
		}
		warned := len(p.log.lines(warning))
		if atMost := 1 + int(time.Since(began)/(10*time.Second)); warned > atMost {
			t.Errorf("warned %d times in %v", warned, time.Since(began))
		}
		echo(t, c, "still here")
		finish(t, c)
		p.end(t)
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
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, sealed(t, backend)+"ping")
	answer := make([]byte, len("200ping"))
	io.ReadFull(c, answer)
	return string(answer) == "200ping"
}

func TestGatewaysThatShareAPortAllGetConnections(t *testing.T) {
	a := startProcess(t, "-reuse=1")
	b := startProcess(t, "-reuse=1", "-addr="+a.addr)
	backend := startEcho(t)
	eventually(t, "both have had a tunnel", func() bool {
		finish(t, openTunnel(t, a.addr, backend))
		return len(a.log.lines("tunnel")) > 0 && len(b.log.lines("tunnel")) > 0
	})
	// The kernel may let go of one with connects in its queue, so none here.
	b.end(t)
	for range 10 {
		finish(t, openTunnel(t, a.addr, backend))
	}
}

// stopped reports whether a process has been stopped by SIGSTOP.
func stopped(pid int) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "T")
}

// A listener that closes resets what waits in its queue.
func TestWhatWaitsInTheQueueAtASignalIsServed(t *testing.T) {
	bothWays(t, func(t *testing.T, way string) {
		p := startProcess(t, way, "-drain=1h", "-timeout=20s")
		backend := startEcho(t)
		finish(t, openTunnel(t, p.addr, backend)) // it has begun to accept
		// A stopped gateway accepts nothing, but its kernel does.
		p.signal(t, unix.SIGSTOP)
		eventually(t, "the gateway stands still", func() bool { return stopped(p.pid()) })
		line := sealed(t, backend)
		clients := make([]*net.TCPConn, queue(t))
		for i := range clients {
			clients[i] = connect(t, p.addr)
			send(t, clients[i], line)
		}
		p.signal(t, unix.SIGTERM) // is seen when it goes on
		p.signal(t, unix.SIGCONT)
		for _, c := range clients {
			expect(t, c, "200")
			finish(t, c)
		}
		if code := p.wait(t); code != 0 {
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
	return min(n, int(limit.Cur)/3, 1000)
}

// The queue is emptied before the listener closes, and a flood keeps filling
// it.
func TestAFloodOfConnectsCannotKeepListening(t *testing.T) {
	bothWays(t, func(t *testing.T, way string) {
		p := startProcess(t, way, "-drain=1h")
		finish(t, openTunnel(t, p.addr, startEcho(t)))
		const tooMany = 20_000
		var connects atomic.Int64
		var flood sync.WaitGroup
		for range 4 {
			flood.Go(func() {
				for connects.Add(1) < tooMany {
					c, err := net.DialTimeout("tcp", p.addr, patience)
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
		p.signal(t, unix.SIGTERM)
		flood.Wait()
		if connects.Load() >= tooMany {
			t.Errorf("the gateway still listens after %d connects", tooMany)
		}
		if code := p.wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}
