package websocket

import (
	"encoding/binary"
	"errors"
	"math"
)

// errState says that bytes are no state of a Stream.
var errState = errors.New("not the state of a WebSocket")

// Append appends the state as Restore reads it: two bytes of what is true or false,
// numbers as varints, bytes behind their length. Whoever changes it counts up
// handover.Version.
func (s *Stream) Append(b []byte) []byte {
	b = append(b, bits(s.inFrame, s.inside, s.final, s.pongDue, s.pingDue, s.closing, s.closeDue, s.heard), s.opcode, s.silent)
	for _, n := range []uint64{uint64(s.left), uint64(s.key), uint64(s.message)} {
		b = binary.AppendUvarint(b, n)
	}
	for _, held := range [][]byte{s.head[:s.headLen], s.control, s.pong, s.words} {
		b = append(binary.AppendUvarint(b, uint64(len(held))), held...)
	}
	return b
}

func bits(flags ...bool) (b byte) {
	for i, set := range flags {
		if set {
			b |= 1 << i
		}
	}
	return b
}

// Restore returns the Stream of which b is the state. A message of the client may
// have most bytes from here on.
func Restore(b []byte, most int64) (*Stream, error) {
	s := New(most)
	if len(b) < 3 {
		return nil, errState
	}
	for i, p := range []*bool{&s.inFrame, &s.inside, &s.final, &s.pongDue, &s.pingDue, &s.closing, &s.closeDue, &s.heard} {
		*p = b[0]>>i&1 != 0
	}
	s.opcode, s.silent = b[1], b[2]
	b = b[3:]
	var numbers [3]uint64
	for i := range numbers {
		n, size := binary.Uvarint(b)
		if size <= 0 {
			return nil, errState
		}
		numbers[i], b = n, b[size:]
	}
	var held [4][]byte
	for i := range held {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) {
			return nil, errState
		}
		held[i], b = b[size:size+int(n)], b[size+int(n):]
	}
	if len(b) > 0 || numbers[0] > math.MaxInt64 || numbers[1] > math.MaxUint32 || numbers[2] > math.MaxInt64 ||
		len(held[0]) >= headMax || len(held[1]) > controlMax || len(held[2]) > controlMax || len(held[3]) > controlMax || s.opcode > opPong {
		return nil, errState
	}
	s.left, s.key, s.message = int64(numbers[0]), uint32(numbers[1]), int64(numbers[2])
	if s.inFrame != (s.left > 0) || s.inFrame && len(held[0]) > 0 {
		return nil, errState
	}
	s.headLen = uint8(copy(s.head[:], held[0]))
	if len(held[1]) > 0 {
		s.control = append(make([]byte, 0, controlMax), held[1]...)
	}
	if s.pongDue {
		s.pong = append([]byte(nil), held[2]...)
	}
	if s.closeDue {
		s.words = append([]byte(nil), held[3]...)
	}
	return s, nil
}
