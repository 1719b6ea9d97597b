package process

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/harness"
)

// crowd is tunnels through a gateway, each with a backend's end in this process. What
// a client says first tells the backend which of the kinds it is. All of them stand
// before any of them works: a gateway that relays for some opens others slowly.
type crowd struct {
	t        *testing.T
	gateway  string
	backend  string
	starting chan struct{}
	stopping chan struct{}
	working  sync.WaitGroup

	mu      sync.Mutex
	members map[string]*member // by the client's address
	leads   map[uint64]*atomic.Int64
	trips   []time.Duration // of messages, of kind echo
}

// member is one tunnel.
type member struct {
	kind     byte
	seed     uint64
	c        *net.TCPConn
	began    time.Time // before the connect
	opened   time.Time
	ended    time.Time
	up, down atomic.Int64 // what the log is to say
	how      string
}

// The kinds of tunnels.
const (
	echo     = 'e' // messages, back and forth
	download = 'd' // bulk from the backend to a client that reads slowly
	upload   = 'u' // bulk to a backend that reads slowly
	stalled  = 's' // bulk from the backend to a client that reads nothing until the end
	half     = 'h' // the client has finished, and the backend goes on
	breaking = 'r' // messages, and at the end the client's reset
)

const (
	chunk = 64 << 10
	// atMost are the buffers of both ends of bulk, each, in bytes. By themselves they
	// grow to tens of megabytes, which are to be relayed at the end.
	atMost = 256 << 10
	// farthest is how many bytes of bulk are under way in a tunnel, at most: more than a
	// pipe holds, and little enough for 200 tunnels. The buffers of the gateway's sockets
	// would grow to megabytes each, and all sockets of a host share what they may hold
	// (net.ipv4.tcp_mem): beyond that the kernel drops what it likes.
	farthest = 1 << 20
	// stalledBytes is more than a pipe and all buffers hold.
	stalledBytes = 12 << 20
	// longest is how long a crowd may live.
	longest = 10 * time.Minute
)

func newCrowd(t *testing.T, gateway string) *crowd {
	cr := &crowd{t: t, gateway: gateway, starting: make(chan struct{}), stopping: make(chan struct{}),
		members: make(map[string]*member), leads: make(map[uint64]*atomic.Int64)}
	cr.backend = harness.StartBackend(t, cr.serve)
	return cr
}

func (cr *crowd) stopped() bool {
	select {
	case <-cr.stopping:
		return true
	default:
		return false
	}
}

// pause waits, but not beyond the end.
func (cr *crowd) pause(d time.Duration) {
	select {
	case <-cr.stopping:
	case <-time.After(d):
	}
}

// lead returns how many bytes of bulk are under way in the tunnel of a seed.
func (cr *crowd) lead(seed uint64) *atomic.Int64 {
	cr.mu.Lock()
	defer cr.mu.Unlock()
	n := cr.leads[seed]
	if n == nil {
		n = new(atomic.Int64)
		cr.leads[seed] = n
	}
	return n
}

// letFollow waits until there is room for a chunk more.
func (cr *crowd) letFollow(lead *atomic.Int64) {
	for lead.Add(chunk); lead.Load() > farthest && !cr.stopped(); {
		cr.pause(5 * time.Millisecond)
	}
}

// noise is an endless stream of bytes that a seed determines.
type noise struct {
	whole []byte
	at    int
}

var noises = sync.OnceValue(func() (all [16][]byte) {
	for i := range all {
		all[i] = harness.Noise(uint64(i), 1<<20)
	}
	return all
})

func newNoise(seed uint64) *noise { return &noise{whole: noises()[seed%16]} }

func (n *noise) next(size int) []byte {
	if n.at+size > len(n.whole) {
		n.at = 0
	}
	b := n.whole[n.at : n.at+size]
	n.at += size
	return b
}

// serve is the backend's end of a tunnel.
func (cr *crowd) serve(c *net.TCPConn) {
	c.SetDeadline(time.Now().Add(longest))
	var first [9]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		cr.t.Errorf("the backend reads no beginning: %v", err)
		return
	}
	kind, seed := first[0], binary.BigEndian.Uint64(first[1:])
	what := fmt.Sprintf("backend of %c %d", kind, seed)
	<-cr.starting
	switch kind {
	case echo, breaking:
		buf := make([]byte, 4<<10)
		for {
			n, err := c.Read(buf)
			if err == nil {
				_, err = c.Write(buf[:n])
			}
			if err == nil {
				continue
			}
			if kind == echo && err != io.EOF || kind == breaking && !harness.IsReset(err) {
				cr.t.Errorf("%s: %v", what, err)
			}
			break
		}
	case download, stalled:
		c.SetWriteBuffer(atMost)
		// The end is the client's to know: the last byte of all is 1.
		n, lead := newNoise(seed), cr.lead(seed)
		for sent := 0; kind == download && !cr.stopped() || kind == stalled && sent < stalledBytes; sent += chunk {
			if kind == download {
				cr.letFollow(lead)
			}
			if err := send(c, 0, n.next(chunk)); err != nil {
				cr.t.Errorf("%s, after %d: %v", what, sent, err)
				return
			}
		}
		if err := send(c, 1, nil); err != nil {
			cr.t.Errorf("%s, at the end: %v", what, err)
		}
	case upload:
		c.SetReadBuffer(atMost)
		n, lead := newNoise(seed), cr.lead(seed)
		for buf, last := make([]byte, chunk), false; !last; {
			var err error
			if last, err = receive(c, buf, n); err != nil {
				cr.t.Errorf("%s: %v", what, err)
				return
			}
			lead.Add(-chunk)
			cr.pause(100 * time.Millisecond)
		}
	case half:
		if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
			cr.t.Errorf("%s reads %d bytes, %v", what, len(rest), err)
		}
		for n := newNoise(seed); !cr.stopped(); cr.pause(20 * time.Millisecond) {
			if err := send(c, 0, n.next(100)); err != nil {
				cr.t.Errorf("%s: %v", what, err)
				return
			}
		}
		send(c, 1, nil)
	}
	c.CloseWrite()
	if kind != breaking {
		io.Copy(io.Discard, struct{ io.Reader }{c})
	}
}

// send writes a piece, with its length and whether it is the last before it.
func send(c net.Conn, last byte, b []byte) error {
	var head [5]byte
	head[0] = last
	binary.BigEndian.PutUint32(head[1:], uint32(len(b)))
	_, err := c.Write(append(head[:], b...))
	return err
}

// receive reads a piece, which is to be the next of n.
func receive(c net.Conn, buf []byte, n *noise) (last bool, err error) {
	var head [5]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return false, err
	}
	size := int(binary.BigEndian.Uint32(head[1:]))
	if size > len(buf) {
		return false, fmt.Errorf("a piece of %d bytes: the stream is out of order", size)
	}
	if _, err := io.ReadFull(c, buf[:size]); err != nil {
		return false, err
	}
	if size > 0 && !bytes.Equal(buf[:size], n.next(size)) {
		return false, fmt.Errorf("%d bytes are not those that were sent", size)
	}
	return head[0] == 1, nil
}

// join adds tunnels of a kind.
func (cr *crowd) join(kind byte, count int) {
	cr.t.Helper()
	for range count {
		m := &member{kind: kind, seed: rand.Uint64(), began: time.Now(), how: "fin"}
		m.c = harness.OpenTunnel(cr.t, cr.gateway, cr.backend)
		m.opened = time.Now()
		m.c.SetDeadline(time.Now().Add(longest))
		first := binary.BigEndian.AppendUint64([]byte{kind}, m.seed)
		harness.Send(cr.t, m.c, string(first))
		m.up.Add(int64(len(first)))
		cr.mu.Lock()
		cr.members[harness.AddrPort(m.c.LocalAddr()).String()] = m
		cr.mu.Unlock()
		cr.working.Go(func() {
			<-cr.starting
			if err := cr.work(m); err != nil {
				cr.t.Errorf("client of %c %d: %v", m.kind, m.seed, err)
			}
			m.ended = time.Now()
			m.c.Close()
		})
	}
}

// start has all tunnels begin what they do.
func (cr *crowd) start() { close(cr.starting) }

// work is the client's end of a tunnel, until the crowd is to end.
func (cr *crowd) work(m *member) error {
	switch m.kind {
	case echo, breaking:
		return cr.talk(m)
	case download, half:
		if m.kind == half {
			m.c.CloseWrite()
		}
		m.c.SetReadBuffer(atMost)
		return cr.read(m, 100*time.Millisecond)
	case stalled:
		m.c.SetReadBuffer(atMost)
		<-cr.stopping
		return cr.read(m, 0)
	}
	m.c.SetWriteBuffer(atMost)
	lead := cr.lead(m.seed)
	for n := newNoise(m.seed); !cr.stopped(); {
		cr.letFollow(lead)
		if err := send(m.c, 0, n.next(chunk)); err != nil {
			return err
		}
		m.up.Add(5 + chunk)
	}
	if err := send(m.c, 1, nil); err != nil {
		return err
	}
	m.up.Add(5)
	return finish(m.c)
}

// finish ends a tunnel whose other end has no more to say.
func finish(c *net.TCPConn) error {
	c.CloseWrite()
	rest, err := io.ReadAll(c)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes too many", len(rest))
	}
	return err
}

// read reads what the backend sends until its FIN.
func (cr *crowd) read(m *member, pace time.Duration) error {
	n, buf, lead := newNoise(m.seed), make([]byte, chunk), cr.lead(m.seed)
	for {
		before := n.at
		last, err := receive(m.c, buf, n)
		if err != nil {
			return err
		}
		m.down.Add(5)
		if last {
			return finish(m.c)
		}
		size := n.at - before
		if size <= 0 { // round again
			size = n.at
		}
		m.down.Add(int64(size))
		lead.Add(-chunk)
		cr.pause(pace)
	}
}

// talk has messages come back.
func (cr *crowd) talk(m *member) error {
	r := rand.New(rand.NewPCG(m.seed, 0))
	n, buf := newNoise(m.seed), make([]byte, 2000)
	var trips []time.Duration
	for !cr.stopped() {
		msg := n.next(1 + r.IntN(len(buf)))
		at := time.Now()
		if _, err := m.c.Write(msg); err != nil {
			return err
		}
		m.up.Add(int64(len(msg)))
		if _, err := io.ReadFull(m.c, buf[:len(msg)]); err != nil {
			return err
		}
		trips = append(trips, time.Since(at))
		m.down.Add(int64(len(msg)))
		if !bytes.Equal(buf[:len(msg)], msg) {
			return fmt.Errorf("what comes back is not what was sent")
		}
		cr.pause(time.Duration(r.IntN(100)) * time.Millisecond)
	}
	cr.mu.Lock()
	cr.trips = append(cr.trips, trips...)
	cr.mu.Unlock()
	if m.kind == breaking {
		m.how = "reset"
		harness.Reset(m.c)
		return nil
	}
	return finish(m.c)
}

// end ends all tunnels, and sees whether the log has an end of each, with its totals.
func (cr *crowd) end(u *harness.Upgraded) {
	cr.t.Helper()
	stopped := time.Now()
	close(cr.stopping)
	cr.working.Wait()
	u.Log.WaitLine(cr.t, "tunnel", len(cr.members))
	seen := make(map[string]bool)
	for _, line := range u.Log.Lines("tunnel") {
		client := line["client"].(string)
		m := cr.members[client]
		if m == nil {
			continue
		}
		if seen[client] {
			cr.t.Errorf("%c has two ends: %v", m.kind, line)
		}
		seen[client] = true
		if up, down := int64(line["up"].(float64)), int64(line["down"].(float64)); up != m.up.Load() || down != m.down.Load() {
			cr.t.Errorf("%c: %d up and %d down, want %d and %d: %v", m.kind, up, down, m.up.Load(), m.down.Load(), line)
		}
		if how := line["how"]; how != m.how {
			cr.t.Errorf("%c ended by %v, want %s: %v", m.kind, how, m.how, line)
		}
		// It was open until all were to end, and then some clients had much to read that
		// the gateway was done with.
		took := time.Duration(line["duration_ms"].(float64)) * time.Millisecond
		const slack = 5 * time.Second
		least, most := stopped.Sub(m.opened), m.ended.Sub(m.began)
		if took < least-slack || took > most+slack {
			cr.t.Errorf("%c took %v, want %v to %v: %v", m.kind, took, least, most, line)
		}
	}
	if len(seen) != len(cr.members) {
		cr.t.Errorf("%d tunnels have an end in the log, want %d", len(seen), len(cr.members))
	}
	slices.Sort(cr.trips)
	if n := len(cr.trips); n > 0 {
		cr.t.Logf("%d messages, p50 %v, p99 %v, max %v", n, cr.trips[n/2], cr.trips[n*99/100], cr.trips[n-1])
	}
}
