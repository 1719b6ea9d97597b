package handover

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"
)

// The encoding of a tunnel: its fields, in the order of appendTunnel. Numbers are
// varints, bytes and texts come behind their length, an address with a port is the
// bytes of netip's MarshalBinary, and all that is true or false about something is one
// byte. Descriptors are not in it.

// Append appends the encoding of tunnels, but for their descriptors, in the present
// Version.
func Append(b []byte, tunnels []Tunnel) []byte {
	b = binary.AppendUvarint(b, uint64(len(tunnels)))
	for i := range tunnels {
		b = appendTunnel(b, &tunnels[i])
	}
	return b
}

func appendTunnel(b []byte, t *Tunnel) []byte {
	b = append(b, bits(t.Client.Hung, t.Client.Stalled, t.Backend.Hung, t.Backend.Stalled, t.Deaf, t.Optioned, t.Secure, t.Proxied))
	for _, f := range []*Flow{&t.Up, &t.Down} {
		b = append(b, bits(f.Bulk, f.Large, f.Ended, f.Done))
		b = binary.AppendUvarint(b, uint64(f.Moved))
		b = appendBytes(b, f.Unsent)
		b = binary.AppendUvarint(b, uint64(f.InPipe))
	}
	b = append(b, t.Hops, t.Tries)
	b = binary.AppendUvarint(b, uint64(max(0, t.Age)))
	b = binary.AppendUvarint(b, uint64(max(0, t.Idle)))
	b = binary.AppendUvarint(b, uint64(max(0, t.Rest)))
	b = binary.AppendUvarint(b, uint64(max(0, t.FirstByte)))
	b = binary.AppendUvarint(b, uint64(max(0, t.Dialing)))
	b = binary.AppendUvarint(b, uint64(t.Header))
	b = binary.AppendUvarint(b, uint64(t.Preface))
	b = appendAddrPort(b, t.Addr)
	b = appendAddrPort(b, t.Local)
	b = appendAddrPort(b, t.Dialed)
	for _, s := range t.texts() {
		b = appendBytes(b, *s)
	}
	return append(appendLayer(b, &t.Layer), bits(t.Detached))
}

func appendLayer(b []byte, l *Layer) []byte {
	b = appendBytes(b, l.Name)
	if l.Name == "" {
		return b
	}
	b = append(b, bits(l.Finished))
	b = appendBytes(b, l.State)
	b = binary.AppendUvarint(b, uint64(l.Owed))
	return binary.AppendUvarint(b, uint64(max(0, l.Wait)))
}

// texts returns where the texts of a tunnel stand, in order.
func (t *Tunnel) texts() []*string {
	return []*string{&t.EndedBy, &t.How, &t.Form, &t.Name, &t.Listener, &t.Forward, &t.Target, &t.Route, &t.Failed, &t.Label}
}

func bits(flags ...bool) (b byte) {
	for i, set := range flags {
		if set {
			b |= 1 << i
		}
	}
	return b
}

func appendBytes[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendAddrPort(b []byte, ap netip.AddrPort) []byte {
	text, _ := ap.MarshalBinary() // never fails
	return appendBytes(b, text)
}

// Decode reads what Append has made in the given version. The result holds no
// descriptors, and nothing of b.
func Decode(b []byte, version int) ([]Tunnel, error) {
	if version < oldest || version > Version {
		return nil, ErrUnreadable
	}
	r := reader{rest: b, version: version}
	n := r.number(math.MaxInt32)
	if r.bad || n > int64(len(r.rest)) {
		return nil, ErrUnreadable
	}
	tunnels := make([]Tunnel, 0, min(n, MaxDescriptors/2))
	for range n {
		var t Tunnel
		r.tunnel(&t)
		if r.bad {
			return nil, ErrUnreadable
		}
		tunnels = append(tunnels, t)
	}
	if len(r.rest) > 0 {
		return nil, ErrUnreadable
	}
	return tunnels, nil
}

// reader reads fields. Once bad is set there are no more.
type reader struct {
	rest    []byte
	bad     bool
	version int
}

func (r *reader) tunnel(t *Tunnel) {
	r.bits(&t.Client.Hung, &t.Client.Stalled, &t.Backend.Hung, &t.Backend.Stalled, &t.Deaf, &t.Optioned, &t.Secure, &t.Proxied)
	for _, f := range []*Flow{&t.Up, &t.Down} {
		r.bits(&f.Bulk, &f.Large, &f.Ended, &f.Done)
		f.Moved = r.number(math.MaxInt64)
		if held := r.bytes(); len(held) > 0 {
			f.Unsent = append([]byte(nil), held...)
		}
		f.InPipe = int(r.number(math.MaxInt32))
	}
	t.Hops = r.byte()
	if r.version >= 2 {
		t.Tries = r.byte()
	}
	t.Age = time.Duration(r.number(math.MaxInt64))
	t.Idle = time.Duration(r.number(math.MaxInt64))
	t.Rest = time.Duration(r.number(math.MaxInt64))
	if r.version >= 2 {
		t.FirstByte = time.Duration(r.number(math.MaxInt64))
		t.Dialing = time.Duration(r.number(math.MaxInt64))
	}
	t.Header = int(r.number(math.MaxInt32))
	t.Preface = int(r.number(math.MaxInt32))
	r.addrPort(&t.Addr)
	r.addrPort(&t.Local)
	r.addrPort(&t.Dialed)
	texts := t.texts()
	if r.version < 2 {
		texts = texts[:9] // there was no label
	}
	for _, s := range texts {
		*s = string(r.bytes())
	}
	if r.version >= 2 {
		r.layer(&t.Layer)
	} else if t.Failed != "" { // the last text was the name for the backend then
		t.Name, t.Failed = t.Failed, ""
	}
	if r.version >= 3 {
		r.bits(&t.Detached)
	}
}

func (r *reader) layer(l *Layer) {
	if l.Name = string(r.bytes()); l.Name == "" {
		return
	}
	r.bits(&l.Finished)
	if state := r.bytes(); len(state) > 0 {
		l.State = append([]byte(nil), state...)
	}
	l.Owed = int(r.number(math.MaxInt32))
	l.Wait = time.Duration(r.number(math.MaxInt64))
}

func (r *reader) byte() byte {
	if len(r.rest) == 0 {
		r.bad = true
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *reader) bits(flags ...*bool) {
	b := r.byte()
	for i, p := range flags {
		*p = b>>i&1 != 0
	}
	if int(b)>>len(flags) != 0 {
		r.bad = true
	}
}

// number reads one from 0 to most.
func (r *reader) number(most int64) int64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 || n > uint64(most) {
		r.bad = true
		return 0
	}
	r.rest = r.rest[size:]
	return int64(n)
}

// bytes returns a part of what is read.
func (r *reader) bytes() []byte {
	n := r.number(math.MaxInt32)
	if r.bad || n > int64(len(r.rest)) {
		r.bad = true
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) addrPort(ap *netip.AddrPort) {
	if b := r.bytes(); !r.bad && ap.UnmarshalBinary(b) != nil {
		r.bad = true
	}
}
