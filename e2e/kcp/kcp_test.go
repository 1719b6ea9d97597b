package kcp

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"

	"gateway/internal/harness"
)

// Clients and backends that speak KCP, by kcp-go's own client and server.

// kcpGateway is a gateway with a port for KCP too.
type kcpGateway struct {
	*harness.Process
	kcp string         // where that is
	new harness.AtRest // before there was a client
}

// startKCP starts a gateway with a free port of 127.0.0.1 for KCP, unless flags say
// otherwise. Backends are to be started before: it does not hear of the end of its
// clients, and their backends do when it ends.
func startKCP(t testing.TB, flags ...string) *kcpGateway {
	t.Helper()
	p := harness.Start(t, append([]string{"-kcp=127.0.0.1:0", harness.WithPprof}, flags...)...)
	return &kcpGateway{p, fmt.Sprint("127.0.0.1:", harness.PortOf(kcpAddr(t, p))), p.Rest(t)}
}

// kcpAddr is where a gateway listens for KCP, as it logs.
func kcpAddr(t testing.TB, p *harness.Process) (addr string) {
	t.Helper()
	harness.Eventually(t, "a line of the log with protocol=kcp", func() bool {
		for _, line := range p.Log.Lines("listening") {
			if line["protocol"] == "kcp" {
				addr = line["addr"].(string)
			}
		}
		return addr != ""
	})
	return addr
}

// forgotten waits until no session is left: each has goroutines.
func (g *kcpGateway) forgotten(t testing.TB) {
	t.Helper()
	g.WaitForRest(t, g.new)
}

// kcpCode is what both ends must agree on.
type kcpCode struct {
	key          []byte // of AES, nil: none
	data, parity int
}

func (c kcpCode) block(t testing.TB) kcpgo.BlockCrypt {
	if c.key == nil {
		return nil
	}
	block, err := kcpgo.NewAESBlockCrypt(c.key)
	if err != nil {
		t.Fatal(err)
	}
	return block
}

// tune is what kcp-go's users write behind a dial or an accept.
func tune(s *kcpgo.UDPSession) *kcpgo.UDPSession {
	s.SetStreamMode(true) //lint:ignore SA1019 kcp-go's own clients call it
	s.SetNoDelay(1, 10, 2, 1)
	s.SetWindowSize(1024, 1024)
	s.SetDeadline(time.Now().Add(2 * harness.Patience))
	return s
}

// session is a client's. Once it is closed it does not react any more, and keeps its
// port until the test ends: the gateway does not hear of its end and goes on sending,
// and kcp-go takes the sender of the first datagram at a port for its server.
type session struct {
	*kcpgo.UDPSession
	socket *net.UDPConn
}

func (s *session) Close() error {
	s.socket.SetReadDeadline(time.Unix(1, 0))
	return s.UDPSession.Close()
}

// dialKCP begins a session, which is closed at the end of the test.
func dialKCP(t testing.TB, addr string, code kcpCode) *session {
	t.Helper()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	s, err := kcpgo.NewConn(addr, code.block(t), code.data, code.parity, socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &session{tune(s), socket}
}

// openKCP connects to a backend through a gateway and reads the 200.
func openKCP(t testing.TB, gateway, backend string) *session {
	t.Helper()
	s := dialKCP(t, gateway, kcpCode{})
	harness.Send(t, s, harness.Line(backend))
	harness.Expect(t, s, "200")
	return s
}

// startKCPBackend runs kcp-go's server on a free port, and serve for each of
// its sessions. It returns the address to be sealed. Like every backend of KCP
// clients it is to be started before the gateway: it hears of their end when
// that closes.
func startKCPBackend(t testing.TB, code kcpCode, serve func(*kcpgo.UDPSession)) string {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	socket := &lastRead{PacketConn: conn, over: make(chan struct{})}
	ln, err := kcpgo.ServeConn(code.block(t), code.data, code.parity, socket)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			s, err := ln.AcceptKCP()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer s.Close()
				serve(tune(s))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close() // which ends the reads of its sessions
		socket.Close()
		<-socket.over // it makes no more of them
		ended := make(chan struct{})
		go func() { serving.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(harness.Patience): // a test that failed has left it waiting
			t.Error("a session of the KCP backend does not end")
		}
		// A session that nobody has accepted stays for ever, and a closed listener
		// returns it or its error as chance wants.
		for range 100 {
			if s, err := ln.AcceptKCP(); err == nil {
				s.Close()
			}
		}
	})
	return "kcp://" + ln.Addr().String()
}

// lastRead tells when the one who reads has been told of the end.
type lastRead struct {
	net.PacketConn
	once sync.Once
	over chan struct{}
}

func (c *lastRead) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.PacketConn.ReadFrom(b)
	if err != nil {
		c.once.Do(func() { close(c.over) })
	}
	return n, from, err
}

func kcpEcho(s *kcpgo.UDPSession) { io.Copy(s, s) }

// deafPort returns an address of 127.0.0.1 where datagrams vanish.
func deafPort(t testing.TB) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.LocalAddr().String()
}

// closedUDPPort returns an address of 127.0.0.1 whose port nobody has.
func closedUDPPort(t testing.TB) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().String()
}

// echoByHash sends n bytes to an echo and compares the hash of what comes back.
func echoByHash(t testing.TB, c net.Conn, n int) {
	t.Helper()
	text := harness.Noise(uint64(n), n)
	var sending sync.WaitGroup
	sending.Go(func() {
		if _, err := c.Write(text); err != nil {
			t.Error(err)
		}
	})
	h := sha256.New()
	got, err := io.CopyN(h, c, int64(n))
	if err != nil || [32]byte(h.Sum(nil)) != sha256.Sum256(text) {
		t.Errorf("%d bytes of %d came back, %v, or others", got, n, err)
		c.SetDeadline(time.Unix(1, 0))
	}
	sending.Wait()
}

// clientOf is a session's client as the gateway's log has it.
func clientOf(s *session) string {
	return fmt.Sprint("127.0.0.1:", harness.AddrPort(s.LocalAddr()).Port())
}
