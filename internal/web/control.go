package web

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
)

// The control frames of RFC 6455 section 5.5: a final fragment with an opcode.
const (
	frameClose = 0x88
	framePing  = 0x89
	framePong  = 0x8a

	// controlMax bounds a control frame's payload (section 5.5).
	controlMax = 125
)

// control sends a control frame, unless nothing can be sent any more. The
// caller holds writeMu.
func (c *Conn) control(frame byte, payload []byte) error {
	if c.torn || c.wire.muted.Load() {
		return net.ErrClosed
	}
	return c.sendControl(frame, payload)
}

func (c *Conn) sendControl(frame byte, payload []byte) error {
	// In one write, so that nothing the library sends comes between.
	b := make([]byte, 0, 2+controlMax)
	b = append(b, frame, byte(len(payload)))
	b = append(b, payload...)
	if _, err := c.wire.Conn.Write(b); err != nil {
		c.torn = true
		return err
	}
	return nil
}

// sendClose sends a Close frame after what has been written, unless there has
// been one; then it returns nil too.
func (c *Conn) sendClose(code websocket.StatusCode) error {
	c.writeMu.Lock()
	defer c.unlockWrite()
	// Muted before the frame goes out: the client may answer at once, and the
	// library its answer.
	switch {
	case c.wire.muted.Swap(true):
		return nil
	case c.torn:
		return net.ErrClosed
	}
	return c.sendControl(frameClose, binary.BigEndian.AppendUint16(nil, uint16(code)))
}

// onPing has a ping answered. The library calls it from Read, and is told not
// to answer itself.
func (c *Conn) onPing(_ context.Context, payload []byte) bool {
	c.mark = c.position()
	p := bytes.Clone(payload)
	c.pong.Store(&p) // of several pings, answering the last is enough
	c.answerPing()
	return false
}

// onPong is called from Read. That bytes have come is answer enough.
func (c *Conn) onPong(context.Context, []byte) { c.mark = c.position() }

// answerPing sends the pong that is due, or leaves it to whoever holds writeMu.
func (c *Conn) answerPing() {
	for c.pong.Load() != nil && c.writeMu.TryLock() {
		if p := c.pong.Swap(nil); p != nil {
			c.control(framePong, *p)
		}
		c.writeMu.Unlock()
	}
}

func (c *Conn) unlockWrite() {
	c.writeMu.Unlock()
	c.answerPing()
}

// startPings looks after a client that may be gone without a word.
func (c *Conn) startPings() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.interval > 0 && !c.closed {
		c.pings = time.AfterFunc(c.interval, c.lookAfter)
	}
}

// lookAfter is called twice in a PingInterval. A client that was silent since
// the last time is pinged, and given up if it is still silent a PingInterval
// later. Its silence counts only while Read waits for it: while the backend
// does not take what the client sends, nobody reads its pongs either.
func (c *Conn) lookAfter() {
	c.mu.Lock()
	heard := c.wire.received.Load()
	if heard == c.heard && c.wire.reading.Load() {
		c.silent++
	} else {
		c.heard, c.silent = heard, 0
	}
	silent := c.silent
	c.mu.Unlock()

	pinged := silent != 1 || c.ping() // which may wait for the client to read

	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	if !pinged {
		c.silent = 0
	}
	if c.silent == 3 {
		c.dead = true
		c.setReadDeadline()
		return
	}
	c.pings.Reset(c.interval)
}

// ping tells whether it could send a ping. A client that is being written to
// needs none: TCP finds out about it.
func (c *Conn) ping() bool {
	if !c.writeMu.TryLock() {
		return false
	}
	defer c.unlockWrite()
	return c.control(framePing, nil) == nil
}

// onVanish calls f if the client breaks the connection while nobody reads. The
// watch has to be stopped before the next read.
func (c *Conn) onVanish(f func()) (stop func()) {
	done := make(chan struct{})
	go c.awaitVanishing(f, done)
	return func() {
		c.SetReadDeadline(time.Unix(1, 0)) // call it back
		<-done
		c.SetReadDeadline(time.Time{})
	}
}

func (c *Conn) awaitVanishing(f func(), done chan struct{}) {
	defer close(done)
	_, err := c.br.Peek(1)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		f()
	}
}

// grow gives the buffers their full size, between a Read and a Write.
func (c *Conn) grow() {
	// The library knows them by their addresses.
	ahead, _ := c.br.Peek(c.br.Buffered())
	c.wire.early = append(bytes.Clone(ahead), c.wire.early...)
	c.wire.received.Add(-int64(len(ahead)))
	*c.br = *bufio.NewReaderSize(c.wire, wsBufferSize)
	*c.bw = *bufio.NewWriterSize(c.wire, wsBufferSize)
}

// wire is the connection below a WebSocket.
type wire struct {
	net.Conn
	early    []byte       // to be read first
	received atomic.Int64 // bytes
	reading  atomic.Bool  // a Read waits
	muted    atomic.Bool  // a Close frame was sent; nothing may follow it
	closed   atomic.Bool  // the library has sent one
}

func (w *wire) Read(p []byte) (n int, err error) {
	if len(w.early) > 0 {
		n = copy(p, w.early)
		w.early = w.early[n:]
	} else {
		w.early = nil
		w.reading.Store(true)
		n, err = w.Conn.Read(p)
		w.reading.Store(false)
	}
	w.received.Add(int64(n))
	return n, err
}

// Write drops what must not follow a Close frame: the library does not know of
// it and answers the client's answer.
func (w *wire) Write(p []byte) (int, error) {
	if w.muted.Load() {
		return len(p), nil
	}
	// The library sends control frames in one write. (A part of a message may
	// look like one, and then a client that breaks the rules gets no 1002.)
	if len(p) >= 2 && p[0] == frameClose && len(p) == 2+int(p[1]) {
		w.closed.Store(true)
		// It returns the client's reason without a look at it, and would break
		// the rules itself (RFC 6455 section 5.5.1).
		if len(p) > 4 && !utf8.Valid(p[4:]) {
			_, err := w.Conn.Write(closeFrame(websocket.StatusInvalidFramePayloadData))
			return len(p), err
		}
	}
	return w.Conn.Write(p)
}

// closeFrame returns a Close frame without a reason.
func closeFrame(code websocket.StatusCode) []byte {
	return binary.BigEndian.AppendUint16([]byte{frameClose, 2}, uint16(code))
}
