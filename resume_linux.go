package main

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/handover"
	"gateway/internal/layer"
	"gateway/internal/relay"
	"gateway/internal/resume"
	"gateway/internal/resume/owner"
	"gateway/internal/sockopt"
	"gateway/internal/sys"
)

// How the bytes of a resumable tunnel move. Its layer is a session (internal/resume),
// whose client's end is not the tunnel's: the client's socket may go, and another one come.
// So most of what ends another tunnel only detaches this one:
//
//	attached → detach → detached → attach → attached
//	                       ↓
//	                      end (its hold is over)
//
// What is different from a tunnel with another layer:
//
//   - The client is read whether the backend takes anything or not, since what it
//     acknowledges is among what it sends. The session keeps what the backend does not take.
//   - The backend is read for as long as the session has room, whether there is a client
//     or not.
//   - The tunnel ends when the session says so: both directions have and both ends know, or
//     one of the two ends has broken off.

// carrier is how the owner reaches a tunnel in a loop. It may be used from any thread but
// the loop's.
type carrier struct {
	loop       roamers
	m          *mover
	t          *tunnel // nil until the loop has it
	generation uint32
}

// roamers are the tunnels of a loop, as far as a carrier needs them.
type roamers interface {
	// resumed goes on with a tunnel whose client has come back.
	resumed(t *tunnel)
	// reset ends a tunnel with a reset to the backend.
	reset(t *tunnel)
	// turn has a panic be that tunnel's.
	turn(t *tunnel)
}

var _ owner.Carrier = (*carrier)(nil)

// do runs f in the loop's thread, if the tunnel is there still, and waits for it. It
// returns why it is not.
func (c *carrier) do(f func()) error {
	err := error(owner.ErrUnknown)
	done := make(chan struct{})
	posted := c.m.reactor.Post(func() {
		defer close(done)
		switch t := c.t; {
		case t == nil, t.generation != c.generation:
		case t.state == stateFrozen:
			err = owner.ErrMoving
		case t.state == stateOpen:
			err = nil
			c.loop.turn(t)
			f()
		}
	})
	if posted {
		<-done
	}
	return err
}

// Resume is for owner.Carrier. The connection is a socket.
func (c *carrier) Resume(q *owner.Return) (how owner.Resumed, err error) {
	fd, err := sockopt.Dup(q.Conn.(syscall.Conn))
	if err != nil {
		return how, owner.ErrFew
	}
	gone := c.do(func() {
		if how, err = c.m.attach(c.t, fd, q); err == nil {
			c.loop.resumed(c.t)
		}
	})
	if gone != nil {
		err = gone
	}
	if err != nil {
		unix.Close(fd)
		return how, err
	}
	q.Conn.Close() // the loop has it
	return how, nil
}

// End is for owner.Carrier.
func (c *carrier) End(why error, losses int) (ended bool) {
	c.do(func() {
		if c.t.sockets[clientSide].fd >= 0 || c.t.layer.roams.Losses() != losses {
			return
		}
		c.t.end.Note(relay.Client, relay.HowOf(why))
		c.loop.reset(c.t)
		ended = true
	})
	return ended
}

// roam gives a tunnel the session of its client, which has one, and takes frames that have
// come of it.
func (c *carrier) roam(t *tunnel, of *owner.Tunnel, s *resume.Session, frames []byte) {
	r := &roaming{Tunnel: of, session: resume.NewLayer(s)}
	c.t, c.generation = t, t.generation
	t.layer = &layered{Transform: &r.session, roams: r}
	s.Input(frames)
}

// attach gives a tunnel another socket, which is its own then; or else returns an error
// that has changed nothing.
func (m *mover) attach(t *tunnel, fd int, q *owner.Return) (how owner.Resumed, err error) {
	r, c := t.layer.roams, &t.sockets[clientSide]
	if err := r.session.Resume(q.Request); err != nil {
		return how, err
	}
	if c.fd >= 0 {
		m.closeClient(c)
	}
	m.reactor.Tick()
	*c = socket{fd: int32(fd), readable: true, writable: true}
	t.flows[backendSide].unsent = append([]byte(nil), q.Reply...)
	t.broken, t.keepalive = false, false
	how = r.Resumed(q)
	if r.lost = m.watch(t, c); r.lost != nil {
		t.broken = true
	}
	r.session.Input(q.Early)
	return how, nil
}

// closeClient closes a client's socket. Who has brought it may not have closed his own
// descriptor of it yet, and as long as one is open, events would come.
func (m *mover) closeClient(c *socket) {
	if c.watched {
		m.reactor.ControlRaw(unix.EPOLL_CTL_DEL, c.fd, nil)
	}
	sys.Close(c.fd)
}

// detach deals with a client's socket that is of no more use.
func (m *mover) detach(t *tunnel) {
	r, c := t.layer.roams, &t.sockets[clientSide]
	t.broken = false
	if c.fd < 0 {
		return
	}
	m.closeClient(c)
	*c = socket{fd: -1}
	t.flows[backendSide].unsent = nil // the session has it
	if t.end.By == relay.Client && t.end.How != relay.FIN {
		t.end = relay.Ending{} // that was the socket's
	}
	r.session.Detach()
	r.Lost(r.lost)
}

// adopt takes up the session of a tunnel of another process. The error says why it could
// not.
func (c *carrier) adopt(t *tunnel, h *handover.Layer, o *owner.Owner) error {
	if o == nil {
		return errors.New("it is resumable, and -resume=0")
	}
	of, s, err := o.Adopt(h.State, c)
	if err != nil {
		return err
	}
	c.roam(t, of, s, nil)
	t.layer.roams.whole = t.flows[clientSide].done && !t.deaf
	t.session.resumes = of.ID()
	return nil
}

// roamBroken deals with a reset that was not come across.
func (m *mover) roamBroken(t *tunnel) {
	if c := &t.sockets[clientSide]; c.fd >= 0 {
		if err := sys.SocketError(c.fd); err != nil {
			m.roamLost(t, err)
		}
	}
}

// pumpRoaming moves what can be moved of a resumable tunnel, both ways. It reports whether
// the tunnel is over, and whether the backend is to be reset.
func (m *mover) pumpRoaming(t *tunnel) (over, reset bool) {
	r := t.layer.roams
	s := &r.session
	for {
		s.Now = time.Duration(m.reactor.Now)
		m.roamIn(t)
		m.roamOut(t)
		if t.broken {
			m.hearOut(t)
		}
		if _, closed := s.Closed(); closed || !t.broken || s.Violated() {
			break
		}
		m.detach(t)
	}
	if n := s.Memory(); n != r.memory {
		r.Hold(n - r.memory)
		r.memory = n
	}
	_, closed := s.Closed()
	switch {
	case closed:
		t.end.Note(relay.Client, relay.Reset)
		return true, true
	case s.Violated():
		t.end.Note(relay.Client, relay.Failure)
		return true, true
	}
	if !s.Attached() {
		return s.Complete() || s.Closing(), false
	}
	// What has been said is not out as long as the client's socket has no room for it.
	return (s.Complete() || s.Said()) && !t.flows[backendSide].holds(), false
}

// hearOut takes what a client's socket has that is of no more use: it may have been a write
// that found that out, behind a client who has said that the session is over.
func (m *mover) hearOut(t *tunnel) {
	for c := &t.sockets[clientSide]; c.fd >= 0; {
		n, err := sys.Recv(c.fd, m.buf[:m.bufferSize])
		if n > 0 {
			m.takeFrames(t, m.buf[:n])
		} else if err != unix.EINTR {
			return
		}
	}
}

// roamIn is pump from the client.
func (m *mover) roamIn(t *tunnel) {
	f, src := &t.flows[clientSide], &t.sockets[clientSide]
	for budget := turnBytes; ; {
		if f.bulk && !m.bulkTurn {
			m.goOn(t)
			return
		}
		m.passOn(t)
		if t.broken || !src.readable || src.fd < 0 {
			return
		}
		if budget <= 0 {
			m.goOn(t)
			return
		}
		buf := m.buf[:m.bufferSize]
		n, err := sys.Recv(src.fd, buf)
		if n <= 0 {
			m.roamCut(t, err)
			continue
		}
		f.large = n >= m.slotSize
		if f.bulk = n == len(buf); f.bulk {
			m.spent += max(n, leastCost)
		} else {
			src.readable = src.hung
		}
		budget -= max(n, leastCost)
		m.takeFrames(t, buf[:n])
	}
}

// takeFrames deals with bytes of the client's socket.
func (m *mover) takeFrames(t *tunnel, b []byte) {
	f, s := &t.flows[clientSide], &t.layer.roams.session
	if t.deaf || f.holds() || s.Buffered() > 0 {
		s.Input(b) // what is wrong with it shows in Violated
		return
	}
	out, _ := s.In(b)
	if len(out) == 0 {
		return
	}
	if sent := m.write(t, f, &t.sockets[backendSide], out); sent >= 0 && sent < len(out) {
		f.unsent = append([]byte(nil), out[sent:]...)
	}
}

// passOn has the backend take what it can of what has come, and the session know.
func (m *mover) passOn(t *tunnel) {
	f, dst, s := &t.flows[clientSide], &t.sockets[backendSide], &t.layer.roams.session
	for !t.deaf && (!f.holds() || m.flush(t, f, dst)) && s.Buffered() > 0 {
		n := s.Take(m.buf[:m.bufferSize])
		if sent := m.write(t, f, dst, m.buf[:n]); sent >= 0 && sent < n {
			f.unsent = append([]byte(nil), m.buf[sent:n]...)
		}
	}
	if t.deaf {
		for s.Take(m.buf) > 0 {
		}
	}
	m.passed(t)
	if s.AtEnd() && !f.done && !f.holds() {
		t.end.Note(relay.Client, relay.FIN)
		f.ended, f.done = true, true
		if !t.deaf {
			t.layer.roams.whole = true
			sys.ShutdownWrite(dst.fd)
		}
		s.Pass(true, s.Now)
	}
}

// ackAfter is for how long the client is not told what was passed on, at most.
const ackAfter = time.Second

// passed has the session know what the backend has taken.
func (m *mover) passed(t *tunnel) {
	r := t.layer.roams
	r.session.Now = time.Duration(m.reactor.Now)
	// Without a client there is nobody to be told; the next one is, before anything else.
	if r.session.Passed(len(t.flows[clientSide].unsent)) && !r.reminding && r.session.Attached() {
		r.reminding = true
		m.acks.Push(t, m.reactor.Now)
	}
}

// remind has a client told what was passed on, which has waited for company long enough.
func (m *mover) remind(t *tunnel) {
	t.layer.roams.reminding = false
	t.layer.roams.session.Acknowledge()
}

// roamCut deals with a read from the client that brought nothing.
func (m *mover) roamCut(t *tunnel, err error) {
	if err == unix.EINTR {
		return
	}
	t.sockets[clientSide].readable = false
	if err != unix.EAGAIN {
		m.roamLost(t, err)
	}
}

// roamLost says that the client's socket is of no more use; move does the rest.
func (m *mover) roamLost(t *tunnel, err error) {
	t.broken = true
	if t.layer.roams.lost = err; err == nil {
		t.layer.roams.lost = io.EOF
	}
}

// roamOut is pump from the backend.
func (m *mover) roamOut(t *tunnel) {
	f, src, s := &t.flows[backendSide], &t.sockets[backendSide], &t.layer.roams.session
	for budget := turnBytes; !t.broken; {
		if f.bulk && !m.bulkTurn {
			m.goOn(t)
			return
		}
		if f.ended {
			s.Finish(t.deaf && !(s.Finished() && t.layer.roams.whole))
		}
		if s.Attached() && !m.sayAll(t) || f.ended {
			return
		}
		room := s.Room()
		if !src.readable || room == 0 {
			return // room comes with what the client says
		}
		if budget <= 0 {
			m.goOn(t)
			return
		}
		buf := m.buf[:min(len(m.buf), layer.Headroom+min(room, resume.MaxData))]
		n, err := sys.Recv(src.fd, buf[layer.Headroom:])
		if n <= 0 {
			m.sourceEnded(t, f, src, n, err)
			continue
		}
		f.large = n >= m.slotSize-layer.Headroom
		if f.bulk = n == len(buf)-layer.Headroom; f.bulk {
			m.spent += max(n, leastCost)
		} else {
			src.readable = src.hung
		}
		budget -= max(n, leastCost)
		m.countOut(t, n)
		if wire := s.Out(buf[:layer.Headroom+n]); len(wire) > 0 {
			m.sendFrames(t, wire)
		}
	}
}

// countOut accounts for n bytes of the backend, which the session has.
func (m *mover) countOut(t *tunnel, n int) {
	f := &t.flows[backendSide]
	if f.moved == 0 {
		m.firstByte(t)
	}
	f.moved += int64(n)
	t.movedAt = m.reactor.Now
	m.copied[backendSide] += int64(n)
}

// sayAll sends what there is for the client, and reports whether all of it is out.
func (m *mover) sayAll(t *tunnel) bool {
	f, dst, s := &t.flows[backendSide], &t.sockets[clientSide], &t.layer.roams.session
	for !t.broken {
		switch {
		case f.holds() && !dst.writable:
			return false
		case f.holds():
			b := f.unsent
			f.unsent = nil
			m.sendFrames(t, b)
		case s.Pending(s.Now):
			m.sendFrames(t, s.Back(m.buf[:0]))
		default:
			return true
		}
	}
	return false
}

// sendFrames sends b to the client, and keeps what is not taken.
func (m *mover) sendFrames(t *tunnel, b []byte) {
	f, dst := &t.flows[backendSide], &t.sockets[clientSide]
	n, err := sys.Send(dst.fd, b)
	if err != nil {
		if !m.noRoom(t, f, dst, err) {
			m.roamLost(t, err)
			return
		}
		n = 0
	}
	if n < len(b) {
		f.unsent = append([]byte(nil), b[n:]...)
		m.awaitRoom(t, dst)
	}
}

// newPair makes two local sockets that are joined.
func newPair() (inner, outer net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		conn, cerr := net.FileConn(f) // a dup
		f.Close()
		if ends[i] = conn; cerr != nil {
			err = cerr
		}
	}
	if err != nil {
		for _, c := range ends {
			if c != nil {
				c.Close()
			}
		}
		return nil, nil, err
	}
	return ends[0], ends[1], nil
}
