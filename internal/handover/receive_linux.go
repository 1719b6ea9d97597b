package handover

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Receiver takes the tunnels of another process. It is for one goroutine at a time.
type Receiver struct {
	wire
	version int // of what comes

	// Room, if set, is asked before a batch is taken. With an error it is not, for
	// now.
	Room func(tunnels []Tunnel) error
	// Idle, if set, is told when the old process has no more for now, and when it has.
	Idle func(idle bool)
	// State, if set, gets what the old process has to say besides.
	State func(name string, text []byte)
}

// Refuse answers to a process that offers tunnels, and why it is to keep them. It
// owns the stream.
func Refuse(conn *net.UnixConn, why string) {
	defer conn.Close()
	w := wire{conn}
	f, err := w.read()
	closeAll(f.fds)
	if err == nil {
		w.write(frame{word: refuse, body: []byte(why)}) // who is gone keeps them too
	}
}

// NewReceiver agrees to take what comes by a stream, which it owns from here on. It
// waits for the offer. The error says why there is none, or none that this process
// can take.
func NewReceiver(conn *net.UnixConn) (*Receiver, error) {
	r := &Receiver{wire: wire{conn}}
	f, err := r.read()
	closeAll(f.fds)
	switch {
	case err != nil:
	case f.word != hello:
		err = fmt.Errorf("the old process begins with %d: %w", f.word, ErrUnreadable)
	case f.number < oldest || f.number > Version:
		why := fmt.Sprintf("its tunnels are written in version %d, and this program reads %d to %d", f.number, oldest, Version)
		err = errors.New("the old process keeps its tunnels: " + why)
		r.write(frame{word: refuse, body: []byte(why)}) // who is gone keeps them too
	default:
		r.version = int(f.number)
		err = r.write(frame{word: agree, number: f.number})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return r, nil
}

// Next waits for tunnels and takes them. They are the caller's alone. The error is
// io.EOF once the old process sends no more. A read deadline of the connection ends
// the wait.
func (r *Receiver) Next() ([]Tunnel, error) {
	for {
		f, err := r.read()
		if err != nil && err != errFewDescriptors {
			return nil, err
		}
		if f.word != batch {
			if err := r.other(f); err != nil {
				return nil, err
			}
			continue
		}
		r.tellIdle(false)
		at("received", f.number)
		tunnels, why := []Tunnel(nil), err
		if why == nil {
			tunnels, err = Decode(f.body, r.version)
			if err != nil || len(tunnels) == 0 || !giveDescriptors(tunnels, f.fds) {
				closeAll(f.fds)
				return nil, fmt.Errorf("batch %d: %w", f.number, ErrUnreadable)
			}
			if r.Room != nil {
				why = r.Room(tunnels)
			}
		}
		if why != nil {
			closeAll(f.fds)
			if err := r.write(frame{word: busy, number: f.number, body: []byte(why.Error())}); err != nil {
				return nil, err
			}
			continue
		}
		if r.take(f.number) {
			at("taken", f.number)
			return tunnels, nil
		}
		closeAll(f.fds)
		return nil, fmt.Errorf("the old process wants to keep batch %d", f.number)
	}
}

// other deals with what is no batch.
func (r *Receiver) other(f frame) error {
	closeAll(f.fds)
	switch f.word {
	case state:
		b := reader{rest: f.body}
		name := string(b.bytes())
		if b.bad {
			return ErrUnreadable
		}
		if r.State != nil {
			r.State(name, b.rest)
		}
	case idle:
		r.tellIdle(true)
	case neverMind:
		return io.EOF
	default:
		return fmt.Errorf("the old process says %d: %w", f.word, ErrUnreadable)
	}
	return nil
}

// take says that a batch is this process's, and tells whether it is.
func (r *Receiver) take(number uint64) bool {
	at("take", number)
	err := r.write(frame{word: taken, number: number})
	if err == nil {
		return true
	}
	// Nobody reads it any more. What was said last stands in the queue: an old
	// process that goes on has said so before it closed its end, and one that has
	// died has not, and relays no more.
	r.conn.SetDeadline(time.Now().Add(time.Second))
	f, err := r.read()
	closeAll(f.fds)
	return err == io.EOF && f.word == 0
}

func (r *Receiver) tellIdle(idle bool) {
	if r.Idle != nil {
		r.Idle(idle)
	}
}

// Close ends the stream. The old process keeps what was not taken.
func (r *Receiver) Close() { r.conn.Close() }
