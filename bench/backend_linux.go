package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// backend is the server behind every contender: one thread, one epoll set.
type backend struct {
	*poller
	conns []backendConn // by descriptor
	buf   []byte        // read and sent on at once
	bulk  []byte        // what a source sends, and where a sink drops
	seen  backendReply
}

type backendConn struct {
	mode    byte   // 0 until the first message
	started bool   // a source was told to send
	left    int64  // of what it sends
	unsent  []byte // of an echo, while the client does not read
}

// Numbers of what is watched besides connections.
const (
	numberListener = -1
	numberControl  = -2
)

// serveBackend serves until control ends. Each line on control is answered
// with what was seen so far.
func serveBackend(addr string, control int, answers io.Writer) error {
	ln, err := listenBackend(addr)
	if err != nil {
		return err
	}
	poller, err := newPoller()
	if err != nil {
		return err
	}
	b := &backend{poller: poller, buf: make([]byte, 64<<10), bulk: make([]byte, 1<<20)}
	if err := b.add(ln, numberListener, unix.EPOLLIN); err != nil {
		return err
	}
	if err := b.add(control, numberControl, unix.EPOLLIN); err != nil {
		return err
	}
	json.NewEncoder(answers).Encode(b.seen) // listening
	for {
		events, err := b.wait(time.Minute)
		if err != nil {
			return err
		}
		for _, ev := range events {
			switch number := int(ev.Fd); number {
			case numberListener:
				b.accept(ln)
			case numberControl:
				n, err := unix.Read(control, b.buf)
				if n == 0 {
					return nil
				}
				if err == nil {
					json.NewEncoder(answers).Encode(b.seen)
				}
			default:
				if !b.step(number, ev.Events) {
					b.end(number)
				}
			}
		}
	}
}

// listenBackend returns the descriptor of a listening socket. What it accepts
// inherits TCP_NODELAY, and several backends share one port.
func listenBackend(addr string) (int, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		c.Control(func(fd uintptr) {
			setNoDelay(int(fd))
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
		return err
	}}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp4", addr)
	if err != nil {
		return -1, err
	}
	defer ln.Close()
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		return -1, err
	}
	defer file.Close()
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return fd, unix.SetNonblock(fd, true)
}

func (b *backend) accept(ln int) {
	fd, err := accept(ln)
	if err != nil {
		return
	}
	for fd >= len(b.conns) {
		b.conns = append(b.conns, make([]backendConn, 1024)...)
	}
	b.conns[fd] = backendConn{}
	if b.add(fd, fd, watchEdges) != nil {
		closeSocket(fd)
		return
	}
	b.seen.Conns++
	b.seen.Open++
}

func (b *backend) end(fd int) {
	b.conns[fd] = backendConn{}
	closeSocket(fd)
	b.seen.Open--
}

// step does what an event allows, and reports false when the connection is
// done with.
func (b *backend) step(fd int, events uint32) bool {
	switch c := &b.conns[fd]; {
	case c.mode == modeSink:
		return b.sink(fd)
	case c.started:
		return b.source(fd, c, events)
	default:
		return b.echo(fd, c, events)
	}
}

// echo sends back what comes, and changes over once the first message has said
// that the rest is for another mode.
func (b *backend) echo(fd int, c *backendConn, events uint32) bool {
	for {
		if len(c.unsent) > 0 {
			n, err := send(fd, c.unsent)
			if err != nil {
				return b.goesOn(err)
			}
			b.seen.Out += int64(n)
			if c.unsent = c.unsent[n:]; len(c.unsent) > 0 {
				return true
			}
			c.unsent = nil
		}
		n, err := recv(fd, b.buf, 0)
		if err != nil {
			return b.goesOn(err)
		}
		if n == 0 {
			return false
		}
		if c.mode == 0 && b.buf[0] == modeRequest {
			// A request comes whole, or this is no place for it. Its bytes do not count.
			c.mode = modeEcho
			if n, err := send(fd, []byte(agreed)); err != nil || n < len(agreed) {
				return false
			}
			continue
		}
		b.seen.In += int64(n)
		switch c.mode {
		case 0:
			c.mode = b.buf[0]
			if c.mode == modeSink && b.modify(fd, fd, watchIn) != nil {
				return false
			}
		case modeSource, modeFinite:
			c.started = true
			if c.left = math.MaxInt64; c.mode == modeFinite {
				c.left = streamBytes
			}
			return b.modify(fd, fd, watchOut) == nil
		}
		sent, err := send(fd, b.buf[:n])
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			return b.goesOn(err)
		}
		b.seen.Out += int64(max(sent, 0))
		if sent < n {
			c.unsent = append([]byte(nil), b.buf[max(sent, 0):n]...)
			continue // the room may have come meanwhile, without an edge
		}
		if n < len(b.buf) && events&unix.EPOLLRDHUP == 0 {
			return true
		}
	}
}

func (b *backend) sink(fd int) bool {
	n, err := recv(fd, b.bulk, unix.MSG_TRUNC)
	if err != nil {
		return b.goesOn(err)
	}
	b.seen.In += int64(n)
	return n > 0
}

func (b *backend) source(fd int, c *backendConn, events uint32) bool {
	if events&unix.EPOLLRDHUP != 0 {
		return false
	}
	n, err := send(fd, b.bulk[:min(sendBytes, c.left)])
	if err != nil {
		return b.goesOn(err)
	}
	b.seen.Out += int64(n)
	if c.left -= int64(n); c.left == 0 {
		return b.modify(fd, fd, watchIn) == nil
	}
	return true
}

// sendBytes is what a bulk sender hands over in one call.
const sendBytes = 256 << 10

// goesOn reports whether a failed call was only too early.
func (b *backend) goesOn(err error) bool {
	if errors.Is(err, unix.EAGAIN) {
		return true
	}
	b.seen.Resets++
	return false
}

// endpointsOf parses "a.b.c.d:port" addresses.
func endpointsOf(addrs []string) ([]*endpoint, error) {
	var list []*endpoint
	for _, a := range addrs {
		ap, err := netip.ParseAddrPort(a)
		if err != nil {
			return nil, err
		}
		list = append(list, endpointOf(ap))
	}
	return list, nil
}
