// Package resume is the session of a resumable tunnel: what both of its ends keep in
// order to go on by another connection, without a byte lost or doubled. It is pure:
// bytes, offsets and times come in, bytes and decisions go out. It knows of no socket
// and no clock; who uses it locks.
//
// Both directions are streams of bytes with offsets from 0, in which the end counts as
// one more byte. A Session is one end; the gateway's and the client's differ only in
// how they resume. docs/roaming.md describes the protocol.
package resume

import (
	"errors"
	"time"
)

// ErrViolation is what Input returns for what is not the protocol.
var ErrViolation = errors.New("resume: the peer does not keep to the protocol")

// The ways in which a resume is refused.
var (
	// ErrForged is a request that was not made by who holds the key.
	ErrForged = errors.New("forged")
	// ErrUsed is a request that is not newer than the last one.
	ErrUsed = errors.New("used")
	// ErrOffsets is a request for bytes that are not here any more, or never were.
	ErrOffsets = errors.New("offsets")
)

// When what was passed on is acknowledged.
const (
	ackWithData = 4 << 10     // bytes, in front of data
	ackAlone    = 32 << 10    // bytes
	ackDelay    = time.Second // after which it is in any case
)

// MinWindow is the least window, in bytes.
const MinWindow = 64 << 10

// Session is one end of a resumable tunnel. Times are those of any clock that only
// goes forward, and mean the present.
type Session struct {
	window int  // bytes that may be unacknowledged
	greets bool // the peer's HELLO is to come: this is the client's end

	// What this end sends. out holds the bytes from kept() on.
	out      ring
	acked    uint64 // the peer has passed on all before
	next     uint64 // of the next byte to be written to this connection
	sent     uint64 // all before has been written to one
	end      uint64 // of what was taken from the source, without FIN
	finished bool   // the source has ended: FIN is the byte at end

	// What it receives. in holds the bytes that were not taken yet.
	in        ring
	received  uint64 // including FIN
	taken     uint64 // out of in
	passed    uint64 // all before has been passed on; at most taken, and FIN
	reported  uint64 // all before has been acknowledged
	since     time.Duration
	skip      uint64 // bytes that come again on this connection
	ended     bool   // FIN was received
	endedHere bool   // on this connection

	frames decoder
	hello  []byte // the client's end: what has come of it

	attached bool
	ackNow   bool
	ping     bool
	pong     bool
	closing  bool // CLOSE is to be sent, behind all data
	reason   Reason
	closed   bool // CLOSE has been sent
	over     bool // CLOSE has been received
	why      Reason

	key [32]byte // K
	seq uint64   // of the last resume
}

// NewSession returns the gateway's end of a session that begins, attached. window is
// how many bytes may be unacknowledged in each direction, at least MinWindow.
func NewSession(window int, key [32]byte) *Session {
	return &Session{window: window, key: key, attached: true}
}

// NewClient returns the client's end of a session that begins, attached. It learns the
// window from the gateway's HELLO; until then Room is 0.
func NewClient() *Session { return &Session{greets: true, attached: true} }

// SetKey tells the client's end the key, once Hello has been read.
func (s *Session) SetKey(key [32]byte) { s.key = key }

// kept returns the offset of the first byte that is kept: it was not acknowledged, or
// still has to be written to this connection, because the peer counts from there.
func (s *Session) kept() uint64 { return min(s.acked, s.next, s.end) }

// Room returns how many bytes of the source may be taken now.
func (s *Session) Room() int {
	if s.finished || s.closing || s.over {
		return 0
	}
	return max(0, s.window-int(s.end-s.kept()))
}

// Send takes bytes of the source, at most Room.
func (s *Session) Send(p []byte) {
	s.out.add(p)
	s.end += uint64(len(p))
}

// Finish says that the source has ended.
func (s *Session) Finish() { s.finished = true }

// Finished tells whether Finish was called.
func (s *Session) Finished() bool { return s.finished }

// Close sends CLOSE behind what was taken of the source. From there on Over holds.
func (s *Session) Close(why Reason) {
	if !s.closing {
		s.closing, s.reason = true, why
	}
}

// CloseNow is Close without what was not sent.
func (s *Session) CloseNow(why Reason) {
	if !s.closing || !s.closed {
		s.closing, s.reason = true, why
		s.dropUnsent()
	}
}

func (s *Session) dropUnsent() {
	s.out.drop(s.out.n)
	s.end = s.kept()
	s.next, s.sent, s.acked = s.end, s.end, s.end
	s.finished = false
}

// Ping asks the peer whether it is there.
func (s *Session) Ping() { s.ping = true }

// lastSent is the offset behind all that there is to send.
func (s *Session) lastSent() uint64 {
	if s.finished {
		return s.end + 1
	}
	return s.end
}

// Pending tells whether Output has something to write.
func (s *Session) Pending(now time.Duration) bool {
	switch {
	case !s.attached || s.closed || s.over:
		return false
	case s.ackNow || s.ping || s.pong || s.closing || s.next < s.lastSent():
		return true
	}
	unreported := s.passed - s.reported
	return unreported >= ackAlone || unreported > 0 && now-s.since >= ackDelay
}

// Due returns when Pending will hold by time alone, and whether it will.
func (s *Session) Due() (at time.Duration, ok bool) {
	return s.since + ackDelay, s.attached && s.passed > s.reported && !s.Over()
}

// Output appends the frames that are to be written to the connection now, at most
// about limit bytes of them, and takes them for written.
func (s *Session) Output(b []byte, limit int, now time.Duration) []byte {
	if !s.attached || s.closed || s.over {
		return b
	}
	limit += len(b)
	if s.pong {
		b, s.pong = append(b, 0, 0, typePONG), false
	}
	if s.mustACK(now) {
		b = appendACK(b, s.passed)
		s.reported, s.ackNow = s.passed, false
	}
	if s.ping {
		b, s.ping = append(b, 0, 0, typePING), false
	}
	for s.next < s.end && len(b) < limit {
		n := min(int(s.end-s.next), MaxData, max(1, limit-len(b)-dataHead))
		b = append(b, byte(n>>8), byte(n))
		at := len(b)
		b = append(b, make([]byte, n)...)
		s.out.copyTo(b[at:], int(s.next-s.kept()))
		s.advance(uint64(n))
	}
	if s.next < s.end {
		return b
	}
	if s.finished && s.next == s.end {
		b = append(b, 0, 0, typeFIN)
		s.next++
		s.sent = max(s.sent, s.next)
	}
	if s.closing {
		b = append(b, 0, 0, typeCLOSE, byte(s.reason))
		s.closed = true
	}
	return b
}

func (s *Session) mustACK(now time.Duration) bool {
	unreported := s.passed - s.reported
	switch {
	case s.ackNow, unreported >= ackAlone:
		return true
	case unreported == 0:
		return false
	case now-s.since >= ackDelay:
		return true
	}
	return unreported >= ackWithData && s.next < s.end
}

// advance says that n more bytes are written.
func (s *Session) advance(n uint64) {
	before := s.kept()
	s.next += n
	s.sent = max(s.sent, s.next)
	s.out.drop(int(s.kept() - before))
}

// Input takes what was read from the connection. After ErrViolation, CLOSE is to be
// sent, and nothing more is taken.
func (s *Session) Input(b []byte) error {
	for len(b) > 0 && !s.over && !s.closing {
		f, rest, ok, err := s.frames.next(b)
		if err == nil && ok {
			err = s.take(f)
		}
		if err != nil {
			s.CloseNow(Violation)
			return err
		}
		b = rest
	}
	return nil
}

func (s *Session) take(f frame) error {
	if s.greets && f.kind != typeHELLO {
		return ErrViolation
	}
	switch f.kind {
	case kindData:
		return s.takeData(f.body)
	case typeACK:
		return s.takeACK(f.ack)
	case typeFIN:
		return s.takeFIN()
	case typeCLOSE:
		s.over, s.why = true, f.reason
	case typePING:
		s.pong = true
	case typeHELLO:
		return s.takeHello(f)
	}
	return nil
}

func (s *Session) takeData(p []byte) error {
	p, err := s.fresh(p)
	if err == nil {
		s.in.add(p)
	}
	return err
}

// fresh counts data, and returns what of it has not come before.
func (s *Session) fresh(p []byte) ([]byte, error) {
	if s.endedHere {
		return nil, ErrViolation
	}
	again := min(s.skip, uint64(len(p)))
	s.skip -= again
	if s.ended && s.skip == 0 {
		return nil, ErrViolation // where FIN stood, there is data
	}
	p = p[again:]
	if s.received-s.reported+uint64(len(p)) > uint64(s.window) {
		return nil, ErrViolation
	}
	s.received += uint64(len(p))
	return p, nil
}

func (s *Session) takeACK(low uint32) error {
	passed := s.acked + uint64(low-uint32(s.acked))
	if passed > s.sent {
		return ErrViolation
	}
	before := s.kept()
	s.acked = passed
	s.out.drop(int(s.kept() - before))
	return nil
}

func (s *Session) takeFIN() error {
	switch {
	case s.endedHere:
		return ErrViolation
	case s.ended && s.skip == 1:
		s.skip = 0
	case s.ended || s.skip > 0:
		return ErrViolation
	default:
		s.ended = true
		s.received++
	}
	s.endedHere = true
	return nil
}

// Buffered returns how many received bytes were not taken.
func (s *Session) Buffered() int { return s.in.n }

// Take moves received bytes into p and returns how many.
func (s *Session) Take(p []byte) int {
	n := min(len(p), s.in.n)
	s.in.copyTo(p[:n], 0)
	s.in.drop(n)
	s.taken += uint64(n)
	return n
}

// AtEnd tells whether the peer's end has been reached: nothing is to be taken before
// its FIN.
func (s *Session) AtEnd() bool { return s.ended && s.in.n == 0 }

// Pass says that all that was taken has been passed on; and, if that is so, the FIN
// behind it.
func (s *Session) Pass(fin bool, now time.Duration) {
	to := s.taken
	if fin && s.AtEnd() {
		if to++; to > s.passed {
			s.ackNow = true
		}
	}
	if to > s.passed {
		if s.passed == s.reported {
			s.since = now
		}
		s.passed = to
	}
}

// Over tells whether the session needs its connection no more: CLOSE was sent or
// received, or both directions have ended and both ends know.
func (s *Session) Over() bool { return s.over || s.closed || s.Complete() }

// Complete tells whether both directions have ended and both ends know.
func (s *Session) Complete() bool {
	return s.finished && s.acked == s.end+1 && s.ended && s.passed == s.received && s.reported == s.passed
}

// Closed returns the reason of the peer's CLOSE, if there was one.
func (s *Session) Closed() (why Reason, ok bool) { return s.why, s.over }

// Closing tells whether this end has ended the session by CLOSE.
func (s *Session) Closing() bool { return s.closing }

// Received returns how many bytes the peer has sent, its FIN included.
func (s *Session) Received() uint64 { return s.received }

// Progress grows with each byte that is acknowledged or received.
func (s *Session) Progress() uint64 { return s.acked + s.received }

// Unacked returns how many bytes the peer has not acknowledged.
func (s *Session) Unacked() int { return int(s.lastSent() - s.acked) }

// Memory returns how many bytes the session holds on to, beyond its own size.
func (s *Session) Memory() int { return len(s.out.buf) + len(s.in.buf) + cap(s.hello) }

// Trim lets go of memory that is not used for now.
func (s *Session) Trim() {
	s.out.trim()
	s.in.trim()
}

// Release lets go of all that the session holds. Nothing more is delivered.
func (s *Session) Release() {
	s.in.drop(s.in.n)
	s.dropUnsent()
	s.Trim()
}

// Attached tells whether the session has a connection.
func (s *Session) Attached() bool { return s.attached }

// Detach says that the connection is gone.
func (s *Session) Detach() {
	s.attached, s.ping, s.pong = false, false, false
	s.rewind(s.acked)
}

// rewind has the next connection begin with the byte at next.
func (s *Session) rewind(next uint64) {
	before := s.kept()
	s.next = next
	s.out.drop(int(s.kept() - before))
}

// attach begins with a new connection. The first frame acknowledges: the ACK that was
// sent last may have been lost.
func (s *Session) attach(next, skip uint64) {
	s.frames = decoder{}
	s.attached, s.ping, s.pong, s.endedHere = true, false, false, false
	s.skip, s.ackNow = skip, true
	s.rewind(next)
}

// Knows tells whether a request is from who holds the session's key. Unlike all else, it
// may be called by anybody at any time.
func (s *Session) Knows(r *Request) bool { return r.Authentic(s.key) }

// Resume is the gateway's part of a resume: it checks the request and takes the
// session over to the connection that brought it, or leaves all as it was. The
// connection that the session had must not be read or written any more.
func (s *Session) Resume(r *Request) error {
	switch {
	case !r.Authentic(s.key):
		return ErrForged
	case r.Seq <= s.seq:
		return ErrUsed
	case r.From > s.received, r.Recv < s.acked, r.Recv > s.sent, s.closing, s.over:
		return ErrOffsets
	}
	s.seq = r.Seq
	s.attach(r.Recv, s.received-r.From)
	return nil
}

// Reattach is the client's part: it returns the line to send to a gateway, what is
// read from there comes behind the answer. The connection that the session had must
// not be read or written any more.
func (s *Session) Reattach(ticket string) (line []byte) {
	s.seq++
	r := Request{Ticket: ticket, Seq: s.seq, From: s.acked, Recv: s.received}
	s.attach(s.acked, 0)
	return r.AppendSigned(nil, s.key)
}
