package kcp

import (
	"errors"
	"net"
	"net/netip"
	"time"
)

// A datagram is one that came by a session's own socket.
type datagram struct {
	b      []byte
	source netip.AddrPort
}

// handover is what a guard has once the shared socket is another process's: each
// session reads and writes by a socket of its own, which the kernel prefers for what
// comes from the session's client.
type handover struct {
	came  chan datagram // from all sessions' own sockets
	over  chan struct{} // closed when the last session has ended
	ended bool          // over is closed
}

// Detach leaves the socket to another process that has it too. There are no new
// sessions then; those in the backlog are still to be accepted, and all go on by
// sockets of their own. When it returns, the other process may read: what came before
// for a session has been read.
//
// While a session's own socket is bound and not yet connected, some microseconds, the
// kernel gives it what comes from anybody. What is for another session is passed on; the
// first datagram of a new client is lost, and KCP sends it again.
func (l *Listener) Detach() error {
	l.detached.Store(true)
	l.once.Do(func() { close(l.closed) })
	return l.guard.detach()
}

// drainTime bounds the wait for what the shared socket holds when it changes hands.
const drainTime = 50 * time.Millisecond

func (g *guard) detach() error {
	g.mu.Lock()
	if g.handover != nil {
		g.mu.Unlock()
		return nil
	}
	g.closed = true
	g.handover = &handover{came: make(chan datagram, 256), over: make(chan struct{})}
	sessions := make([]*Conn, 0, len(g.sessions))
	for _, c := range g.sessions {
		sessions = append(sessions, c)
	}
	g.mu.Unlock()

	// Only while it has to be: whoever says the same could bind the port too.
	failed := share(g.UDPConn, true)
	for _, c := range sessions {
		own, err := openOwn(g.UDPConn, c.who.source)
		if err != nil {
			failed = err
			c.end(err)
			continue
		}
		g.mu.Lock()
		if c.isEnded() {
			own.Close()
		} else {
			c.own.Store(own)
			go g.readOwn(own, c.who.source)
		}
		g.mu.Unlock()
	}
	share(g.UDPConn, false)
	for deadline := time.Now().Add(drainTime); waits(g.UDPConn) && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	g.out.close() // with this process's socket; the reader goes on by handover.came
	<-g.out.done
	err := g.out.err
	g.mu.Lock()
	g.closeAfterLast()
	g.mu.Unlock()
	return errors.Join(failed, err)
}

// readOwn passes on what comes by a session's own socket, until that is closed.
func (g *guard) readOwn(own *net.UDPConn, peer netip.AddrPort) {
	b := make([]byte, maxDatagram+1)
	for {
		n, source, err := own.ReadFromUDPAddrPort(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(time.Millisecond) // ICMP, perhaps; it passes
			continue
		case !source.IsValid():
			source = peer
		}
		select {
		case g.handover.came <- datagram{append([]byte(nil), b[:n]...), source}:
		case <-g.handover.over:
			return
		}
	}
}

// read returns the next datagram of the shared socket, or of the sessions' own.
func (g *guard) read() ([]byte, netip.AddrPort, error) {
	d, source, err := g.batch.read()
	if !errors.Is(err, net.ErrClosed) {
		return d, source, err
	}
	g.mu.Lock()
	h := g.handover
	g.mu.Unlock()
	if h == nil {
		return nil, source, err
	}
	select {
	case d := <-h.came:
		return d.b, d.source, nil
	case <-h.over:
		return nil, source, err
	}
}
