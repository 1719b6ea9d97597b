package kcp

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"
)

// askEvery is the time between a dialer's questions.
const askEvery = 200 * time.Millisecond

// Dial begins a session with a server. KCP has no handshake, so Dial makes one
// of what every KCP answers: it asks for the server's window, again and again,
// until something comes. That also shows the session to a server that is the
// first to speak. An error is syscall.ECONNREFUSED if the server's host says
// that nobody has the port, or else the context's; without a deadline it gives
// up after the idle timeout.
func (t *Transport) Dial(ctx context.Context, addr string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, t.IdleTimeout)
	defer cancel()
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "udp", addr)
	if err != nil {
		return nil, err
	}
	socket := connection.(*net.UDPConn)
	d := &dialed{UDPConn: socket, layout: t.layout(), buf: make([]byte, maxDatagram+1)}
	var frame *frame
	if t.key != nil {
		frame, d.frame = newFrame(t.key), newFrame(t.key)
	}
	conv := newConv()
	if err := d.ask(ctx, frame, conv, t.ReceiveWindow); err != nil {
		socket.Close()
		return nil, err
	}

	source := socket.RemoteAddr().(*net.UDPAddr).AddrPort()
	who := conversation{source, conv}
	c := t.newConn(frame, who, socket.LocalAddr(), func(*Conn) { socket.Close() })
	c.proven.Store(true)
	d.conn = c
	s, err := kcpgo.NewConn4(conv, peer{c}, nil, t.DataShards, t.ParityShards, false, d)
	if err != nil {
		c.end(err)
		return nil, err
	}
	c.attach(s)
	return c, nil
}

// newConv returns a conversation's number; not 0, which some servers refuse.
func newConv() uint32 {
	var b [4]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint32(b[:]) | 1
}

// dialed is the socket of a session that we began, connected to the server so
// that the system filters by source and reports a port that nobody has. It is
// the net.PacketConn of kcp-go's session.
type dialed struct {
	*net.UDPConn
	layout layout
	frame  *frame // of what comes
	buf    []byte // of ReadFrom, which only kcp-go's one reader calls
	first  []byte // the first answer, a packet in buf, not yet read
	conn   *Conn
}

// ask asks for the server's window until the first answer has come.
func (d *dialed) ask(ctx context.Context, f *frame, conv uint32, window int) error {
	stop := context.AfterFunc(ctx, func() { d.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		err := f.seal(control(conv, cmdAsk, window), func(b []byte) error {
			_, err := d.Write(b)
			return err
		})
		if err == nil {
			d.SetReadDeadline(time.Now().Add(askEvery))
			err = d.answer(conv)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			if !stop() {
				return context.Cause(ctx) // the deadline may be set any moment
			}
			return d.SetDeadline(time.Time{})
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		}
	}
}

// answer waits for a packet of the conversation and keeps it for ReadFrom.
func (d *dialed) answer(conv uint32) error {
	for {
		n, err := d.Read(d.buf)
		if err != nil {
			return err
		}
		packet := d.frame.open(d.buf[:n])
		if s, ok := d.layout.read(packet); ok && s.conv == conv && len(packet) <= maxPacket {
			d.first = packet
			return nil
		}
	}
}

// ReadFrom implements net.PacketConn.
func (d *dialed) ReadFrom(b []byte) (int, net.Addr, error) {
	if d.first != nil {
		n := copy(b, d.first)
		d.first = nil
		return n, peer{d.conn}, nil
	}
	for {
		n, err := d.Read(d.buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return 0, nil, err
		case errors.Is(err, syscall.ECONNREFUSED):
			d.conn.end(err)
			return 0, nil, err
		case err != nil: // it passes, but must not make this loop spin
			time.Sleep(time.Millisecond)
			continue
		}
		packet := d.frame.open(d.buf[:n])
		s, ok := d.layout.read(packet)
		if !ok || len(packet) > len(b) || !s.parity && s.conv != d.conn.who.conv {
			continue
		}
		d.conn.takes(n, &s)
		return copy(b, packet), peer{d.conn}, nil
	}
}

// WriteTo implements net.PacketConn. What cannot be sent is lost, as UDP may
// lose anything; but the report of a port that nobody has may be delivered here.
func (d *dialed) WriteTo(packet []byte, _ net.Addr) (int, error) {
	c := d.conn
	if !c.gives(len(packet)+c.frame.overhead(), packet) {
		return len(packet), nil
	}
	err := c.frame.seal(packet, func(b []byte) error {
		_, err := d.Write(b)
		return err
	})
	if errors.Is(err, syscall.ECONNREFUSED) {
		c.end(err)
	}
	return len(packet), nil
}
