package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"

	"gateway/internal/kcp"
)

// Bad paths, and how sessions of KCP end.

// badPath is a path to a UDP address that drops, doubles and delays a part each
// of the datagrams, both ways. A delayed one comes behind those that follow it.
func badPath(t testing.TB, to string, part float64) string {
	t.Helper()
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var pumps sync.WaitGroup
	backs := make(map[netip.AddrPort]net.Conn)
	rng := rand.New(rand.NewPCG(1, 2))
	pass := func(d []byte, send func([]byte)) {
		mu.Lock()
		fate := rng.Float64() / part
		mu.Unlock()
		switch {
		case fate < 1: // lost
		case fate < 2:
			send(d)
			send(d)
		case fate < 3:
			d = bytes.Clone(d)
			pumps.Add(1)
			time.AfterFunc(20*time.Millisecond, func() { defer pumps.Done(); send(d) })
		default:
			send(d)
		}
	}
	// pump passes on what read brings until that fails.
	pump := func(read func([]byte) (int, func([]byte), error)) {
		pumps.Go(func() {
			buf := make([]byte, 2048)
			for {
				n, send, err := read(buf)
				if err != nil {
					return
				}
				pass(buf[:n], send)
			}
		})
	}
	pump(func(buf []byte) (int, func([]byte), error) {
		n, source, err := front.ReadFromUDPAddrPort(buf)
		if err != nil {
			return 0, nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		back := backs[source]
		if back == nil {
			if back, err = net.Dial("udp", to); err != nil {
				t.Error(err)
				return 0, nil, err
			}
			backs[source] = back
			pump(func(buf []byte) (int, func([]byte), error) {
				n, err := back.Read(buf)
				return n, func(d []byte) { front.WriteToUDPAddrPort(d, source) }, err
			})
		}
		return n, func(d []byte) { back.Write(d) }, nil
	})
	t.Cleanup(func() {
		front.Close()
		mu.Lock()
		for _, back := range backs {
			back.Close()
		}
		mu.Unlock()
		pumps.Wait()
	})
	return front.LocalAddr().String()
}

func TestEverythingArrivesOverABadPath(t *testing.T) {
	shards := kcpCode{data: 10, parity: 3}
	for _, test := range []struct {
		name string
		part float64
		code kcpCode
	}{
		{"5 %", .05, kcpCode{}},
		{"10 %", .10, kcpCode{}},
		{"20 %", .20, kcpCode{}},
		{"20 % with error correction", .20, shards},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			tcp, backend := startEcho(t), startKCPBackend(t, test.code, kcpEcho)
			g := startKCP(t, func(cfg *Config) {
				cfg.KCPDataShards, cfg.KCPParityShards = test.code.data, test.code.parity
				cfg.Timeout = patience
			})
			var both sync.WaitGroup
			both.Go(func() { // a client on a bad path
				s := dialKCP(t, badPath(t, g.kcp, test.part), test.code)
				io.WriteString(s, sealed(t, tcp)+"early")
				if got := make([]byte, 8); !reads(s, got) || string(got) != "200early" {
					t.Errorf("read %q", got)
					return
				}
				echoByHash(t, s, 1<<20)
			})
			both.Go(func() { // a backend
				c := connect(t, g.addr)
				io.WriteString(c, sealed(t, "kcp://"+badPath(t, backend[len("kcp://"):], test.part))+"early")
				if got := make([]byte, 8); !reads(c, got) || string(got) != "200early" {
					t.Errorf("read %q", got)
					return
				}
				echoByHash(t, c, 1<<20)
			})
			both.Wait()
		})
	}
}

// reads tells whether b could be filled.
func reads(c net.Conn, b []byte) bool {
	_, err := io.ReadFull(c, b)
	return err == nil
}

func TestAllThatABackendSentArrivesBeforeTheSessionEnds(t *testing.T) {
	for _, part := range []float64{0, .2} {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			t.Parallel()
			text := noise(1, 256<<10)
			backend := startBackend(t, func(c *net.TCPConn) { c.Write(text) }) // and closes
			g := startKCP(t, nil)
			s := openKCP(t, badPath(t, g.kcp, part), backend)
			h := sha256.New()
			if n, err := io.CopyN(h, s, int64(len(text))); err != nil || [32]byte(h.Sum(nil)) != sha256.Sum256(text) {
				t.Fatalf("%d bytes, %v, or others", n, err)
			}
			line := g.log.waitLine(t, "tunnel", 1)
			if line["ended_by"] != "backend" || line["how"] != "fin" || line["down"] != float64(len(text)) {
				t.Errorf("logged as %v", line)
			}
			g.forgotten(t)
			// Silence tells the client, and whatever it still says is dropped.
			io.WriteString(s, "is anybody there?")
			dropped := g.Stats().Dropped
			eventually(t, "what comes late is dropped", func() bool { return g.Stats().Dropped > dropped })
			if n := g.Stats().Sessions; n != 0 {
				t.Errorf("%d sessions", n)
			}
		})
	}
}

// It must not be told from a deadline, after which the relay tries again: that
// once made a loop without end.
func TestAKCPClientThatVanishesBeforeItsBackendFinishesIsForgotten(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	backend := startBackend(t, func(c *net.TCPConn) {
		<-finish
		io.WriteString(c, "the end")
	})
	g := startKCP(t, nil)
	s := openKCP(t, g.kcp, backend)
	eventually(t, "the client's acknowledgement", func() bool { return g.Stats().Unproven == 0 })
	s.Close()
	began := time.Now()
	close(finish)
	line := g.log.waitLine(t, "tunnel", 1)
	if took := time.Since(began); took > kcp.Linger+2*time.Second {
		t.Errorf("it took %v", took)
	}
	if line["ended_by"] != "client" || line["how"] != "timeout" {
		t.Errorf("logged as %v", line)
	}
	g.forgotten(t)
}

// There is nobody to wait for when all is cut.
func TestAKCPSessionThatBeginsWhenTunnelsAreCutDoesNotLinger(t *testing.T) {
	backend := startEcho(t)
	g := startKCP(t, nil)
	g.streams.close()
	c, err := net.Dial("udp", g.kcp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write(segment(1, 0, sealed(t, backend))) // and acknowledges nothing
	line := g.log.waitLine(t, "tunnel", 1)
	if line["how"] != "shutdown" || line["duration_ms"].(float64) > 1500 {
		t.Errorf("logged as %v", line)
	}
}

// slowPath is a path to a UDP address that brings one datagram in each pause
// from there, and loses those that repeat what is already on its way.
func slowPath(t testing.TB, to string, pause time.Duration) string {
	t.Helper()
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	var pumps sync.WaitGroup
	client, queue := make(chan net.Addr, 1), make(chan []byte, 1000)
	pumps.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := front.ReadFrom(buf)
			if err != nil {
				return
			}
			select {
			case client <- from:
			default:
			}
			back.Write(buf[:n])
		}
	})
	pumps.Go(func() {
		defer close(queue)
		onItsWay := make(map[string]bool) // by the numbers of segments with data
		for {
			buf := make([]byte, 2048)
			n, err := back.Read(buf)
			if err != nil {
				return
			}
			if sn := string(buf[12:16]); buf[4] != 81 || !onItsWay[sn] {
				onItsWay[sn] = onItsWay[sn] || buf[4] == 81
				queue <- buf[:n]
			}
		}
	})
	pumps.Go(func() {
		to := <-client
		for d := range queue {
			if _, err := front.WriteTo(d, to); err == nil {
				time.Sleep(pause)
			}
		}
	})
	t.Cleanup(func() {
		front.Close()
		back.Close()
		pumps.Wait()
	})
	return front.LocalAddr().String()
}

// As long as the client acknowledges something it is there, however long its
// path takes for what its backend has left behind.
func TestAKCPClientOnASlowPathGetsEverything(t *testing.T) {
	t.Parallel()
	const idle = 1500 * time.Millisecond
	text := noise(5, 400<<10)
	backend := startBackend(t, func(c *net.TCPConn) { c.Write(text) })
	g := startKCP(t, func(cfg *Config) { cfg.KCPIdleTimeout, cfg.KCPMode = idle, "normal" })
	s := openKCP(t, slowPath(t, g.kcp, 8*time.Millisecond), backend)
	began, got := time.Now(), make([]byte, len(text))
	s.SetReadDeadline(began.Add(3 * patience)) // retransmissions on a busy machine
	if n, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, text) {
		t.Errorf("read %d bytes of %d, %v, or others", n, len(text), err)
	}
	if took := time.Since(began); took < idle+idle/2 {
		t.Errorf("it took no longer than %v: a test of nothing", took)
	}
}

func TestAKCPClientThatVanishesIsForgottenWithinTheIdleTimeout(t *testing.T) {
	const idle = 300 * time.Millisecond
	for _, test := range []struct {
		name  string
		serve func(*net.TCPConn)
	}{
		{"before a backend that is silent", func(c *net.TCPConn) {
			if _, err := io.Copy(io.Discard, c); !isReset(err) {
				t.Errorf("the backend read %v, want a reset", err)
			}
		}},
		{"before a backend that sends now and then", func(c *net.TCPConn) {
			for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
				if _, err := c.Write([]byte("state")); err != nil {
					return
				}
			}
		}},
		{"before a backend that sends without end", func(c *net.TCPConn) {
			for b := make([]byte, 64<<10); ; {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ended := make(chan struct{})
			backend := startBackend(t, func(c *net.TCPConn) { test.serve(c); close(ended) })
			g := startKCP(t, func(cfg *Config) { cfg.KCPIdleTimeout = idle })
			s := openKCP(t, g.kcp, backend)
			eventually(t, "the client's acknowledgement", func() bool { return g.Stats().Unproven == 0 })
			gone := time.Now()
			s.Close()
			line := g.log.waitLine(t, "tunnel", 1)
			if took := time.Since(gone); took > idle+2*time.Second {
				t.Errorf("it took %v", took)
			}
			if line["ended_by"] != "client" || line["how"] != "timeout" {
				t.Errorf("logged as %v", line)
			}
			g.forgotten(t)
			<-ended // the backend hears of it
		})
	}
}

func TestAKCPClientThatSaysNothingMoreEndsToo(t *testing.T) {
	backend := startEcho(t)
	g := startKCP(t, func(cfg *Config) { cfg.KCPIdleTimeout = 400 * time.Millisecond })
	s := openKCP(t, g.kcp, backend)
	// Bytes now and then keep it alive.
	for began := time.Now(); time.Since(began) < time.Second; {
		echo(t, s, "tick")
	}
	if len(g.log.lines("tunnel")) != 0 {
		t.Error("the session ended though bytes came")
	}
	if line := g.log.waitLine(t, "tunnel", 1); line["how"] != "timeout" || line["ended_by"] != "client" {
		t.Errorf("logged as %v", line)
	}
	g.forgotten(t)
}

// KCP has no half-close: the backend does not learn that the client has
// finished, and the client still hears it.
func TestATCPClientThatHasFinishedStillHearsAKCPBackend(t *testing.T) {
	bothRelays(t, func(t *testing.T, loops int) {
		asked, answer := make(chan struct{}), noise(2, 256<<10)
		backend := startKCPBackend(t, kcpCode{}, func(s *kcpgo.UDPSession) {
			io.ReadFull(s, make([]byte, len("question")))
			<-asked
			s.Write(answer)
			io.Copy(io.Discard, s)
		})
		g := startKCP(t, func(cfg *Config) { cfg.Loops, cfg.HalfCloseTimeout = loops, 300*time.Millisecond })
		c := openTunnel(t, g.addr, backend)
		send(t, c, "question")
		c.CloseWrite()
		delivered(t, c)
		close(asked)
		got, err := io.ReadAll(c) // up to the FIN
		if err != nil || !bytes.Equal(got, answer) {
			t.Errorf("read %d bytes of %d, %v, or others", len(got), len(answer), err)
		}
		line := g.log.waitLine(t, "tunnel", 1)
		if line["ended_by"] != "gateway" || line["how"] != "timeout" || line["up"] != 8.0 {
			t.Errorf("logged as %v", line)
		}
	})
}

func TestATCPClientGetsAFINWhenItsKCPBackendIsGone(t *testing.T) {
	bothRelays(t, func(t *testing.T, loops int) {
		text := noise(3, 256<<10)
		gone := make(chan struct{})
		backend := startKCPBackend(t, kcpCode{}, func(s *kcpgo.UDPSession) {
			s.Write(text)
			<-gone // and says no more
		})
		g := startKCP(t, func(cfg *Config) { cfg.Loops, cfg.KCPIdleTimeout = loops, 300*time.Millisecond })
		defer close(gone)
		c := openTunnel(t, g.addr, backend)
		expectAll(t, c, string(text))
		line := g.log.waitLine(t, "tunnel", 1)
		if line["ended_by"] != "backend" || line["how"] != "timeout" {
			t.Errorf("logged as %v", line)
		}
	})
}

func TestAKCPBackendWhosePortIsClosedEndsTheSessionAtOnce(t *testing.T) {
	ln, err := kcpgo.ListenWithOptions("127.0.0.1:0", nil, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	g := startKCP(t, nil) // whose idle timeout is a minute
	c := openTunnel(t, g.addr, "kcp://"+ln.Addr().String())
	s, err := ln.AcceptKCP()
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	ln.Close()
	send(t, c, "anybody there?")
	expectAll(t, c, "")
	if line := g.log.waitLine(t, "tunnel", 1); line["ended_by"] != "backend" || line["how"] != "error" {
		t.Errorf("logged as %v", line)
	}
}

func bothRelays(t *testing.T, test func(t *testing.T, loops int)) {
	for name, loops := range map[string]int{"loops": 0, "goroutines": -1} {
		t.Run(name, func(t *testing.T) { test(t, loops) })
	}
}

// kcp-go makes a session of whatever comes for one that has just ended. Such a
// session was once taken for the next client's, which then waited for another.
func TestKCPClientsThatSpeakPastTheEndHoldNobodyUp(t *testing.T) {
	t.Parallel()
	backend := startBackend(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 20_000)) // and closes, while more is coming
	})
	echoing := startEcho(t)
	g := startKCP(t, nil)
	line := sealed(t, backend)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			for range 6 {
				speakPast(t, g.kcp, line)
			}
		})
	}
	all.Wait()
	for range 3 {
		echo(t, openKCP(t, g.kcp, echoing), "hello")
	}
}

// speakPast sends for as long as anything is acknowledged.
func speakPast(t testing.TB, gateway, line string) {
	s := dialKCP(t, gateway, kcpCode{})
	defer s.Close()
	s.SetDeadline(time.Now().Add(patience / 4))
	io.WriteString(s, line)
	if got := make([]byte, 3); !reads(s, got) || string(got) != "200" {
		t.Errorf("read %q", got)
	}
	s.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	for b := make([]byte, 1000); ; {
		if _, err := s.Write(b); err != nil {
			return
		}
	}
}

func TestAThousandKCPSessionsAtOnce(t *testing.T) {
	const sessions, idle = 1000, 5 * time.Second
	backend := startBackendProcess(t, "echo")
	g := startKCP(t, func(cfg *Config) { cfg.KCPIdleTimeout = idle })
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors()
	line := sealed(t, backend)
	allThere := make(chan struct{})
	var all sync.WaitGroup
	var clients []*kcpgo.UDPSession
	for i := range sessions {
		s := dialKCP(t, g.kcp, kcpCode{})
		clients = append(clients, s)
		all.Go(func() {
			text := fmt.Sprint("hello from ", i)
			io.WriteString(s, line)
			for want := "200" + text; ; want = text {
				io.WriteString(s, text)
				got := make([]byte, len(want))
				if !reads(s, got) || string(got) != want {
					t.Errorf("session %d: read %q, want %q", i, got, want)
					return
				}
				select {
				case <-allThere:
					echoByHash(t, s, 2000+i)
					return
				case <-time.After(idle / 4): // lest it end
				}
			}
		})
	}
	eventually(t, "they are all there", func() bool { return g.Stats().Sessions == sessions && g.Stats().Unproven == 0 })
	close(allThere)
	all.Wait()
	for _, s := range clients {
		s.Close()
	}
	g.log.waitLine(t, "tunnel", sessions)
	g.forgotten(t)
	for _, l := range g.log.lines("tunnel") {
		if l["ended_by"] != "client" || l["how"] != "timeout" {
			t.Fatalf("logged as %v", l)
		}
	}
	eventually(t, "nothing is left of them", func() bool {
		return runtime.NumGoroutine() <= goroutines && openDescriptors() <= descriptors+3 // as in checkLeaks
	})
}
