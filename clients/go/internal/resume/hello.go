package resume

import (
	"encoding/base64"
	"encoding/binary"
)

// Hello is what a gateway says first in a session that begins.
type Hello struct {
	Window int    // bytes that may be unacknowledged in each direction
	Ticket string // names the session
	Secret [32]byte
	// Secret is the gateway's X25519 key, or K itself where the client has sent none.
}

const (
	helloFixed = 4 + 32
	// MaxTicket is the length of the longest ticket, in bytes: a request to resume
	// has to hold it.
	MaxTicket = 256
)

// Append appends the frame.
func (h *Hello) Append(b []byte) []byte {
	n := helloFixed + len(h.Ticket)
	b = append(b, 0, 0, typeHELLO, byte(n>>8), byte(n))
	b = binary.BigEndian.AppendUint32(b, uint32(h.Window))
	b = append(b, h.Ticket...)
	return append(b, h.Secret[:]...)
}

// takeHello gathers the gateway's HELLO.
func (s *Session) takeHello(f frame) error {
	if !s.greets || len(s.hello)+len(f.body) > helloFixed+MaxTicket {
		return ErrViolation
	}
	s.hello = append(s.hello, f.body...)
	if !f.last {
		return nil
	}
	h, ok := s.Hello()
	if !ok {
		return ErrViolation
	}
	s.greets, s.window = false, h.Window
	return nil
}

// Hello returns what the gateway said, at the client's end, once it has been received.
func (s *Session) Hello() (h Hello, ok bool) {
	n := len(s.hello) - helloFixed
	if n <= 0 {
		return Hello{}, false
	}
	h = Hello{Window: int(binary.BigEndian.Uint32(s.hello)), Ticket: string(s.hello[4 : 4+n])}
	copy(h.Secret[:], s.hello[4+n:])
	ok = h.Window >= MinWindow && h.Window <= MaxWindow
	for _, c := range []byte(h.Ticket) {
		ok = ok && isBase64URL(c)
	}
	return h, ok
}

// Greeted tells whether the gateway's HELLO has been received, at the client's end.
func (s *Session) Greeted() bool { return !s.greets }

// MaxWindow is the largest window, in bytes: acknowledgements have 32 bits.
const MaxWindow = 1 << 30

func isBase64URL(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// encoding is base64url without padding, of which only the canonical form is taken.
var encoding = base64.RawURLEncoding.Strict()

// decode is encoding's without the line breaks that it would skip.
func decode(text string) ([]byte, bool) {
	for _, c := range []byte(text) {
		if !isBase64URL(c) {
			return nil, false
		}
	}
	b, err := encoding.DecodeString(text)
	return b, err == nil
}
