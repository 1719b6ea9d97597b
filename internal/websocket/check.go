package websocket

import (
	"bytes"
	"encoding/binary"

	"gateway/internal/layer"
)

// Check judges frames as In does, for whoever has a library read them that is not as
// strict, or says more than it should when it is. It changes nothing in b, and tells how
// many bytes of it may be passed on; if that is not all, the client is to be told code.
// What follows a Close frame is good. It is called instead of In.
func (s *Stream) Check(b []byte) (good int, code uint16) {
	for at := 0; at < len(b) && !s.closing; {
		begin := at
		state := layer.Open
		if !s.inFrame {
			var n int
			n, _, state = s.header(b[at:])
			at += n
		} else {
			n := int(min(s.left, int64(len(b)-at)))
			payload := b[at : at+n]
			at += n
			s.left -= int64(n)
			if s.opcode == opClose {
				payload = bytes.Clone(payload)
				s.key = unmask(payload, s.key)
				state = s.controlFrame(payload)
			} else if s.left == 0 {
				s.inFrame = false
				if s.opcode&8 == 0 {
					s.inside = !s.final
				}
			}
		}
		if state == layer.Wrong {
			return begin, binary.BigEndian.Uint16(s.words)
		}
	}
	return len(b), 0
}
