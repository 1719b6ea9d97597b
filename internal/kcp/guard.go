package kcp

import (
	"container/list"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxUnproven bounds the sessions whose clients have not proven their
	// address, which is as far as a flood of forged ones gets.
	maxUnproven = 512
	// crowdedAfter is how long such a session has its place for certain. After
	// that the oldest makes room for a newcomer.
	crowdedAfter = 3 * time.Second
	// maxRate bounds the new unproven sessions per second, and how many may come
	// at once.
	maxRate = 2048
	// pressedFrom is the number of unproven sessions from which on newcomers are
	// challenged. Who answers needs no place among the unproven.
	pressedFrom = maxUnproven / 4
	// maxAnswered bounds the clients that have answered and have no session yet.
	// They send their first data again by themselves, within answeredTime: ikcp.c waits
	// twice as long each time that nothing comes, up to IKCP_RTO_MAX (60 s). Who was
	// forgotten by then would be challenged for ever.
	maxAnswered  = 8192
	answeredTime = 75 * time.Second
	// maxStrangers bounds the clients that wait for their challenge.
	maxStrangers = 1024
	// warnEvery is how often the log is told of a crowd.
	warnEvery = 10 * time.Second

	// yieldAfter is how long nothing must have come for a session before
	// another may take its address.
	yieldAfter = 5 * time.Second
	// maxHanded bounds the openings on their way through kcp-go: its backlog is
	// 128, and what does not fit is lost.
	maxHanded = 100
	// graveTime is for how long an ended session is remembered, lest a late
	// copy of its first datagram begin it anew. A client whose conversation is
	// chosen by hand may come again with the same.
	graveTime = 10 * time.Second
	// maxGraves bounds how many are.
	maxGraves = 8192
)

// A guard stands between a listener's socket and kcp-go, for which any 24
// bytes from a new address are a session, and any from a known one may replace
// its session. It is the net.PacketConn of kcp-go's listener: what it lets pass
// comes from a peer, and what goes to a peer passes it too.
type guard struct {
	*net.UDPConn
	transport *Transport
	layout    layout
	frame     *frame // with Crypt aes
	clear     *frame // "none" of kcptun, for Crypt none
	baker     baker
	out       *outbox
	batch     *batch // of ReadFrom, which only kcp-go's one reader calls

	mu       sync.Mutex
	sessions map[netip.AddrPort]*Conn // live, one for an address
	unproven list.List                // of *Conn: those of them, the oldest first
	graves   *memory                  // of sessions that have ended
	answered *memory                  // of challenges, by clients without a session
	tokens   float64                  // new unproven sessions that may come now
	filled   int64                    // when tokens was last filled
	warnAt   int64                    // not before that
	closed   bool                     // no new sessions; the socket closes after the last

	proveFirst func() bool // see Listener.ProveFirst

	handover *handover // nil: the shared socket is this process's

	strangers chan stranger // to be challenged

	// handed holds a token for each opening that has been given to kcp-go and
	// has not come out as a session. Each does: its name is new there.
	handed chan struct{}

	dropped, refused, challenged atomic.Uint64
}

func newGuard(t *Transport, socket *net.UDPConn) *guard {
	g := &guard{
		UDPConn: socket, transport: t, layout: t.layout(),
		baker: newBaker(), batch: newBatch(socket), out: newOutbox(socket),
		proveFirst: func() bool { return false },
		sessions:   make(map[netip.AddrPort]*Conn),
		graves:     newMemory(graveTime, maxGraves),
		answered:   newMemory(answeredTime, maxAnswered),
		handed:     make(chan struct{}, maxHanded),
		strangers:  make(chan stranger, maxStrangers),
		tokens:     maxRate, filled: sinceStart(),
	}
	if t.key != nil {
		g.frame = newFrame(t.key)
	} else {
		g.clear = newFrame(nil)
	}
	return g
}

// ReadFrom implements net.PacketConn. It returns only packets of sessions, and
// an error only when the socket is closed.
func (g *guard) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		d, source, err := g.read()
		if errors.Is(err, net.ErrClosed) {
			return 0, nil, err
		}
		if err != nil {
			// Whatever it is (ICMP on Windows, no memory), it passes; but it
			// must not make this loop spin.
			time.Sleep(time.Millisecond)
			continue
		}
		frame, packet, s, ok := g.open(d)
		if !ok || len(packet) > len(b) {
			g.dropped.Add(1)
			continue
		}
		c := g.admit(conversation{source, s.conv}, frame, &s)
		if c == nil {
			continue
		}
		proven := c.proven.Load()
		if !c.takes(len(d), &s) {
			g.dropped.Add(1)
			continue
		}
		if !proven && c.proven.Load() {
			g.prove(c)
		}
		return copy(b, packet), peer{c}, nil
	}
}

// open takes the frame off a datagram and summarises it.
func (g *guard) open(d []byte) (f *frame, packet []byte, s summary, ok bool) {
	if g.frame == nil {
		if s, ok = g.layout.read(d); ok {
			return nil, d, s, true
		}
		f = g.clear
	} else {
		f = g.frame
	}
	packet = f.open(d)
	s, ok = g.layout.read(packet)
	return f, packet, s, ok
}

// admit returns the session that a datagram belongs to or begins, or nil.
func (g *guard) admit(who conversation, f *frame, s *summary) *Conn {
	now := sinceStart()
	g.mu.Lock()
	c := g.sessions[who.source]
	ended := c == nil && g.graves.has(who, now)
	g.mu.Unlock() // none begins meanwhile: this is kcp-go's one reader
	switch {
	case c != nil && (s.parity || s.conv == c.who.conv) && !(c.restarted(s) && c.silent(now)):
		return c
	case s.opens() && !ended:
		return g.begin(who, f, c, now)
	case s.cmd == cmdAsk && c == nil && !ended:
		// In as many bytes as it asked and without a session, so a dialer
		// learns that somebody is here.
		g.send(who.source, f, control(who.conv, cmdTell, unprovenWindow))
	case (c == nil || c.silent(now)) && g.baker.answered(who, s, now):
		g.mu.Lock()
		g.answered.add(who, now)
		g.mu.Unlock()
	default:
		g.dropped.Add(1)
	}
	return nil
}

// begin returns a new session, perhaps instead of one that had its address, or
// nil if there is no place for it.
func (g *guard) begin(who conversation, f *frame, old *Conn, now int64) *Conn {
	if old != nil && !old.silent(now) {
		g.refused.Add(1)
		return nil
	}
	g.mu.Lock()
	if g.closed || len(g.sessions) >= g.transport.MaxSessions {
		refused := g.refused.Add(1)
		g.warn(now, "no room for more KCP sessions, refusing them", "refused", refused)
		g.mu.Unlock()
		return nil
	}
	proven := g.answered.take(who, now)
	if first := !proven && g.proveFirst(); first || !proven && !g.mayBegin(now) {
		if !first {
			g.warn(now, "many new KCP clients at once, asking each to prove its address",
				"challenged", g.challenged.Load())
		}
		g.mu.Unlock()
		g.ask(who, f != nil)
		return nil
	}
	c := g.transport.newConn(g.frameFor(f), who, g.LocalAddr(), g.forget)
	c.cookie = g.baker.bake(who, now)
	c.proven.Store(proven)
	g.sessions[who.source] = c
	var oldest *Conn
	if !proven {
		c.place = g.unproven.PushBack(c)
		if g.unproven.Len() > maxUnproven {
			oldest = g.unproven.Front().Value.(*Conn)
		}
	}
	ask := g.unasked()
	g.mu.Unlock()
	if old != nil {
		old.end(errReplaced)
	}
	if oldest != nil {
		oldest.end(errCrowded)
	}
	for _, u := range ask {
		g.challenge(u)
	}
	g.handed <- struct{}{}
	return c
}

// frameFor returns a session's own frame of the kind that its client uses.
func (g *guard) frameFor(f *frame) *frame {
	if f == nil {
		return nil
	}
	return newFrame(g.transport.key)
}

// mayBegin tells whether one more session may begin whose client is not proven,
// and takes a token for it. If the unproven are too many then, the oldest has to
// go.
func (g *guard) mayBegin(now int64) bool {
	g.tokens = min(maxRate, g.tokens+maxRate*time.Duration(now-g.filled).Seconds())
	g.filled = now
	if g.tokens < 1 {
		return false
	}
	if g.unproven.Len() >= maxUnproven {
		oldest := g.unproven.Front().Value.(*Conn)
		if now-oldest.begun < int64(crowdedAfter) {
			return false
		}
	}
	g.tokens--
	return true
}

// unasked returns the unproven sessions that have to be challenged now: all that
// have not been, once there are many. Those who answer keep their places.
func (g *guard) unasked() (ask []*Conn) {
	if g.unproven.Len() <= pressedFrom {
		return nil
	}
	for e := g.unproven.Back(); e != nil && !e.Value.(*Conn).asked; e = e.Prev() {
		c := e.Value.(*Conn)
		c.asked = true
		ask = append(ask, c)
	}
	return ask
}

// warn tells the log of a crowd, but a flood must not fill it.
func (g *guard) warn(now int64, message string, args ...any) {
	if g.closed || now < g.warnAt {
		return
	}
	g.warnAt = now + int64(warnEvery)
	g.transport.Log.Warn(message, append(args, "addr", g.LocalAddr().String(),
		"sessions", len(g.sessions), "unproven", g.unproven.Len())...)
}

// prove notes that a client's address is its own.
func (g *guard) prove(c *Conn) {
	g.mu.Lock()
	g.settle(c)
	g.mu.Unlock()
	if s := c.session.Load(); s != nil { // otherwise attach does it
		g.transport.pace(s, true)
	}
}

// settle no longer counts a session among the unproven.
func (g *guard) settle(c *Conn) {
	if c.place != nil {
		g.unproven.Remove(c.place)
		c.place = nil
	}
}

// forget takes note of a session's end. One that made room for another may
// come again.
func (g *guard) forget(c *Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.settle(c)
	if g.sessions[c.who.source] == c {
		delete(g.sessions, c.who.source)
	}
	if own := c.own.Load(); own != nil {
		own.Close()
	}
	if c.cause != errCrowded {
		g.graves.add(c.who, sinceStart())
	}
	g.closeAfterLast()
}

// close lets no new session begin, and closes the socket after the last.
func (g *guard) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.closeAfterLast()
}

func (g *guard) closeAfterLast() {
	if g.closed && len(g.sessions) == 0 {
		g.out.close()
		if h := g.handover; h != nil && !h.ended {
			h.ended = true
			close(h.over)
		}
	}
}

// WriteTo implements net.PacketConn. What cannot be sent is lost, as UDP may
// lose anything: an error would end the session for good.
func (g *guard) WriteTo(packet []byte, to net.Addr) (int, error) {
	c := to.(peer).Conn
	if c.gives(len(packet)+c.frame.overhead(), packet) {
		g.sendTo(c, c.frame, packet)
	}
	return len(packet), nil
}

// sendTo sends a packet to a session's client.
func (g *guard) sendTo(c *Conn, f *frame, packet []byte) {
	own := c.own.Load()
	if own == nil {
		g.out.put(c.client, f, packet)
		return
	}
	f.seal(packet, func(d []byte) error {
		_, err := own.Write(d)
		return err
	})
}

func (g *guard) send(to netip.AddrPort, f *frame, packet []byte) {
	f.seal(packet, func(d []byte) error {
		_, err := g.WriteToUDPAddrPort(d, to)
		return err
	})
}
