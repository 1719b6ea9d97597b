package reactor

// Deadlines is a queue of deadlines of one duration: they expire in the order
// in which they are set. An entry is void once what it is for has moved on.
type Deadlines[T Staged] struct {
	After int64 // nanoseconds

	queue []deadline[T]
	head  int // the first that is still to come
}

// Staged is what has deadlines. Its zero value is nothing.
type Staged interface {
	// Stage is another one whenever a former deadline is of no concern any more.
	Stage() uint64
}

type deadline[T Staged] struct {
	of    T
	stage uint64
	at    int64
}

// Push queues a deadline of t's in the stage that it is in, and returns when it is.
func (d *Deadlines[T]) Push(t T, now int64) (at int64) {
	// Most connections move on long before their time. Dropping those at the
	// head here keeps the queue about as short as the list of those that wait.
	for d.head < len(d.queue) && d.queue[d.head].void() {
		d.pop()
	}
	at = now + d.After
	d.queue = append(d.queue, deadline[T]{t, t.Stage(), at})
	return at
}

// void tells whether what it is for has moved on.
func (e *deadline[T]) void() bool { return e.of.Stage() != e.stage }

// pop drops the head.
func (d *Deadlines[T]) pop() {
	d.head++
	if d.head == len(d.queue) || d.head >= 64 && 2*d.head >= len(d.queue) {
		n := copy(d.queue, d.queue[d.head:])
		clear(d.queue[n:])
		d.queue, d.head = d.queue[:n], 0
	}
}

// Due removes and returns the next whose time has come, and when that was; or nothing.
func (d *Deadlines[T]) Due(now int64) (t T, at int64) {
	for d.head < len(d.queue) {
		e := d.queue[d.head]
		if e.void() {
			d.pop()
			continue
		}
		if e.at > now {
			break
		}
		d.pop()
		return e.of, e.at
	}
	return t, 0
}

// Next returns when the queue is to be looked at; ok is false if it is empty. What has
// moved on may still stand in it.
func (d *Deadlines[T]) Next() (at int64, ok bool) {
	if len(d.queue) == 0 {
		return 0, false
	}
	return d.queue[d.head].at, true
}
