// Package owner keeps the resumable tunnels of a process: which there are, which of
// them have lost their client and until when they are held, and how much memory all of
// them take. How bytes move is internal/resume/stream's business.
package owner

import (
	"container/list"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/netip"
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
)

// Owner keeps resumable tunnels. Its methods may be called from any goroutine.
type Owner struct {
	Options
	boot   [8]byte
	memory atomic.Int64
	easing atomic.Bool // memory is being given back
	links  sync.WaitGroup

	mu       sync.Mutex
	tunnels  map[[8]byte]*Tunnel
	detached list.List // of *Tunnel, in the order in which their hold is over
	expiry   *time.Timer

	resumed atomic.Int64
}

// Tunnel is the client's end of a resumable tunnel. It is a net.Conn for a relay.
type Tunnel struct {
	*stream.Conn
	owner *Owner
	id    [8]byte

	// Under the owner's lock.
	place   *list.Element // among the detached
	lostAt  time.Time
	client  netip.AddrPort
	resumes int
}

// New returns an owner without tunnels.
func New(o Options) *Owner {
	w := &Owner{Options: o, tunnels: make(map[[8]byte]*Tunnel)}
	rand.Read(w.boot[:])
	return w
}

// Open makes a tunnel for a client's request, and the frames that are to be sent
// first. The caller calls Attach or Abandon.
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
	t = &Tunnel{owner: o}
	rand.Read(t.id[1:]) // the first byte is for loops
	t.Conn = stream.New(resume.NewSession(o.Buffer, key), stream.Options{
		Lost: t.lost, Ended: t.ended, Held: o.hold, Late: true,
	})
	o.mu.Lock()
	o.tunnels[t.id] = t
	o.mu.Unlock()
	h.Ticket = o.Tickets.Seal(resume.Ticket{Boot: o.boot, ID: t.id, Owner: o.Address})
	return t, h.Append(nil), nil
}

// ID returns the name of the tunnel for the log.
func (t *Tunnel) ID() string { return hex.EncodeToString(t.id[1:]) }

// Abandon ends a tunnel that never was attached.
func (t *Tunnel) Abandon() { t.End(net.ErrClosed) }

// Begin has the tunnel carried by the connection that asked for it.
func (t *Tunnel) Begin(conn net.Conn, client netip.AddrPort, abort func()) *stream.Link {
	t.owner.mu.Lock()
	t.client = client
	t.owner.mu.Unlock()
	return t.Attach(conn, abort)
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
	case k.Boot == o.boot, k.Owner == o.Address:
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

// Resume has a tunnel carried on by the connection that brings the request, which is
// to be answered and given to Carry, or to Drop. An error has changed nothing.
func (o *Owner) Resume(r *resume.Request, conn net.Conn, client netip.AddrPort, abort func()) (*Tunnel, *stream.Link, Resumed, error) {
	t, err := o.find(r)
	if err != nil {
		return nil, nil, Resumed{}, err
	}
	l, err := t.Switch(conn, abort, func(s *resume.Session) error { return s.Resume(r) })
	switch {
	case err == nil:
	case errors.Is(err, resume.ErrForged), errors.Is(err, resume.ErrUsed), errors.Is(err, resume.ErrOffsets):
		return nil, nil, Resumed{}, err
	default:
		return nil, nil, Resumed{}, ErrUnknown // it is over
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	how := Resumed{Before: t.client}
	if t.place != nil {
		o.detached.Remove(t.place)
		t.place = nil
		how.Stall = time.Since(t.lostAt)
	}
	t.client = client
	t.resumes++
	how.Count = t.resumes
	o.resumed.Add(1)
	return t, l, how, nil
}

func (o *Owner) find(r *resume.Request) (*Tunnel, error) {
	k, ok := o.Tickets.Open(r.Ticket)
	if !ok {
		return nil, ErrTicket
	}
	if k.Boot != o.boot {
		return nil, ErrUnknown
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	t := o.tunnels[k.ID]
	if t == nil {
		return nil, ErrUnknown
	}
	return t, nil
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
	if o.tunnels[t.id] != t || t.Attached() {
		o.mu.Unlock() // it is over, or has been resumed meanwhile
		return
	}
	if t.place != nil {
		o.detached.Remove(t.place)
	}
	t.lostAt = time.Now()
	t.place = o.detached.PushBack(t)
	if o.expiry == nil {
		o.expiry = time.AfterFunc(o.Hold, o.expire)
	}
	tooMany, client := o.detached.Len() > o.Max, t.client
	o.mu.Unlock()
	o.Log.Info("detached", "client", client.String(), "session", t.ID(), "err", why)
	if tooMany {
		o.giveUpOldest(errMax)
	}
}

// expire gives up those whose hold is over.
func (o *Owner) expire() {
	for {
		o.mu.Lock()
		first := o.detached.Front()
		if first == nil {
			o.expiry = nil
			o.mu.Unlock()
			return
		}
		t := first.Value.(*Tunnel)
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
func (o *Owner) take(t *Tunnel) {
	o.detached.Remove(t.place)
	t.place = nil
}

// giveUpOldest gives up the tunnel that has been detached for the longest, and reports
// whether there was one.
func (o *Owner) giveUpOldest(why *gaveUp) bool {
	o.mu.Lock()
	first := o.detached.Front()
	if first == nil {
		o.mu.Unlock()
		return false
	}
	t := first.Value.(*Tunnel)
	o.take(t)
	o.mu.Unlock()
	o.giveUp(t, why)
	return true
}

func (o *Owner) giveUp(t *Tunnel, why *gaveUp) {
	o.mu.Lock()
	client, since := t.client, t.lostAt
	o.mu.Unlock()
	if t.End(why) { // else it was resumed just now
		o.Log.Info("not resumed", "client", client.String(), "session", t.ID(), "reason", why.reason,
			"detached_ms", time.Since(since).Milliseconds())
	}
}

// ended is called when a tunnel is over.
func (t *Tunnel) ended(error) {
	o := t.owner
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.tunnels, t.id)
	if t.place != nil {
		o.take(t)
	}
}

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

// Stats are what an owner keeps now, and has seen in all.
type Stats struct {
	Tunnels, Detached int
	Memory            int64
	Resumed           int64
}

// Stats returns them.
func (o *Owner) Stats() Stats {
	o.mu.Lock()
	defer o.mu.Unlock()
	return Stats{len(o.tunnels), o.detached.Len(), o.memory.Load(), o.resumed.Load()}
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
