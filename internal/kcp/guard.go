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
	// maxUnproven bounds the sessions whose clients have not acknowledged
	// anything, which is as far as a flood of forged addresses gets.
	maxUnproven = 2048
	// crowdedAfter is how long such a session has its place for certain. After
	// that the oldest makes room for a newcomer, so that a flood does not keep
	// everybody out until all that came of it is given up.
	crowdedAfter = time.Second
	// warnEvery is how often the log is told that there is no room.
	warnEvery = 10 * time.Second
	// maxRate bounds the new sessions per second, and how many may come at once.
	maxRate = 2048

	// yieldAfter is how long nothing must have come for a session before
	// another conversation may take its address.
	yieldAfter = 5 * time.Second
	// maxHanded bounds the openings on their way through kcp-go: its backlog is
	// 128, and what does not fit is lost.
	maxHanded = 100
	// graveTime is for how long an ended session is remembered, lest a late
	// copy of its first datagram begin it anew.
	graveTime = 30 * time.Second
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
	buf       []byte // of ReadFrom, which only kcp-go's one reader calls

	mu       sync.Mutex
	sessions map[netip.AddrPort]entry
	graves   []grave // in the order of their end
	live     int
	unproven list.List // of *Conn: those of the live, the oldest first
	tokens   float64   // new sessions that may come now
	filled   int64     // when tokens was last filled
	warnAt   int64     // not before that
	closed   bool      // no new sessions; the socket closes after the last

	// handed holds a token for each opening that has been given to kcp-go and
	// has not come out as a session. Each does: its name is new there.
	handed chan struct{}

	dropped, refused atomic.Uint64
}

// entry is a session, or the memory of one that has ended: then conn is nil.
type entry struct {
	conv uint32
	conn *Conn
}

// grave says when a session ended, by sinceStart.
type grave struct {
	source netip.AddrPort
	conv   uint32
	ended  int64
}

func newGuard(t *Transport, socket *net.UDPConn) *guard {
	g := &guard{
		UDPConn: socket, transport: t, layout: t.layout(),
		buf:      make([]byte, maxDatagram+1),
		sessions: make(map[netip.AddrPort]entry),
		handed:   make(chan struct{}, maxHanded),
		tokens:   maxRate, filled: sinceStart(),
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
		n, source, err := g.ReadFromUDPAddrPort(g.buf)
		if errors.Is(err, net.ErrClosed) {
			return 0, nil, err
		}
		if err != nil {
			// Whatever it is (ICMP on Windows, no memory), it passes; but it
			// must not make this loop spin.
			time.Sleep(time.Millisecond)
			continue
		}
		frame, packet, s, ok := g.open(g.buf[:n])
		if !ok || len(packet) > len(b) {
			g.dropped.Add(1)
			continue
		}
		if c := g.admit(source, frame, &s); c != nil {
			if c.takes(n, &s) {
				g.prove(c)
			}
			return copy(b, packet), peer{c}, nil
		}
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
func (g *guard) admit(source netip.AddrPort, f *frame, s *summary) *Conn {
	g.mu.Lock()
	old, known := g.sessions[source]
	if known && (s.parity || s.conv == old.conv) {
		g.mu.Unlock()
		if old.conn == nil {
			g.dropped.Add(1)
		}
		return old.conn
	}
	if !s.opens() {
		g.mu.Unlock()
		if s.cmd == cmdAsk && !known {
			g.tell(source, f, s.conv)
		} else {
			g.dropped.Add(1)
		}
		return nil
	}
	now := sinceStart()
	g.bury(now)
	taken := old.conn != nil && now-old.conn.heard.Load() < int64(yieldAfter)
	if oldest := g.crowding(now); oldest != nil && !taken {
		g.mu.Unlock() // none begins meanwhile: this is kcp-go's one reader
		oldest.end(errCrowded)
		g.mu.Lock()
	}
	if taken || !g.mayBegin(now) {
		full := !taken && g.mayWarn(now)
		live, unproven := g.live, g.unproven.Len()
		g.mu.Unlock()
		if refused := g.refused.Add(1); full {
			g.transport.Log.Warn("no room for more KCP sessions, refusing them",
				"addr", g.LocalAddr().String(), "sessions", live, "unproven", unproven, "refused", refused)
		}
		return nil
	}
	c := g.transport.newConn(g.frameFor(f), s.conv, source, g.LocalAddr(), g.forget)
	g.sessions[source] = entry{s.conv, c}
	g.live++
	c.place = g.unproven.PushBack(c)
	g.mu.Unlock()
	if old.conn != nil {
		old.conn.end(errReplaced)
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

// crowding returns the session that has to make room for another, or nil.
func (g *guard) crowding(now int64) *Conn {
	if g.unproven.Len() < maxUnproven {
		return nil
	}
	oldest := g.unproven.Front().Value.(*Conn)
	if now-oldest.begun < int64(crowdedAfter) {
		return nil
	}
	return oldest
}

// mayBegin tells whether there is room for one more session, and takes it.
func (g *guard) mayBegin(now int64) bool {
	g.tokens = min(maxRate, g.tokens+maxRate*time.Duration(now-g.filled).Seconds())
	g.filled = now
	if g.closed || g.live >= g.transport.MaxSessions || g.unproven.Len() >= maxUnproven || g.tokens < 1 {
		return false
	}
	g.tokens--
	return true
}

// mayWarn tells whether a warning is due: a flood must not fill the log.
func (g *guard) mayWarn(now int64) bool {
	if g.closed || now < g.warnAt {
		return false
	}
	g.warnAt = now + int64(warnEvery)
	return true
}

// tell answers an unknown client that asks for a window, in as many bytes as
// it asked and without a session: so a dialer learns that somebody is here.
func (g *guard) tell(source netip.AddrPort, f *frame, conv uint32) {
	f.seal(control(conv, cmdTell, unprovenWindow), func(d []byte) error {
		_, err := g.WriteToUDPAddrPort(d, source)
		return err
	})
}

// prove notes that a client's address is its own.
func (g *guard) prove(c *Conn) {
	g.mu.Lock()
	g.settle(c)
	g.mu.Unlock()
	// There is a session, as it has sent what is acknowledged.
	g.transport.pace(c.session.Load(), true)
}

// settle no longer counts a session among the unproven.
func (g *guard) settle(c *Conn) {
	if c.place != nil {
		g.unproven.Remove(c.place)
		c.place = nil
	}
}

// forget puts an ended session into its grave.
func (g *guard) forget(c *Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.live--
	g.settle(c)
	if e := g.sessions[c.source]; e.conn == c {
		g.sessions[c.source] = entry{conv: c.conv}
	}
	now := sinceStart()
	g.graves = append(g.graves, grave{c.source, c.conv, now})
	g.bury(now)
	if g.closed && g.live == 0 {
		g.UDPConn.Close()
	}
}

// bury forgets the ended sessions that are old or too many.
func (g *guard) bury(now int64) {
	n := 0
	for n < len(g.graves) && (len(g.graves)-n > maxGraves || now-g.graves[n].ended > int64(graveTime)) {
		old := g.graves[n]
		if g.sessions[old.source] == (entry{conv: old.conv}) {
			delete(g.sessions, old.source)
		}
		n++
	}
	g.graves = g.graves[n:]
}

// close lets no new session begin, and closes the socket after the last.
func (g *guard) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if g.live == 0 {
		g.UDPConn.Close()
	}
}

// WriteTo implements net.PacketConn. What cannot be sent is lost, as UDP may
// lose anything: an error would end the session for good.
func (g *guard) WriteTo(packet []byte, to net.Addr) (int, error) {
	c := to.(peer).Conn
	if c.gives(len(packet)+c.frame.overhead(), packet) {
		c.frame.seal(packet, func(d []byte) error {
			_, err := g.WriteToUDPAddrPort(d, c.source)
			return err
		})
	}
	return len(packet), nil
}
