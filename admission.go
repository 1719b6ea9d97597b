package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"gateway/internal/address"
	"gateway/internal/handshake"
	"gateway/internal/kcp"
	"gateway/internal/limit"
	"gateway/internal/pending"
	"gateway/internal/proxyheader"
	"gateway/internal/relay"
	"gateway/internal/resume/owner"
	"gateway/internal/web"
)

// admission says how many connections there may be at a time, and whose. It outlives any
// configuration.
type admission struct {
	limiter       *limit.Limiter // of clients of all listeners that have no own
	bans          *limit.Bans
	seats         seats           // of backends
	away          *limit.Tally    // clients that limits have turned away
	lame          atomic.Bool     // clients should go elsewhere, by an operator's will
	leaving       atomic.Bool     // the same, since the gateway is about to end
	conns         limit.Occupancy // connections, those being accepted included
	byDescriptors atomic.Int32    // the most that the descriptors suffice for
	unproven      *pending.Budget // of connections that goroutines serve; nil in tests
	circles       circles
}

// giveWayAtOnce is how many clients of goroutines make room at a time: it takes a moment
// until they have.
const giveWayAtOnce = 16

// makeRoom has connections give way that have proven nothing for long, if there are as many
// as there may be: they would have all others wait. here are those of a loop, which ends
// them before makeRoom returns; nil is none.
func (a *admission) makeRoom(here *pending.Budget) {
	if a.full() && (here == nil || here.MakeRoom(1) == 0) && a.unproven != nil {
		a.unproven.MakeRoom(giveWayAtOnce)
	}
}

// errFull and the others are why accepting pauses.
var (
	errFull         = errors.New("as many connections as the limit of descriptors allows (ulimit -n)")
	errMaxConns     = errors.New("as many connections as -max-conns allows")
	errListenerFull = errors.New("as many connections as the max-conns of this listener allows")
)

// reserve counts a connection that is about to be accepted among those that there may
// be at a time. The error is why there may be no other: then it is better off in
// the listener's queue.
func (a *admission) reserve(by *entrance) error {
	if !a.conns.Take() {
		if _, most := a.conns.Count(); most == int(a.byDescriptors.Load()) {
			return errFull
		}
		return errMaxConns
	}
	if !by.conns.Take() {
		a.conns.Give()
		return errListenerFull
	}
	return nil
}

// reserveBeyond is reserve for a connection that is there already.
func (a *admission) reserveBeyond(by *entrance) {
	a.conns.Force()
	by.conns.Force()
}

// unready tells whether clients should go elsewhere; those that come are served.
func (a *admission) unready() bool { return a.lame.Load() || a.leaving.Load() }

// unreserve undoes reserve.
func (a *admission) unreserve(by *entrance) {
	by.conns.Give()
	a.conns.Give()
}

// full tells whether there may be no other connection.
func (a *admission) full() bool { return a.conns.Full() }

// fullAt is full for a listener.
func (a *admission) fullAt(by *entrance) bool { return a.full() || by.conns.Full() }

// circleTime is how long a host is suspected that passed connections on in a circle.
const circleTime = time.Minute

// circles remember the last circle of gateways that was broken; see acceptor.breakCircle,
// which finds them. The zero value knows of none.
// Its methods may be called from any thread.
type circles struct{ last atomic.Pointer[circle] }

type circle struct {
	host  netip.Addr // that passes connections back to this gateway
	until time.Time
}

// holds tells whether a client that is to be forwarded is part of a circle.
func (c *circles) holds(client netip.Addr) bool {
	last := c.last.Load()
	return last != nil && last.host == client && time.Now().Before(last.until)
}

// broken remembers one.
func (c *circles) broken(host netip.Addr) { c.last.Store(&circle{host, time.Now().Add(circleTime)}) }

// ledger keeps account of connections: who may come, who is served, and what became of
// each (account, in accesslog.go). It outlives any rules. Its methods may be called from
// any goroutine.
type ledger struct {
	serving sync.WaitGroup // connections, from begin to done
	served  atomic.Int64   // how many of them there are
	bridges atomic.Int64   // connections besides, whose account is a resumable tunnel's

	account

	admission

	warnedAccept atomic.Int64 // when, in nanoseconds since start; 0: never
	failedAccept atomic.Int64 // the same for the last failure
}

func newLedger(log *slog.Logger) *ledger {
	bans := new(limit.Bans)
	return &ledger{
		account:   newAccount(log),
		admission: admission{bans: bans, limiter: limit.New(bans), away: limit.NewTally(log)},
	}
}

// hold has clients to come held to the limits of a configuration. descriptors is for
// how many connections they suffice, 0 for any number.
func (l *ledger) hold(cfg *Config, descriptors int32) {
	l.byDescriptors.Store(descriptors)
	most := int32(cfg.MaxConns)
	if most == 0 || descriptors > 0 && descriptors < most {
		most = descriptors
	}
	l.conns.Bound(int(most))
	l.bans.SetRule(cfg.Ban)
	l.quiet.Set(cfg.LogRefusedRate, cfg.Prefix6)
	l.logOpen.Store(cfg.LogTunnels == "open")
	l.limiter.Set(cfg.limits())
}

// holdApart has clients of a listener to come held to limits of its own, and counts
// them apart.
func (l *ledger) holdApart(by *entrance, own *clientLimits) {
	by.conns.Bound(own.MaxConns)
	limiter := limit.New(l.bans)
	limiter.Set(own.limits())
	by.limiter.Store(limiter)
}

// holdAll has clients to come held to what listeners have of their own in a new
// configuration. What is counted stays, but where a listener has begun to have its own.
func (l *ledger) holdAll(cfg *Config) {
	for _, by := range l.allEntrances() {
		for _, e := range cfg.Listen {
			if e.Addr != by.at || e.KCP != (by.kcp != nil) {
				continue
			}
			own, limiter := cfg.limitsAt(e), by.limiter.Load()
			switch {
			case own == nil:
				by.conns.Bound(0)
				by.limiter.Store(l.limiter)
			case limiter == l.limiter:
				l.holdApart(by, own)
			default:
				by.conns.Bound(own.MaxConns)
				limiter.Set(own.limits())
			}
		}
	}
}

// begin counts a connection among those that are served, until done. It must
// not be called once wait has returned.
func (l *ledger) begin() {
	l.serving.Add(1)
	l.served.Add(1)
}

// open returns how many connections are served.
func (l *ledger) open() int64 { return l.served.Load() }

// beginBridge counts a connection that carries a resumable tunnel, perhaps of another
// process, among those that are served, until endBridge. The caller has another one that
// is counted.
func (l *ledger) beginBridge() {
	l.serving.Add(1)
	l.bridges.Add(1)
}

func (l *ledger) endBridge() {
	l.bridges.Add(-1)
	l.serving.Done()
}

// idle tells whether nothing is served any more.
func (l *ledger) idle() bool { return l.open() == 0 && l.bridges.Load() == 0 }

// entrance returns a listener as its connections know it.
func (l *ledger) entrance(ln net.Listener, forward *address.Route) *entrance {
	by := &entrance{name: ln.Addr().String(), forward: forward}
	leads := 0
	if forward != nil {
		leads = forward.Len()
	}
	if k, ok := ln.(interface{ Stats() kcp.Stats }); ok {
		by.name, by.kcp = "kcp://"+by.name, k.Stats
	}
	for i := range leads {
		l.backends.Of(forward.Target(i).Addr)
	}
	by.limiter.Store(l.limiter)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entrances = append(l.entrances, by)
	return by
}

// arrived gives a connection that has begun its number.
func (l *ledger) arrived(s *session, by *entrance) {
	s.entrance, s.number, s.reserved = by, l.lastID.Add(1), true
	by.accepted.Add(1)
}

// admit asks the limits whether a client that has arrived may be served. For whom a
// trusted proxy speaks is not known before its header; see rules.believe.
func (l *ledger) admit(s *session) error {
	if s.anonymous {
		return nil
	}
	return s.admit(s.accepted)
}

// turnedAway accounts for a client that a limit does not let in. There is no line for
// it alone.
func (l *ledger) turnedAway(s *session, err error) {
	why := limitOf(err)
	l.away.Refused(why, s.client.Addr())
	if !s.counted {
		l.became(s, "")
		l.refusals.Add(why.String(), 1)
	}
}

// adopted begins to account for a tunnel that another process has accounted for so
// far, and that has been counted in by begin. Its client came by a listener of this
// name.
func (l *ledger) adopted(s *session, u *upstream, listener string) {
	s.entrance, s.number, s.counted = l.entranceOf(listener), l.lastID.Add(1), true
	l.reserveBeyond(s.entrance)
	s.reserved = true
	if limiter := s.entrance.limiter.Load(); limiter != nil {
		s.place = limiter.Hold(s.client.Addr())
	}
	l.moved.Add(1)
	if b := l.backendOf(s, u); b != nil {
		b.opened.Add(1)
	}
}

// entranceOf returns the listener of that name, or what stands for one that there is
// not any more.
func (l *ledger) entranceOf(name string) *entrance {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, by := range l.entrances {
		if by.name == name {
			return by
		}
	}
	by := &entrance{name: name}
	by.limiter.Store(l.limiter)
	return by
}

// departed leaves it to another process to account for a tunnel from here on.
func (l *ledger) departed(s *session, u *upstream) {
	l.moved.Add(-1)
	if b := l.backendOf(s, u); b != nil {
		b.ended.Add(1)
	}
	l.done(s, u)
}

// misbehaved tells the limits of a refused client.
func (l *ledger) misbehaved(s *session, err error, st handshake.Status) {
	if s.misbehaved(err, st) {
		line := append(l.lineOf(s, &upstream{}), slog.String("rule", l.bans.Rule().String()))
		l.tell(slog.LevelWarn, "client banned", line)
	}
}

// done ends a connection's part in being served. Only its first call counts.
func (l *ledger) done(s *session, u *upstream) {
	if !s.done {
		s.done = true
		if s.number != 0 && !s.counted { // a bug has ended it
			l.became(s, "")
			l.refusals.Add(errInternal.reason, 1)
		}
		u.release()
		l.served.Add(-1)
		s.place.Release()
		if s.reserved {
			l.unreserve(s.entrance)
		}
		l.serving.Done()
	}
}

// ended accounts for a finished tunnel.
func (l *ledger) ended(s *session, u *upstream, end relay.End) {
	defer l.done(s, u)
	l.tunnelEnded(s, u, end)
}

// resumed tells of a client that goes on with its tunnel by another connection. It is
// the end of this connection's account: the tunnel has one.
func (l *ledger) resumed(s *session, id string, how owner.Resumed) {
	defer l.done(s, &upstream{})
	l.cameBack(s, id, how)
}

// refused accounts for a request that came to no tunnel. st is what the client
// was told. It is not the end of the connection: see done.
func (l *ledger) refused(s *session, u *upstream, st handshake.Status, err error) {
	l.misbehaved(s, err, st)
	l.requestRefused(s, u, st, err)
}

// exchanged accounts for a request of an HTTP client.
func (l *ledger) exchanged(s *session, u *upstream, e web.Exchange) {
	if e.Err != nil {
		l.misbehaved(s, e.Err, handshake.Status(strconv.Itoa(e.Status)))
	}
	l.requestAnswered(s, u, e)
}

// wait waits until all connections are done.
func (l *ledger) wait() { l.serving.Wait() }

// announce returns what goes to the backend before anything else: the PROXY
// header of the given version, if there is to be one, and what the client has
// sent early. local is the socket's own address.
func (l *ledger) announce(version int, s *session, u *upstream, local netip.AddrPort, early []byte) []byte {
	if version == 0 {
		return early
	}
	if s.local.IsValid() {
		local = s.local
	}
	if version == 2 {
		u.id = l.name(s.number)
		if s.form == handshake.HTTP { // one of several that it asks for
			u.id = l.name(l.lastID.Add(1))
		}
	}
	b, err := proxyheader.Append(make([]byte, 0, 128+len(early)), version,
		proxyheader.Header{Source: s.client, Destination: local, UniqueID: u.id, Label: u.label, Hops: s.hops + 1})
	if err != nil { // only for a bug: both addresses are a socket's
		l.log.Error("cannot make a PROXY header", "client", s.client.String(), "err", err)
		return early
	}
	u.preface = int32(len(b))
	return append(b, early...)
}

// warnCannotAccept tells of a listener's failure, once in 10 s for all of them.
func (l *ledger) warnCannotAccept(err error, delay time.Duration) {
	// By the monotonic clock: one that is set back would silence it.
	now := int64(time.Since(l.start))
	if err != errMaxConns && err != errListenerFull {
		l.failedAccept.Store(now)
	}
	last := l.warnedAccept.Load()
	if (last == 0 || now-last >= int64(10*time.Second)) && l.warnedAccept.CompareAndSwap(last, now) {
		l.log.Warn("cannot accept, trying again", "err", err, "delay", delay.String())
	}
}

// cannotAccept tells whether connections wait because accepting them fails: it is
// tried again every second at least.
func (l *ledger) cannotAccept() bool {
	last := l.failedAccept.Load()
	return last != 0 && int64(time.Since(l.start))-last < int64(2*time.Second)
}

// panicked logs what recover returned, with the stack that it came from. s is the
// connection to which it has happened, if it is known.
func (l *ledger) panicked(v any, s *session) {
	var about line
	if s != nil {
		about = l.lineOf(s, &upstream{})
	}
	l.tell(slog.LevelError, "panic", append(about, slog.String("value", fmt.Sprint(v)), slog.String("stack", string(debug.Stack()))))
}
