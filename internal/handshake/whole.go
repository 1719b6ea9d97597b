package handshake

import "bytes"

// HelloMax is the largest ClientHello in bytes, records and all, that is waited
// for. Those of browsers have less than 2 KiB, post-quantum key shares included.
const HelloMax = 8 << 10

// Whole tells whether the beginning of a client that speaks HTTP or TLS, all that
// it has sent so far, is enough to begin with: a head of at most headMax bytes or
// a ClientHello of at most HelloMax. Until then a client costs no more than its
// bytes. The error is ErrIncomplete, or ErrTooLong for a ClientHello.
//
// A head that is too long, or whose first line is none, is whole: whoever speaks
// HTTP has an answer to it.
func (f Form) Whole(b []byte, headMax int) error {
	switch f {
	case HTTP:
		return wholeHead(b, headMax)
	case TLS:
		return wholeHello(b)
	}
	return nil
}

func wholeHead(b []byte, most int) error {
	end := bytes.IndexByte(b, '\n')
	switch {
	case len(b) > most:
	case end >= 0 && !isRequestLine(b[:end]):
	case bytes.Contains(b, []byte("\n\r\n")), bytes.Contains(b, []byte("\n\n")):
	default:
		return ErrIncomplete
	}
	return nil
}

// isRequestLine tells whether a line has the three parts of RFC 9112 section 3.
func isRequestLine(line []byte) bool {
	parts := bytes.Split(bytes.TrimSuffix(line, []byte("\r")), []byte(" "))
	return len(parts) == 3 && bytes.HasPrefix(parts[2], []byte("HTTP/1."))
}

// wholeHello looks for a ClientHello, which may be in several records (RFC 8446
// sections 4 and 5.1). What is none is whole: crypto/tls has an answer to it.
func wholeHello(b []byte) error {
	const recordHeader, messageHeader, handshakeType = 5, 4, 0x16
	var message []byte // its header at least
	size, at := 0, 0
	for {
		if len(b) < at+recordHeader {
			break
		}
		if b[at] != handshakeType {
			return nil
		}
		n := int(b[at+3])<<8 | int(b[at+4])
		at += recordHeader
		size += n
		if at+n > HelloMax {
			return ErrTooLong
		}
		message = append(message, b[min(at, len(b)):min(at+n, len(b), at+messageHeader)]...)
		at += n
		if len(message) >= messageHeader {
			want := messageHeader + (int(message[1])<<16 | int(message[2])<<8 | int(message[3]))
			if want > HelloMax {
				return ErrTooLong
			}
			if size >= want && len(b) >= at {
				return nil
			}
		}
		if n == 0 {
			return nil // an empty record is none of a handshake
		}
	}
	return ErrIncomplete
}
