package kcp

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"
)

// acknowledgement is what a client sends that has, or says it has, a segment
// and all before una.
func acknowledgement(conv, sn, ts, una uint32) segment {
	seg := control(conv, cmdAck, 128)
	seg.setSN(sn)
	seg.setTS(ts)
	binary.LittleEndian.PutUint32(seg[16:], una)
	return seg
}

// drain returns how many bytes a socket has got, until nothing more comes.
func drain(c net.Conn) (bytes int) {
	buf := make([]byte, 2048)
	for {
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		n, err := c.Read(buf)
		if err != nil {
			return bytes
		}
		bytes += n
	}
}

// Somebody holds a valid line, forges a victim's address, and so sees nothing of
// what is sent there. What they know is kcp-go's clock, from a session of their
// own: it counts milliseconds since the program's start.
func TestGuessedAcknowledgementsBuyNothing(t *testing.T) {
	t.Parallel()
	clock := func() uint32 { return uint32(time.Since(start).Milliseconds()) }
	for name, guess := range map[string]func(sn uint32) []byte{
		"cumulative": func(sn uint32) []byte { return acknowledgement(7, sn, clock(), sn+1) },
		"cumulative, with data": func(sn uint32) []byte {
			d := opening(7, "x")
			binary.LittleEndian.PutUint32(d[12:], sn+1)
			binary.LittleEndian.PutUint32(d[16:], sn+1)
			return d
		},
		"cumulative, with a window": func(sn uint32) []byte {
			d := acknowledgement(7, 0, 0, sn+1)
			d[4] = cmdTell
			return d
		},
		"each moment of the clock": func(sn uint32) (d []byte) {
			for back := range uint32(50) {
				d = append(d, acknowledgement(7, sn/8, clock()-back, sn/8+1)...)
			}
			return d
		},
		"hidden in a long datagram": func(sn uint32) []byte {
			d := control(7, cmdTell, 128)
			return append(d, acknowledgement(7, sn, clock(), sn+1)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := options()
			o.IdleTimeout = 4 * time.Second
			l := listen(t, o, func(c *Conn) {
				c.Read(make([]byte, 1000))
				c.Write(make([]byte, 4<<20))
				c.Close()
			})
			c := rawClient(t, l)
			sent, err := c.Write(opening(7, line))
			for sn := uint32(0); sn < 20 && err == nil; sn++ {
				time.Sleep(20 * time.Millisecond) // the attacker's pace
				n := 0
				n, err = c.Write(guess(sn))
				sent += n
			}
			eventually(t, "the session ends", func() bool { return l.Stats().Sessions == 0 })
			got := drain(c)
			t.Logf("%d bytes for %d: %.2f", got, sent, float64(got)/float64(sent))
			if got == 0 || got > amplification*sent {
				t.Errorf("%d bytes for %d, want some and at most %d times as many", got, sent, amplification)
			}
		})
	}
}

// answer reads datagrams until one holds data, and acknowledges that.
func answer(t *testing.T, c net.Conn, l *Listener) segment {
	t.Helper()
	buf := make([]byte, 2048)
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		s, ok := l.guard.layout.read(buf[:n])
		if !ok {
			t.Fatalf("got %x", buf[:n])
		}
		for seg := range s.all() {
			if seg.cmd() == cmdPush {
				return acknowledgement(s.conv, seg.sn(), seg.ts(), seg.sn()+1)
			}
		}
	}
}

func TestTheEchoOfWhatWasSentIsProof(t *testing.T) {
	l := listen(t, options(), func(c *Conn) { c.Write([]byte("200")); <-c.ended })
	c := rawClient(t, l)
	c.Write(opening(7, "x"))
	echo := answer(t, c, l)
	for what, wrong := range map[string]segment{
		"another ts":        acknowledgement(7, echo.sn(), echo.ts()+1, 1),
		"what was not sent": acknowledgement(7, echo.sn()+1, echo.ts(), 1),
	} {
		dropped := l.Stats().Dropped
		c.Write(wrong)
		eventually(t, "it is dropped: "+what, func() bool { return l.Stats().Dropped == dropped+1 })
	}
	if n := l.Stats().Unproven; n != 1 {
		t.Fatalf("%d unproven sessions, want 1", n)
	}
	c.Write(echo)
	eventually(t, "it is proven", func() bool { return l.Stats().Unproven == 0 })
	if n := l.Stats().Sessions; n != 1 {
		t.Errorf("%d sessions", n)
	}
}

func TestAClientThatGuessesIsGivenUp(t *testing.T) {
	l := listen(t, options(), func(c *Conn) { c.Write([]byte("200")); <-c.ended })
	c := rawClient(t, l)
	c.Write(opening(7, "x"))
	answer(t, c, l)
	for ts := range uint32(maxGuesses) {
		c.Write(acknowledgement(7, 0, ts, 1))
	}
	eventually(t, "they are dropped", func() bool { return l.Stats().Dropped == maxGuesses })
	if n := l.Stats().Sessions; n != 1 {
		t.Fatalf("%d sessions", n)
	}
	c.Write(acknowledgement(7, 0, maxGuesses, 1))
	eventually(t, "the session ends", func() bool { return l.Stats().Sessions == 0 })
}

func TestAClientThatAcknowledgesNothingIsGivenUp(t *testing.T) {
	conns := make(chan *Conn, 1)
	o := options()
	o.IdleTimeout = time.Hour
	l := listen(t, o, func(c *Conn) { c.Write([]byte("200")); conns <- c; <-c.ended })
	raw := rawClient(t, l)
	raw.Write(opening(7, "x"))
	c := <-conns
	eventually(t, "it is sent something", func() bool { return c.given.Load() != 0 })
	c.checkIdle()
	if c.isEnded() {
		t.Fatal("it had no time at all")
	}
	c.given.Add(-int64(unprovenTime))
	c.checkIdle()
	if !c.isEnded() || c.cause != ErrIdle {
		t.Errorf("it ended: %v, %v", c.isEnded(), c.cause)
	}
}

// The client's settings, and what makes a listener's the same.
var kinds = []struct {
	name  string
	set   func(*Options)
	block func(*Transport) kcpgo.BlockCrypt
}{
	{"clear", func(*Options) {}, nil},
	{"clear in kcptun's frame", func(*Options) {}, func(*Transport) kcpgo.BlockCrypt {
		none, _ := kcpgo.NewNoneBlockCrypt(nil)
		return none
	}},
	{"aes", func(o *Options) { o.Crypt, o.Key = "aes", "secret" }, aes},
	{"error correction", func(o *Options) { o.DataShards, o.ParityShards = 10, 3 }, nil},
	{"aes with error correction", func(o *Options) {
		o.Crypt, o.Key, o.DataShards, o.ParityShards = "aes", "secret", 10, 3
	}, aes},
}

// dialKind is kcp-go's own client with a conversation of our choice.
func dialKind(t *testing.T, l *Listener, conv uint32, block func(*Transport) kcpgo.BlockCrypt) *kcpgo.UDPSession {
	t.Helper()
	tr := l.guard.transport
	var b kcpgo.BlockCrypt
	if block != nil {
		b = block(tr)
	}
	socket, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := kcpgo.NewConn4(conv, l.Addr(), b, tr.DataShards, tr.ParityShards, true, socket)
	if err != nil {
		t.Fatal(err)
	}
	s.SetStreamMode(true) //lint:ignore SA1019 kcp-go's own clients call it
	t.Cleanup(func() { s.Close() })
	return s
}

func TestEveryConversationIsServed(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			o := options()
			kind.set(&o)
			l := listen(t, o, echo)
			for _, conv := range []uint32{0, 1, 1<<32 - 1} {
				s := dialKind(t, l, conv, kind.block)
				text, _ := random(8, 50<<10)
				go s.Write(text)
				expect(t, s, string(text))
			}
		})
	}
}

func TestEveryModeServesEveryKindOfClient(t *testing.T) {
	for mode := range modes {
		for _, client := range [][4]int{{0, 40, 0, 0}, {0, 40, 2, 1}, {1, 20, 2, 1}, {1, 10, 2, 1}} {
			o := options()
			o.Mode = mode
			l := listen(t, o, echo)
			s := dialKind(t, l, 0, nil)
			s.SetNoDelay(client[0], client[1], client[2], client[3])
			roundTrip(t, s, "hello")
			eventually(t, "it is proven", func() bool { return l.Stats().Unproven == 0 })
		}
	}
}

// Its port and its conversation may both be chosen by hand.
func TestAClientThatIsRestartedIsServedAgain(t *testing.T) {
	conns := make(chan *Conn, 2)
	l := listen(t, options(), func(c *Conn) { c.Write([]byte("200")); conns <- c; <-c.ended })
	client := rawClient(t, l)
	client.Write(opening(0, "x"))
	client.Write(answer(t, client, l))
	old := <-conns
	eventually(t, "it is proven", func() bool { return l.Stats().Unproven == 0 })
	heard := old.heard.Load()
	client.Write(opening(0, "y"))
	client.Write(nil)
	eventually(t, "both have come", func() bool { return l.Stats().Dropped == 1 })
	if old.isEnded() {
		t.Fatal("a forged datagram ended a session")
	}
	if old.heard.Load() != heard {
		t.Fatal("a client that has lost the session keeps it alive")
	}
	old.heard.Add(-int64(yieldAfter))
	client.Write(opening(0, "y"))
	c := <-conns
	<-old.ended
	if old.cause != errReplaced || c.isEnded() {
		t.Errorf("the old session ended with %v, the new one: %v", old.cause, c.isEnded())
	}
}

// exhaust leaves no place for an unproven client.
func exhaust(l *Listener) {
	l.guard.mu.Lock()
	l.guard.tokens = -1e9
	l.guard.mu.Unlock()
}

func TestWhoAnswersTheChallengeGetsInThoughThereIsNoPlace(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			o := options()
			kind.set(&o)
			l := listen(t, o, echo)
			exhaust(l)
			for _, conv := range []uint32{0, 77} {
				s := dialKind(t, l, conv, kind.block)
				text, _ := random(8, 50<<10)
				go s.Write(text)
				expect(t, s, string(text))
			}
			if stats := l.Stats(); stats.Challenged == 0 || stats.Unproven != 0 {
				t.Errorf("%+v", stats)
			}
		})
	}
}

func TestAChallengeIsAnsweredOnlyByWhomItWasSentTo(t *testing.T) {
	l := listen(t, options(), echo)
	exhaust(l)
	asked, other := rawClient(t, l), rawClient(t, l)
	sent, _ := asked.Write(opening(7, line))
	right := answer(t, asked, l)
	if n := len(right); n > sent {
		t.Errorf("a challenge of %d bytes for %d", n, sent)
	}
	dropped := l.Stats().Dropped
	other.Write(right)                                              // from elsewhere
	asked.Write(acknowledgement(8, right.sn(), right.ts(), 0))      // for another conversation
	asked.Write(acknowledgement(7, right.sn()^1, right.ts(), 0))    // guessed
	asked.Write(acknowledgement(7, right.sn(), right.ts()^1<<9, 0)) // guessed
	eventually(t, "all are dropped", func() bool { return l.Stats().Dropped == dropped+4 })
	other.Write(opening(7, line))
	asked.Write(opening(8, line))
	eventually(t, "both are challenged", func() bool { return l.Stats().Challenged == 3 })
	asked.Write(right)
	asked.Write(opening(7, line))
	eventually(t, "the right one has a session", func() bool { s := l.Stats(); return s.Sessions == 1 && s.Unproven == 0 })
}

func TestACookieIsGoodForATime(t *testing.T) {
	b := newBaker()
	who := conversation{netip.MustParseAddrPort("192.0.2.1:1000"), 0}
	now := 100 * int64(cookieTime)
	c := b.bake(who, now)
	summarise := func(seg segment) *summary {
		s, ok := layout{}.read(seg)
		if !ok {
			t.Fatal("not a datagram")
		}
		return &s
	}
	right := summarise(acknowledgement(0, c.sn, c.ts, 0))
	for _, test := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {cookieTime - 1, true}, {2*cookieTime - 1, true}, {2 * cookieTime, false}} {
		if got := b.answered(who, right, now+int64(test.after)); got != test.want {
			t.Errorf("after %v: %v", test.after, got)
		}
	}
	for _, other := range []conversation{
		{netip.MustParseAddrPort("192.0.2.1:1001"), 0},
		{netip.MustParseAddrPort("192.0.2.2:1000"), 0},
		{who.source, 1},
	} {
		if b.answered(other, right, now) {
			t.Errorf("%v answers for %v", other, who)
		}
	}
	if b2 := newBaker(); b2.answered(who, right, now) {
		t.Error("another listener takes it")
	}
	// What kcp-go must not take for an acknowledgement or a round trip.
	for i := range uint32(1000) {
		who.conv = i
		now += int64(cookieTime)
		c := b.bake(who, now)
		if after(c.sn, 0) || !after(c.ts, uint32(time.Duration(now).Milliseconds())) {
			t.Fatalf("cookie %+v at %v ms", c, time.Duration(now).Milliseconds())
		}
	}
}

func TestACookieIsNoRoundTripTime(t *testing.T) {
	for name, prepare := range map[string]func(*Listener){"stamped data": func(*Listener) {}, "a challenge": exhaust} {
		t.Run(name, func(t *testing.T) {
			conns := make(chan *Conn, 1)
			l := listen(t, options(), func(c *Conn) { conns <- c; echo(c) })
			prepare(l)
			s := dialPlain(t, l.Addr().String(), nil, 0, 0)
			for range 5 {
				roundTrip(t, s, "hello")
			}
			// A ts that is not kcp-go's own would make it a minute.
			if rto := (<-conns).session.Load().GetRTO(); rto > 20_000 {
				t.Errorf("the retransmission timeout is %d ms", rto)
			}
		})
	}
}

func TestTheOldestUnprovenSessionMakesRoom(t *testing.T) {
	l := listen(t, options(), func(c *Conn) { c.Read(make([]byte, 1)); <-c.ended })
	first := rawClient(t, l)
	first.Write(opening(7, "x"))
	eventually(t, "the first session", func() bool { return l.Stats().Sessions == 1 })
	for i := range maxUnproven - 1 {
		rawClient(t, l).Write(opening(uint32(i), "x"))
	}
	eventually(t, "all places are taken", func() bool { return l.Stats().Unproven == maxUnproven })
	g := l.guard
	g.mu.Lock()
	oldest := g.unproven.Front().Value.(*Conn)
	oldest.begun = sinceStart() + int64(time.Hour)
	g.mu.Unlock()
	rawClient(t, l).Write(opening(7, "x"))
	eventually(t, "a challenge, as the oldest is young", func() bool { return l.Stats().Challenged > 0 })
	g.mu.Lock()
	oldest.begun = sinceStart() - int64(crowdedAfter)
	g.mu.Unlock()
	rawClient(t, l).Write(opening(7, "x"))
	<-oldest.ended
	if oldest.cause != errCrowded {
		t.Errorf("the oldest ended with %v", oldest.cause)
	}
	eventually(t, "as many as before", func() bool { return l.Stats().Unproven == maxUnproven })

	// Who made room is no stranger to be dropped.
	drain(first)
	exhaust(l)
	first.Write(opening(7, "x"))
	first.Write(answer(t, first, l))
	first.Write(opening(7, "x"))
	eventually(t, "it gets in", func() bool { return l.Stats().Sessions == maxUnproven+1 })
}

func TestAClientThatWaitsForItsBackendKeepsItsPlaceInACrowd(t *testing.T) {
	dialed := make(chan struct{})
	l := listen(t, options(), func(c *Conn) {
		io.ReadFull(c, make([]byte, 5))
		select {
		case <-dialed:
			io.WriteString(c, "200")
		case <-c.ended:
		}
		<-c.ended
	})
	s := dialPlain(t, l.Addr().String(), nil, 0, 0)
	s.SetNoDelay(1, 10, 2, 1)
	io.WriteString(s, "hello")
	eventually(t, "its session", func() bool { return l.Stats().Sessions == 1 })
	for i := range pressedFrom {
		rawClient(t, l).Write(opening(uint32(i), "x"))
	}
	eventually(t, "the crowd", func() bool { return l.Stats().Sessions == pressedFrom+1 })
	eventually(t, "its answer", func() bool { return l.Stats().Unproven == pressedFrom })
	close(dialed)
	expect(t, s, "200")
}
