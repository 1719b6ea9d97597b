// Package logwriter keeps a slow or stuck log reader from slowing down those
// who log, and loses no line without a word. Lines are written at once while they
// are few, and in batches while they are many.
package logwriter

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"
)

// Interval is the least time between two writes, and the longest that a line
// waits while the reader keeps up.
const Interval = 100 * time.Millisecond

// retryAfter is how long a full disk is left alone.
const retryAfter = time.Second

// goOnAfter is how long a pipe that has taken something is given to take more.
const goOnAfter = 2 * time.Millisecond

// Limit is how many bytes wait for a reader that does not keep up. Beyond it,
// lines are dropped whole.
const Limit = 4 << 20

// Writer is an io.Writer that never waits for the one below it. It is safe for
// concurrent use. It must be closed, or the last lines are lost.
//
// What the one below it does not take is written later if that may help: a pipe that
// somebody has made non-blocking, a disk that is full. Otherwise it is dropped. What is
// dropped is counted, and told in the log as soon as it takes something again.
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
	taken   int64      // bytes that were written
	idle    *sync.Cond // armed turned false

	// What is being written, of flush alone; len(held) is read by Write, so it
	// changes under mu.
	held    []byte // whole lines, of which
	written int    // so many bytes are
	noticed int    // lines that a notice among them says were dropped
	torn    bool   // what was written last has no newline, and its rest was dropped
	size    int64  // of the file when a write has failed within a line; -1: of no file
	failing bool   // the last write has failed, for another reason than a full pipe

	left int // lines of held that are not written, as of the last write; under mu

	next io.WriteCloser // see Replace
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
	if len(lw.buf)+len(lw.held)+len(line) > Limit {
		lw.drop(1)
		return len(line), nil
	}
	lw.buf = append(lw.buf, line...)
	if !lw.armed {
		lw.armed = true
		time.AfterFunc(Interval-time.Since(lw.last), lw.flush)
	}
	return len(line), nil
}

// drop counts lines that nobody will read. mu is held.
func (lw *Writer) drop(lines int) {
	lw.dropped += lines
	lw.lost += int64(lines)
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
	if lw.next != nil {
		lw.replace()
	}
	if len(lw.held) == 0 {
		lw.held, lw.written = lw.buf, 0
		lw.buf, lw.spare = lw.spare[:0], nil
		if lw.dropped > 0 {
			lw.held = append(lw.held, lw.notice(lw.dropped)...)
			lw.noticed, lw.dropped = lw.dropped, 0
		}
		lw.left = bytes.Count(lw.held, newline)
	}
	lw.mu.Unlock()

	lw.beginAgain()
	before := lw.written
	err := lw.writeHeld()
	lw.noteFailure(err)

	lw.mu.Lock()
	defer lw.mu.Unlock()
	lw.last = time.Now()
	lw.left = bytes.Count(lw.held[lw.written:], newline)
	lw.taken += int64(lw.written - before)
	next := Interval
	switch {
	case err == nil:
	case mayPass(err):
		switch {
		case !errors.Is(err, syscall.EAGAIN):
			next = retryAfter
		case lw.written > before:
			next = goOnAfter
		}
		time.AfterFunc(next, lw.flush)
		return
	default:
		lw.giveUp()
	}
	lw.spare, lw.held, lw.written, lw.noticed, lw.left = lw.held, nil, 0, 0, 0
	if len(lw.buf) > 0 || lw.next != nil {
		time.AfterFunc(next, lw.flush)
		return
	}
	lw.armed = false
	lw.idle.Broadcast()
}

var newline = []byte("\n")

// noteFailure remembers where a write has failed.
func (lw *Writer) noteFailure(err error) {
	if err == nil || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
		lw.failing = lw.failing && err != nil
		return
	}
	lw.size, lw.failing = sizeOf(lw.w), true
}

// beginAgain has a line that is written in part written from its beginning, if somebody
// has made room meanwhile by taking what stood there: an operator who empties a file. Or
// if others have written behind it.
func (lw *Writer) beginAgain() {
	if !lw.failing || lw.written == 0 || lw.held[lw.written-1] == '\n' {
		return
	}
	if size := sizeOf(lw.w); size >= 0 && size != lw.size {
		lw.written = bytes.LastIndexByte(lw.held[:lw.written], '\n') + 1
		lw.torn = size > 0
	}
}

// writeHeld writes the rest of what is held.
func (lw *Writer) writeHeld() error {
	if lw.torn {
		if _, err := lw.w.Write(newline); err != nil {
			return err
		}
		lw.torn = false
	}
	for lw.written < len(lw.held) {
		n, err := lw.w.Write(lw.held[lw.written:])
		lw.written += n
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrShortWrite
		}
	}
	return nil
}

// giveUp drops the rest of what is held, the line that was begun included. mu is held.
func (lw *Writer) giveUp() {
	if lw.written > 0 && lw.held[lw.written-1] != '\n' {
		lw.torn = true
	}
	lines := bytes.Count(lw.held[lw.written:], []byte("\n"))
	if lw.noticed > 0 && lines > 0 { // the last of them is the notice
		lines--
		lw.dropped += lw.noticed // which are counted in lost
	}
	lw.drop(lines)
}

// Replace has what comes be written to w, which Writer owns from here on: another file
// in the place of one that was moved away. What was written to before is closed. A line
// that stands there in part is written to w from its beginning.
func (lw *Writer) Replace(w io.WriteCloser) {
	lw.mu.Lock()
	defer lw.mu.Unlock()
	if lw.next != nil {
		lw.next.Close()
	}
	lw.next = w
	if !lw.armed {
		lw.armed = true
		time.AfterFunc(0, lw.flush)
	}
}

// replace is Replace, between two writes. mu is held.
func (lw *Writer) replace() {
	if old, ok := lw.w.(io.Closer); ok {
		old.Close()
	}
	lw.w, lw.next, lw.torn, lw.failing = lw.next, nil, false, false
	if f, ok := lw.w.(*File); ok {
		lw.torn = f.torn()
	}
	lw.written = bytes.LastIndexByte(lw.held[:lw.written], '\n') + 1
}

// mayPass tells whether what could not be written may be some time later.
func mayPass(err error) bool {
	for _, e := range []error{syscall.EAGAIN, syscall.EINTR, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Close waits until everything is written, but no longer than patience after something
// last was: a stuck reader must not hold up the end. It returns how many lines are not
// written by then.
func (lw *Writer) Close(patience time.Duration) (unwritten int) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		lw.mu.Lock()
		defer lw.mu.Unlock()
		for lw.armed {
			lw.idle.Wait()
		}
	}()
	for before := int64(-1); ; {
		select {
		case <-done:
		case <-time.After(patience):
		}
		lw.mu.Lock()
		taken, armed := lw.taken, lw.armed
		lw.mu.Unlock()
		if !armed || taken == before {
			break
		}
		before = taken
	}
	lw.mu.Lock()
	defer lw.mu.Unlock()
	return lw.left + bytes.Count(lw.buf, newline) + lw.dropped
}
