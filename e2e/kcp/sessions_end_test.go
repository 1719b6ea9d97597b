package kcp

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"

	"gateway/internal/harness"
	"gateway/internal/kcp"
)

// How sessions of KCP end, and how many there may be.

func TestAllThatABackendSentArrivesBeforeTheSessionEnds(t *testing.T) {
	t.Parallel()
	for _, part := range []float64{0, .2} {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			t.Parallel()
			text := harness.Noise(1, 256<<10)
			backend := harness.StartBackend(t, func(c *net.TCPConn) { c.Write(text) }) // and closes
			echo := harness.StartEcho(t)
			g := startKCP(t)
			other := openKCP(t, g.kcp, echo)
			harness.Echo(t, other, "hello")
			rest := g.Rest(t)
			s := openKCP(t, badPath(t, g.kcp, part), backend)
			h := sha256.New()
			if n, err := io.CopyN(h, s, int64(len(text))); err != nil || [32]byte(h.Sum(nil)) != sha256.Sum256(text) {
				t.Fatalf("%d bytes, %v, or others", n, err)
			}
			line := g.Log.WaitLine(t, "tunnel", 1)
			if line["ended_by"] != "backend" || line["how"] != "fin" || line["down"] != float64(len(text)) {
				t.Errorf("logged as %v", line)
			}
			g.WaitForRest(t, rest)
			// Silence tells the client, and whatever it still says is dropped.
			io.WriteString(s, "is anybody there?")
			for range 30 { // in which kcp-go sends it again and again
				harness.Echo(t, other, "time passes")
			}
			if now := g.Rest(t); now.Goroutines > rest.Goroutines {
				t.Errorf("a session began with what came late: %+v, %+v before", now, rest)
			}
		})
	}
}

// It must not be told from a deadline, after which the relay tries again: that
// once made a loop without end.
func TestAKCPClientThatVanishesBeforeItsBackendFinishesIsForgotten(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 5))
		io.WriteString(c, "hello")
		<-finish
		io.WriteString(c, "the end")
	})
	g := startKCP(t)
	s := openKCP(t, g.kcp, backend)
	harness.Echo(t, s, "hello") // with its acknowledgement of the status
	s.Close()
	began := time.Now()
	close(finish)
	line := g.Log.WaitLine(t, "tunnel", 1)
	if took := time.Since(began); took > kcp.Linger+10*time.Second {
		t.Errorf("it took %v", took)
	}
	if line["ended_by"] != "client" || line["how"] != "timeout" {
		t.Errorf("logged as %v", line)
	}
	g.forgotten(t)
}

func TestAKCPClientThatVanishesIsForgottenWithinTheIdleTimeout(t *testing.T) {
	t.Parallel()
	const idle = 2 * time.Second
	for _, test := range []struct {
		name  string
		serve func(*net.TCPConn)
	}{
		{"before a backend that is silent", func(c *net.TCPConn) {
			if _, err := io.Copy(io.Discard, c); !harness.IsReset(err) {
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
			backend := harness.StartBackend(t, func(c *net.TCPConn) {
				io.ReadFull(c, make([]byte, 5))
				io.WriteString(c, "hello")
				test.serve(c)
				close(ended)
			})
			g := startKCP(t, "-kcp-idle-timeout="+idle.String())
			s := openKCP(t, g.kcp, backend)
			harness.Echo(t, s, "hello") // with its acknowledgement of the status
			gone := time.Now()
			s.Close()
			line := g.Log.WaitLine(t, "tunnel", 1)
			if took := time.Since(gone); took > idle+10*time.Second {
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
	harness.Long(t)
	t.Parallel()
	const idle = 3 * time.Second
	backend := harness.StartEcho(t)
	g := startKCP(t, "-kcp-idle-timeout="+idle.String())
	s := openKCP(t, g.kcp, backend)
	// Bytes now and then keep it alive.
	for began := time.Now(); time.Since(began) < 3*idle/2; {
		harness.Echo(t, s, "tick")
	}
	if len(g.Log.Lines("tunnel")) != 0 {
		t.Error("the session ended though bytes came")
	}
	if line := g.Log.WaitLine(t, "tunnel", 1); line["how"] != "timeout" || line["ended_by"] != "client" {
		t.Errorf("logged as %v", line)
	}
	g.forgotten(t)
}

// KCP has no half-close: the backend does not learn that the client has
// finished, and the client still hears it.
func TestATCPClientThatHasFinishedStillHearsAKCPBackend(t *testing.T) {
	t.Parallel()
	harness.BothWays(t, func(t *testing.T, way string) {
		asked, answer := make(chan struct{}), harness.Noise(2, 256<<10)
		backend := startKCPBackend(t, kcpCode{}, func(s *kcpgo.UDPSession) {
			io.ReadFull(s, make([]byte, len("question")))
			<-asked
			s.Write(answer)
			io.Copy(io.Discard, s)
		})
		g := startKCP(t, way, "-half-close-timeout=2s")
		c := harness.OpenTunnel(t, g.Addr, backend)
		harness.Send(t, c, "question")
		c.CloseWrite()
		harness.Delivered(t, c)
		close(asked)
		got, err := io.ReadAll(c) // up to the FIN
		if err != nil || !bytes.Equal(got, answer) {
			t.Errorf("read %d bytes of %d, %v, or others", len(got), len(answer), err)
		}
		line := g.Log.WaitLine(t, "tunnel", 1)
		if line["ended_by"] != "gateway" || line["how"] != "timeout" || line["up"] != 8.0 {
			t.Errorf("logged as %v", line)
		}
	})
}

func TestATCPClientGetsAFINWhenItsKCPBackendIsGone(t *testing.T) {
	t.Parallel()
	harness.BothWays(t, func(t *testing.T, way string) {
		text := harness.Noise(3, 64<<10)
		gone := make(chan struct{})
		backend := startKCPBackend(t, kcpCode{}, func(s *kcpgo.UDPSession) {
			s.Write(text)
			<-gone // and says no more
		})
		g := startKCP(t, way, "-kcp-idle-timeout=2s")
		defer close(gone)
		c := harness.OpenTunnel(t, g.Addr, backend)
		harness.ExpectAll(t, c, string(text))
		line := g.Log.WaitLine(t, "tunnel", 1)
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
	g := startKCP(t) // whose idle timeout is a minute
	c := harness.OpenTunnel(t, g.Addr, "kcp://"+ln.Addr().String())
	s, err := ln.AcceptKCP()
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	ln.Close()
	harness.Send(t, c, "anybody there?")
	harness.ExpectAll(t, c, "")
	if line := g.Log.WaitLine(t, "tunnel", 1); line["ended_by"] != "backend" || line["how"] != "error" {
		t.Errorf("logged as %v", line)
	}
}

// kcp-go makes a session of whatever comes for one that has just ended. Such a
// session was once taken for the next client's, which then waited for another.
func TestKCPClientsThatSpeakPastTheEndHoldNobodyUp(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 20_000)) // and closes, while more is coming
	})
	echoing := harness.StartEcho(t)
	g := startKCP(t)
	line := harness.Line(backend)
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
		harness.Echo(t, openKCP(t, g.kcp, echoing), "hello")
	}
}

// speakPast sends for as long as anything is acknowledged.
func speakPast(t testing.TB, gateway, line string) {
	s := dialKCP(t, gateway, kcpCode{})
	defer s.Close()
	s.SetDeadline(time.Now().Add(harness.Patience))
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

func TestAHundredKCPSessionsAtOnce(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	const sessions, idle = 100, 8 * time.Second
	backend := harness.StartBackendProcess(t, harness.RoleEcho)
	g := startKCP(t, "-kcp-idle-timeout="+idle.String())
	line := harness.Line(backend)
	allThere := make(chan struct{})
	var there atomic.Int64
	var all sync.WaitGroup
	var clients []*session
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
				if want != text {
					there.Add(1)
				}
				select {
				case <-allThere:
					echoByHash(t, s, 2000+i)
					return
				case <-time.After(idle / 8): // lest it end
				}
			}
		})
	}
	harness.Eventually(t, "they are all there", func() bool { return there.Load() == sessions || t.Failed() })
	close(allThere)
	all.Wait()
	for _, s := range clients {
		s.Close()
	}
	g.Log.WaitLine(t, "tunnel", sessions)
	for _, l := range g.Log.Lines("tunnel") {
		if l["ended_by"] != "client" || l["how"] != "timeout" {
			t.Fatalf("logged as %v", l)
		}
	}
	g.forgotten(t)
}
