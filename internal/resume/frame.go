package resume

import "encoding/binary"

// A frame is a length of two bytes, big-endian, and so many bytes of data; or a
// length of zero, a type, and what belongs to the type.
const (
	typeACK   = 1 // u32: the low bits of how many bytes were passed on
	typeFIN   = 2 // the end of a direction; counts as one byte
	typeCLOSE = 3 // u8: a Reason
	typePING  = 4
	typePONG  = 5
	typeHELLO = 6 // u16 length: a Hello

	// Types from here on have a length of two bytes, and are skipped by who does
	// not know them.
	typeUnknown = 128
)

// MaxData is the most data in a frame that is sent, in bytes. Any length is taken.
const MaxData = 16384

const (
	dataHead  = 2
	ackSize   = 7
	closeSize = 4
	bareSize  = 3 // of FIN, PING and PONG
)

// Reason is why a session is over.
type Reason uint8

const (
	ByApplication Reason = iota // its end wanted no more
	BackendReset                // the backend broke the connection; what it sent came first
	HoldOver                    // the client did not come back in time
	Drained                     // the gateway ends
	Violation                   // what was sent is not this protocol
)

func (r Reason) String() string {
	if int(r) < len(reasons) {
		return reasons[r]
	}
	return "unknown"
}

var reasons = [...]string{"application", "backend_reset", "hold", "drain", "violation"}

func appendACK(b []byte, passed uint64) []byte {
	return binary.BigEndian.AppendUint32(append(b, 0, 0, typeACK), uint32(passed))
}

// decoder cuts a stream into frames, however it is cut into reads. The zero value
// stands before the first frame.
type decoder struct {
	head [ackSize]byte // of the frame at hand
	n    int           // bytes of head that are there
	kind int           // of the frame whose body left counts
	left int           // bytes that it still has
}

// kindData is the kind of a frame of data.
const kindData = 0

// frame is what next finds.
type frame struct {
	kind   int
	body   []byte // of data or HELLO, perhaps not all of it; aliases the input
	last   bool   // it is the last of the body
	ack    uint32
	reason Reason
}

// next takes the next frame, or the next piece of a body, off b, and returns the
// rest. Without ok, b was not enough for one and is used up.
func (d *decoder) next(b []byte) (f frame, rest []byte, ok bool, err error) {
	for len(b) > 0 {
		if d.left > 0 {
			n := min(len(b), d.left)
			d.left -= n
			if d.kind < typeUnknown {
				return frame{kind: d.kind, body: b[:n], last: d.left == 0}, b[n:], true, nil
			}
			b = b[n:]
			continue
		}
		n := copy(d.head[d.n:d.size()], b)
		d.n += n
		b = b[n:]
		if d.n < d.size() {
			continue
		}
		if f, ok, err = d.headed(); ok || err != nil {
			return f, b, ok, err
		}
	}
	return frame{}, nil, false, nil
}

// size returns how long the head is at least, by what there is of it.
func (d *decoder) size() int {
	switch {
	case d.n < dataHead, d.head[0] != 0 || d.head[1] != 0:
		return dataHead
	case d.n < bareSize:
		return bareSize
	}
	switch kind := d.head[2]; {
	case kind == typeACK:
		return ackSize
	case kind == typeCLOSE:
		return closeSize
	case kind == typeHELLO, kind >= typeUnknown:
		return bareSize + 2
	}
	return bareSize
}

// headed deals with a complete head. Without ok, a body follows, or nothing that
// matters.
func (d *decoder) headed() (f frame, ok bool, err error) {
	d.n = 0
	if n := int(binary.BigEndian.Uint16(d.head[:])); n > 0 {
		d.kind, d.left = kindData, n
		return frame{}, false, nil
	}
	switch kind := int(d.head[2]); {
	case kind == typeACK:
		return frame{kind: kind, ack: binary.BigEndian.Uint32(d.head[3:])}, true, nil
	case kind == typeCLOSE:
		return frame{kind: kind, reason: Reason(d.head[3])}, true, nil
	case kind == typeHELLO, kind >= typeUnknown:
		d.kind, d.left = kind, int(binary.BigEndian.Uint16(d.head[3:]))
		if kind == typeHELLO && d.left == 0 {
			return frame{}, false, ErrViolation
		}
		return frame{}, false, nil
	case kind == typeFIN, kind == typePING, kind == typePONG:
		return frame{kind: kind}, true, nil
	}
	return frame{}, false, ErrViolation
}
