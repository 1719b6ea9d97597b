package tlslayer

import (
	"bytes"
	"crypto/tls"
	"io"
	"slices"

	"gateway/internal/layer"
)

const (
	// recordMax is how many bytes a record holds at most (RFC 8446 section 5.1).
	recordMax = 16 << 10

	// wordsMax bounds what TLS has to say by itself and the client does not read, in
	// bytes: answers to requests for new keys. No client asks for hundreds of them.
	wordsMax = 16 << 10
)

// Layer is the server's side of a TLS connection whose socket is somebody else's. It is
// a layer.Transform, and not safe for concurrent use.
//
// Records are numbered, and go out in the order in which they were made. So what waits
// for Back goes out before anything that Out makes, by Out itself.
type Layer struct {
	conn *tls.Conn
	wire wire
	room *layer.Room
	held []byte // read before Lift, and the first that there is to read
}

var (
	_ layer.Transform = (*Layer)(nil)
	_ layer.Sharer    = (*Layer)(nil)
)

// Share is for layer.Sharer.
func (l *Layer) Share(room *layer.Room) { l.room = room }

// Name is for layer.Transform: what crypto/tls knows cannot be taken out of it.
func (*Layer) Name() string { return "" }

// Append is for layer.Transform.
func (*Layer) Append(b []byte) []byte { return b }

// In takes records, and returns what was in those that are whole.
func (l *Layer) In(b []byte) (out []byte, state layer.State) {
	if l.held != nil {
		b, l.held = append(l.held, b...), nil
	}
	l.room.In = l.room.In[:0]
	in := buffersOf(l.conn)
	err := l.take(in, b)
	if err != nil {
		*in.raw = bytes.Buffer{} // nothing is read any more
	}
	in.rest(l.room)
	switch {
	case err == io.EOF: // close_notify
		state = layer.HalfClosed
	case err != nil, len(l.wire.out) > wordsMax:
		// The client has been told, unless it was it who told.
		state = layer.Wrong
	}
	return l.room.In, state
}

// take has b read, and keeps what is not a whole record.
func (l *Layer) take(in buffers, b []byte) error {
	if err := l.read(in); err != nil { // of the time before Lift
		return err
	}
	for in.raw.Len() > 0 && len(b) > 0 {
		n := min(missing(in.raw.Bytes()), len(b))
		in.raw.Write(b[:n])
		b = b[n:]
		if err := l.read(in); err != nil {
			return err
		}
	}
	if n := whole(b); n > 0 {
		in.rest(l.room)
		*in.raw = *bytes.NewBuffer(b[:n:n]) // where crypto/tls cannot write behind
		err := l.read(in)
		*in.raw = bytes.Buffer{} // b is the caller's
		if err != nil {
			return err
		}
		b = b[n:]
	}
	if len(b) > 0 {
		in.keep(b, l.room)
	}
	return nil
}

// read has crypto/tls read the whole records that it holds.
func (l *Layer) read(in buffers) error {
	for in.input.Len() > 0 || in.raw.Len() > 0 && missing(in.raw.Bytes()) == 0 {
		out := l.room.In
		if len(out) == cap(out) {
			out = slices.Grow(out, recordMax)
		}
		n, err := l.conn.Read(out[len(out):cap(out)])
		l.room.In = out[:len(out)+n]
		if err != nil && err != errEmpty {
			return err
		}
	}
	return nil
}

// Out makes records.
func (l *Layer) Out(b []byte) []byte { return l.seal(b[layer.Headroom:]) }

func (l *Layer) seal(b []byte) []byte {
	words := l.wire.out
	l.wire.out = append(l.room.Out[:0], words...)
	// It fails behind the layer's last word, which is the end of the tunnel.
	l.conn.Write(b)
	l.room.Out, l.wire.out = l.wire.out, nil
	return l.room.Out
}

// Due is for layer.Transform.
func (l *Layer) Due() bool { return len(l.wire.out) > 0 }

// Back is for layer.Transform.
func (l *Layer) Back(b []byte) []byte {
	b = append(b, l.wire.out...)
	l.wire.out = nil
	return b
}

// Finish has the client told by close_notify that the backend has finished. Of one that
// has failed it is told nothing: see Conn.FailWrite.
func (l *Layer) Finish(failed bool) {
	if !failed {
		l.conn.CloseWrite() // into memory
	}
}

// HalfCloses is for layer.Transform: each direction ends by a close_notify of its own.
func (*Layer) HalfCloses() bool { return true }

// Finished is for layer.Transform.
func (*Layer) Finished() bool { return false }

// Leave is for layer.Transform: a tunnel that is cut ends without close_notify.
func (*Layer) Leave() {}

// Cut is for layer.Transform. Clients often leave by a FIN alone, and then it is one.
func (*Layer) Cut(broken bool) layer.State {
	if broken {
		return layer.Failed
	}
	return layer.HalfClosed
}

// Look is for layer.Transform: TLS has nothing to ask a silent client.
func (*Layer) Look(_, _ bool) bool { return true }

// stacked is a layer inside TLS.
type stacked struct {
	*Layer
	upper   layer.Transform
	leaving bool // close_notify is due, behind the last that upper has to say
}

func (s *stacked) In(b []byte) (out []byte, state layer.State) {
	out, state = s.Layer.In(b)
	if len(out) > 0 {
		var upper layer.State
		if out, upper = s.upper.In(out); upper != layer.Open {
			return out, upper
		}
	}
	if state != layer.Open {
		state = s.upper.Cut(state != layer.HalfClosed)
	}
	return out, state
}

func (s *stacked) Out(b []byte) []byte { return s.seal(s.upper.Out(b)) }
func (s *stacked) Due() bool           { return s.upper.Due() || s.leaving || s.Layer.Due() }

func (s *stacked) Back(b []byte) []byte {
	if s.upper.Due() {
		s.room.In = s.upper.Back(s.room.In[:0])
		b = append(b, s.seal(s.room.In)...)
	}
	if s.leaving {
		s.leaving = false
		s.conn.CloseWrite()
	}
	return s.Layer.Back(b)
}

func (s *stacked) Finish(failed bool)           { s.upper.Finish(failed) }
func (s *stacked) HalfCloses() bool             { return s.upper.HalfCloses() }
func (s *stacked) Finished() bool               { return s.upper.Finished() }
func (s *stacked) Cut(broken bool) layer.State  { return s.upper.Cut(broken) }
func (s *stacked) Look(waits, writes bool) bool { return s.upper.Look(waits, writes) }

func (s *stacked) Leave() {
	s.upper.Leave()
	s.leaving = true
}
