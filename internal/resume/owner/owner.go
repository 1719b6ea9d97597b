// Package owner keeps the resumable tunnels of a process: which there are, which of
// them have lost their client and until when they are held, and how much memory all of
// them take. How bytes move is somebody else's business: internal/resume/stream's, or that
// of a Carrier.
package owner

import (
	"container/heap"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gateway/internal/resume"
	"gateway/internal/resume/stream"
)

// Options say what an Owner may keep. All have to be set but Address.
type Options struct {
	Tickets *resume.Tickets
	Address string        // ip:port at which other gateways reach this one; or empty
	Hold    time.Duration // for which a tunnel is kept whose client is gone
	Buffer  int           // bytes that may be unacknowledged in each direction
	Memory  int64         // bytes of all tunnels
	Max     int           // tunnels whose client is gone
	Log     *slog.Logger
}

// Why there is no new tunnel, or no tunnel to go on with; besides those of
// internal/resume.
var (
	ErrFull    = errors.New("full")           // no memory, and nothing to give up for it
	ErrKey     = errors.New("bad_key")        // the client's
	ErrTicket  = errors.New("bad_ticket")     // it does not open
	ErrUnknown = errors.New("unknown_ticket") // of another process, or of a session that is over
	ErrForeign = errors.New("foreign_ticket") // of another gateway, which Owner names
	ErrMoving  = errors.New("moving")         // it is on its way from one process to another, or was
	ErrFew     = errors.New("no_descriptors") // for the connection that brings the request
)

// Owner keeps resumable tunnels. Its methods may be called from any goroutine.
type Owner struct {
	Options
	memory atomic.Int64
	easing atomic.Bool // memory is being given back
	links  sync.WaitGroup

	mu       sync.Mutex
	boots    [][8]byte // this process's, and those of processes whose tunnels it has
	tunnels  map[[8]byte]*Tunnel
	detached away
	expiry   *time.Timer
	coming   chan struct{} // tunnels of another process may come until it is closed; or nil
	leaving  bool          // tunnels go to another process
}

// Tunnel is the client's end of a resumable tunnel. A Carrier moves its bytes; or it is a
// net.Conn for a relay, from Begin on.
type Tunnel struct {
	*stream.Conn
	owner   *Owner
	id      [8]byte
	session *resume.Session
	carrier atomic.Pointer[Carrier] // nil: none, or not yet
	seq     atomic.Uint64           // of the last resume

	// Under the owner's lock.
	place   int // among the detached, from 1 on; 0: it is not
	lostAt  time.Time
	losses  int
	client  netip.AddrPort
	resumes int
}

// Carrier is who moves the bytes of a tunnel otherwise than through a stream.Conn, and has
// its session. It tells the tunnel by Lost, Resumed, Hold and Over, one at a time.
type Carrier interface {
	// Resume has the tunnel go on by another connection. It is the carrier's then, or the
	// caller's still with an error, which has changed nothing.
	Resume(q *Return) (Resumed, error)
	// End ends the tunnel, unless it has been resumed since it was lost for the nth time.
	End(why error, losses int) bool
}

// Return is a client that comes back.
type Return struct {
	*resume.Request
	Conn   net.Conn
	Client netip.AddrPort
	Reply  []byte // what it is told before anything else, by the carrier
	Early  []byte // what it has sent behind its request
}

// away are tunnels without their client, as a heap: whose hold is over first is the first.
type away []*Tunnel

func (a away) Len() int           { return len(a) }
func (a away) Less(i, j int) bool { return a[i].lostAt.Before(a[j].lostAt) }
func (a away) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i+1, j+1
}

func (a *away) Push(t any) {
	*a = append(*a, t.(*Tunnel))
	t.(*Tunnel).place = len(*a)
}

func (a *away) Pop() any {
	last := len(*a) - 1
	t := (*a)[last]
	(*a)[last] = nil
	*a, t.place = (*a)[:last], 0
	return t
}

// New returns an owner without tunnels.
func New(o Options) *Owner {
	w := &Owner{Options: o, tunnels: make(map[[8]byte]*Tunnel)}
	var boot [8]byte
	rand.Read(boot[:])
	w.boots = [][8]byte{boot}
	return w
}

// Open makes a tunnel for a client's request, and the frames that are to be sent
// first. The caller calls Begin, CarriedBy or Abandon.
func (o *Owner) Open(r *resume.Open) (t *Tunnel, hello []byte, err error) {
	for o.memory.Load() >= o.Memory {
		if !o.giveUpOldest(errMemory) {
			return nil, nil, ErrFull
		}
	}
	h := resume.Hello{Window: o.Buffer}
	var key [32]byte
	if r.Key == nil {
		rand.Read(key[:])
		h.Secret = key
	} else {
		pair, err := resume.NewKeyPair()
		if err != nil {
			return nil, nil, err
		}
		if key, err = resume.GatewayKey(pair, r.Key); err != nil {
			return nil, nil, ErrKey
		}
		h.Secret = [32]byte(pair.PublicKey().Bytes())
	}
	t = &Tunnel{owner: o, session: resume.NewSession(o.Buffer, key)}
	rand.Read(t.id[:])
	o.mu.Lock()
	o.tunnels[t.id] = t
	boot := o.boots[0]
	o.mu.Unlock()
	h.Ticket = o.Tickets.Seal(resume.Ticket{Boot: boot, ID: t.id, Owner: o.Address})
	return t, h.Append(nil), nil
}

// ID returns the name of the tunnel for the log.
func (t *Tunnel) ID() string { return hex.EncodeToString(t.id[1:]) }

// Abandon ends a tunnel that never was attached.
func (t *Tunnel) Abandon() { t.Over() }

// Begin has the tunnel carried by the connection that asked for it, as a net.Conn.
func (t *Tunnel) Begin(conn net.Conn, client netip.AddrPort, abort func()) *stream.Link {
	o := t.owner
	c := stream.New(t.session, stream.Options{
		Lost: t.lost, Ended: func(error) { t.Over() }, Held: o.hold, Late: true,
	})
	o.mu.Lock()
	t.Conn, t.client = c, client
	o.mu.Unlock()
	return t.Attach(conn, abort)
}

// CarriedBy leaves the tunnel to a carrier, whose the session is from here on.
func (t *Tunnel) CarriedBy(c Carrier, client netip.AddrPort) {
	t.owner.mu.Lock()
	t.client = client
	t.owner.mu.Unlock()
	t.carrier.Store(&c)
}

// Session returns the session, for a carrier.
func (t *Tunnel) Session() *resume.Session { return t.session }

// Carrier returns who carries the tunnel, if that is a Carrier.
func (t *Tunnel) Carrier() Carrier {
	if c := t.carrier.Load(); c != nil {
		return *c
	}
	return nil
}

// Carry is Conn's.
func (t *Tunnel) Carry(l *stream.Link, early []byte) {
	t.owner.links.Add(1)
	defer t.owner.links.Done()
	t.Conn.Carry(l, early)
}

// OwnerOf returns the address of the gateway that a ticket names, if that is another
// one; else nothing.
func (o *Owner) OwnerOf(r *resume.Request) (string, error) {
	k, ok := o.Tickets.Open(r.Ticket)
	switch {
	case !ok:
		return "", ErrTicket
	case k.Owner == o.Address, o.has(k.Boot):
		return "", nil
	}
	return k.Owner, nil
}

// Resumed tells of a resume.
type Resumed struct {
	Before netip.AddrPort // where the client came from until now
	Stall  time.Duration  // since the connection was lost; 0 if that was not known
	Count  int            // of resumes
}

// has tells whether a boot is one whose tunnels are here.
func (o *Owner) has(boot [8]byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Contains(o.boots, boot)
}

// Resume has a tunnel that is a net.Conn carried on by the connection that brings the
// request, which is to be answered and given to Carry, or to Drop. An error has changed
// nothing.
func (t *Tunnel) Resume(q *Return, abort func()) (*stream.Link, Resumed, error) {
	l, err := t.Switch(q.Conn, abort, func(s *resume.Session) error { return s.Resume(q.Request) })
	switch {
	case err == nil:
		return l, t.Resumed(q), nil
	case errors.Is(err, resume.ErrForged), errors.Is(err, resume.ErrUsed), errors.Is(err, resume.ErrOffsets):
		return nil, Resumed{}, err
	}
	return nil, Resumed{}, ErrUnknown // it is over
}

// Resumed says that the tunnel goes on with a client.
func (t *Tunnel) Resumed(q *Return) Resumed {
	o := t.owner
	t.seq.Store(q.Seq)
	o.mu.Lock()
	defer o.mu.Unlock()
	how := Resumed{Before: t.client}
	if t.place > 0 {
		o.take(t)
		how.Stall = time.Since(t.lostAt)
	}
	t.client = q.Client
	t.resumes++
	how.Count = t.resumes
	return how
}

// Refuses returns why a request will be refused, as far as that is certain at once: a guess
// costs no more than a line that does not open. nil is no promise.
func (o *Owner) Refuses(r *resume.Request) error {
	k, ok := o.Tickets.Open(r.Ticket)
	if !ok {
		return ErrTicket
	}
	o.mu.Lock()
	t := o.tunnels[k.ID]
	known := t != nil && slices.Contains(o.boots, k.Boot)
	o.mu.Unlock()
	switch {
	case !known:
	case !t.session.Knows(r):
		return resume.ErrForged
	case r.Seq <= t.seq.Load():
		return resume.ErrUsed
	}
	return nil
}

// comingTime bounds how long a request waits for its tunnel to come from another process.
const comingTime = 5 * time.Second

// Find returns the tunnel that a request names. Where tunnels are on their way from another
// process, it waits for that.
func (o *Owner) Find(r *resume.Request) (*Tunnel, error) {
	k, ok := o.Tickets.Open(r.Ticket)
	if !ok {
		return nil, ErrTicket
	}
	for end := time.Now().Add(comingTime); ; {
		t, coming, err := o.find(k)
		if err == nil || coming == nil {
			return t, err
		}
		if !time.Now().Before(end) {
			return nil, ErrMoving
		}
		select {
		case <-coming:
		case <-time.After(5 * time.Millisecond): // it may have come
		}
	}
}

// find returns a tunnel; or why there is none, and what to wait for before that is certain.
func (o *Owner) find(k resume.Ticket) (t *Tunnel, coming <-chan struct{}, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if slices.Contains(o.boots, k.Boot) {
		t = o.tunnels[k.ID]
	}
	switch {
	case t != nil && t.Conn == nil && t.Carrier() == nil:
		return nil, nil, ErrMoving // it has only just been opened
	case t != nil:
		return t, nil, nil
	case o.coming != nil:
		select {
		case <-o.coming:
		default:
			return nil, o.coming, ErrUnknown
		}
	}
	if o.leaving {
		return nil, nil, ErrMoving
	}
	return nil, nil, ErrUnknown
}

// gaveUp is why a tunnel is over that was not resumed. For the relay it is a client
// that timed out.
type gaveUp struct{ reason string }

func (e *gaveUp) Error() string { return "the client did not resume: " + e.reason }
func (e *gaveUp) Unwrap() error { return syscall.ETIMEDOUT }

var (
	errHold   = &gaveUp{"hold"}
	errMax    = &gaveUp{"max"}
	errMemory = &gaveUp{"memory"}
)

// lost is called when a tunnel has lost its connection.
func (t *Tunnel) lost(why error) {
	o := t.owner
	o.mu.Lock()
	if o.tunnels[t.id] != t || t.Conn != nil && t.Attached() {
		o.mu.Unlock() // it is over, or has been resumed meanwhile
		return
	}
	t.losses++
	o.put(t, time.Now())
	client := t.client
	o.mu.Unlock()
	o.Log.Info("detached", "client", client.String(), "session", t.ID(), "err", why)
}

// Losses returns how often the tunnel has lost its connection.
func (t *Tunnel) Losses() int {
	t.owner.mu.Lock()
	defer t.owner.mu.Unlock()
	return t.losses
}

// Lost says that a tunnel has lost its connection, which was not known before.
func (t *Tunnel) Lost(why error) { t.lost(why) }

// put puts a tunnel among the detached. The caller holds mu.
func (o *Owner) put(t *Tunnel, lostAt time.Time) {
	if t.place > 0 {
		o.take(t)
	}
	t.lostAt = lostAt
	heap.Push(&o.detached, t)
	if left := o.Hold - time.Since(o.detached[0].lostAt); o.expiry == nil {
		o.expiry = time.AfterFunc(left, o.expire)
	} else if t.place == 1 {
		o.expiry.Reset(left)
	}
	if len(o.detached) > o.Max {
		go o.giveUpOldest(errMax) // a carrier must not wait for itself
	}
}

// expire gives up those whose hold is over.
func (o *Owner) expire() {
	for {
		o.mu.Lock()
		if len(o.detached) == 0 {
			o.expiry = nil
			o.mu.Unlock()
			return
		}
		t := o.detached[0]
		if left := o.Hold - time.Since(t.lostAt); left > 0 {
			o.expiry.Reset(left)
			o.mu.Unlock()
			return
		}
		o.take(t)
		o.mu.Unlock()
		o.giveUp(t, errHold)
	}
}

// take takes a tunnel out of the detached. The caller holds mu.
func (o *Owner) take(t *Tunnel) { heap.Remove(&o.detached, t.place-1) }

// giveUpOldest gives up the tunnel that has been detached for the longest, and reports
// whether there was one.
func (o *Owner) giveUpOldest(why *gaveUp) bool {
	o.mu.Lock()
	if len(o.detached) == 0 || why == errMax && len(o.detached) <= o.Max {
		o.mu.Unlock()
		return false
	}
	t := o.detached[0]
	o.take(t)
	o.mu.Unlock()
	o.giveUp(t, why)
	return true
}

func (o *Owner) giveUp(t *Tunnel, why *gaveUp) {
	o.mu.Lock()
	client, since, losses := t.client, t.lostAt, t.losses
	o.mu.Unlock()
	end := func(err error, losses int) bool { return t.End(err) }
	if c := t.Carrier(); c != nil {
		end = c.End
	}
	if end(why, losses) { // else it was resumed just now
		o.Log.Info("not resumed", "client", client.String(), "session", t.ID(), "reason", why.reason,
			"detached_ms", time.Since(since).Milliseconds())
	}
}

// Over says that a tunnel is over.
func (t *Tunnel) Over() {
	o := t.owner
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.tunnels, t.id)
	if t.place > 0 {
		o.take(t)
	}
}

// Hold says by how much the memory of a tunnel has changed, in bytes.
func (t *Tunnel) Hold(delta int) { t.owner.hold(delta) }

// hold is told of the memory of tunnels.
func (o *Owner) hold(delta int) {
	if o.memory.Add(int64(delta)) > o.Memory && delta > 0 && o.easing.CompareAndSwap(false, true) {
		go func() { // whoever calls holds a tunnel of its own up
			defer o.easing.Store(false)
			for o.memory.Load() > o.Memory && o.giveUpOldest(errMemory) {
			}
		}()
	}
}

// Stats are what an owner keeps now.
type Stats struct {
	Tunnels, Detached int
	Memory            int64
}

// Stats returns them.
func (o *Owner) Stats() Stats {
	o.mu.Lock()
	defer o.mu.Unlock()
	return Stats{len(o.tunnels), len(o.detached), o.memory.Load()}
}

// Close waits until the tunnels that have ended have told their clients, which takes a
// second or two at most.
func (o *Owner) Close() {
	o.links.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.expiry != nil {
		o.expiry.Stop()
	}
}
