package kcp

import (
	"encoding/binary"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"
)

// opening is a client's first datagram.
func opening(conv uint32, text string) []byte {
	d := append(control(conv, cmdPush, 128), text...)
	d[20] = byte(len(text))
	return d
}

// rawClient is a socket that sends datagrams to a listener, and no more.
func rawClient(t testing.TB, l *Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestAFloodCostsBoundedMemoryAndGoroutines(t *testing.T) {
	const datagrams = 20_000
	// As a gateway does, wait for a request for a while.
	l := listen(t, options(), func(c *Conn) {
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, _ := io.ReadFull(c, make([]byte, 5)); n == 5 {
			io.WriteString(c, "200")
			<-c.ended
		}
		c.Abort()
	})
	goroutines, heap := runtime.NumGoroutine(), liveHeap()
	rng := rand.New(rand.NewPCG(1, 2))
	junk := make([]byte, 1400)
	for i := range datagrams {
		c, err := net.Dial("udp", l.Addr().String()) // a port of its own
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			c.Write(opening(rng.Uint32(), "x"))
		} else {
			d := junk[:rng.IntN(len(junk))]
			for j := range d[:min(len(d), 32)] {
				d[j] = byte(rng.Uint32())
			}
			c.Write(d)
		}
		c.Close()
		// One more while the oldest makes room.
		if n := l.Stats().Unproven; n > maxUnproven+1 {
			t.Fatalf("%d unproven sessions", n)
		}
	}
	// A client gets in while the flood's sessions are there.
	s := dialPlain(t, l.Addr().String(), nil, 0, 0)
	io.WriteString(s, "hello")
	expect(t, s, "200")

	// One goroutine of kcp-go's and one of this test a session, and those of
	// sessions that are just ending.
	eventually(t, "few goroutines", func() bool { return runtime.NumGoroutine()-goroutines < 2*maxUnproven+50 })
	grown, stats := liveHeap()-heap, l.Stats()
	t.Logf("%+v, %d KiB", stats, grown>>10)
	// 29 KiB each, and five times as much under the race detector. All that the
	// flood asks for would be 290 MiB.
	if limit := int64(128 << 20); grown > limit {
		t.Errorf("%d KiB of live heap, want at most %d", grown>>10, limit>>10)
	}
	if stats.Unproven < maxUnproven/2 || stats.Challenged == 0 || stats.Dropped == 0 {
		t.Errorf("that was no flood: %+v", stats)
	}
}

// liveHeap returns the bytes that are in use, without garbage.
func liveHeap() int64 {
	runtime.GC()
	runtime.GC() // what sync.Pool keeps lives until the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestAListenerHasNoMoreThanItsSessions(t *testing.T) {
	o := options()
	o.MaxSessions = 3
	warnings := make(channelWriter, 10)
	o.Log = slog.New(slog.NewTextHandler(warnings, nil))
	l := listen(t, o, echo)
	for range 5 {
		io.WriteString(dialPlain(t, l.Addr().String(), nil, 0, 0), "hello")
	}
	eventually(t, "refusals", func() bool { return l.Stats().Refused >= 2 })
	if n := l.Stats().Sessions; n != 3 {
		t.Errorf("%d sessions", n)
	}
	if n := len(warnings); n != 1 {
		t.Errorf("%d warnings, want one in ten seconds", n)
	} else if w := <-warnings; !strings.Contains(w, "sessions=3 ") {
		t.Errorf("warned %q", w)
	}
}

type channelWriter chan string

func (c channelWriter) Write(b []byte) (int, error) {
	c <- string(b)
	return len(b), nil
}

func TestNewSessionsComeNoFasterThanTheRate(t *testing.T) {
	g := &guard{transport: transport(t, options()), tokens: maxRate}
	now, begun := int64(0), 0
	for range 10 * maxRate {
		if g.mayBegin(now) {
			begun++
		}
	}
	now += int64(time.Second / 2)
	for range 10 * maxRate {
		if g.mayBegin(now) {
			begun++
		}
	}
	if want := maxRate * 3 / 2; begun != want {
		t.Errorf("%d sessions in half a second, want %d", begun, want)
	}
}

// TestWhoHasAnsweredGetsInHoweverLongItHasBackedOff has a client answer its challenge, and
// send its first data again as late as ikcp.c does (IKCP_RTO_MAX).
func TestWhoHasAnsweredGetsInHoweverLongItHasBackedOff(t *testing.T) {
	l := listen(t, options(), echo)
	l.ProveFirst(func() bool { return true })
	g, now := l.guard, sinceStart()
	who := conversation{source: netip.MustParseAddrPort("127.0.0.1:9"), conv: 7}
	if c := g.begin(who, nil, nil, now); c != nil {
		t.Fatal("it has a session without an answer")
	}
	g.mu.Lock()
	g.answered.add(who, now)
	known := g.answered.has(who, now+int64(kcpgo.IKCP_RTO_MAX*time.Millisecond))
	forgotten := !g.answered.has(who, now+int64(answeredTime)+1)
	g.mu.Unlock()
	if !known || !forgotten {
		t.Errorf("after a minute it is known: %v; forgotten in the end: %v", known, forgotten)
	}
}

func TestOnlyAnOpeningBeginsASession(t *testing.T) {
	l := listen(t, options(), echo)
	later := opening(1, "x")
	later[12] = 1
	heard := opening(1, "x")
	heard[16] = 1
	short := opening(1, "xyz")
	for name, d := range map[string][]byte{
		"empty":                      {},
		"one byte short of a header": control(1, cmdPush, 1)[1:],
		"an acknowledgement":         control(1, cmdAck, 1),
		"a window":                   control(1, cmdTell, 1),
		"an unknown command":         control(1, cmdTell+1, 1),
		"the second segment":         later,
		"a client that heard us":     heard,
		"data beyond the end":        short[:len(short)-1],
		"bytes behind the end":       append(opening(1, "x"), 0),
		"two conversations":          append(opening(1, "x"), opening(2, "x")...),
		"error correction":           append([]byte{0, 0, 0, 0, flagData, 0, 27, 0}, opening(1, "x")...),
	} {
		t.Run(name, func(t *testing.T) {
			before := l.Stats().Dropped
			rawClient(t, l).Write(d)
			eventually(t, "it is dropped", func() bool { return l.Stats().Dropped == before+1 })
		})
	}
	if n := l.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions", n)
	}
	rawClient(t, l).Write(opening(1, "x"))
	eventually(t, "the opening itself begins one", func() bool { return l.Stats().Sessions == 1 })
}

func TestAStrangerWithoutTheKeyBeginsNothing(t *testing.T) {
	o := options()
	o.Crypt, o.Key = "aes", "secret"
	l := listen(t, o, echo)
	o.Key = "another"
	stranger := dialPlain(t, l.Addr().String(), aes(transport(t, o)), 0, 0)
	io.WriteString(stranger, "hello")
	rawClient(t, l).Write(opening(1, "x"))
	eventually(t, "both are dropped", func() bool { return l.Stats().Dropped >= 2 })
	if n := l.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions", n)
	}
}

// What a forged source would be sent.
func TestAnUnprovenClientIsSentLittle(t *testing.T) {
	t.Parallel()
	big := make([]byte, 100<<10)
	for _, test := range []struct {
		name    string
		request string
		answer  []byte
		limit   float64 // times what it sent
	}{
		{"no request", "garbage", nil, 1},
		{"a bad request", line, []byte("401"), 3},
		{"a request of one byte", "\n", []byte("400"), 3},
		{"a backend that speaks first", line, big, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			o := options()
			o.IdleTimeout = 3 * time.Second
			l := listen(t, o, func(c *Conn) {
				c.Read(make([]byte, 1000))
				if test.answer == nil {
					c.Read(make([]byte, 1))
				}
				c.Write(test.answer)
				c.Close()
			})
			c := rawClient(t, l)
			sent, _ := c.Write(opening(7, test.request))
			eventually(t, "the session begins", func() bool { return l.Stats().Sessions == 1 })
			eventually(t, "the session ends", func() bool { return l.Stats().Sessions == 0 })
			got, datagrams, buf := 0, 0, make([]byte, 2048)
			for {
				c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
				n, err := c.Read(buf)
				if err != nil {
					break
				}
				got += n
				datagrams++
			}
			factor := float64(got) / float64(sent)
			t.Logf("%d bytes for %d in %d datagrams: %.2f", got, sent, datagrams, factor)
			if got == 0 || factor > test.limit {
				t.Errorf("sent %.2f times the bytes, want more than 0 and at most %v", factor, test.limit)
			}
		})
	}
}

func TestADatagramForADeadSessionGetsNoAnswer(t *testing.T) {
	o := options()
	var accepted atomic.Int32
	l := listen(t, o, func(c *Conn) { accepted.Add(1); c.Abort() })
	c := rawClient(t, l)
	c.Write(opening(7, "x"))
	eventually(t, "the session is over", func() bool { s := l.Stats(); return s.Sessions == 0 && len(graves(l)) == 1 })
	dropped := l.Stats().Dropped
	c.Write(opening(7, "x")) // a late copy
	c.Write(control(7, cmdAsk, 1))
	eventually(t, "both are dropped", func() bool { return l.Stats().Dropped == dropped+2 })
	if n := accepted.Load(); n != 1 {
		t.Errorf("%d sessions", n)
	}
	// Its address is free for another conversation.
	c.Write(opening(8, "x"))
	eventually(t, "another session", func() bool { return len(graves(l)) == 2 })
}

func graves(l *Listener) []remembered {
	l.guard.mu.Lock()
	defer l.guard.mu.Unlock()
	return l.guard.graves.order
}

func TestEndedSessionsAreForgottenInTime(t *testing.T) {
	l := listen(t, options(), func(c *Conn) { c.Abort() })
	rawClient(t, l).Write(opening(7, "x"))
	eventually(t, "the session is over", func() bool { return len(graves(l)) == 1 })
	g := l.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	g.graves.expire(sinceStart() + int64(graveTime) + 1)
	if len(g.graves.order) != 0 || len(g.graves.at) != 0 || len(g.sessions) != 0 {
		t.Errorf("%d and %d graves, %d sessions", len(g.graves.order), len(g.graves.at), len(g.sessions))
	}
}

func TestAnotherConversationTakesASilentSessionsAddress(t *testing.T) {
	conns := make(chan *Conn, 2)
	l := listen(t, options(), func(c *Conn) { conns <- c; <-c.ended })
	c := rawClient(t, l)
	c.Write(opening(7, "x"))
	old := <-conns
	refused := l.Stats().Refused
	c.Write(opening(8, "x"))
	eventually(t, "it is refused at once", func() bool { return l.Stats().Refused == refused+1 })
	if old.isEnded() {
		t.Fatal("a forged datagram ended a session")
	}
	old.heard.Add(-int64(yieldAfter))
	c.Write(opening(8, "x"))
	if next := <-conns; next.who.conv != 8 {
		t.Errorf("conversation %d", next.who.conv)
	}
	if _, err := old.Read(make([]byte, 2)); err == nil {
		_, err = old.Read(make([]byte, 2))
		if err != errReplaced {
			t.Errorf("the old session ended with %v", err)
		}
	}
}

func FuzzWhatTheGuardLetsPassIsKCP(f *testing.F) {
	f.Add(opening(7, "hello"), false)
	f.Add(append(opening(7, "hello"), control(7, cmdAsk, 1)...), false)
	f.Add(append([]byte{0, 0, 0, 0, flagData, 0, 27, 0}, opening(1, "x")...), true)
	f.Add(append([]byte{10, 0, 0, 0, flagParity, 0}, opening(1, "x")...), true)
	f.Fuzz(func(t *testing.T, d []byte, correction bool) {
		var l layout
		if correction {
			l = layout{10, 3}
		}
		s, ok := l.read(d)
		if !ok || s.parity {
			return
		}
		if binary.LittleEndian.Uint16(d[4:]) == flagData {
			d = d[fecHeader:]
		}
		k := kcpgo.NewKCP(s.conv, func([]byte, int) {})
		if got := k.Input(d, true, false); got != 0 {
			t.Fatalf("kcp-go refuses it with %d", got)
		}
		if s.opens() && !s.data {
			t.Fatal("an opening without data")
		}
	})
}
