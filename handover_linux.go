package main

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/address"
	"gateway/internal/handover"
	"gateway/internal/handshake"
	"gateway/internal/pipe"
	"gateway/internal/relay"
	"gateway/internal/web"
	"gateway/internal/websocket"
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

// handOver gives the tunnels of all loops to another process, those that are open
// and those that will be, until ctx ends or the other process does. It owns the
// stream. first is how long the other process may take to say anything; state is what it has
// to know before, by names. told gets to know how many tunnels there were in the first go.
func (c *crew) handOver(ctx context.Context, conn *net.UnixConn, first time.Duration, state map[string][]byte, told func(tunnels int, took time.Duration)) error {
	to, err := handover.NewSender(ctx, conn, first, handoverPatience)
	if err != nil {
		conn.Close()
		return err
	}
	defer to.Close()
	for name, text := range state {
		if err := to.State(name, text); err != nil {
			return err
		}
	}
	began := time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, handoverPause) {
		moved, err := c.handOverNow(ctx, to)
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
func (c *crew) handOverNow(ctx context.Context, to *handover.Sender) (moved int, err error) {
	for _, l := range c.all {
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
func (l *acceptor) do(f func()) {
	done := make(chan struct{})
	if l.reactor.Post(func() { defer close(done); f() }) {
		<-done
	}
}

// takeOver adopts the tunnels of another process, until that sends no more, and returns
// how many. It owns the stream, whose read deadline ends it. state gets what the other
// process lets know; idle is told when that has no more for now, and when it has.
func (c *crew) takeOver(conn *net.UnixConn, rules func() *rules, state func(name string, text []byte), idle func(bool)) (taken int, err error) {
	from, err := handover.NewReceiver(conn)
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil // it has none, or has ended
		}
		return 0, err
	}
	defer from.Close()
	from.Room = func(tunnels []handover.Tunnel) error {
		if n, most := c.all[0].ledger.conns.Count(); most > 0 && n+len(tunnels) > most {
			return errFull
		}
		return nil
	}
	settle := func() {
		for _, l := range c.all {
			l.do(func() {}) // has what was posted before
		}
	}
	defer settle()
	from.State = state
	from.Idle = func(yes bool) {
		if yes {
			settle()
		}
		idle(yes)
	}
	for {
		tunnels, err := from.Next()
		switch {
		case err == io.EOF, errors.Is(err, os.ErrDeadlineExceeded):
			return taken, nil
		case err != nil:
			return taken, err
		}
		taken += len(tunnels)
		to, r := c.idlest(), rules()
		to.load.Add(int32(len(tunnels)))
		for i := range tunnels {
			to.ledger.begin()
			// No loop ends before this does, see Gateway.stop.
			to.reactor.Post(func() { to.adoptLive(&tunnels[i], r) })
		}
	}
}

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
	p.bytes += len(h.Up.Unsent) + len(h.Down.Unsent) + len(h.Layer.State)
}

// yield fills p with open tunnels of slots from one on, and returns the slot to go on
// with; more says whether there is one.
func (l *tunnels) yield(p *parcel, slot int) (next int, more bool) {
	l.reactor.Tick()
	end := min(slot+parcelSlots, len(l.slots))
	for ; slot < end && !p.full(); slot++ {
		t := l.slots[slot]
		if t.state != stateOpen || t.broken || t.layer != nil && t.layer.Name() == "" {
			continue
		}
		l.current = t
		h := t.describe(l.reactor.Now)
		h.Name = l.ledger.id(&t.session, &t.upstream)
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
	if t.roams() {
		t.layer.roams.Freeze()
	}
	for i := range t.sockets {
		if s := &t.sockets[i]; s.watched {
			s.watched = false
			l.reactor.ControlRaw(unix.EPOLL_CTL_DEL, s.fd, nil)
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
	if t.roams() {
		t.layer.roams.reminding = false
		t.layer.roams.Thaw(t.sockets[clientSide].fd < 0)
	}
	for i := range t.sockets {
		s := &t.sockets[i]
		if s.fd < 0 && t.roams() {
			continue
		}
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
		if t.roams() {
			t.layer.roams.over()
		}
		l.release(t)
		l.ledger.departed(&s, &u)
	}
}

// adoptLive goes on with a tunnel of another process, which has been counted in, and
// owns its descriptors.
func (l *tunnels) adoptLive(h *handover.Tunnel, r *rules) {
	l.reactor.Tick()
	t := l.alloc()
	l.current = t
	t.restore(h, r, &l.pipes, l.reactor.Now)
	if h.Layer.Name == roamingName {
		if err := l.carrier().adopt(t, &h.Layer, r.owner); err != nil {
			l.log.Error("a tunnel of another process is of no use", "id", h.Name, "err", err)
			t.end.Note(relay.Gateway, relay.Failure)
			t.broken = true
		}
	}
	if t.layer != nil {
		t.layer.lookAt = l.reactor.Now + l.look
	}
	l.ledger.adopted(&t.session, &t.upstream, h.Listener)
	if r.maxTunnels > 0 {
		t.upstream.sit(&l.ledger.seats, math.MaxInt)
	}
	if l.bounds.Idle > 0 || !t.keepalive || t.halfClosed() || t.layer != nil {
		l.sweepFor(t)
	}
	t.rest.Resume(t.progress(), t.halfClosed(), h.Rest, l.reactor.Now)
	l.thaw(t)
	if t.state == stateOpen && t.swept {
		l.sweepOne(t) // what is due is due, however often it moves
	}
	l.current = nil
}

// describe tells what another process has to know of an open tunnel. now is the
// reactor's clock. The result refers to bytes of
// the tunnel's, which do not change as long as that is frozen.
func (t *tunnel) describe(now int64) handover.Tunnel {
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
		Idle:      time.Duration(now - t.movedAt),
		Listener:  s.entranceName(),
		Form:      s.form.String(),
		Secure:    s.secure,
		Proxied:   s.proxied,
		Hops:      s.hops,
		Header:    s.header,
		Target:    u.backend.String(),
		Preface:   int(u.preface),
		FirstByte: time.Duration(t.firstByte) * time.Millisecond,
		Dialing:   time.Duration(u.dialing) * time.Millisecond,
		Tries:     u.tries,
		Label:     u.label,
	}
	if t.swept {
		h.Rest = t.rest.Rested(t.progress(), t.halfClosed(), now)
	}
	if s.forward != nil {
		h.Forward = s.forward.String()
	}
	if u.dialed != nil {
		h.Dialed = *u.dialed
	}
	if u.choice != nil {
		h.Route = u.choice.group.Route()
		h.Failed = strings.Join(u.choice.failed, ",")
	}
	if t.layer != nil {
		h.Layer = t.layer.describe(now)
	}
	h.Detached = t.sockets[clientSide].fd < 0
	return h
}

func (l *layered) describe(now int64) handover.Layer {
	h := handover.Layer{Name: l.Name(), Owed: int(l.owed), Finished: l.finished}
	if l.roams != nil {
		h.State = l.roams.Tunnel.Append(nil)
	}
	h.State = l.Append(h.State)
	if l.by != 0 {
		h.Wait = time.Duration(max(1, l.by-now))
	}
	return h
}

// roamingName is that of the layer of a resumable tunnel.
const roamingName = "resume"

// restoreLayer is the layer of a tunnel of another process; nil for none. A tunnel ends
// whose layer is unknown here: its bytes would be taken for others.
func restoreLayer(h *handover.Layer, now int64) (l *layered, unknown bool) {
	if h.Name == "" || h.Name == roamingName { // see adoptRoaming
		return nil, false
	}
	l = &layered{owed: int32(h.Owed), finished: h.Finished}
	if h.Wait > 0 {
		l.by = now + h.Wait.Nanoseconds()
	}
	ws, err := websocket.Restore(h.State, web.MessageMax)
	if l.Transform = ws; err != nil || h.Name != ws.Name() {
		return nil, true
	}
	return l, false
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

// restore makes a tunnel what it was in another process, but for its account. It owns
// the descriptors; a pipe too many is emptied into memory.
func (t *tunnel) restore(h *handover.Tunnel, r *rules, pipes *pipe.Pool, now int64) {
	t.state, t.rules = stateOpen, r
	t.sockets[clientSide] = socket{fd: int32(h.Client.FD), hung: h.Client.Hung, wantOut: h.Client.Stalled}
	if h.Detached {
		t.sockets[clientSide] = socket{fd: -1}
	}
	t.sockets[backendSide] = socket{fd: int32(h.Backend.FD), hung: h.Backend.Hung, wantOut: true}
	t.flows[clientSide] = restoreFlow(&h.Up, pipes)
	t.flows[backendSide] = restoreFlow(&h.Down, pipes)
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
	t.upstream = restoreUpstream(h, r)
	t.firstByte = int32(h.FirstByte.Milliseconds())
	if t.layer, t.broken = restoreLayer(&h.Layer, now); t.broken {
		t.end.Note(relay.Gateway, relay.Failure)
	}
	t.openedAt, t.movedAt = now-h.Age.Nanoseconds(), now-h.Idle.Nanoseconds()
}

func restoreFlow(h *handover.Flow, pipes *pipe.Pool) flow {
	f := flow{moved: h.Moved, unsent: h.Unsent, bulk: h.Bulk, large: h.Large, ended: h.Ended, done: h.Done}
	if h.InPipe == 0 {
		return f
	}
	if f.pipe = pipes.Adopt(h.Pipe.R, h.Pipe.W); f.pipe != nil {
		f.inPipe = int32(h.InPipe)
	} else {
		f.unsent = append(f.unsent, pipe.Empty(h.Pipe.R, h.Pipe.W, h.InPipe)...)
	}
	return f
}

// restoreUpstream is the backend's end of a tunnel of another process. It counts among
// the connections of its target.
func restoreUpstream(h *handover.Tunnel, r *rules) upstream {
	u := upstream{id: h.Name, label: h.Label, preface: int32(h.Preface), tries: h.Tries, dialing: int32(h.Dialing.Milliseconds())}
	if addr, err := address.Parse(h.Target); err == nil {
		u.backend = addr
	}
	if h.Dialed.IsValid() {
		u.dialed = &h.Dialed
	}
	if route, err := address.ParseRoute(h.Route); err == nil {
		group := r.routes.Group(route, balanceClock())
		u.choice = &choice{group: group, attempt: group.Join(u.backend), service: route.Service() != ""}
		if h.Failed != "" {
			u.choice.failed = strings.Split(h.Failed, ",")
		}
	}
	return u
}
