package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"

	"gateway/internal/kcp"
)

// How sessions of KCP end, and how many there may be.

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
	g.relay.Close()
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
	g := startKCP(t, func(cfg *Config) { cfg.KCPIdleTimeout = 700 * time.Millisecond })
	s := openKCP(t, g.kcp, backend)
	// Bytes now and then keep it alive.
	for began := time.Now(); time.Since(began) < 1500*time.Millisecond; {
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
	t.Parallel()
	bothRelays(t, func(t *testing.T, loops int) {
		text := noise(3, 64<<10)
		gone := make(chan struct{})
		backend := startKCPBackend(t, kcpCode{}, func(s *kcpgo.UDPSession) {
			s.Write(text)
			<-gone // and says no more
		})
		g := startKCP(t, func(cfg *Config) { cfg.Loops, cfg.KCPIdleTimeout = loops, 1500*time.Millisecond })
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
	t.Parallel()
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
	s.SetDeadline(time.Now().Add(patience))
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
	const sessions, idle = 1000, 4 * time.Second
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
