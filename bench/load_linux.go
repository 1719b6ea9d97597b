package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// load is the load generator: all clients in one thread and one epoll set. A
// client waits for each answer before it sends again, so the load follows the
// contender's speed.
type load struct {
	*poller
	targets   []*endpoint
	lines     [][]byte // none: no handshake
	status    string   // what they get
	msg       []byte   // template of every message; see stamp
	out, back int      // bytes of msg and of answer that are a frame's head
	answer    []byte   // the same with another head; nil: the same
	upgrade   upgradeKind
	buf       []byte
	tunnels   []tunnel
	busy      int // tunnels that have messages; behind them are stalled readers
	dialed    int
	reply     loadReply
	delays    *histogram

	// patience is how long after its regular end a step may still go on. It is
	// generous: a packet that a full queue drops comes again after a second.
	patience time.Duration
}

// tunnel is one client's connection, known to epoll by its place in the list.
type tunnel struct {
	fd     int
	state  tunnelState
	line   []byte // sealed, with its newline; nil: no handshake
	want   int    // bytes of the answer that are still to come
	unsent int    // bytes of a burst
	count  uint64 // messages
	kept   []byte // of resumable tunnels: a part of a frame
	read   uint32 // … bytes of the backend
	acked  uint32 // … of which the gateway was told
	since  int64  // when the message went out, or the connection began
}

type tunnelState byte

const (
	connecting tunnelState = iota
	asking                 // the line is out, 200 is awaited
	waiting                // the message is out, its echo is awaited
	resting
)

const (
	statusOK      = "200"
	statusRefused = "401"
	// openingAtOnce bounds the tunnels that are being opened side by side, so
	// that no listener's queue overflows.
	openingAtOnce = 64
)

var start = time.Now()

// now is a monotonic clock in nanoseconds.
func now() int64 { return int64(time.Since(start)) }

func newLoad() (*load, error) {
	poller, err := newPoller()
	return &load{poller: poller, buf: make([]byte, 1<<20), patience: patience}, err
}

// do performs one step.
func (l *load) do(req loadRequest) loadReply {
	l.reply.Err, l.reply.Units, l.reply.Elapsed = "", 0, 0
	l.reply.Latencies, l.reply.Congestion = nil, ""
	l.delays = new(histogram)
	var err error
	switch req.Op {
	case opOpen:
		if err = l.prepare(req); err == nil {
			err = l.open(0)
		}
	case opShort, opRefuse:
		if err = l.prepare(req); err == nil {
			err = l.short(req.Time)
		}
	case opEcho:
		err = l.echo(req.Time)
	case opUp, opDown:
		err = l.bulk(req.Op, req.Time)
	case opBurst:
		err = l.burst()
	case opStall:
		err = l.stall(req.Tunnels)
	case opDrain:
		err = l.drain()
	case opClose:
		l.close()
	default:
		err = fmt.Errorf("unknown step %q", req.Op)
	}
	if err != nil {
		l.reply.Err = err.Error()
		l.close()
	}
	l.reply.Latencies = l.delays.pairs()
	return l.reply
}

func (l *load) prepare(req loadRequest) error {
	l.close()
	l.reply = loadReply{}
	targets, err := endpointsOf(req.Targets)
	if err != nil {
		return err
	}
	l.targets, l.lines, l.dialed = targets, nil, 0
	l.status = statusOK
	if req.Op == opRefuse {
		l.status = statusRefused
	}
	l.upgrade = req.Upgrade
	for _, line := range req.Lines {
		if line += "\n"; l.upgrade != "" {
			line = l.upgrade.ask(line[:len(line)-1])
		}
		l.lines = append(l.lines, []byte(line))
	}
	out, back := l.upgrade.frames(req.Size)
	l.out, l.back = len(out), len(back)
	payload := bytes.Repeat([]byte{'.'}, req.Size)
	payload[0] = req.Mode
	l.msg, l.answer = append(out, payload...), nil
	if !bytes.Equal(out, back) {
		l.answer = append(back, payload...)
	}
	l.busy = req.Tunnels
	l.enlarge(req.Tunnels)
	return nil
}

// enlarge makes room for n more tunnels.
func (l *load) enlarge(n int) {
	for range n {
		l.tunnels = append(l.tunnels, tunnel{fd: -1})
	}
}

// dial begins tunnel i.
func (l *load) dial(i int) error {
	fd, err := newSocket()
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	t := &l.tunnels[i]
	*t = tunnel{fd: fd, count: t.count, since: now()}
	if len(l.lines) > 0 {
		t.line = l.lines[l.dialed%len(l.lines)]
	}
	target := l.targets[l.dialed%len(l.targets)]
	l.dialed++
	setNoDelay(fd)
	if i >= l.busy {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, stalledSegment); err != nil {
			return fmt.Errorf("TCP_MAXSEG: %w", err)
		}
	}
	if err := connect(fd, target); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return l.add(fd, i, watchEdges)
}

// step moves tunnel i on to its first or next echo, and reports whether that
// has come.
func (l *load) step(i int, events uint32) (done bool, err error) {
	t := &l.tunnels[i]
	switch t.state {
	case connecting:
		if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
			return false, fmt.Errorf("connect: %w", socketError(t.fd))
		}
		if events&unix.EPOLLOUT == 0 {
			return false, nil
		}
		if t.line == nil {
			return false, l.say(i)
		}
		t.state, t.want = asking, len(l.status)
		if l.upgrade != "" {
			t.want = 0
		}
		return false, l.sendAll(t.fd, t.line)
	case asking:
		if l.upgrade == roaming {
			if done, err := l.greeted(t); !done {
				return false, err
			}
			return false, l.say(i)
		}
		if l.upgrade != "" {
			if done, err := l.switched(t); !done {
				return false, err
			}
			return false, l.say(i)
		}
		if done, err := l.hear(t, []byte(l.status)); !done {
			return false, err
		}
		if l.status != statusOK {
			t.state = resting
			return true, nil
		}
		return false, l.say(i)
	case waiting:
		hear := l.hear
		if l.upgrade == roaming {
			hear = l.hearFrames
		}
		if done, err = hear(t, l.echoOf(i)); done {
			l.reply.Rcvd += l.counted()
			t.state = resting
		}
	}
	return done, err
}

// stamp makes l.msg the current message of tunnel i, different from every
// other one where there is room.
func (l *load) stamp(i int) []byte {
	if payload := l.msg[l.out:]; len(payload) >= 24 {
		binary.LittleEndian.PutUint64(payload[8:], uint64(i))
		binary.LittleEndian.PutUint64(payload[16:], l.tunnels[i].count)
	}
	return l.msg
}

// echoOf returns the answer to the current message of tunnel i.
func (l *load) echoOf(i int) []byte {
	msg := l.stamp(i)
	if l.answer == nil { // it looks the same
		return msg
	}
	copy(l.answer[l.back:], msg[l.out:])
	return l.answer
}

// counted returns how many bytes of a message the backend sees.
func (l *load) counted() int64 {
	if l.upgrade == ended || l.upgrade == roaming {
		return int64(len(l.msg) - l.out)
	}
	return int64(len(l.msg))
}

func (l *load) say(i int) error {
	t := &l.tunnels[i]
	t.count++
	t.state, t.want = waiting, len(l.msg)-l.out+l.back
	l.reply.Sent += l.counted()
	if l.upgrade == roaming {
		return l.sayFrames(t, l.stamp(i))
	}
	return l.sendAll(t.fd, l.stamp(i))
}

// sendAll sends little on a connection that has nothing under way.
func (l *load) sendAll(fd int, b []byte) error {
	n, err := send(fd, b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	return nil
}

var errFinished = errors.New("the contender closed the connection")

// some receives into b what has come of an answer, at least a byte; 0 says that the rest is
// still under way. A part may have come in one event with the end of the connection, so
// only EAGAIN proves that.
func (l *load) some(t *tunnel, b []byte, of string) (n int, err error) {
	n, err = recv(t.fd, b, 0)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("waiting for %s: %w", of, err)
	case n == 0:
		return 0, errFinished
	}
	return n, nil
}

// hear receives what remains of an answer, and reports whether it is complete.
func (l *load) hear(t *tunnel, answer []byte) (bool, error) {
	for t.want > 0 {
		n, err := l.some(t, l.buf[:t.want], "an answer")
		if n == 0 {
			return false, err
		}
		from := len(answer) - t.want
		if !bytes.Equal(l.buf[:n], answer[from:from+n]) {
			return false, fmt.Errorf("answered %.40q, not %.40q", l.buf[:n], answer[from:])
		}
		t.want -= n
	}
	return true, nil
}

// each waits for events and hands them to f until remaining is 0 or it is too
// late.
func (l *load) each(remaining *int, end int64, f func(i int, events uint32) error) error {
	for *remaining > 0 {
		events, err := l.wait(100 * time.Millisecond)
		if err != nil {
			return err
		}
		for _, ev := range events {
			if err := f(int(ev.Fd), ev.Events); err != nil {
				return err
			}
		}
		if now() > end+int64(l.patience) {
			return fmt.Errorf("%d of %d tunnels got no answer in time", *remaining, len(l.tunnels))
		}
	}
	return nil
}

func (l *load) close() {
	for i := range l.tunnels {
		l.hangUp(i)
	}
	l.tunnels = nil
}

func (l *load) hangUp(i int) {
	if t := &l.tunnels[i]; t.fd >= 0 {
		if l.upgrade == ended {
			send(t.fd, []byte{0x88, 0x80, 0, 0, 0, 0}) // or it would be a reset
		}
		if l.upgrade == roaming {
			finishFrames(t.fd)
		}
		closeSocket(t.fd)
		t.fd = -1
	}
}
