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

	"github.com/coder/websocket"

	frames "gateway/internal/websocket"
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
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && err != errWrong {
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
	record   []byte       // all that was received so far; see Conn.Rest
	forgot   bool         // … is not kept any more
	early    []byte       // to be read first
	received atomic.Int64 // bytes
	reading  atomic.Bool  // a Read waits
	muted    atomic.Bool  // a Close frame was sent; nothing may follow it

	// Of reads: judges frames before the library does, which would wait for the payload of
	// one that is too large, and repeat in its Close frame what it has read.
	rules *frames.Stream
	wrong websocket.StatusCode // what the client broke; 0: nothing
}

// errWrong is the error of a read from a client that has broken the rules.
var errWrong = errors.New("a frame is wrong")

func (w *wire) Read(p []byte) (n int, err error) {
	if len(w.early) > 0 {
		n = copy(p, w.early)
		w.early = w.early[n:]
	} else {
		if w.early = nil; w.wrong != 0 {
			return 0, errWrong
		}
		w.reading.Store(true)
		n, err = w.Conn.Read(p)
		w.reading.Store(false)
		w.remember(p[:n])
		if good, code := w.rules.Check(p[:n]); code != 0 {
			w.wrong = websocket.StatusCode(code)
			if n = good; n == 0 {
				err = errWrong
			}
		}
	}
	w.received.Add(int64(n))
	return n, err
}

// recordMax bounds what is remembered of a client, in bytes: more than most sealed lines
// have.
const recordMax = 2 << 10

func (w *wire) remember(b []byte) {
	if w.forgot = w.forgot || len(w.record)+len(b) > recordMax; w.forgot {
		w.record = nil
		return
	}
	w.record = append(w.record, b...)
}

// Rest tells what somebody else has to know who is to go on with the WebSocket's
// connection: the frames that have been dealt with, of which the last may not be whole,
// and what was received behind that. It is called between a Read and a Write, and
// nothing is sent any more until GoOn; it reports false if that much is not
// remembered.
func (c *Conn) Rest() (begun, rest []byte, ok bool) {
	c.mu.Lock()
	idle := !c.closed && !c.dead && c.closeBy.IsZero() && c.wire.wrong == 0
	if idle && c.pings != nil {
		c.pings.Stop()
	}
	c.mu.Unlock()
	if !idle || c.wire.forgot {
		return nil, nil, false
	}
	c.writeMu.Lock()
	c.parted = true
	if c.torn || c.wire.muted.Load() || c.readErr != nil {
		c.GoOn()
		return nil, nil, false
	}
	record := c.wire.record
	ahead := c.br.Buffered() + len(c.wire.early)
	begun, rest = record[:len(record)-ahead], record[len(record)-ahead:]
	if b, ok := c.wire.Conn.(interface{ base() *conn }); ok {
		rest = append(rest[:len(rest):len(rest)], b.base().in.buf...)
	}
	return bytes.Clone(begun), bytes.Clone(rest), true
}

// Forget has nothing remembered for Rest.
func (c *Conn) Forget() { c.wire.record, c.wire.forgot = nil, true }

// GoOn undoes Rest.
func (c *Conn) GoOn() {
	c.parted = false
	c.unlockWrite()
	c.startPings()
}

// Write drops what must not follow a Close frame: the library does not know of
// it and answers the client's answer.
func (w *wire) Write(p []byte) (int, error) {
	if w.muted.Load() {
		return len(p), nil
	}
	return w.Conn.Write(p)
}
