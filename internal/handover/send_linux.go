package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Sender gives tunnels to another process. It is for one goroutine at a time.
type Sender struct {
	wire
	patience time.Duration
	number   uint64 // of the last batch
	idle     bool   // it was told that there is no more for now
	broken   error  // the stream is of no more use
}

// NewSender begins to hand over by a stream, which it owns from here on, and waits
// until the other process has agreed, or ctx ends. first is for that, and patience for each
// answer later: a process that takes longer is not waited for any more. The error is
// [ErrRefused], with the reason, [ErrSilent], or the stream's.
func NewSender(ctx context.Context, conn *net.UnixConn, first, patience time.Duration) (*Sender, error) {
	s := &Sender{wire: wire{conn}, patience: patience}
	conn.SetWriteBuffer(sendBuffer)
	conn.SetDeadline(time.Now().Add(first))
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if err := s.write(frame{word: hello, number: Version}); err != nil {
		return nil, err
	}
	f, err := s.read()
	closeAll(f.fds)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil:
		return nil, ErrSilent
	case err != nil:
		return nil, fmt.Errorf("no answer to the offer of tunnels: %w", err)
	case f.word == refuse:
		return nil, fmt.Errorf("%w: %s", ErrRefused, f.body)
	case f.word != agree:
		return nil, fmt.Errorf("the new process answers %d to the offer of tunnels", f.word)
	}
	return s, nil
}

// expect begins to wait for an answer.
func (s *Sender) expect() { s.conn.SetDeadline(time.Now().Add(s.patience)) }

// State tells the other process something that it should know before it gets more
// tunnels.
func (s *Sender) State(name string, text []byte) error {
	if s.broken != nil {
		return s.broken
	}
	s.expect()
	if err := s.write(frame{word: state, body: append(appendBytes(nil, name), text...)}); err != nil {
		s.fail(err, false)
	}
	return s.broken
}

// Send gives tunnels away, at least one and with at most [MaxDescriptors]
// descriptors. If it returns nil, they are the other process's alone, and the caller
// closes its descriptors without another word to the peers. With any error they are
// the caller's as before. After ErrBusy it may be tried again; any other error ends
// the stream.
func (s *Sender) Send(tunnels []Tunnel) error {
	if s.broken != nil {
		return s.broken
	}
	s.idle = false
	s.number++
	s.expect()
	at("send", s.number)
	err := s.write(frame{word: batch, fds: descriptorsOf(tunnels), number: s.number, body: Append(nil, tunnels)})
	if errors.Is(err, unix.ETOOMANYREFS) { // nothing was sent
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	whole := err == nil
	if whole {
		at("sent", s.number)
		var f frame
		if f, err = s.read(); err == nil {
			at("answered", s.number)
			return s.answer(f)
		}
	}
	s.fail(err, whole)
	if s.tookAnyway() {
		return nil
	}
	return s.broken
}

// answer is what becomes of a batch.
func (s *Sender) answer(f frame) error {
	closeAll(f.fds)
	switch {
	case f.word == taken && f.number == s.number:
		return nil
	case f.word == busy && f.number == s.number:
		return fmt.Errorf("%w: %s", ErrBusy, f.body)
	}
	s.fail(fmt.Errorf("the new process answers %d about batch %d to batch %d", f.word, f.number, s.number), true)
	return s.broken
}

// fail ends the stream. From here on the other process cannot answer any more. whole
// says that it may have all of a batch.
func (s *Sender) fail(err error, whole bool) {
	s.broken = err
	at("give up", s.number)
	if whole {
		s.neverMind()
	}
	at("never mind", s.number)
	if raw, err := s.conn.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
	s.expect() // what is there already
}

const (
	// sendBuffer is the size of the stream's buffer, in bytes, until it fails.
	sendBuffer = 64 << 10
	// lastBuffer has room for one word more than that.
	lastBuffer = 80 << 10
)

// neverMind writes that. The other process may hang, and have read nothing for long,
// but has to find it if it ever goes on: it takes tunnels whose old process has ended
// without a word.
func (s *Sender) neverMind() {
	s.conn.SetWriteBuffer(lastBuffer)
	s.conn.SetWriteDeadline(time.Time{})
	s.write(frame{word: neverMind}) // fails only where nobody is left to read it
}

// tookAnyway tells whether the other process has taken the last batch, after fail:
// its answer may have come a moment too late to be read before.
func (s *Sender) tookAnyway() bool {
	for {
		f, err := s.read()
		closeAll(f.fds)
		if err != nil {
			return false
		}
		if f.word == taken && f.number == s.number {
			return true
		}
	}
}

// Idle says that there is nothing to send for now.
func (s *Sender) Idle() error {
	if s.broken != nil || s.idle {
		return s.broken
	}
	s.expect()
	if err := s.write(frame{word: idle}); err != nil {
		s.fail(err, false)
	}
	s.idle = true
	return s.broken
}

// Close ends the stream. It must not be called during Send.
func (s *Sender) Close() { s.conn.Close() }
