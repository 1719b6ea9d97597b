// Package logwriter keeps a slow or stuck log reader from slowing down those
// who log. Lines are written at once while they are few, and in batches while
// they are many.
package logwriter

import (
	"io"
	"sync"
	"time"
)

// Interval is the least time between two writes, and the longest that a line
// waits while the reader keeps up.
const Interval = 100 * time.Millisecond

// Limit is how many bytes wait for a reader that does not keep up. Beyond it,
// lines are dropped whole.
const Limit = 4 << 20

// Writer is an io.Writer that never waits for the one below it. It is safe for
// concurrent use. It must be closed, or the last lines are lost.
type Writer struct {
	w      io.Writer
	notice func(dropped int) []byte

	mu      sync.Mutex
	buf     []byte
	spare   []byte // the other buffer, while none is being written
	armed   bool   // a flush is due or under way
	last    time.Time
	dropped int        // since the last notice
	lost    int64      // in all
	idle    *sync.Cond // armed turned false
}

// New returns a Writer that writes to w. Only one write to w is under way at a
// time. notice makes the line that tells how many lines were dropped.
func New(w io.Writer, notice func(dropped int) []byte) *Writer {
	lw := &Writer{w: w, notice: notice}
	lw.idle = sync.NewCond(&lw.mu)
	return lw
}

// Write takes a line, or drops it. It always reports success: there is nobody
// to tell of a log that cannot be written.
func (lw *Writer) Write(line []byte) (int, error) {
	lw.mu.Lock()
	defer lw.mu.Unlock()
	if len(lw.buf)+len(line) > Limit {
		lw.dropped++
		lw.lost++
		return len(line), nil
	}
	lw.buf = append(lw.buf, line...)
	if !lw.armed {
		lw.armed = true
		time.AfterFunc(Interval-time.Since(lw.last), lw.flush)
	}
	return len(line), nil
}

// Dropped returns how many lines were dropped.
func (lw *Writer) Dropped() int64 {
	lw.mu.Lock()
	defer lw.mu.Unlock()
	return lw.lost
}

// flush writes what waits. What comes meanwhile waits for the next flush.
func (lw *Writer) flush() {
	lw.mu.Lock()
	batch := lw.buf
	lw.buf, lw.spare = lw.spare[:0], nil
	if lw.dropped > 0 {
		batch = append(batch, lw.notice(lw.dropped)...)
		lw.dropped = 0
	}
	lw.mu.Unlock()

	lw.w.Write(batch)

	lw.mu.Lock()
	defer lw.mu.Unlock()
	lw.spare, lw.last = batch, time.Now()
	if len(lw.buf) > 0 {
		time.AfterFunc(Interval, lw.flush)
		return
	}
	lw.armed = false
	lw.idle.Broadcast()
}

// Close waits until everything is written, but no longer than patience: a
// stuck reader must not hold up the end.
func (lw *Writer) Close(patience time.Duration) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		lw.mu.Lock()
		defer lw.mu.Unlock()
		for lw.armed {
			lw.idle.Wait()
		}
	}()
	select {
	case <-done:
	case <-time.After(patience):
	}
}
