package uring

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// try has the ring do all that is expected of it, on sockets of its own. What it
// needs came one by one: that the flags of a receive are heeded, and that a short
// send does not pass for a whole one, which would lose bytes.
func (r *Ring) try() error {
	if len(r.results) < 2 {
		return errors.New("io_uring: want 2 slots or more")
	}
	var pair [2]int32
	for i := range pair {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socketpair", err)
		}
		defer unix.Close(p[0])
		defer unix.Close(p[1])
		unix.SetsockoptInt(p[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 1) // the least there is
		pair = [2]int32{int32(p[0]), int32(p[1])}
		if i == 0 {
			err = r.tryMessage(pair)
		} else {
			err = r.tryShortSend(pair)
		}
		if err != nil {
			return fmt.Errorf("io_uring does not do here what is needed: %w", err)
		}
	}
	return nil
}

// tryMessage passes a message, and receives where there is nothing.
func (r *Ring) tryMessage(pair [2]int32) error {
	message := []byte("message")
	n := copy(r.Slot(0), message)
	r.Send(pair[0], 0, n)
	if err := r.submitFor(0, n, nil); err != nil {
		return err
	}
	r.Recv(pair[1], 1, SlotSize)
	if err := r.submitFor(1, n, nil); err != nil {
		return err
	}
	if got := r.Slot(1)[:n]; !bytes.Equal(got, message) {
		return fmt.Errorf("received %q, want %q", got, message)
	}
	r.Recv(pair[1], 1, SlotSize)
	return r.submitFor(1, 0, unix.EAGAIN)
}

// tryShortSend sends more than a socket takes, until it takes nothing.
func (r *Ring) tryShortSend(pair [2]int32) error {
	sent, short := 0, false
	for {
		whole := len(r.memory.slots) // of one slot, a local socket takes all or nothing
		r.Send(pair[0], 0, whole)
		if err := r.Submit(); err != nil {
			return err
		}
		n, err := r.Result(0)
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			return err
		}
		sent += n
		short = short || n < whole
		if sent > 16<<20 {
			return errors.New("a send that finds no room is not told")
		}
	}
	received := 0
	for {
		n, err := unix.Read(int(pair[1]), r.Slot(1))
		if err != nil || n == 0 {
			break
		}
		received += n
	}
	if !short || received != sent {
		return fmt.Errorf("%d bytes are told to be sent, and %d arrive", sent, received)
	}
	return nil
}

// submitFor submits one entry and compares what came of it.
func (r *Ring) submitFor(slot, want int, wantErr error) error {
	err := r.Submit()
	if err != nil {
		return err
	}
	if n, err := r.Result(slot); n != want || err != wantErr {
		return fmt.Errorf("%d, %v; want %d, %v", n, err, want, wantErr)
	}
	return nil
}
