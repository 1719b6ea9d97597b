package main

import (
	"bytes"
	"fmt"
)

// Workloads of resumable tunnels, as far as they are not resumed: what their frames and
// acknowledgements cost a message. docs/roaming.md has the protocol.

const (
	frameHead = 2
	ackSize   = 7
	// ackEach is after how many bytes a client says how many it has read, in front of
	// its next message.
	ackEach = 4 << 10
)

// plainKey asks for a tunnel without an exchange of keys, which -resume-plain=1 takes.
const plainKey = "~1N - "

// greeted reads the answer to a request for a resumable tunnel, and reports whether it is
// whole: the status, and a frame that has a length behind its type.
func (l *load) greeted(t *tunnel) (bool, error) {
	for {
		n, err := l.some(t, l.buf[:4<<10], "a HELLO")
		if n == 0 {
			return false, err
		}
		t.kept = append(t.kept, l.buf[:n]...)
		head := []byte(statusOK + "\x00\x00\x06")
		if k := min(len(head), len(t.kept)); !bytes.Equal(t.kept[:k], head[:k]) {
			return false, fmt.Errorf("answered %.60q, not a HELLO", t.kept)
		}
		if rest := t.kept[min(len(head), len(t.kept)):]; len(rest) >= 2 && len(rest) == 2+int(rest[0])<<8+int(rest[1]) {
			t.kept = nil
			return true, nil
		}
	}
}

// sayFrames sends a message, behind what is due to be acknowledged.
func (l *load) sayFrames(t *tunnel, msg []byte) error {
	if t.read-t.acked < ackEach {
		return l.sendAll(t.fd, msg)
	}
	t.acked = t.read
	b := append(l.buf[:0], 0, 0, 1, byte(t.read>>24), byte(t.read>>16), byte(t.read>>8), byte(t.read))
	return l.sendAll(t.fd, append(b, msg...))
}

// hearFrames is hear where acknowledgements come in between, which are dropped.
func (l *load) hearFrames(t *tunnel, answer []byte) (bool, error) {
	for t.want > 0 {
		kept := copy(l.buf, t.kept)
		n, err := l.some(t, l.buf[kept:kept+t.want+ackSize], "an answer")
		if n == 0 {
			return false, err
		}
		b := l.buf[:kept+n]
		t.kept = t.kept[:0]
		for len(b) > 0 {
			if len(b) < frameHead+1 && t.want == len(answer) || b[0] == 0 && b[1] == 0 && len(b) < ackSize && t.want == len(answer) {
				t.kept = append(t.kept, b...) // part of what may be an acknowledgement
				break
			}
			if t.want == len(answer) && b[0] == 0 && b[1] == 0 {
				b = b[ackSize:]
				continue
			}
			from := len(answer) - t.want
			k := min(len(b), t.want)
			if k == 0 || !bytes.Equal(b[:k], answer[from:from+k]) {
				return false, fmt.Errorf("answered %.40q, not %.40q", b, answer[from:])
			}
			t.want -= k
			b = b[k:]
			if t.want == 0 && len(b) > 0 {
				return false, fmt.Errorf("%d bytes too many", len(b))
			}
		}
	}
	t.read += uint32(len(answer) - frameHead)
	return true, nil
}

// finishFrames ends what a client sends. The gateway forgets the tunnel a while later.
func finishFrames(fd int) { send(fd, []byte{0, 0, 2}) }
