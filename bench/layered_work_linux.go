package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// What clients in a layer do while a clock runs: each has a goroutine.

// toil is what one client has done.
type toil struct {
	units, sent, rcvd int64
	last              int64 // when its last unit was done
	delays            histogram
	err               error
}

// work has all clients do what a step asks for until its time is over.
func (l *layered) work(req loadRequest) error {
	if req.Op == opShort {
		l.close()
		l.reply = loadReply{}
	}
	begin := now()
	end := begin + int64(req.Time)
	all := make([]*toil, req.Tunnels)
	var working sync.WaitGroup
	for i := range all {
		t := new(toil)
		all[i] = t
		working.Go(func() {
			switch req.Op {
			case opEcho:
				t.echo(l.conns[i], l.size, end)
			case opUp, opDown:
				t.bulk(l.conns[i], req.Op, end)
			case opShort:
				t.short(req, i, end)
			}
		})
	}
	working.Wait()
	var delays histogram
	var last int64
	for _, t := range all {
		if t.err != nil {
			return t.err
		}
		l.reply.Units += t.units
		l.reply.Sent += t.sent
		l.reply.Rcvd += t.rcvd
		last = max(last, t.last)
		delays.addPairs(t.delays.pairs())
	}
	l.reply.Elapsed, l.reply.Latencies = time.Duration(last-begin), delays.pairs()
	return nil
}

// echo keeps one message under way.
func (t *toil) echo(conn net.Conn, size int, end int64) {
	message, back := bytes.Repeat([]byte{'.'}, size), make([]byte, size)
	for since := now(); since < end && t.err == nil; since = t.last {
		t.roundTrip(conn, message, back, since)
	}
}

// roundTrip sends a message and reads it back.
func (t *toil) roundTrip(conn net.Conn, message, back []byte, since int64) {
	t.sent += int64(len(message))
	_, err := conn.Write(message)
	if err == nil {
		_, err = io.ReadFull(conn, back)
	}
	switch {
	case err != nil:
		t.err = fmt.Errorf("echoing: %w", err)
	case !bytes.Equal(back, message):
		t.err = fmt.Errorf("of a message of %d bytes others came back", len(message))
	default:
		t.rcvd += int64(len(back))
		t.units++
		t.last = now()
		t.delays.add(t.last - since)
	}
}

// bulk moves bytes one way until the time is over; then the client finishes sending and
// waits for the backend to do so too.
func (t *toil) bulk(conn net.Conn, op string, end int64) {
	conn.SetDeadline(time.Now().Add(time.Duration(end-now()) + patience))
	buf := make([]byte, sendBytes)
	if op == opDown {
		if _, t.err = conn.Write(buf[:1]); t.err != nil {
			return
		}
		t.sent++
	}
	for now() < end {
		if op == opUp {
			n, err := conn.Write(buf)
			t.sent += int64(n)
			t.err = err
		} else {
			n, err := conn.Read(buf)
			t.rcvd += int64(n)
			t.err = err
		}
		if t.err != nil {
			t.err = fmt.Errorf("in the middle of a stream: %w", t.err)
			return
		}
	}
	t.finish(conn, buf)
}

// finish finishes sending and reads to the end.
func (t *toil) finish(conn net.Conn, buf []byte) {
	closer, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		t.err = fmt.Errorf("%T has no half-close", conn)
		return
	}
	if t.err = closer.CloseWrite(); t.err != nil {
		return
	}
	for {
		n, err := conn.Read(buf)
		t.rcvd += int64(n)
		if err == io.EOF {
			t.last = now()
			return
		}
		if err != nil {
			t.err = fmt.Errorf("waiting for the end of a stream: %w", err)
			return
		}
	}
}

// short connects, echoes a message and closes, over and over.
func (t *toil) short(req loadRequest, client int, end int64) {
	message, back := bytes.Repeat([]byte{'.'}, req.Size), make([]byte, req.Size)
	message[0] = req.Mode
	for n, since := client, now(); since < end && t.err == nil; n, since = n+1, now() {
		conn, err := dialLayered(req.Via, req.Targets[n%len(req.Targets)], req.lineOf(n))
		if err != nil {
			t.err = fmt.Errorf("opening: %w", err)
			return
		}
		if t.roundTrip(conn, message, back, since); t.err == nil {
			t.finish(conn, back[:1])
		}
		conn.Close()
	}
}
