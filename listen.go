package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"gateway/internal/admin"
	"gateway/internal/kcp"
	"gateway/internal/sockopt"
)

// listenAll opens all listening sockets.
func listenAll(cfg *Config) ([]net.Listener, error) {
	var list []net.Listener
	for _, l := range cfg.Listen {
		ln, err := listen(cfg, l)
		if err != nil {
			closeAll(list)
			return nil, fmt.Errorf("-%s: %w", l.setting, withRemedy(err, cfg.Reuse))
		}
		list = append(list, ln)
	}
	return list, nil
}

// errBound is how checkAddress keeps net from going on.
var errBound = errors.New("bound")

// checkListening sees whether all addresses can be listened on. It does not listen
// itself: of who shares a port, it would get clients, and lose them.
func checkListening(cfg *Config) error {
	for _, l := range cfg.Listen {
		network := "tcp"
		if l.kcp {
			network = "udp"
		}
		if err := checkAddress(cfg, networkOf(network, l.addr), l.addr, cfg.Reuse); err != nil {
			return fmt.Errorf("-%s: %w", l.setting, withRemedy(err, cfg.Reuse))
		}
	}
	if cfg.Admin != "" {
		if err := checkAdminAddress(cfg); err != nil {
			return err
		}
	}
	if cfg.Pprof == "" {
		return nil
	}
	return privateFailure("pprof", checkAddress(cfg, networkOf("tcp", cfg.Pprof), cfg.Pprof, false))
}

func checkAdminAddress(cfg *Config) error {
	if path, ok := admin.UnixPath(cfg.Admin); ok {
		return privateFailure("admin", admin.CheckUnix(path))
	}
	return privateFailure("admin", checkAddress(cfg, networkOf("tcp", cfg.Admin), cfg.Admin, false))
}

func checkAddress(cfg *Config, network, addr string, reuse bool) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	lc.Control = func(network, address string, c syscall.RawConn) error {
		if reuse {
			if err := sockopt.ReusePort(network, address, c); err != nil {
				return err
			}
		}
		ok, err := sockopt.Bind(network, address, c)
		if ok && err == nil {
			err = errBound
		}
		return err
	}
	var socket io.Closer
	var err error
	if strings.HasPrefix(network, "udp") {
		socket, err = lc.ListenPacket(context.Background(), network, addr)
	} else {
		socket, err = lc.Listen(context.Background(), network, addr)
	}
	switch {
	case errors.Is(err, errBound):
		return nil
	case err != nil:
		return err
	}
	return socket.Close() // bound otherwise
}

// withRemedy adds to an error of listening what to do about it.
func withRemedy(err error, reuse bool) error {
	var dnsErr *net.DNSError
	remedy := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && !reuse:
		remedy = "stop who uses it, or start all with -reuse=1"
	case errors.Is(err, syscall.EACCES):
		remedy = "a port below 1024 takes root, CAP_NET_BIND_SERVICE (setcap, or AmbientCapabilities= in a unit), or a lower net.ipv4.ip_unprivileged_port_start"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		remedy = "no interface of this machine has the address; :port is all of them"
	case errors.As(err, &dnsErr):
		remedy = "want an address of this machine, or a name for one; :port is all of them"
	default:
		return err
	}
	return fmt.Errorf("%w (%s)", err, remedy)
}

func closeAll(listeners []net.Listener) {
	for _, ln := range listeners {
		ln.Close()
	}
}

// listen opens a listening socket.
func listen(cfg *Config, l listening) (net.Listener, error) {
	if l.kcp {
		return listenKCP(cfg, l.addr)
	}
	var lc net.ListenConfig
	// Since Go 1.24 listeners speak MPTCP unless told not to, and then some
	// socket options fail (golang/go#74643).
	lc.SetMultipathTCP(false)
	lc.KeepAlive, lc.KeepAliveConfig = cfg.keepalive()
	lc.Control = func(network, address string, c syscall.RawConn) error {
		if cfg.Reuse {
			if err := sockopt.ReusePort(network, address, c); err != nil {
				return err
			}
		}
		return cfg.liveness().Inherit(c)
	}
	return lc.Listen(context.Background(), networkOf("tcp", l.addr), l.addr)
}

// networkOf returns "tcp4" or "udp4" for an IPv4 address to listen on: "tcp" would
// make 0.0.0.0 listen on IPv6 too.
func networkOf(network, addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); ip != nil && ip.To4() != nil {
		network += "4"
	}
	return network
}

// listenPprof opens the socket of -pprof.
func listenPprof(addr string) (net.Listener, error) {
	ln, err := net.Listen(networkOf("tcp", addr), addr)
	return ln, privateFailure("pprof", err)
}

// listenAdmin opens the socket of -admin.
func listenAdmin(addr string) (net.Listener, error) {
	if path, ok := admin.UnixPath(addr); ok {
		ln, err := admin.ListenUnix(path)
		return ln, privateFailure("admin", err)
	}
	ln, err := net.Listen(networkOf("tcp", addr), addr)
	return ln, privateFailure("admin", err)
}

// privateFailure says of an error of listening, for what each process has to itself,
// what to do about it; nil for none.
func privateFailure(setting string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("-%s: %w (stop who uses it, or give each process a -%s of its own: -reuse=1 does not share it)", setting, err, setting)
	}
	return fmt.Errorf("-%s: %w", setting, withRemedy(err, true))
}

// listenKCP opens a socket for KCP clients.
func listenKCP(cfg *Config, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	if cfg.Reuse {
		lc.Control = sockopt.ReusePort
	}
	socket, err := lc.ListenPacket(context.Background(), networkOf("udp", addr), addr)
	if err != nil {
		return nil, err
	}
	ln, err := cfg.kcp.Serve(socket.(*net.UDPConn))
	if err != nil {
		return nil, err
	}
	return kcpListener{ln}, nil
}

// kcpListener is a net.Listener of KCP clients. internal/kcp makes streams of
// datagrams; here they are made to look like connections that can finish.
type kcpListener struct{ *kcp.Listener }

func (l kcpListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return kcpClient{c}, nil
}

// kcpClient is a client that comes by KCP. KCP has no FIN, so the end of what
// the backend sends is the end of the session, once everything has arrived.
type kcpClient struct{ *kcp.Conn }

func (c kcpClient) CloseWrite() error { return c.Close() }

func (c kcpClient) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, net.ErrClosed) {
		err = io.EOF
	}
	return n, err
}

// acceptQueue takes what stands in the queue of a listener that is about to
// close, since closing resets what waits there; accept reports whether there may
// be another. "At once" has to end even under a storm of connects, so it takes
// no more than a queue holds (net.core.somaxconn, 4096 by default).
func acceptQueue(accept func() bool) {
	for range 4096 {
		if !accept() {
			return
		}
	}
}

// backoff paces a loop that fails: 5 ms, doubled up to 1 s.
type backoff struct{ delay time.Duration }

func (b *backoff) reset() { b.delay = 0 }

func (b *backoff) next() time.Duration {
	b.delay = min(max(2*b.delay, 5*time.Millisecond), time.Second)
	return b.delay
}
