package resume

import (
	"encoding/binary"
	"errors"
)

// A session goes to another process as its fields, in the order of fields: numbers are
// varints, bytes stand behind their length. The clock of the other process is another
// one; what waits to be acknowledged is due at once there.

// errState says that bytes are not what Append has made.
var errState = errors.New("resume: this is no session")

// fields are the numbers of a session's state.
func (s *Session) fields() []*uint64 {
	return []*uint64{&s.acked, &s.next, &s.sent, &s.end, &s.received, &s.taken, &s.passed, &s.reported, &s.skip, &s.seq}
}

func (s *Session) flags() []*bool {
	return []*bool{&s.finished, &s.ended, &s.endedHere, &s.attached, &s.ackNow, &s.ping, &s.pong, &s.closing, &s.closed, &s.over}
}

// Append appends the state of a gateway's end, for another process.
func (s *Session) Append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(s.window))
	for _, n := range s.fields() {
		b = binary.AppendUvarint(b, *n)
	}
	flags := uint64(0)
	for i, p := range s.flags() {
		if *p {
			flags |= 1 << i
		}
	}
	b = binary.AppendUvarint(b, flags)
	b = append(b, byte(s.reason), byte(s.why))
	b = append(b, s.key[:]...)
	b = append(b, byte(s.frames.n), byte(s.frames.kind))
	b = append(b, s.frames.head[:]...)
	b = binary.AppendUvarint(b, uint64(s.frames.left))
	for _, r := range []*ring{&s.out, &s.in} {
		b = binary.AppendUvarint(b, uint64(r.n))
		at := len(b)
		b = append(b, make([]byte, r.n)...)
		r.copyTo(b[at:], 0)
	}
	return b
}

// RestoreSession makes what Append has told of, and keeps nothing of b.
func RestoreSession(b []byte) (*Session, error) {
	s, bad := new(Session), false
	number := func() uint64 {
		n, size := binary.Uvarint(b)
		if size <= 0 {
			bad, b = true, nil
			return 0
		}
		b = b[size:]
		return n
	}
	take := func(n uint64) []byte {
		if n > uint64(len(b)) {
			bad, n = true, 0
		}
		p := b[:n]
		b = b[n:]
		return p
	}
	window := number()
	for _, p := range s.fields() {
		*p = number()
	}
	flags := number()
	for i, p := range s.flags() {
		*p = flags>>i&1 != 0
	}
	if reasons := take(2); !bad {
		s.reason, s.why = Reason(reasons[0]), Reason(reasons[1])
	}
	copy(s.key[:], take(uint64(len(s.key))))
	if kind := take(2); !bad {
		s.frames.n, s.frames.kind = int(kind[0]), int(kind[1])
	}
	copy(s.frames.head[:], take(ackSize))
	left := number()
	s.out.add(take(number()))
	s.in.add(take(number()))
	if bad || len(b) > 0 || flags>>len(s.flags()) != 0 || window < MinWindow || window > MaxWindow || left > 1<<16 {
		return nil, errState
	}
	s.window, s.frames.left = int(window), int(left)
	s.since = -ackDelay
	if !s.holds() {
		return nil, errState
	}
	return s, nil
}

// holds tells whether what a session says of itself can be.
func (s *Session) holds() bool {
	fin := func(yes bool) uint64 {
		if yes {
			return 1
		}
		return 0
	}
	return s.frames.n < s.frames.size() && (s.frames.n == 0 || s.frames.left == 0) && s.end < 1<<63 && s.received < 1<<63 &&
		s.acked <= s.sent && s.sent <= s.lastSent() && s.next <= s.lastSent() &&
		uint64(s.out.n) == s.end-s.kept() && s.out.n <= s.window &&
		s.received >= fin(s.ended) && uint64(s.in.n) == s.received-fin(s.ended)-s.taken &&
		s.reported <= s.passed && s.passed <= s.taken+fin(s.ended) && s.received-s.reported <= uint64(s.window)+1 &&
		s.skip <= s.received
}
