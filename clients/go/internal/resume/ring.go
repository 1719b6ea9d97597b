package resume

// ring is a queue of bytes whose memory is taken as it is used. The zero value is
// empty.
type ring struct {
	buf  []byte // a power of two
	head int    // of the first byte
	n    int    // bytes in it
	keep int    // more than this is let go of once it is empty; 0 is keptRing
}

// keptRing is how much an empty ring may hold on to, in bytes, so that messages that
// come and go do not allocate. See trim.
const keptRing = 1 << 10

// leastRing is the least that is allocated.
const leastRing = 512

// add appends p.
func (r *ring) add(p []byte) {
	r.grow(r.n + len(p))
	if len(p) == 0 {
		return
	}
	at := (r.head + r.n) & (len(r.buf) - 1)
	k := copy(r.buf[at:], p)
	copy(r.buf, p[k:])
	r.n += len(p)
}

// grow makes room for n bytes in all.
func (r *ring) grow(n int) {
	size := max(len(r.buf), leastRing)
	for size < n {
		size *= 2
	}
	if n == 0 || size == len(r.buf) {
		return
	}
	buf := make([]byte, size)
	r.copyTo(buf[:r.n], 0)
	r.buf, r.head = buf, 0
}

// copyTo fills b with the bytes from the i-th on, which are there.
func (r *ring) copyTo(b []byte, i int) {
	if len(b) == 0 {
		return
	}
	at := (r.head + i) & (len(r.buf) - 1)
	k := copy(b, r.buf[at:])
	copy(b[k:], r.buf)
}

// drop takes the first n bytes away, which are there.
func (r *ring) drop(n int) {
	if n == 0 {
		return
	}
	r.n -= n
	r.head = (r.head + n) & (len(r.buf) - 1)
	if r.n == 0 {
		r.head = 0
		if len(r.buf) > max(r.keep, keptRing) {
			r.buf = nil
		}
	}
}

// trim lets go of the memory of an empty ring.
func (r *ring) trim() {
	if r.n == 0 {
		r.buf = nil
	}
}
