// Package websocket has the server's side of the frames of RFC 6455 as a pure state
// machine: a WebSocket whose messages are a stream of bytes. It knows nothing of
// sockets, clocks or the handshake, which is the library's (coder/websocket). It does
// by itself what a library for messages would do dearer: it parses headers and
// unmasks in place, wherever a read ends, and holds nothing but a few words between
// two reads.
package websocket

import (
	"encoding/binary"
	"unicode/utf8"

	"gateway/internal/layer"
)

// Opcodes of section 5.2. The first bit of those of control frames is set.
const (
	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10
)

// Close codes of section 7.4.1.
const (
	closeNormal    = 1000
	closeAway      = 1001
	closeProtocol  = 1002
	closeReserved  = 1004
	closeNoStatus  = 1005 // stands for a Close frame without a code
	closeAbnormal  = 1006
	closeInvalid   = 1007
	closeTooBig    = 1009
	closeInternal  = 1011
	closeGateway   = 1014
	closeHandshake = 1015
)

const (
	final = 0x80
	rsv   = 0x70
	mask  = 0x80

	// headMax is the size of the longest header of a client's frame.
	headMax = 14
	// controlMax bounds a control frame's payload (section 5.5).
	controlMax = 125
)

// silentLooks is after how many looks a client is given up that was pinged at the
// first.
const silentLooks = 3

// Stream is a WebSocket of a client. Messages of text and binary ones are the same to
// it, and where one ends does not matter; each piece of the backend's is a binary
// message. It is a layer.Transform. It is not safe for concurrent use.
type Stream struct {
	most int64 // bytes that a message may have

	// The frame at hand. Its header is whole if inFrame is true; else headLen bytes of
	// it are in head.
	head     [headMax]byte
	headLen  uint8
	inFrame  bool
	inside   bool // of a message: fragments are to come
	opcode   byte
	final    bool
	left     int64  // of its payload
	key      uint32 // for the next byte; little-endian
	message  int64  // bytes of the message so far, this frame's included
	control  []byte // the payload of a control frame, as far as it has come
	pong     []byte // payload of a ping to be answered; of several the last
	pongDue  bool
	pingDue  bool
	words    []byte // payload of a Close frame to be sent
	closeDue bool

	closing bool // a Close frame was sent, or is due: nothing follows it
	heard   bool // something has come since the last look
	silent  uint8
}

var _ layer.Transform = (*Stream)(nil)

// New returns the state behind a handshake. A message of the client may have most
// bytes.
func New(most int64) *Stream { return &Stream{most: most} }

// Name is for layer.Transform.
func (*Stream) Name() string { return "websocket" }

// In takes frames, unmasks what is in them and puts it together at the front of b.
func (s *Stream) In(b []byte) (out []byte, state layer.State) {
	s.heard = true
	start, end := 0, 0 // of what has been put together
	for at := 0; at < len(b); {
		if !s.inFrame {
			n, ok, state := s.header(b[at:])
			at += n
			if state != layer.Open {
				return b[start:end], state
			}
			if !ok {
				break
			}
			if s.opcode&8 == 0 && end == 0 {
				start, end = at, at // a payload that is alone stays where it is
			}
		}
		n := int(min(s.left, int64(len(b)-at)))
		payload := b[at : at+n]
		at += n
		s.left -= int64(n)
		s.key = unmask(payload, s.key)
		if s.opcode&8 != 0 {
			if state := s.controlFrame(payload); state != layer.Open {
				return b[start:end], state
			}
			continue
		}
		if end+n != at {
			copy(b[end:], payload)
		}
		end += n
		if s.left == 0 {
			s.inFrame, s.inside = false, !s.final
		}
	}
	return b[start:end], layer.Open
}

// header goes on with a header, of which the first n bytes of b are part, and tells
// whether it is whole.
func (s *Stream) header(b []byte) (n int, ok bool, state layer.State) {
	h := b
	if s.headLen > 0 || len(b) < headMax {
		n = copy(s.head[s.headLen:], b)
		h = s.head[:int(s.headLen)+n]
	}
	size := 2
	if len(h) >= 2 {
		switch h[1] & 127 {
		case 126:
			size = 4
		case 127:
			size = 10
		}
		size += 4
	}
	// What is wrong is said as soon as it can be told.
	if len(h) >= 2 {
		if code := s.wrong(h[0], h[1]); code != 0 {
			return n, false, s.fail(code)
		}
	}
	if len(h) < 2 || len(h) < size {
		s.headLen = uint8(len(h))
		return n, false, layer.Open
	}
	n = size - int(s.headLen)
	s.headLen = 0
	opcode, length := h[0]&15, int64(h[1]&127)
	switch length {
	case 126:
		length = int64(binary.BigEndian.Uint16(h[2:]))
	case 127:
		length = int64(binary.BigEndian.Uint64(h[2:]))
	}
	if length < 0 {
		return n, false, s.fail(closeProtocol) // section 5.2: the first bit is 0
	}
	if opcode&8 == 0 {
		if opcode != opContinuation {
			s.message = 0
		}
		if length > s.most-s.message {
			return n, false, s.fail(closeTooBig)
		}
		s.message += length
		s.final = h[0]&final != 0
	}
	s.opcode, s.left, s.inFrame = opcode, length, true
	s.key = binary.LittleEndian.Uint32(h[size-4:])
	if length == 0 {
		if opcode&8 == 0 {
			s.inFrame, s.inside = false, !s.final
			return n, true, layer.Open
		}
		return n, true, s.controlFrame(nil)
	}
	return n, true, layer.Open
}

// wrong returns the code for a header that breaks the rules, by its first two bytes; 0
// if it does not.
func (s *Stream) wrong(first, second byte) uint16 {
	opcode := first & 15
	switch {
	case first&rsv != 0: // no extension was agreed on
	case second&mask == 0: // section 5.1
	case opcode > opPong, opcode > opBinary && opcode < opClose:
	case opcode >= opClose && (first&final == 0 || second&127 > controlMax): // section 5.5
	case opcode == opContinuation && !s.inside, (opcode == opText || opcode == opBinary) && s.inside: // section 5.4
	default:
		return 0
	}
	return closeProtocol
}

// fail has the client told why it is given up.
func (s *Stream) fail(code uint16) layer.State {
	s.inFrame = false
	s.close(code)
	return layer.Wrong
}

// close has a Close frame sent, unless one was.
func (s *Stream) close(code uint16) { s.closeBy(binary.BigEndian.AppendUint16(nil, code)) }

func (s *Stream) closeBy(payload []byte) {
	if !s.closing {
		s.closing, s.closeDue, s.words = true, true, payload
	}
}

// controlFrame goes on with the payload of a control frame.
func (s *Stream) controlFrame(payload []byte) layer.State {
	if s.left > 0 {
		if s.control == nil {
			s.control = make([]byte, 0, controlMax)
		}
		s.control = append(s.control, payload...)
		return layer.Open
	}
	if s.control != nil {
		payload = append(s.control, payload...)
		s.control = nil
	}
	s.inFrame = false
	switch s.opcode {
	case opPing:
		if !s.closing {
			s.pong, s.pongDue = append(s.pong[:0], payload...), true
		}
	case opClose:
		return s.closeFrame(payload)
	}
	return layer.Open
}

// closeFrame deals with the client's.
func (s *Stream) closeFrame(payload []byte) layer.State {
	code := uint16(closeNoStatus)
	switch {
	case len(payload) == 0:
	case len(payload) == 1 || !mayClose(binary.BigEndian.Uint16(payload)):
		return s.fail(closeProtocol)
	case !utf8.Valid(payload[2:]): // section 5.5.1
		return s.fail(closeInvalid)
	default:
		code = binary.BigEndian.Uint16(payload)
	}
	s.closeBy(append([]byte(nil), payload...)) // section 5.5.1: by its own code
	switch {
	case code == closeNormal, code == closeAway, code == closeNoStatus, code >= 3000: // the application's own
		return layer.Finished
	}
	return layer.Failed
}

// mayClose tells whether a code may stand in a Close frame (section 7.4).
func mayClose(code uint16) bool {
	switch code {
	case closeReserved, closeNoStatus, closeAbnormal, closeHandshake:
		return false
	}
	return code >= closeNormal && code <= closeGateway || code >= 3000 && code <= 4999
}

// Out makes a binary message of what the backend has sent.
func (s *Stream) Out(b []byte) []byte {
	n := len(b) - layer.Headroom
	if n <= controlMax {
		b = b[layer.Headroom-2:]
		b[1] = byte(n)
	} else {
		b = b[layer.Headroom-4:]
		b[1] = 126
		binary.BigEndian.PutUint16(b[2:], uint16(n))
	}
	b[0] = final | opBinary
	return b
}

// OutMax is how many bytes Out takes at most.
const OutMax = 1<<16 - 1

// Due is for layer.Transform.
func (s *Stream) Due() bool { return s.pongDue || s.pingDue || s.closeDue }

// Back is for layer.Transform.
func (s *Stream) Back(b []byte) []byte {
	if s.pongDue {
		b = append(b, final|opPong, byte(len(s.pong)))
		b = append(b, s.pong...)
	}
	if s.pingDue {
		b = append(b, final|opPing, 0)
	}
	if s.closeDue {
		b = append(b, final|opClose, byte(len(s.words)))
		b = append(b, s.words...)
	}
	s.pongDue, s.pong, s.pingDue, s.closeDue, s.words = false, nil, false, false, nil
	return b
}

// Finish has the client told that the backend has finished, or failed.
func (s *Stream) Finish(failed bool) {
	if failed {
		s.close(closeInternal)
	} else {
		s.close(closeNormal)
	}
}

// Finished tells whether a Close frame was sent or is due.
func (s *Stream) Finished() bool { return s.closing }

// HalfCloses is for layer.Transform: a Close frame ends both directions (section 5.5.1).
func (*Stream) HalfCloses() bool { return false }

// Leave has the client told that the gateway leaves.
func (s *Stream) Leave() { s.close(closeAway) }

// Cut is for layer.Transform: a client that was told that nothing more comes needs no
// Close frame.
func (s *Stream) Cut(bool) layer.State {
	if s.closing {
		return layer.Finished
	}
	return layer.Failed
}

// Look has a client pinged that was silent since the last look, unless something is
// being written to it, of which TCP finds out. A silence counts only while somebody
// waits: while nobody reads, nobody reads pongs either.
func (s *Stream) Look(waits, writes bool) (alive bool) {
	if s.heard || !waits || s.silent == 0 && (writes || s.closing) {
		s.heard, s.silent = false, 0
		return true
	}
	s.silent++
	s.pingDue = s.pingDue || s.silent == 1
	return s.silent < silentLooks
}

// unmask applies a key to b (section 5.3) and returns the key for what follows.
func unmask(b []byte, key uint32) uint32 {
	wide := uint64(key)<<32 | uint64(key)
	for len(b) >= 32 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^wide)
		binary.LittleEndian.PutUint64(b[8:], binary.LittleEndian.Uint64(b[8:])^wide)
		binary.LittleEndian.PutUint64(b[16:], binary.LittleEndian.Uint64(b[16:])^wide)
		binary.LittleEndian.PutUint64(b[24:], binary.LittleEndian.Uint64(b[24:])^wide)
		b = b[32:]
	}
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^wide)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= byte(key)
		key = key>>8 | key<<24
	}
	return key
}
