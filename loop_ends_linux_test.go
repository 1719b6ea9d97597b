package main

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
)

// How tunnels end, for clients and backends that do not wait for it.

// accepted returns a connection, as its client and as a descriptor that a loop
// may own.
func accepted(t testing.TB) (client *net.TCPConn, fd int) {
	t.Helper()
	client, c := pairOfConns(t)
	defer c.Close()
	fd, err := dupConn(c)
	if err != nil {
		t.Fatal(err)
	}
	return client, fd
}

// A loop that has much to do sees a backend's connect late, and it may be over
// by then.
func TestABackendThatIsGoneBeforeItsConnectIsSeenStillDelivers(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"closes", "resets"} {
		for _, early := range []string{"", "early"} {
			t.Run(fmt.Sprintf("%s, %d early bytes", end, len(early)), func(t *testing.T) {
				g := startLoops(t, 1, nil)
				l := g.engine.(*loops).all[0]
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				c, fd := accepted(t)
				send(t, c, sealed(t, ln.Addr().String())+early)
				harness.Delivered(t, c)
				l.load.Add(1)
				g.ledger.begin()
				inLoop(t, l, func() {
					r := g.rules.Load()
					s := r.arrival(addrOf(c), nil)
					l.ledger.arrived(&s, &entrance{})
					l.hear(l.begin(fd, r, &s)) // which connects
					b, err := ln.Accept()
					if err != nil {
						t.Error(err)
						return
					}
					io.WriteString(b, "goodbye")
					if end == "resets" {
						b.(*net.TCPConn).SetLinger(0)
					}
					b.Close()
				})
				// The client goes on for as long as it gets something.
				expectAll(t, c, "200goodbye")
				if end == "closes" {
					c.CloseWrite()
				}
				line := g.log.waitLine(t, "tunnel", 1) // though the client does not close
				want := map[string]any{"ended_by": "backend", "how": "fin", "down": 7.0}
				if end == "resets" || early != "" {
					want["how"] = "reset"
				}
				for key, value := range want {
					if line[key] != value {
						t.Errorf("account %v, want %v", line, want)
					}
				}
				wantAtRest(t, g)
			})
		}
	}
}

// The tail of a tunnel in which both sides have more than the other takes, and
// then the backend breaks off.
func TestAClientIsNotStuckWithWhatItsBackendDidNotTake(t *testing.T) {
	t.Parallel()
	onEveryWay(t, nil, func(t *testing.T, g *testGateway) {
		stuck, broken := make(chan struct{}), make(chan struct{})
		c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
			harness.SmallBuffers(b)
			<-stuck
			io.WriteString(b, "goodbye")
			harness.Delivered(t, b)
			b.SetLinger(0)
			b.Close()
			close(broken)
		}))
		harness.Fill(c)
		close(stuck)
		<-broken
		// Before the tunnel ends for it, a client that does nothing but send
		// gets rid of it.
		if _, err := c.Write(make([]byte, 64<<10)); err != nil {
			t.Errorf("the client cannot go on: %v", err)
		}
		expectAll(t, c, "goodbye")
	})
}

// A reset that was found while connecting was once forgotten again, and the
// tunnel waited for -half-close-timeout.
func TestABackendThatResetsAtOnceLeavesNoTunnelBehind(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, func(cfg *Config) { cfg.HalfCloseTimeout = 3 * time.Second })
	backend := startBackend(t, func(b *net.TCPConn) { b.SetLinger(0) })
	const n = 50
	for range n {
		// The client stays open: the gateway is to end the tunnel by itself.
		expectAll(t, openTunnelOr502(t, g.addr, backend), "")
	}
	eventually(t, "all are accounted for", func() bool {
		return len(g.log.lines("tunnel"))+len(g.log.lines("refused")) == n
	})
	for _, line := range g.log.lines("tunnel") {
		if line["ended_by"] != "backend" {
			t.Errorf("account: %v", line)
		}
	}
}

// openTunnelOr502 opens a tunnel to a backend that may be gone already.
func openTunnelOr502(t testing.TB, gateway, backend string) *net.TCPConn {
	t.Helper()
	c := connect(t, gateway)
	send(t, c, sealed(t, backend))
	status := make([]byte, 3)
	if _, err := io.ReadFull(c, status); err != nil || string(status) != "200" && string(status) != "502" {
		t.Fatalf("read %q, %v", status, err)
	}
	return c
}

// The same for a reset behind the backend's FIN.
func TestABackendsResetAfterItsFINEndsTheTunnel(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, func(cfg *Config) { cfg.HalfCloseTimeout = time.Hour })
	seen := make(chan struct{})
	c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
		b.CloseWrite()
		<-seen
		b.SetLinger(0)
	}))
	expectAll(t, c, "")
	close(seen)
	if line := g.log.waitLine(t, "tunnel", 1); line["ended_by"] != "backend" || line["how"] != "reset" {
		t.Errorf("account: %v", line)
	}
}

// The client's reset once overtook what it had sent before.
func TestWhatAClientSentBeforeItsResetIsDelivered(t *testing.T) {
	t.Parallel()
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		got := make(chan string, 1)
		backend := startBackend(t, func(b *net.TCPConn) {
			all, _ := io.ReadAll(b)
			got <- string(all)
		})
		for range 50 {
			c := openTunnel(t, g.addr, backend)
			send(t, c, "logout\n")
			c.SetLinger(0)
			c.Close()
			if text := <-got; text != "logout\n" {
				t.Fatalf("the backend got %q", text)
			}
		}
	})
}

// A read stops at urgent data, and what stood behind it was once taken for
// nothing.
func TestBytesBehindUrgentDataAreNotLeftBehind(t *testing.T) {
	t.Parallel()
	onEveryRelay(t, func(t *testing.T, g *testGateway) {
		c := openTunnel(t, g.addr, startEcho(t))
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var releases []func()
		if g.engine.kind() != "" {
			for _, l := range g.engine.(*loops).all {
				releases = append(releases, hold(t, l))
			}
		}
		send(t, c, "before")
		raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) })
		if err != nil {
			t.Fatal(err)
		}
		send(t, c, "behind")
		harness.Delivered(t, c)
		for _, release := range releases {
			release()
		}
		expect(t, c, "beforebehind") // the urgent byte itself is not relayed
	})
}
