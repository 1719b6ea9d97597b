package kcp

import (
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"
)

const (
	// socketBuffer is what a listener's socket may hold each way; the system
	// may allow less (net.core.rmem_max). All sessions share it. Linux doubles
	// it and counts 768 bytes for a short datagram, so it holds 10,000 of them.
	// No more: what has waited for longer is of no use to a game.
	socketBuffer = 4 << 20
	// maxBacklog bounds the sessions that nobody has accepted.
	maxBacklog = 1024
)

// Listener accepts sessions. Its methods are safe for concurrent use.
type Listener struct {
	guard    *guard
	listener *kcpgo.Listener
	backlog  chan *Conn
	once     sync.Once
	detached atomic.Bool // by Detach
	left     atomic.Bool // leftover has waited for those on their way
	closed   chan struct{}
}

// Stats are a listener's counts.
type Stats struct {
	Sessions   int    // live
	Unproven   int    // those whose client has not proven its address
	Refused    uint64 // first datagrams for which there was no room
	Challenged uint64 // first datagrams that were answered by a challenge only
	Dropped    uint64 // datagrams that belong to no session, or prove what is not so
}

// Retransmitted returns how many packets this process has sent again, in sessions
// of every listener and dialer.
func Retransmitted() uint64 { return kcpgo.DefaultSnmp.Copy().RetransSegs }

// Listen listens on a UDP address. On a host of several addresses give one: an
// answer from the wildcard address leaves by whichever the system chooses.
func (t *Transport) Listen(addr string) (*Listener, error) {
	address, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, err
	}
	socket, err := net.ListenUDP("udp", address)
	if err != nil {
		return nil, err
	}
	return t.Serve(socket)
}

// Serve is Listen on a socket, which it owns from here on.
func (t *Transport) Serve(socket *net.UDPConn) (*Listener, error) {
	enlarge(socket)
	g := newGuard(t, socket)
	listener, err := kcpgo.ServeConn(nil, t.DataShards, t.ParityShards, g)
	if err != nil {
		g.out.close()
		return nil, err
	}
	l := &Listener{
		guard: g, listener: listener,
		backlog: make(chan *Conn, maxBacklog),
		closed:  make(chan struct{}),
	}
	go g.challengeStrangers()
	go l.collect()
	return l, nil
}

// ProveFirst has every client prove its address before its session begins, while first
// returns true: for who holds against an address what came from it. It costs a client a
// round trip, and the wait until it sends its first datagram again. first is called for
// each such datagram, and must be quick. ProveFirst is called before Accept.
func (l *Listener) ProveFirst(first func() bool) {
	l.guard.mu.Lock()
	defer l.guard.mu.Unlock()
	l.guard.proveFirst = first
}

// collect takes the sessions that kcp-go makes, whose own backlog is short. It
// ends when the socket is closed.
func (l *Listener) collect() {
	defer close(l.guard.strangers) // its only sender has ended, which is kcp-go's reader
	defer l.listener.Close()
	for {
		s, err := l.listener.AcceptKCP()
		if err != nil {
			return
		}
		c := s.RemoteAddr().(peer).Conn
		if c.session.Load() != nil {
			// Its session ended while a datagram was on its way through kcp-go,
			// which has made another of that.
			s.Close()
			continue
		}
		<-l.guard.handed
		if !c.attach(s) {
			continue
		}
		select {
		case l.backlog <- c:
		default:
			c.end(errCrowded)
		}
		select {
		case <-l.closed:
			if !l.detached.Load() {
				l.clear()
			}
		default:
		}
	}
}

// Accept returns the next session. Its caller closes it. After Close it
// returns net.ErrClosed.
func (l *Listener) Accept() (*Conn, error) {
	select {
	case <-l.closed:
		return l.leftover()
	default:
	}
	select {
	case c := <-l.backlog:
		return c, nil
	case <-l.closed:
		return l.leftover()
	}
}

// leftover returns a session that began before Detach.
func (l *Listener) leftover() (*Conn, error) {
	for range 20 {
		select {
		case c := <-l.backlog:
			return c, nil
		default:
		}
		if !l.detached.Load() {
			break
		}
		if len(l.guard.handed) == 0 && l.left.Swap(true) {
			break
		}
		time.Sleep(time.Millisecond) // on its way through kcp-go
	}
	return nil, net.ErrClosed
}

// Addr returns the socket's address, a *net.UDPAddr.
func (l *Listener) Addr() net.Addr { return l.guard.LocalAddr() }

// Stats returns the counts.
func (l *Listener) Stats() Stats {
	g := l.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	return Stats{len(g.sessions), g.unproven.Len(), g.refused.Load(), g.challenged.Load(), g.dropped.Load()}
}

// Close ends accepting, and the sessions that nobody has accepted. The others
// go on; the socket closes with the last of them.
func (l *Listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.guard.close()
		l.clear()
	})
	return nil
}

// clear ends the sessions in the backlog.
func (l *Listener) clear() {
	for {
		select {
		case c := <-l.backlog:
			c.Abort()
		default:
			return
		}
	}
}

// SyscallConn returns the socket, for who wants to have it too.
func (l *Listener) SyscallConn() (syscall.RawConn, error) { return l.guard.SyscallConn() }
