package web

import "errors"

// errFraming is why a request's body has no end that two readers agree on.
var errFraming = errors.New("the body is wrongly framed")

// maxChunkLine bounds the line before a chunk with its extensions, and all
// trailers together, in bytes.
const maxChunkLine = 4096

// message knows where a request ends in what the client sends.
type message struct {
	left   int64   // bytes of the head, and of a body that has a length
	chunks *chunks // of a body that comes in chunks behind that; nil for none
}

func (m *message) ended() bool {
	return m.left == 0 && (m.chunks == nil || m.chunks.state == chunksEnd)
}

// take returns how many of the bytes that come next belong to the message.
func (m *message) take(p []byte) (n int, err error) {
	n = int(min(m.left, int64(len(p))))
	m.left -= int64(n)
	if m.left == 0 && m.chunks != nil {
		more, err := m.chunks.take(p[n:])
		return n + more, err
	}
	return n, nil
}

// chunks follows a body in chunks (RFC 9112 section 7.1) to its end. It takes
// nothing but what the grammar allows. net/http, which decodes the body, lets
// trailers end in a bare LF or be folded.
type chunks struct {
	state  chunksState
	left   int64 // of the chunk's size so far, then of its data
	digits int   // of its size
	line   int   // bytes of its line, or of the trailers
	field  int   // bytes of a trailer's line
	named  bool  // it has had its colon
}

type chunksState byte

const (
	chunkSize      chunksState = iota // hex digits
	chunkExtension                    // up to the CR
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerLine // up to the CR, with which the last line begins
	trailerLF
	chunksLF
	chunksEnd
	chunksBroken
)

// take returns errFraming before the first byte that is wrong, and ever after.
func (c *chunks) take(p []byte) (n int, err error) {
	for n < len(p) && c.state != chunksEnd {
		if c.state == chunkData {
			some := min(c.left, int64(len(p)-n))
			n += int(some)
			if c.left -= some; c.left == 0 {
				c.state = chunkDataCR
			}
			continue
		}
		if c.state == chunksBroken {
			return n, errFraming
		}
		if !c.step(p[n]) || c.line > maxChunkLine {
			c.state = chunksBroken
			continue
		}
		n++
	}
	return n, nil
}

// step takes one byte that is no data.
func (c *chunks) step(b byte) bool {
	switch c.state {
	case chunkSize, chunkExtension:
		c.line++
		return c.stepSize(b)
	case chunkSizeLF:
		c.state, c.line = chunkData, 0
		if c.left == 0 {
			c.state = trailerLine
		}
		return b == '\n'
	case chunkDataCR:
		c.state = chunkDataLF
		return b == '\r'
	case chunkDataLF:
		c.state, c.digits = chunkSize, 0
		return b == '\n'
	case trailerLine:
		c.line++
		return c.stepTrailer(b)
	case trailerLF:
		c.state, c.field, c.named = trailerLine, 0, false
		return b == '\n'
	}
	c.state = chunksEnd
	return b == '\n'
}

func (c *chunks) stepSize(b byte) bool {
	digit, hex := hexDigit(b)
	switch {
	case c.state == chunkSize && hex:
		c.left = c.left<<4 | digit
		c.digits++
		return c.left <= maxLength>>4 && c.digits <= 16
	case c.digits == 0:
		return false
	case b == '\r':
		c.state = chunkSizeLF
		return true
	case c.state == chunkSize:
		c.state = chunkExtension
		return b == ';' || b == ' ' || b == '\t'
	}
	return !isControl(rune(b))
}

// stepTrailer takes a byte of a field line, which begins with a name.
func (c *chunks) stepTrailer(b byte) bool {
	c.field++
	switch {
	case b == '\r' && c.field == 1:
		c.state = chunksLF
		return true
	case b == '\r':
		c.state = trailerLF
		return c.named
	case c.named:
		return !isControl(rune(b))
	case b == ':':
		c.named = true
		return c.field > 1
	}
	return b < 0x7f && isToken(string(rune(b)))
}

func hexDigit(b byte) (digit int64, ok bool) {
	switch {
	case isDigit(b):
		return int64(b - '0'), true
	case 'a' <= b|0x20 && b|0x20 <= 'f':
		return int64(b|0x20-'a') + 10, true
	}
	return 0, false
}
