package roaming

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/clients/go/tunnel"
	"gateway/internal/harness"
	"gateway/internal/twopaths"
)

// phone is a client whose network changes.
type phone struct {
	*twopaths.Network
	path  atomic.Int32 // by which it connects
	turn  atomic.Int32 // which gateway is next
	ports []string
}

// dial connects by the path that is there, to one gateway after the other, as a balancer
// would have it.
func (p *phone) dial(ctx context.Context, _ string) (net.Conn, error) {
	port := p.ports[int(p.turn.Add(1)-1)%len(p.ports)]
	return p.Dial(ctx, "tcp", net.JoinHostPort(twopaths.Server(int(p.path.Load())), port))
}

// change has the phone go over to the other path.
func (p *phone) change() { p.path.Store(1 - p.path.Load()) }

// onThePhone runs a test in namespaces with three gateways that know each other.
func onThePhone(t *testing.T, test func(t *testing.T, p *phone, gateways []*harness.Process)) {
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip(err)
	}
	if !harness.InNamespaces(t, unix.CLONE_NEWNET) {
		return
	}
	n, err := twopaths.New()
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(n.Close)
	p := &phone{Network: n}
	gateways := startPeers(t, 3, "-addr=0.0.0.0:0")
	for _, g := range gateways {
		p.ports = append(p.ports, harness.PortOf(g.Addr))
	}
	test(t, p, gateways)
}

// stamps sends a message every few milliseconds through an echo, and returns the longest
// time between two that came back, and how many did.
func stamps(t *testing.T, c net.Conn, stop <-chan struct{}) (longest time.Duration, n uint64) {
	var writing sync.WaitGroup
	var sent atomic.Uint64
	writing.Go(func() {
		for {
			select {
			case <-stop:
				c.(*tunnel.Conn).CloseWrite()
				return
			case <-time.After(5 * time.Millisecond):
				if _, err := c.Write(binary.BigEndian.AppendUint64(nil, sent.Add(1))); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	var b [8]byte
	for last := time.Now(); ; {
		if _, err := io.ReadFull(c, b[:]); err != nil {
			if err != io.EOF {
				t.Errorf("after %d: %v", n, err)
			}
			break
		}
		if n++; binary.BigEndian.Uint64(b[:]) != n {
			t.Fatalf("message %d came as number %d", binary.BigEndian.Uint64(b[:]), n)
		}
		longest = max(longest, time.Since(last))
		last = time.Now()
	}
	writing.Wait()
	if n != sent.Load() {
		t.Errorf("%d of %d messages came back", n, sent.Load())
	}
	return longest, n
}

func TestAChangeOfNetworksLosesNothing(t *testing.T) {
	onThePhone(t, func(t *testing.T, p *phone, gateways []*harness.Process) {
		b := startCounted(t, echo)
		for i, tt := range []struct {
			name    string
			silence time.Duration // after which the client asks; negative: it is told
			most    time.Duration
			happen  func(c *tunnel.Conn)
		}{
			{"the path falls silent, and the system says so", -1, 500 * time.Millisecond, func(c *tunnel.Conn) {
				p.Silence(int(p.path.Load()))
				p.change()
				c.Reconnect()
			}},
			{"the interface goes down, and the system says so", -1, 500 * time.Millisecond, func(c *tunnel.Conn) {
				p.Down(int(p.path.Load()))
				p.change()
				c.Reconnect()
			}},
			{"nobody says anything", 300 * time.Millisecond, 2 * time.Second, func(c *tunnel.Conn) {
				p.Silence(int(p.path.Load()))
				p.change()
			}},
			{"for two seconds there is no network", -1, 3 * time.Second, func(c *tunnel.Conn) {
				p.Down(0)
				p.Down(1)
				c.Reconnect()
				time.Sleep(2 * time.Second)
				p.Up(0)
				p.Up(1)
				p.change()
				c.Reconnect()
			}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				d := &tunnel.Dialer{Gateways: []string{"any"}, DialContext: p.dial, Silence: tt.silence, Patience: 300 * time.Millisecond, Timeout: time.Second}
				c, seen := open(t, d, b.addr)
				stop := make(chan struct{})
				go func() {
					for range 3 { // A, B, and the third
						time.Sleep(300 * time.Millisecond)
						before, from := c.Resumes(), p.path.Load()
						tt.happen(c)
						for c.Resumes() == before && c.Err() == nil {
							time.Sleep(time.Millisecond)
						}
						p.Speak(int(from))
						p.Up(int(from))
					}
					close(stop)
				}()
				longest, n := stamps(t, c, stop)
				t.Logf("%d messages, %d resumes, the longest stall %v", n, c.Resumes(), longest)
				if longest > tt.most && !harness.RaceEnabled {
					t.Errorf("a stall of %v", longest)
				}
				for _, e := range seen.of(tunnel.Back) {
					t.Logf("back after %v", e.After)
				}
				if got := b.conns.Load(); got != int32(i)+1 {
					t.Errorf("the backend saw %d connections of %d tunnels", got, i+1)
				}
			})
		}
	})
}

func TestBulkThroughManyChangesOfNetworksArrivesWhole(t *testing.T) {
	onThePhone(t, func(t *testing.T, p *phone, gateways []*harness.Process) {
		size := 150 << 20
		if testing.Short() || harness.RaceEnabled {
			size = 20 << 20
		}
		b := startCounted(t, echo)
		c, _ := open(t, &tunnel.Dialer{Gateways: []string{"any"}, DialContext: p.dial, Timeout: time.Second}, b.addr)
		sent := harness.Noise(3, size)
		stop := make(chan struct{})
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := c.Write(sent); err != nil {
				t.Error(err)
			}
			c.CloseWrite()
		})
		both.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond):
					from := int(p.path.Load())
					p.Silence(from)
					p.change()
					before := c.Resumes()
					c.Reconnect()
					for c.Resumes() == before && c.Err() == nil {
						time.Sleep(time.Millisecond)
					}
					p.Speak(from)
				}
			}
		})
		start := time.Now()
		got, err := io.ReadAll(c)
		close(stop)
		both.Wait()
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d bytes, %v, CRC %08x, want %08x", len(got), err, crc32.ChecksumIEEE(got), crc32.ChecksumIEEE(sent))
		}
		t.Logf("%d MB in %v by %d connections", size>>20, time.Since(start), c.Resumes()+1)
		if b.conns.Load() != 1 {
			t.Errorf("the backend saw %d connections", b.conns.Load())
		}
	})
}

// TestAnMPTCPClientLosesItsPathAndNotItsConnection needs no client of ours: the kernels
// agree on a second path, and go on by it.
func TestAnMPTCPClientLosesItsPathAndNotItsConnection(t *testing.T) {
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip(err)
	}
	if !harness.InNamespaces(t, unix.CLONE_NEWNET) {
		return
	}
	n, err := twopaths.New()
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(n.Close)
	if err := n.SpreadMPTCP(); err != nil {
		t.Skip(err) // no MPTCP in this kernel, or an ip that does not know it
	}
	b := startCounted(t, echo)
	for _, relay := range []string{"-loops=0", "-io-uring=0", "-loops=-1"} {
		t.Run(relay, func(t *testing.T) {
			g := harness.Start(t, "-secret="+harness.Secret, "-addr=0.0.0.0:0", "-mptcp=1", relay)
			if line := g.Log.WaitLine(t, "listening", 1); line["mptcp"] != true {
				t.Fatal(line)
			}
			before := b.conns.Load()
			c, err := n.DialMPTCP(t.Context(), net.JoinHostPort(twopaths.Server(0), harness.PortOf(g.Addr)))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(2 * harness.Patience))
			if is, err := c.(*net.TCPConn).MultipathTCP(); !is {
				t.Fatalf("the connection is plain TCP (%v)", err)
			}
			harness.Send(t, c, harness.Sealed(b.addr)+"\n")
			harness.Expect(t, c, "200")
			talk(t, c, 1)
			if err := n.Down(0); err != nil {
				t.Fatal(err)
			}
			defer n.Up(0)
			talk(t, c, 2)
			if n := b.conns.Load() - before; n != 1 {
				t.Errorf("the backend had %d connections", n)
			}
		})
	}
}

func TestWithoutMPTCPTheLogSaysSoAndClientsAreServed(t *testing.T) {
	if !harness.InNamespaces(t, unix.CLONE_NEWNET) {
		return
	}
	if err := os.WriteFile("/proc/sys/net/mptcp/enabled", []byte("0"), 0); err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Skipf("%v: %s", err, out)
	}
	g := harness.Start(t, "-secret="+harness.Secret, "-mptcp=1")
	g.Log.WaitLine(t, "no MPTCP on this listener: its clients speak TCP", 1)
	harness.Echo(t, harness.OpenTunnel(t, g.Addr, harness.StartEcho(t)), "hello")
}

// talk sends noise both ways through an echo, and sees that it comes back.
func talk(t *testing.T, c net.Conn, seed uint64) {
	t.Helper()
	sent := harness.Noise(seed, 3<<20)
	var writing sync.WaitGroup
	writing.Go(func() {
		if _, err := c.Write(sent); err != nil {
			t.Error(err)
		}
	})
	got := make([]byte, len(sent))
	_, err := io.ReadFull(c, got)
	writing.Wait()
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back otherwise: %v", len(got), err)
	}
}
