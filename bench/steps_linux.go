package main

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// The steps of the load generator. Each measured one ends when everything that
// was sent has arrived, so that neither bytes nor the contender's CPU time are
// missed.

// open opens the tunnels from one on, each of which echoes a first message.
func (l *load) open(from int) error {
	remaining, next := len(l.tunnels)-from, from
	if remaining == 0 {
		return nil // there are more load generators than tunnels
	}
	for ; next < min(from+openingAtOnce, len(l.tunnels)); next++ {
		if err := l.dial(next); err != nil {
			return err
		}
	}
	length := time.Duration(remaining) * time.Millisecond
	err := l.each(&remaining, now()+int64(length), func(i int, events uint32) error {
		done, err := l.step(i, events)
		if !done {
			return err
		}
		remaining--
		if next < len(l.tunnels) {
			next++
			return l.dial(next - 1)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("opening %d tunnels: %w", len(l.tunnels)-from, err)
	}
	l.reply.Congestion, err = congestionOf(l.tunnels[from].fd)
	return err
}

// echo keeps one message under way on each busy tunnel.
func (l *load) echo(length time.Duration) error {
	begin := now()
	end := begin + int64(length)
	for i := range l.busy {
		l.tunnels[i].since = now()
		if err := l.say(i); err != nil {
			return err
		}
	}
	remaining, last := l.busy, begin
	err := l.each(&remaining, end, func(i int, events uint32) error {
		if i >= l.busy {
			return fmt.Errorf("a stalled reader was broken off: %w", socketError(l.tunnels[i].fd))
		}
		done, err := l.step(i, events)
		if !done {
			return err
		}
		t := &l.tunnels[i]
		last = now()
		l.delays.add(last - t.since)
		l.reply.Units++
		if last >= end {
			remaining--
			return nil
		}
		t.since = last
		return l.say(i)
	})
	l.reply.Elapsed = time.Duration(last - begin)
	return err
}

// short has clients connect, echo one message and close, over and over. The
// client closes first and has read everything, so no reset is sent.
func (l *load) short(length time.Duration) error {
	begin := now()
	end := begin + int64(length)
	for i := range l.tunnels {
		if err := l.dial(i); err != nil {
			return err
		}
	}
	remaining, last := len(l.tunnels), begin
	err := l.each(&remaining, end, func(i int, events uint32) error {
		done, err := l.step(i, events)
		if !done {
			return err
		}
		last = now()
		l.delays.add(last - l.tunnels[i].since)
		l.reply.Units++
		l.hangUp(i)
		if last >= end {
			remaining--
			return nil
		}
		return l.dial(i)
	})
	l.reply.Elapsed = time.Duration(last - begin)
	return err
}

// bulk moves bytes one way on all tunnels until the time is over; then the
// client finishes sending and waits for the backend to do so too, which it
// does behind the last byte.
func (l *load) bulk(op string, length time.Duration) error {
	begin := now()
	end := begin + int64(length)
	events := uint32(watchOut)
	if op == opDown {
		events = watchIn
	}
	for i := range l.tunnels {
		t := &l.tunnels[i]
		t.unsent = 1 // until it has finished sending
		if err := l.modify(t.fd, i, events); err != nil {
			return err
		}
		if op == opDown {
			if err := l.askForStream(t); err != nil {
				return err
			}
		}
	}
	remaining, finished := len(l.tunnels), false
	err := l.each(&remaining, end, func(i int, events uint32) error {
		if !finished && now() >= end {
			finished = true
			if err := l.finish(0); err != nil {
				return err
			}
		}
		t := &l.tunnels[i]
		if op == opUp && t.unsent > 0 {
			n, err := send(t.fd, l.buf[:sendBytes])
			if err != nil && err != unix.EAGAIN {
				return fmt.Errorf("sending: %w", err)
			}
			l.reply.Sent += int64(max(n, 0))
			return nil
		}
		ended, err := l.receive(t)
		if ended {
			if t.unsent > 0 {
				return errFinished
			}
			remaining--
			l.hangUp(i)
		}
		return err
	})
	l.reply.Elapsed = time.Duration(now() - begin)
	return err
}

// askForStream has the backend send until the client finishes.
func (l *load) askForStream(t *tunnel) error {
	l.reply.Sent++
	return l.sendAll(t.fd, l.msg[:1])
}

// receive drops what has come of a stream, and reports whether that has ended.
func (l *load) receive(t *tunnel) (ended bool, err error) {
	n, err := recv(t.fd, l.buf, unix.MSG_TRUNC)
	if err == unix.EAGAIN {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("receiving: %w", err)
	}
	l.reply.Rcvd += int64(n)
	return n == 0, nil
}

// finish ends the sending on all tunnels from one on.
func (l *load) finish(from int) error {
	for i := from; i < len(l.tunnels); i++ {
		t := &l.tunnels[i]
		t.unsent = 0
		shutdownWrite(t.fd)
		if err := l.modify(t.fd, i, watchIn); err != nil {
			return err
		}
	}
	return nil
}

// stalledSegment is the size of a stalled reader's segments, as over Ethernet:
// the kernel buffers MiBs of loopback's own, and the proxy would have nothing
// left to send.
const stalledSegment = 1460

// stall opens n more tunnels, which ask for a stream each and do not read it.
func (l *load) stall(n int) error {
	from := len(l.tunnels)
	l.enlarge(n)
	mode := l.msg[0]
	defer func() { l.msg[0] = mode }()
	l.msg[0] = modeFinite
	if err := l.open(from); err != nil {
		return err
	}
	for i := from; i < len(l.tunnels); i++ {
		t := &l.tunnels[i]
		if err := l.modify(t.fd, i, 0); err != nil { // epoll still tells of a reset
			return err
		}
		if err := l.askForStream(t); err != nil {
			return err
		}
	}
	return nil
}

// drain has the stalled readers finish and read the rest of their streams,
// which must be all that the backend has sent.
func (l *load) drain() error {
	if err := l.finish(l.busy); err != nil {
		return err
	}
	remaining := len(l.tunnels) - l.busy
	return l.each(&remaining, now(), func(i int, _ uint32) error {
		if i < l.busy {
			return nil
		}
		ended, err := l.receive(&l.tunnels[i])
		if ended {
			remaining--
			l.hangUp(i)
		}
		return err
	})
}

const (
	// burstsAtOnce bounds the tunnels that have a burst at the same time.
	burstsAtOnce = 16
	// burstTime bounds all bursts.
	burstTime = time.Minute
)

// burst echoes burstBytes through each tunnel.
func (l *load) burst() error {
	remaining, next := len(l.tunnels), 0
	begin := func() error {
		for next < len(l.tunnels) {
			t := &l.tunnels[next]
			next++
			t.unsent, t.want = burstBytes, burstBytes
			if done, err := l.pump(t); !done {
				return err
			}
			remaining-- // all of it came and went at once
		}
		return nil
	}
	for range burstsAtOnce {
		if err := begin(); err != nil {
			return err
		}
	}
	return l.each(&remaining, now()+int64(burstTime), func(i int, _ uint32) error {
		t := &l.tunnels[i]
		if t.want == 0 {
			return nil // not begun, or done
		}
		if done, err := l.pump(t); !done {
			return err
		}
		remaining--
		return begin()
	})
}

// pump sends and receives what can be of a burst.
func (l *load) pump(t *tunnel) (done bool, err error) {
	for t.unsent > 0 {
		n, err := send(t.fd, l.buf[:min(t.unsent, len(l.buf))])
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			return false, fmt.Errorf("sending a burst: %w", err)
		}
		t.unsent -= n
		l.reply.Sent += int64(n)
	}
	for t.want > 0 {
		n, err := recv(t.fd, l.buf[:t.want], unix.MSG_TRUNC)
		if err == unix.EAGAIN {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("receiving a burst: %w", err)
		}
		if n == 0 {
			return false, errFinished
		}
		t.want -= n
		l.reply.Rcvd += int64(n)
	}
	return t.unsent == 0, nil
}
