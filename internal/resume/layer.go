package resume

import (
	"time"

	"gateway/internal/layer"
)

// Layer is a session at a gateway as a layer on the client's socket. Its client's end is
// not the tunnel's: the socket goes and another one comes. So whoever moves its bytes asks
// the session itself how things stand, and the layer never calls its client finished.
type Layer struct {
	*Session
	// Now is what the session's clock says. Whoever calls sets it before.
	Now time.Duration
}

var _ layer.Transform = (*Layer)(nil)

// keptWhileBusy is how much an empty ring may hold on to, in bytes, while messages come and
// go: a client that says something acknowledges every 4 KiB.
const keptWhileBusy = 16 << 10

// NewLayer returns a session as a layer. Whoever has it calls Acknowledge or Look now and
// then, or it holds on to memory.
func NewLayer(s *Session) Layer {
	s.out.keep = keptWhileBusy
	return Layer{Session: s}
}

// Name is for layer.Transform.
func (*Layer) Name() string { return "resume" }

// In is Input for who passes on what comes: it takes frames, and puts the data that is in
// them together, in place. All that came before has to be taken. What breaks the
// protocol shows in Violated.
func (l *Layer) In(b []byte) (out []byte, _ layer.State) {
	s := l.Session
	start, end := 0, 0 // of what has been put together
	for rest := b; len(rest) > 0 && !s.over && !s.closing; {
		f, after, ok, err := s.frames.next(rest)
		if err == nil && ok && f.kind == kindData {
			var p []byte
			if p, err = s.fresh(f.body); err == nil && len(p) > 0 {
				s.taken += uint64(len(p))
				at := len(b) - len(after) - len(p)
				if end == 0 {
					start, end = at, at // data that is alone stays where it is
				}
				if end != at {
					copy(b[end:], p)
				}
				end += len(p)
			}
		} else if err == nil && ok {
			err = s.take(f)
		}
		if err != nil {
			s.CloseNow(Violation)
			break
		}
		rest = after
	}
	return b[start:end], layer.Open
}

// Out takes what the backend has sent, at most Room and MaxData, and makes a frame of it; or
// nothing, where something else has to go before it, or there is no socket: then Back has it.
func (l *Layer) Out(b []byte) []byte {
	s, n := l.Session, len(b)-layer.Headroom
	direct := s.attached && s.next == s.end
	s.Send(b[layer.Headroom:])
	if !direct {
		return nil
	}
	at := layer.Headroom - dataHead
	b[at], b[at+1] = byte(n>>8), byte(n)
	if s.mustACK(l.Now) {
		at -= ackSize
		appendACK(b[at:at], s.passed)
		s.reported, s.ackNow = s.passed, false
	}
	s.advance(uint64(n))
	return b[at:]
}

// Back is for layer.Transform: it appends about MaxData at most.
func (l *Layer) Back(b []byte) []byte { return l.Output(b, MaxData, l.Now) }

// Due is for layer.Transform. By time alone nothing is: see Acknowledge.
func (l *Layer) Due() bool { return l.Pending(0) }

// Finish is for layer.Transform. A backend that has finished may still fail: then it has
// not got all that its client has said.
func (l *Layer) Finish(failed bool) {
	switch {
	case failed:
		l.Close(BackendReset)
	case !l.Finished():
		l.Session.Finish()
	}
}

// Finished is for layer.Transform.
func (l *Layer) Finished() bool { return l.finished || l.closing }

// Leave is for layer.Transform.
func (l *Layer) Leave() {
	if !l.Over() && !l.closing {
		l.CloseNow(Drained)
	}
}

// Cut is for layer.Transform.
func (*Layer) Cut(bool) layer.State { return layer.Failed }

// HalfCloses is for layer.Transform: the session tells.
func (*Layer) HalfCloses() bool { return false }

// Look is for layer.Transform: the kernel finds out who is gone.
func (l *Layer) Look(bool, bool) bool {
	l.Trim()
	return true
}

// Flows tells whether a message of most bytes from either side can be passed on as it is:
// nothing has to go before it.
func (l *Layer) Flows(most int) bool {
	s := l.Session
	return s.attached && s.next == s.end && s.in.n == 0 && !s.ended && !s.finished && s.Room() >= most && !l.Due()
}

// Passed says that all that was taken has been passed on but the last held bytes, and
// tells whether the peer has not been told of all that was.
func (l *Layer) Passed(held int) (unreported bool) {
	s := l.Session
	if s.passed <= s.taken { // else FIN was passed on, and that was all
		to := s.taken - min(uint64(held), s.taken-s.passed)
		if to > s.passed && s.passed == s.reported {
			s.since = l.Now
		}
		s.passed = to
	}
	return s.passed > s.reported
}

// Acknowledge has the peer told what was passed on, and lets go of memory: it is time.
func (s *Session) Acknowledge() {
	s.ackNow = s.ackNow || s.passed > s.reported
	s.Trim()
}

// Seq returns the number of the last resume.
func (s *Session) Seq() uint64 { return s.seq }

// Violated tells whether the peer has not kept to the protocol.
func (s *Session) Violated() bool { return s.closing && s.reason == Violation }

// Said tells whether CLOSE has been sent.
func (s *Session) Said() bool { return s.closed }
