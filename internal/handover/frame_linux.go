package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"golang.org/x/sys/unix"
)

// word says what a frame is.
type word uint8

const (
	hello word = iota + 1
	agree
	refuse
	state
	batch
	taken
	busy
	neverMind
	idle
)

const (
	headerSize = 16
	// maxBody bounds what is believed of a length, in bytes.
	maxBody = 256 << 20
)

// frame is what one process says to the other: a header of headerSize bytes, with
// which descriptors come, and a body.
type frame struct {
	word   word
	fds    []int
	number uint64 // of a batch; the version in hello and agree
	body   []byte
}

// wire is one end of the stream.
type wire struct{ conn *net.UnixConn }

// write sends a frame. The header goes by itself: it is so small that it is taken as a
// whole or not at all, and with it the descriptors.
func (w wire) write(f frame) error {
	var h [headerSize]byte
	h[0] = byte(f.word)
	binary.LittleEndian.PutUint16(h[2:], uint16(len(f.fds)))
	binary.LittleEndian.PutUint32(h[4:], uint32(len(f.body)))
	binary.LittleEndian.PutUint64(h[8:], f.number)
	var rights []byte
	if len(f.fds) > 0 {
		rights = unix.UnixRights(f.fds...)
	}
	if _, _, err := w.conn.WriteMsgUnix(h[:], rights, nil); err != nil {
		return err
	}
	if len(f.body) == 0 {
		return nil
	}
	_, err := w.conn.Write(f.body)
	return err
}

// errFewDescriptors says that not all descriptors of a frame have come: this process
// has as many as it may.
var errFewDescriptors = errors.New("as many descriptors as the limit allows")

// read receives a frame. The descriptors are the caller's. With errFewDescriptors it
// has none, and the frame was read to its end. io.EOF comes between two frames only.
func (w wire) read() (frame, error) {
	var h [headerSize]byte
	fds, cut, err := w.readHeader(h[:])
	f := frame{
		word:   word(h[0]),
		fds:    fds,
		number: binary.LittleEndian.Uint64(h[8:]),
	}
	size := binary.LittleEndian.Uint32(h[4:])
	switch {
	case err != nil:
	case size > maxBody:
		err = fmt.Errorf("a frame of %d bytes: %w", size, ErrUnreadable)
	default:
		f.body = make([]byte, size)
		if _, err = io.ReadFull(w.conn, f.body); err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
	}
	if err == nil && (cut || len(fds) != int(binary.LittleEndian.Uint16(h[2:]))) {
		err = errFewDescriptors
	}
	if err != nil {
		closeAll(f.fds)
		f.fds = nil
	}
	return f, err
}

// readHeader reads a header and the descriptors with it, and tells whether some of
// them got lost.
func (w wire) readHeader(h []byte) (fds []int, cut bool, err error) {
	room := make([]byte, unix.CmsgSpace(MaxDescriptors*4))
	for at := 0; at < len(h); {
		n, size, flags, _, err := w.conn.ReadMsgUnix(h[at:], room)
		if size > 0 {
			got, perr := parseRights(room[:size])
			fds = append(fds, got...)
			cut = cut || perr != nil
		}
		cut = cut || flags&unix.MSG_CTRUNC != 0
		if err == nil && n == 0 || errors.Is(err, io.EOF) { // package net dresses it up
			err = io.EOF
		}
		if err != nil {
			closeAll(fds)
			if err == io.EOF && at > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, cut, err
		}
		at += n
	}
	return fds, cut, nil
}

func parseRights(b []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(b)
	for i := range messages {
		got, perr := unix.ParseUnixRights(&messages[i])
		fds, err = append(fds, got...), errors.Join(err, perr)
	}
	return fds, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// descriptorsOf returns those of tunnels, in order.
func descriptorsOf(tunnels []Tunnel) []int {
	var fds []int
	for i := range tunnels {
		for _, p := range tunnels[i].fds() {
			fds = append(fds, *p)
		}
	}
	return fds
}

// giveDescriptors puts descriptors to where they belong. It reports false if there
// are more or less.
func giveDescriptors(tunnels []Tunnel, fds []int) bool {
	rest := slices.Clone(fds)
	for i := range tunnels {
		for _, p := range tunnels[i].fds() {
			if len(rest) == 0 {
				return false
			}
			*p, rest = rest[0], rest[1:]
		}
	}
	return len(rest) == 0
}
