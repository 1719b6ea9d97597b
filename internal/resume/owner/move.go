package owner

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"gateway/internal/resume"
)

// How tunnels go from one process to another, with all that makes their clients'
// tickets good there.

// Boots returns whose tunnels are here, for Inherit.
func (o *Owner) Boots() (all [][8]byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.boots)
}

// Inherit has tickets taken that another process has sealed, whose tunnels come.
func (o *Owner) Inherit(boots [][8]byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, b := range boots {
		if !slices.Contains(o.boots, b) {
			o.boots = append(o.boots, b)
		}
	}
}

// Expect says that tunnels of another process may come, and returns what says that all
// have that there were, which may be called again.
func (o *Owner) Expect() (arrived func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	coming := make(chan struct{})
	o.coming = coming
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.coming == coming {
			close(coming)
			o.coming = nil
		}
	}
}

// Leave says whether tunnels go to another process: who comes back here for one that is
// not here is to try again.
func (o *Owner) Leave(yes bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.leaving = yes
}

// Freeze has a tunnel not given up until Thaw: it is about to go.
func (t *Tunnel) Freeze() {
	o := t.owner
	o.mu.Lock()
	defer o.mu.Unlock()
	if t.place > 0 {
		o.take(t)
	}
}

// Thaw undoes Freeze. detached says that there is no client.
func (t *Tunnel) Thaw(detached bool) {
	o := t.owner
	o.mu.Lock()
	defer o.mu.Unlock()
	if detached && t.place == 0 && o.tunnels[t.id] == t {
		o.put(t, t.lostAt)
	}
}

// Append appends what another process has to know of a tunnel besides its session.
func (t *Tunnel) Append(b []byte) []byte {
	o := t.owner
	o.mu.Lock()
	defer o.mu.Unlock()
	b = append(b, t.id[:]...)
	b = binary.AppendUvarint(b, uint64(t.resumes))
	lost := uint64(0)
	if !t.lostAt.IsZero() {
		lost = uint64(max(0, time.Since(t.lostAt)))
	}
	b = binary.AppendUvarint(b, lost)
	client, _ := t.client.MarshalBinary() // never fails
	b = binary.AppendUvarint(b, uint64(len(client)))
	return append(b, client...)
}

// errState says that bytes are not what Append has made.
var errState = errors.New("this is no resumable tunnel")

// Adopt takes a tunnel of another process, from what Append and then the session's own
// Append have told of it. It is frozen until Thaw, and c carries it.
func (o *Owner) Adopt(state []byte, c Carrier) (*Tunnel, *resume.Session, error) {
	t := &Tunnel{owner: o}
	if len(state) < len(t.id) {
		return nil, nil, errState
	}
	rest := state[copy(t.id[:], state):]
	var numbers [3]uint64
	for i := range numbers {
		n, size := binary.Uvarint(rest)
		if size <= 0 {
			return nil, nil, errState
		}
		numbers[i], rest = n, rest[size:]
	}
	size := numbers[2]
	if size > uint64(len(rest)) || t.client.UnmarshalBinary(rest[:size]) != nil {
		return nil, nil, errState
	}
	s, err := resume.RestoreSession(rest[size:])
	if err != nil {
		return nil, nil, err
	}
	t.session, t.resumes = s, int(numbers[0])
	t.lostAt = time.Now().Add(-time.Duration(min(numbers[1], uint64(o.Hold))))
	t.carrier.Store(&c)
	t.seq.Store(s.Seq())
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.tunnels[t.id] != nil {
		return nil, nil, errState
	}
	o.tunnels[t.id] = t
	return t, s, nil
}
