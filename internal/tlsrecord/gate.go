// Package tlsrecord keeps what an unproven TLS client sends out of the process
// until there is something to be done with it.
//
// crypto/tls makes room for a whole record as soon as it knows its length, up to
// 16 KiB, and a client may stop right there. So a Gate shows crypto/tls a record
// only when all of it is in the kernel, which bounds what it holds anyway.
package tlsrecord

import (
	"errors"
	"net"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"

	"gateway/internal/layer"
	"gateway/internal/sockopt"
)

const (
	headerSize = 5             // RFC 8446 section 5.1
	maxRecord  = 16<<10 + 2048 // what crypto/tls takes, RFC 5246 section 6.2.3

	// maxHandshake bounds what a client sends behind its first ClientHello before
	// the handshake is done, in bytes: a second one, and its Finished.
	maxHandshake = 16 << 10

	// takeSize is how much is taken out of the kernel at a time that has no room for a
	// whole record.
	takeSize = 512
)

// ErrHandshakeTooLong is a handshake that takes more bytes than any needs.
var ErrHandshakeTooLong = errors.New("the TLS handshake takes too many bytes")

// Gate is a connection under a TLS server. It is for one reader at a time.
type Gate struct {
	net.Conn
	early  []byte          // read already
	raw    syscall.RawConn // nil: records pass as they come
	known  int             // bytes that are in the kernel for certain
	left   int             // bytes of the current record that are still to be read
	quota  int             // of the handshake
	bound  bool            // by quota
	opened atomic.Bool
}

// NewGate returns a gate to a connection of which early has been read already: a
// whole ClientHello, and perhaps more.
func NewGate(c net.Conn, early []byte) *Gate {
	g := &Gate{Conn: c, early: early, quota: maxHandshake, bound: true}
	if runtime.GOOS == "linux" { // elsewhere nobody can wait for that many bytes
		g.raw = layer.RawConn(c)
	}
	return g
}

// HandshakeDone lifts the bound on the handshake's bytes.
func (g *Gate) HandshakeDone() { g.bound = false }

// Open lets everything pass from now on: the client is proven. It may be called
// while another goroutine reads.
func (g *Gate) Open() { g.opened.Store(true) }

// Held returns what was read and not passed on, which is good until the next Read.
func (g *Gate) Held() []byte { return g.early }

// NetConn returns the connection below, as that of *tls.Conn does.
func (g *Gate) NetConn() net.Conn { return g.Conn }

// CloseWrite is that of the connection below.
func (g *Gate) CloseWrite() error { return layer.CloseWrite(g.Conn) }

func (g *Gate) Read(b []byte) (int, error) {
	atStart := g.left == 0
	if g.raw != nil && !g.opened.Load() {
		if atStart {
			g.left = g.awaitRecord()
		}
		b = b[:min(len(b), g.left)]
	}
	n, err := g.read(b)
	g.left -= min(n, g.left)
	if atStart && n == 0 {
		g.left = 0 // a deadline has ended the wait: the record is still to come
	}
	return n, err
}

// read reads what was read already, and then from the connection.
func (g *Gate) read(b []byte) (int, error) {
	if len(g.early) > 0 {
		n := copy(b, g.early)
		if g.early = g.early[n:]; len(g.early) == 0 {
			g.early = nil
		}
		return n, nil
	}
	if !g.bound {
		return g.receive(b)
	}
	if g.quota == 0 {
		return 0, ErrHandshakeTooLong
	}
	n, err := g.receive(b[:min(len(b), g.quota)])
	g.quota -= n
	return n, err
}

// receive reads from the connection.
func (g *Gate) receive(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	g.known -= min(n, g.known)
	return n, err
}

// awaitRecord waits until all of a record is here or in the kernel, or it is known
// that none will come, and returns how many bytes may be read: at least one, since
// a read tells why there are none. What the kernel has no room to join with the rest is
// read already.
func (g *Gate) awaitRecord() int {
	for {
		var header [headerSize]byte
		n := copy(header[:], g.early)
		how := sockopt.Enough
		if n < headerSize {
			var more int
			more, g.known, how = sockopt.AwaitBytes(g.raw, header[n:], headerSize-n, g.known)
			n += more
		}
		size := headerSize
		if n == headerSize {
			if size += int(header[3])<<8 + int(header[4]); size > headerSize+maxRecord {
				return headerSize // crypto/tls refuses it by its header
			}
			how = sockopt.Enough
			if missing := size - len(g.early); missing > g.known {
				_, g.known, how = sockopt.AwaitBytes(g.raw, nil, missing, g.known)
			}
		}
		switch {
		case how == sockopt.Full:
			if !g.take(size - len(g.early)) {
				return max(len(g.early), 1)
			}
		case n < headerSize:
			return max(n, 1)
		default:
			return size
		}
	}
}

// take reads some of the next most bytes, which are in the kernel. It reports false where
// a read is to tell why there are none.
func (g *Gate) take(most int) bool {
	if g.bound {
		most = min(most, g.quota)
	}
	if most == 0 {
		return false
	}
	held := len(g.early)
	early := slices.Grow(g.early, min(most, takeSize))
	n, err := g.receive(early[held : held+min(most, takeSize)])
	if n > 0 {
		g.early = early[:held+n]
		if g.bound {
			g.quota -= n
		}
	}
	return n > 0 && err == nil
}
