package listen

import (
	"context"
	"net"
	"syscall"
	"time"

	"gateway/internal/sockopt"
)

// Options are how sockets for clients are opened.
type Options struct {
	Reuse      bool // ports are shared with others
	MPTCP      bool
	KeepAlive  time.Duration // as net.ListenConfig has it
	KeepAlives net.KeepAliveConfig
	Liveness   sockopt.Liveness // that clients inherit
	// KCP makes a listener of a socket, which it owns.
	KCP func(*net.UDPConn) (net.Listener, error)
}

// Open opens a socket for clients.
func Open(a Address, o Options) (net.Listener, error) {
	if a.KCP {
		return openKCP(a.Addr, o)
	}
	var lc net.ListenConfig
	// Since Go 1.24 listeners speak MPTCP unless told not to, and then some
	// socket options fail (golang/go#74643). Where the kernel has none, net opens a
	// TCP socket all the same.
	lc.SetMultipathTCP(o.MPTCP && !a.Peer)
	lc.KeepAlive, lc.KeepAliveConfig = o.KeepAlive, o.KeepAlives
	lc.Control = func(network, address string, c syscall.RawConn) error {
		if o.Reuse {
			if err := sockopt.ReusePort(network, address, c); err != nil {
				return err
			}
		}
		return o.Liveness.Inherit(c)
	}
	return lc.Listen(context.Background(), Network("tcp", a.Addr), a.Addr)
}

func openKCP(addr string, o Options) (net.Listener, error) {
	var lc net.ListenConfig
	if o.Reuse {
		lc.Control = sockopt.ReusePort
	}
	socket, err := lc.ListenPacket(context.Background(), Network("udp", addr), addr)
	if err != nil {
		return nil, err
	}
	return o.KCP(socket.(*net.UDPConn))
}

// Network returns "tcp4" or "udp4" for an IPv4 address to listen on: "tcp" would
// make 0.0.0.0 listen on IPv6 too.
func Network(network, addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); ip != nil && ip.To4() != nil {
		network += "4"
	}
	return network
}

// DrainQueue takes what stands in the queue of a listener that is about to
// close, since closing resets what waits there; accept reports whether there may
// be another. "At once" has to end even under a storm of connects, so it takes
// no more than a queue holds (net.core.somaxconn, 4096 by default).
func DrainQueue(accept func() bool) {
	for range 4096 {
		if !accept() {
			return
		}
	}
}

// Backoff paces a loop that fails to accept: 5 ms, doubled up to 1 s.
type Backoff struct{ delay time.Duration }

// Reset says that it does not fail any more.
func (b *Backoff) Reset() { b.delay = 0 }

// Next returns how long to wait after one more failure.
func (b *Backoff) Next() time.Duration {
	b.delay = min(max(2*b.delay, 5*time.Millisecond), time.Second)
	return b.delay
}

// OpenPrivate opens a socket for the operator; setting is the flag that names it.
func OpenPrivate(setting, addr string) (net.Listener, error) {
	ln, err := net.Listen(Network("tcp", addr), addr)
	return ln, PrivateRemedy(setting, err)
}
