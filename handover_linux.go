package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/address"
	"gateway/internal/handover"
	"gateway/internal/handshake"
	"gateway/internal/pipe"
	"gateway/internal/relay"
	"gateway/internal/sys"
)

// How live tunnels go from the loops of one process to those of the next. A tunnel
// is frozen, sent away with its sockets, and forgotten once the other process has
// said that it has it; or else it goes on here:
//
//	open → yield → frozen → depart
//	  ↑                ↓
//	  ←──── resume ←───
//
// Between two portions loops go on with their work. The other process adopts a
// tunnel as it was. What had been an edge while nobody watched makes one again when
// the sockets are registered: epoll looks at them then.

const (
	// handoverPatience is how long the other process may take for an answer.
	handoverPatience = 5 * time.Second
	// handoverPause is the longest pause before it is looked whether there is more
	// to hand over: handshakes end, and the slow way brings tunnels.
	handoverPause = 200 * time.Millisecond
)

// What a parcel holds at most: as much as keeps nobody waiting for a millisecond.
const (
	parcelTunnels     = 64
	parcelDescriptors = handover.MaxDescriptors - 6 // what one tunnel may have
	parcelPipes       = 8
	parcelBytes       = 256 << 10
	parcelSlots       = 512 // that are looked at
)

// parcel is frozen tunnels of one loop.
type parcel struct {
	tunnels     []*tunnel
	states      []handover.Tunnel
	descriptors int
	bytes       int
}

func (p *parcel) full() bool {
	return len(p.tunnels) >= parcelTunnels || p.descriptors > parcelDescriptors || p.bytes >= parcelBytes ||
		p.descriptors-2*len(p.tunnels) >= 2*parcelPipes
}

func (p *parcel) add(t *tunnel, h handover.Tunnel) {
	p.tunnels, p.states = append(p.tunnels, t), append(p.states, h)
	p.descriptors += h.Descriptors()
	p.bytes += len(h.Up.Unsent) + len(h.Down.Unsent)
}

// yield fills p with open tunnels of slots from one on, and returns the slot to go on
// with; more says whether there is one.
func (l *tunnels) yield(p *parcel, slot int) (next int, more bool) {
	l.reactor.tick()
	end := min(slot+parcelSlots, len(l.slots))
	for ; slot < end && !p.full(); slot++ {
		t := l.slots[slot]
		if t.state != stateOpen || t.broken {
			continue
		}
		l.current = t
		h := l.describe(t)
		l.freeze(t)
		p.add(t, h)
	}
	l.current = nil
	return slot, slot < len(l.slots)
}

// freeze has nothing done for a tunnel until resume or depart. Its registrations go:
// the other process has the same open files, and as long as these are not closed,
// events would come here.
func (l *tunnels) freeze(t *tunnel) {
	t.state = stateFrozen
	for i := range t.sockets {
		if s := &t.sockets[i]; s.watched {
			s.watched = false
			sys.EpollCtl(l.reactor.epfd, unix.EPOLL_CTL_DEL, s.fd, nil)
		}
	}
}

// resume goes on with tunnels that stay.
func (l *tunnels) resume(p *parcel) {
	for len(p.tunnels) > 0 {
		l.current = p.tunnels[0]
		p.tunnels = p.tunnels[1:]
		l.thaw(l.current)
	}
	l.current = nil
}

// thaw goes on with a tunnel as if every edge there is had come. Those that there
// will be come by themselves, since the sockets are registered first.
func (l *tunnels) thaw(t *tunnel) {
	t.state = stateOpen
	if l.closing {
		l.cut(t, relay.Shutdown)
		return
	}
	for i := range t.sockets {
		s := &t.sockets[i]
		s.readable, s.writable = true, true
		if err := l.watch(t, s); err != nil {
			l.cut(t, relay.Failure)
			return
		}
	}
	l.move(t)
}

// depart forgets tunnels that are another process's. Closing tells the peers
// nothing: the other process has the same sockets.
func (l *tunnels) depart(p *parcel) {
	for len(p.tunnels) > 0 {
		t := p.tunnels[0]
		p.tunnels = p.tunnels[1:]
		s, u := t.session, t.upstream
		l.release(t)
		l.ledger.departed(&s, &u)
	}
}

// describe tells what is to be known of a tunnel elsewhere. It refers to bytes of
// the tunnel's, which do not change as long as that is frozen.
func (l *tunnels) describe(t *tunnel) handover.Tunnel {
	s, u := &t.session, &t.upstream
	h := handover.Tunnel{
		Client:    describeSide(&t.sockets[clientSide]),
		Backend:   describeSide(&t.sockets[backendSide]),
		Up:        describeFlow(&t.flows[clientSide]),
		Down:      describeFlow(&t.flows[backendSide]),
		Deaf:      t.deaf,
		Optioned:  t.keepalive,
		EndedBy:   t.end.By.String(),
		How:       t.end.How.String(),
		Age:       time.Since(s.accepted),
		Addr:      s.client,
		Local:     s.local,
		Idle:      time.Duration(l.reactor.now - t.movedAt),
		Listener:  s.entranceName(),
		Form:      s.form.String(),
		Secure:    s.secure,
		Proxied:   s.proxied,
		Hops:      s.hops,
		Header:    s.header,
		Target:    u.backend.String(),
		BackendID: u.id,
		Preface:   int(u.preface),
	}
	if t.swept {
		h.Rest = t.rest.Rested(t.progress(), t.halfClosed(), l.reactor.now)
	}
	if s.forward != nil {
		h.Forward = s.forward.String()
	}
	if u.dialed != nil {
		h.Dialed = *u.dialed
	}
	if u.choice != nil {
		h.Route = u.choice.group.Route()
	}
	return h
}

func describeSide(s *socket) handover.Side {
	return handover.Side{FD: int(s.fd), Hung: s.hung, Stalled: s.wantOut}
}

func describeFlow(f *flow) handover.Flow {
	h := handover.Flow{Moved: f.moved, Unsent: f.unsent, InPipe: int(f.inPipe),
		Bulk: f.bulk, Large: f.large, Ended: f.ended, Done: f.done}
	if f.inPipe > 0 {
		h.Pipe = handover.Pipe{R: f.pipe.R, W: f.pipe.W}
	}
	return h
}

// adoptLive goes on with a tunnel of another process, which has been counted in, and
// owns its descriptors.
func (l *tunnels) adoptLive(h *handover.Tunnel, r *rules) {
	l.reactor.tick()
	t := l.alloc()
	l.current = t
	t.state, t.rules = stateOpen, r
	t.sockets[clientSide] = socket{fd: int32(h.Client.FD), hung: h.Client.Hung, wantOut: h.Client.Stalled}
	t.sockets[backendSide] = socket{fd: int32(h.Backend.FD), hung: h.Backend.Hung, wantOut: true}
	l.adoptFlow(&t.flows[clientSide], &h.Up)
	l.adoptFlow(&t.flows[backendSide], &h.Down)
	t.deaf, t.keepalive = h.Deaf, h.Optioned
	t.end = relay.ParseEnding(h.EndedBy, h.How)
	t.session = session{
		client:   h.Addr,
		local:    h.Local,
		accepted: time.Now().Add(-h.Age),
		form:     handshake.ParseForm(h.Form),
		secure:   h.Secure,
		proxied:  h.Proxied,
		hops:     h.Hops,
		header:   h.Header,
	}
	if route, err := address.ParseRoute(h.Forward); err == nil {
		t.session.forward = &route
	}
	t.upstream = adoptUpstream(h, r)
	l.ledger.adopted(&t.session, &t.upstream, h.Listener)
	t.openedAt, t.movedAt = l.reactor.now-h.Age.Nanoseconds(), l.reactor.now-h.Idle.Nanoseconds()
	if l.bounds.Idle > 0 || !t.keepalive || t.halfClosed() {
		l.sweepFor(t)
	}
	t.rest.Resume(t.progress(), t.halfClosed(), h.Rest, l.reactor.now)
	l.thaw(t)
	if t.state == stateOpen && t.swept {
		l.sweepOne(t) // what is due is due, however often it moves
	}
	l.current = nil
}

// adoptFlow takes what a direction holds. A pipe too many is emptied and closed.
func (l *tunnels) adoptFlow(f *flow, h *handover.Flow) {
	*f = flow{moved: h.Moved, unsent: h.Unsent, bulk: h.Bulk, large: h.Large, ended: h.Ended, done: h.Done}
	if h.InPipe == 0 {
		return
	}
	if f.pipe = l.pipes.Adopt(h.Pipe.R, h.Pipe.W); f.pipe != nil {
		f.inPipe = int32(h.InPipe)
		return
	}
	f.unsent = append(f.unsent, pipe.Empty(h.Pipe.R, h.Pipe.W, h.InPipe)...)
}

// adoptUpstream is the backend's end of a tunnel of another process. It counts among
// the connections of its target.
func adoptUpstream(h *handover.Tunnel, r *rules) upstream {
	u := upstream{id: h.BackendID, preface: int32(h.Preface)}
	if addr, err := address.Parse(h.Target); err == nil {
		u.backend = addr
	}
	if h.Dialed.IsValid() {
		u.dialed = &h.Dialed
	}
	if route, err := address.ParseRoute(h.Route); err == nil {
		group := r.routes.Group(route, balanceClock())
		u.choice = &choice{group: group, attempt: group.Join(u.backend), service: route.Service() != ""}
	}
	return u
}

// handOver gives the tunnels of all loops to another process, those that are open
// and those that will be, until ctx ends or the other process does. It owns the
// stream. told gets to know how many there were in the first go.
func (ls *loops) handOver(ctx context.Context, conn *net.UnixConn, told func(tunnels int, took time.Duration)) error {
	if ls == nil {
		conn.Close()
		return nil
	}
	to, err := handover.NewSender(conn, handoverPatience)
	if err != nil {
		conn.Close()
		return err
	}
	defer to.Close()
	began := time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, handoverPause) {
		moved, err := ls.handOverNow(ctx, to)
		if err == nil {
			err = to.Idle()
		}
		if told != nil {
			told(moved, time.Since(began))
			told = nil
		}
		if moved > 0 {
			pause = time.Millisecond
		}
		if err != nil && !errors.Is(err, handover.ErrBusy) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// handOverNow gives those tunnels away that are open now, and returns how many.
func (ls *loops) handOverNow(ctx context.Context, to *handover.Sender) (moved int, err error) {
	for _, l := range ls.all {
		if l.load.Load() == 0 {
			continue
		}
		for slot, more := 0, true; more && ctx.Err() == nil; {
			p := &parcel{}
			l.do(func() { slot, more = l.yield(p, slot) })
			if len(p.tunnels) == 0 {
				continue
			}
			if err := to.Send(p.states); err != nil {
				for len(p.tunnels) > 0 { // a panic costs one
					l.do(func() { l.resume(p) })
				}
				return moved, err
			}
			moved += len(p.tunnels)
			for len(p.tunnels) > 0 {
				l.do(func() { l.depart(p) })
			}
		}
	}
	return moved, nil
}

// do runs f in the loop's thread and waits for it. A loop with frozen tunnels does
// not end.
func (l *loop) do(f func()) {
	done := make(chan struct{})
	if l.reactor.post(func() { defer close(done); f() }) {
		<-done
	}
}

// refuse has another process keep its tunnels.
func (*loops) refuse(conn *net.UnixConn, why string) { handover.Refuse(conn, why) }

// takeOver adopts the tunnels of another process, until that sends no more, and returns
// how many. It owns the stream, whose read deadline ends it. idle is told when the
// other process has no more for now, and when it has.
func (ls *loops) takeOver(conn *net.UnixConn, rules func() *rules, idle func(bool)) (taken int, err error) {
	if ls == nil {
		ls.refuse(conn, "it has no event loops (-loops)")
		return 0, nil
	}
	from, err := handover.NewReceiver(conn)
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil // it has none, or has ended
		}
		return 0, err
	}
	defer from.Close()
	from.Room = func(tunnels []handover.Tunnel) error {
		if ls.crew.conns()+int32(len(tunnels)) > ls.crew.maxConns {
			return errFull
		}
		return nil
	}
	from.Idle = idle
	for {
		tunnels, err := from.Next()
		switch {
		case err == io.EOF, errors.Is(err, os.ErrDeadlineExceeded):
			return taken, nil
		case err != nil:
			return taken, err
		}
		taken += len(tunnels)
		to, r := ls.crew.idlest(), rules()
		to.load.Add(int32(len(tunnels)))
		for i := range tunnels {
			to.ledger.begin()
			// No loop ends before this does, see Gateway.stop.
			to.reactor.post(func() { to.adoptLive(&tunnels[i], r) })
		}
	}
}
