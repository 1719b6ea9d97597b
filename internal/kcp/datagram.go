package kcp

import (
	"encoding/binary"
	"iter"
)

// A datagram without its frame is one or more segments of KCP, or with error
// correction a header of kcp-go's and then segments or parity. All numbers are
// little-endian.
//
//	segment: conv 4, cmd 1, frg 1, wnd 2, ts 4, sn 4, una 4, len 4, len bytes
//	header:  seqid 4, flag 2, size 2 (of what follows, and itself)
const (
	segmentHeader = 24
	fecHeader     = 8

	cmdPush = 81 // data
	cmdAck  = 82
	cmdAsk  = 83 // what is your window?
	cmdTell = 84 // my window

	flagData   = 0xf1
	flagParity = 0xf2
)

// summary is what a datagram says.
type summary struct {
	conv     uint32 // any number; parity does not tell
	una      uint32 // the sender has all segments before this one
	cmd      byte   // of the first segment
	sn       uint32 // of the first segment
	next     uint32 // follows the last sn of data, if there is any
	data     bool
	acks     bool // it holds an acknowledgement
	parity   bool
	group    uint32 // of error correction, from 1
	segments []byte // the segments themselves, within the datagram
}

// opens tells whether the datagram may begin a session: it holds the first
// data of a client that has heard nothing yet.
func (s *summary) opens() bool {
	return s.cmd == cmdPush && s.sn == 0 && s.una == 0
}

// all yields the segments one by one, each with its header.
func (s *summary) all() iter.Seq[segment] {
	return func(yield func(segment) bool) {
		for d := s.segments; len(d) > 0; {
			n := segmentHeader + int(binary.LittleEndian.Uint32(d[20:]))
			if !yield(segment(d[:n])) {
				return
			}
			d = d[n:]
		}
	}
}

// segment is one of KCP's, whole.
type segment []byte

func (s segment) cmd() byte       { return s[4] }
func (s segment) ts() uint32      { return binary.LittleEndian.Uint32(s[8:]) }
func (s segment) sn() uint32      { return binary.LittleEndian.Uint32(s[12:]) }
func (s segment) setTS(ts uint32) { binary.LittleEndian.PutUint32(s[8:], ts) }
func (s segment) setSN(sn uint32) { binary.LittleEndian.PutUint32(s[12:], sn) }

// after tells whether sequence number a comes after b; they wrap.
func after(a, b uint32) bool { return int32(a-b) > 0 }

// layout says which datagrams are well-formed.
type layout struct{ dataShards, parityShards int }

// read summarises a datagram. It accepts only what kcp-go's sender makes, so
// that nothing else reaches kcp-go: no lengths beyond the end (on 32 bits they
// crash it), and no groups of another size, to which kcp-go would adapt with
// memory of their sender's choice.
func (l layout) read(d []byte) (s summary, ok bool) {
	if len(d) < segmentHeader {
		return s, false
	}
	if flag := binary.LittleEndian.Uint16(d[4:]); flag == flagData || flag == flagParity {
		if l.dataShards == 0 {
			return s, false
		}
		seqid, group := binary.LittleEndian.Uint32(d), uint32(l.dataShards+l.parityShards)
		parity := seqid%group >= uint32(l.dataShards)
		if parity != (flag == flagParity) {
			return s, false
		}
		s.group = seqid/group + 1
		if parity {
			s.parity = true
			return s, true
		}
		if int(binary.LittleEndian.Uint16(d[6:])) != len(d)-6 {
			return s, false
		}
		d = d[fecHeader:]
	}
	s.segments = d
	for first := true; first || len(d) > 0; first = false {
		if len(d) < segmentHeader {
			return s, false
		}
		conv, cmd := binary.LittleEndian.Uint32(d), d[4]
		sn, una := binary.LittleEndian.Uint32(d[12:]), binary.LittleEndian.Uint32(d[16:])
		length := uint64(binary.LittleEndian.Uint32(d[20:]))
		if cmd < cmdPush || cmd > cmdTell || length > uint64(len(d)-segmentHeader) {
			return s, false
		}
		if first {
			s.conv, s.cmd, s.sn, s.una = conv, cmd, sn, una
		}
		if conv != s.conv {
			return s, false
		}
		if after(una, s.una) {
			s.una = una
		}
		s.acks = s.acks || cmd == cmdAck || una != 0
		if cmd == cmdPush && (!s.data || after(sn+1, s.next)) {
			s.data, s.next = true, sn+1
		}
		d = d[segmentHeader+int(length):]
	}
	return s, true
}

// control returns a segment without data.
func control(conv uint32, cmd byte, window int) segment {
	d := make(segment, segmentHeader)
	binary.LittleEndian.PutUint32(d, conv)
	d[4] = cmd
	binary.LittleEndian.PutUint16(d[6:], uint16(window))
	return d
}
