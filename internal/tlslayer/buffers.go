package tlslayer

import (
	"bytes"
	"crypto/tls"
	"reflect"
	"unsafe"

	"gateway/internal/layer"
)

// What crypto/tls has read and not yet taken apart stands in its field rawInput: records,
// from the header of one on. It reads from its net.Conn when that holds no whole one. So
// what a loop has received need not be read once more: it is put there, where it lies, and
// crypto/tls decrypts it in place. And at rest there is no buffer. Its own would be 3.5
// KiB after a handshake, half of all that a connection holds, and 18 KiB more after a
// large record.
//
// No function of crypto/tls gives its buffers away. They are found by their names and
// types, and a Conn is not lifted where they are others.

// buffers are those of a *tls.Conn.
type buffers struct {
	raw   *bytes.Buffer // records
	hand  *bytes.Buffer // handshake messages
	input *bytes.Reader // what is left of a record that was decrypted; it lies in raw
}

// Offsets in tls.Conn.
var (
	rawInput  = offset[bytes.Buffer]("rawInput")
	handInput = offset[bytes.Buffer]("hand")
	plainText = offset[bytes.Reader]("input")

	// known tells whether there are such fields.
	known = rawInput != 0 && handInput != 0 && plainText != 0
)

// offset returns where a field of tls.Conn is, or 0: the first field is none of these.
func offset[T any](name string) uintptr {
	f, ok := reflect.TypeFor[tls.Conn]().FieldByName(name)
	if !ok || f.Type != reflect.TypeFor[T]() {
		return 0
	}
	return f.Offset
}

func buffersOf(c *tls.Conn) buffers {
	p := unsafe.Pointer(c)
	return buffers{(*bytes.Buffer)(unsafe.Add(p, rawInput)), (*bytes.Buffer)(unsafe.Add(p, handInput)),
		(*bytes.Reader)(unsafe.Add(p, plainText))}
}

const (
	headerSize = 5 // of a record (RFC 8446 section 5.1)

	// maxCiphertext is how many bytes may follow a header (RFC 5246 section 6.2.3).
	maxCiphertext = 16<<10 + 2048

	// recordSize is the size of the buffers for records that come in several reads.
	recordSize = headerSize + maxCiphertext

	// smallRecord is the size up to which a record gets a buffer of its own size.
	smallRecord = 1 << 10

	// maxSpare is how many buffers a loop keeps.
	maxSpare = 16
)

// missing returns how many bytes b lacks to begin with a whole record; as long as its
// header is not whole, how many that lacks. Of a header that crypto/tls refuses nothing
// is missing.
func missing(b []byte) int {
	if len(b) < headerSize {
		return headerSize - len(b)
	}
	size := int(b[3])<<8 | int(b[4])
	if b[1] != 3 || b[2] != 3 || size > maxCiphertext {
		return 0
	}
	return max(0, headerSize+size-len(b))
}

// whole returns how much of b is whole records, with which it begins, or is refused.
func whole(b []byte) (n int) {
	for n < len(b) && missing(b[n:]) == 0 {
		n = min(len(b), n+headerSize+int(b[n+3])<<8+int(b[n+4]))
	}
	return n
}

// keep puts the beginning of a record into memory of its own.
func (b *buffers) keep(part []byte, room *layer.Room) {
	var own []byte
	if missing(part)+len(part) > smallRecord {
		if n := len(room.Spare); n > 0 {
			own, room.Spare = room.Spare[n-1], room.Spare[:n-1]
		} else {
			own = make([]byte, 0, recordSize)
		}
	}
	*b.raw = *bytes.NewBuffer(append(own, part...))
}

// drop has a connection that has sent its part of a handshake rest without the buffers that
// a ClientHello has made grow.
func (b buffers) drop() {
	if b.raw.Len() == 0 {
		*b.raw = bytes.Buffer{}
	}
	if b.hand.Len() == 0 {
		*b.hand = bytes.Buffer{}
	}
}

// rest leaves a connection no buffer, unless it is within a record or a message.
func (b *buffers) rest(room *layer.Room) {
	if b.hand.Len() == 0 {
		*b.hand = bytes.Buffer{}
	}
	if b.raw.Len() > 0 {
		return
	}
	b.input.Reset(nil)
	b.raw.Reset()
	if own := b.raw.AvailableBuffer(); cap(own) == recordSize && len(room.Spare) < maxSpare {
		room.Spare = append(room.Spare, own)
	}
	*b.raw = bytes.Buffer{}
}
