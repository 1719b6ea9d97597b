package harness

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// Frames is what a client's WebSocket has between its bytes and its socket, for a test
// that drives that itself. It cuts what it says into frames by chance, with pings among
// them, and does not go on where a frame is wrong that it hears.
type Frames struct {
	Out    []byte // to be sent
	Closes bool   // a Close frame is in Out, or was
	Closed bool   // one has come

	rnd  *rand.Rand
	in   []byte // of a frame that is not whole
	ping int    // pings that are not answered
}

// NewFrames returns the state behind a handshake.
func NewFrames(rnd *rand.Rand) *Frames { return &Frames{rnd: rnd} }

// Say queues a message.
func (f *Frames) Say(b []byte) {
	for first := byte(BinaryFrame &^ 0x80); ; first = 0 {
		n := len(b)
		if f.rnd.IntN(3) == 0 {
			n = f.rnd.IntN(n + 1)
		}
		if n == len(b) {
			first |= 0x80
		}
		f.Out = append(f.Out, Masked(first, string(b[:n]))...)
		if f.rnd.IntN(8) == 0 { // RFC 6455 section 5.4: also within a message
			f.Out = append(f.Out, Masked(0x89, "ping")...)
			f.ping++
		}
		if b = b[n:]; first&0x80 != 0 {
			return
		}
	}
}

// Close queues a Close frame, unless one was. Nothing is to be said behind it.
func (f *Frames) Close() {
	if !f.Closes {
		f.Closes = true
		f.Out = append(f.Out, Masked(CloseFrame, "\x03\xe8")...)
	}
}

// Hear takes what came from the socket, and returns what that says.
func (f *Frames) Hear(b []byte) (said []byte, err error) {
	f.in = append(f.in, b...)
	for len(f.in) >= 2 {
		head, size := 2, int(f.in[1])
		if size == 126 {
			if head = 4; len(f.in) < head {
				break
			}
			size = int(binary.BigEndian.Uint16(f.in[2:]))
		} else if size > 126 {
			return said, fmt.Errorf("a frame begins with %x", f.in[:2])
		}
		if len(f.in) < head+size {
			break
		}
		payload := f.in[head:][:size]
		switch first := f.in[0]; {
		case f.Closed:
			return said, fmt.Errorf("a frame behind the Close frame: %x", f.in[:head])
		case first == BinaryFrame:
			said = append(said, payload...)
		case first == CloseFrame:
			f.Closed = true
		case first == 0x89 && !f.Closes:
			f.Out = append(f.Out, Masked(0x8a, string(payload))...)
		case first == 0x89:
		case first == 0x8a && string(payload) == "ping" && f.ping > 0: // for several there may be one
		default:
			return said, fmt.Errorf("a frame that nobody wants: %x", f.in[:head+size])
		}
		f.in = f.in[head+size:]
	}
	return said, nil
}
