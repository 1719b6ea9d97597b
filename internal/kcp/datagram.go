package kcp

import "encoding/binary"

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
	conv   uint32 // 0 for parity, which does not tell
	una    uint32 // the sender has all segments before this one
	cmd    byte   // of the first segment
	sn     uint32 // of the first segment
	next   uint32 // follows the last sn of data, if there is any
	data   bool
	parity bool
}

// opens tells whether the datagram may begin a session: it holds the first
// data of a client that has heard nothing yet.
func (s *summary) opens() bool {
	return s.cmd == cmdPush && s.sn == 0 && s.una == 0 && s.conv != 0
}

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
		group := uint32(l.dataShards + l.parityShards)
		parity := binary.LittleEndian.Uint32(d)%group >= uint32(l.dataShards)
		if parity != (flag == flagParity) {
			return s, false
		}
		if parity {
			return summary{parity: true}, true
		}
		if int(binary.LittleEndian.Uint16(d[6:])) != len(d)-6 {
			return s, false
		}
		d = d[fecHeader:]
	}
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
		if cmd == cmdPush && (!s.data || after(sn+1, s.next)) {
			s.data, s.next = true, sn+1
		}
		d = d[segmentHeader+int(length):]
	}
	return s, true
}

// control returns a segment without data.
func control(conv uint32, cmd byte, window int) []byte {
	d := make([]byte, segmentHeader)
	binary.LittleEndian.PutUint32(d, conv)
	d[4] = cmd
	binary.LittleEndian.PutUint16(d[6:], uint16(window))
	return d
}
