package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"gateway/internal/admin"
	"gateway/internal/kcp"
	"gateway/internal/sockopt"
	"gateway/internal/systemd"
	"gateway/internal/upgrade"
)

// sockets are the listening sockets of this process: those that it opens, and those
// that it was given by the process before it, or by systemd.
type sockets struct {
	before *upgrade.Predecessor // nil: none
	open   []outlet
	given  map[string]net.Listener // by systemd, for the operator; by their kind
}

// privateKinds are the sockets that are not for clients.
var privateKinds = []string{"admin", "pprof"}

// outlet is an open listening socket, under the name by which the next process gets
// it.
type outlet struct {
	name string
	ln   net.Listener
	fd   int // a copy, since who serves ln may close it; -1: none
	listening
}

// add takes note of an open socket.
func (s *sockets) add(name string, ln net.Listener, l listening) error {
	o := outlet{name, ln, -1, l}
	if socket, ok := ln.(syscall.Conn); ok && upgrade.Supported {
		var err error
		if o.fd, err = sockopt.Dup(socket); err != nil {
			return fmt.Errorf("cannot copy the socket of %s: %w", ln.Addr(), err)
		}
	}
	s.open = append(s.open, o)
	return nil
}

// givenPrefix begins the names of sockets that systemd has given.
const givenPrefix = "systemd "

// newSockets takes the sockets that systemd has given, which replace -addr and -kcp.
func newSockets(cfg *Config, before *upgrade.Predecessor) (*sockets, error) {
	s := &sockets{before: before, given: make(map[string]net.Listener)}
	given, err := systemd.Sockets()
	if err != nil {
		return nil, err
	}
	for _, name := range before.Names() {
		if rest, ok := strings.CutPrefix(name, givenPrefix); ok {
			fd, _ := before.Take(name)
			given = append(given, systemd.Socket{Name: rest, FD: fd})
		}
	}
	var list []listening
	for _, g := range given {
		l := listening{setting: "addr", given: g.Name}
		if l.ln, l.packets, err = upgrade.Listener(g.FD); err != nil {
			return nil, fmt.Errorf("socket %q of systemd: %w", g.Name, err)
		}
		switch {
		case l.ln != nil && slices.Contains(privateKinds, g.Name):
			s.given[g.Name] = l.ln
			if err := s.add(givenPrefix+g.Name, l.ln, listening{}); err != nil {
				return nil, err
			}
			continue
		case l.ln != nil && l.ln.Addr().Network() != "tcp":
			return nil, fmt.Errorf("socket %q of systemd is for %s: want TCP, or UDP for KCP", g.Name, l.ln.Addr().Network())
		case l.ln != nil:
			l.addr = l.ln.Addr().String()
		default:
			l.addr, l.kcp, l.setting = l.packets.LocalAddr().String(), true, "kcp"
		}
		list = append(list, l)
	}
	cfg.activate(list)
	return s, nil
}

// activate has sockets that were given replace what would be opened: those of -listen
// with the same address, -kcp, and all others -addr.
func (cfg *Config) activate(given []listening) {
	var rest []listening
	for _, g := range given {
		i := slices.IndexFunc(cfg.Listen, func(l listening) bool {
			return l.given == "" && l.setting == "listen" && !g.kcp && (l.addr == g.given || sameAddress(l.addr, g.addr))
		})
		if i < 0 {
			rest = append(rest, g)
			continue
		}
		g.addr, g.forward, g.setting = cfg.Listen[i].addr, cfg.Listen[i].forward, "listen"
		cfg.Listen[i] = g
	}
	for _, kcp := range []bool{true, false} {
		of := slices.DeleteFunc(slices.Clone(rest), func(l listening) bool { return l.kcp != kcp })
		if len(of) == 0 {
			continue
		}
		for i := range of {
			of[i].forward = cfg.forward
			if kcp {
				of[i].forward = nil
			}
		}
		replaced := func(l listening) bool { return l.setting == of[0].setting && l.given == "" }
		cfg.Listen = append(of, slices.DeleteFunc(cfg.Listen, replaced)...)
	}
}

// sameAddress tells whether an address to listen on is that of a socket.
func sameAddress(configured, addr string) bool {
	want, err1 := net.ResolveTCPAddr("tcp", configured)
	have, err2 := net.ResolveTCPAddr("tcp", addr)
	if err1 != nil || err2 != nil || want.Port != have.Port {
		return false
	}
	unspecified := func(ip net.IP) bool { return ip == nil || ip.IsUnspecified() }
	return want.IP.Equal(have.IP) || unspecified(want.IP) && unspecified(have.IP)
}

// listenAll opens all listening sockets that were not given.
func (s *sockets) listenAll(cfg *Config) ([]net.Listener, error) {
	var list []net.Listener
	for _, l := range cfg.Listen {
		ln, name, err := s.listen(cfg, l)
		if err == nil {
			list = append(list, ln)
			err = s.add(name, ln, l)
		}
		if err != nil {
			closeAll(list)
			return nil, fmt.Errorf("-%s: %w", l.setting, withRemedy(err, cfg.Reuse))
		}
	}
	return list, nil
}

// listen opens a listening socket, unless it was given, and returns its name.
func (s *sockets) listen(cfg *Config, l listening) (net.Listener, string, error) {
	name := "tcp " + l.addr
	if l.kcp {
		name = "udp " + l.addr
	}
	if l.given != "" {
		name = givenPrefix + l.given
	} else if fd, ok := s.before.Take(name); ok {
		var err error
		if l.ln, l.packets, err = upgrade.Listener(fd); err != nil {
			return nil, name, err
		}
	}
	switch {
	case l.packets != nil:
		ln, err := serveKCP(cfg, l.packets)
		return ln, name, err
	case l.ln != nil:
		return l.ln, name, nil
	}
	ln, err := listen(cfg, l)
	return ln, name, err
}

// private returns a listener that is for the operator, and is handed over as the
// others are: one that was given, or what open returns. kind is its FileDescriptorName=
// in systemd; with addr empty and nothing given there is none, and it returns nil.
func (s *sockets) private(kind, addr string, open func(addr string) (net.Listener, error)) (net.Listener, error) {
	if given := s.given[kind]; given != nil {
		return given, nil
	}
	if addr == "" {
		return nil, nil
	}
	var ln net.Listener
	var err error
	name := kind + " " + addr
	if fd, ok := s.before.Take(name); ok {
		ln, _, err = upgrade.Listener(fd)
	} else {
		ln, err = open(addr)
	}
	if err == nil {
		err = s.add(name, ln, listening{})
	}
	return ln, err
}

// all returns what a new process gets: copies that stay with s.
func (s *sockets) all() (list []upgrade.Socket) {
	for _, o := range s.open {
		if o.fd >= 0 {
			list = append(list, upgrade.Socket{Name: o.name, FD: o.fd})
		}
	}
	return list
}

// drop closes the copies of those sockets for which which returns true. A socket of
// which nobody else has a copy refuses clients from here on.
func (s *sockets) drop(which func(name string) bool) {
	for i := range s.open {
		if o := &s.open[i]; o.fd >= 0 && which(o.name) {
			os.NewFile(uintptr(o.fd), "").Close()
			o.fd = -1
		}
	}
}

// dropAll is drop for all: who serves a listener is about to close it.
func (s *sockets) dropAll() { s.drop(func(string) bool { return true }) }

// reopen makes listeners anew in the place of those that were closed: of the copies,
// or others where there is none. What fails is for the log: nobody else serves.
func (s *sockets) reopen(cfg *Config, log *slog.Logger) (list []outlet) {
	open := s.open
	s.open = nil
	for _, o := range open {
		ln, err := o.again(cfg)
		if err == nil {
			err = s.add(o.name, ln, o.listening)
		}
		if err != nil {
			log.Error("cannot listen again", "addr", o.ln.Addr().String(), "err", err)
			continue
		}
		if o.ln = ln; o.setting != "" {
			list = append(list, o)
			continue
		}
		// private finds it here.
		kind, _, _ := strings.Cut(strings.TrimPrefix(o.name, givenPrefix), " ")
		s.given[kind] = ln
	}
	return list
}

// again returns another listener at the same address. It uses the copy up.
func (o *outlet) again(cfg *Config) (net.Listener, error) {
	if o.fd >= 0 {
		ln, packets, err := upgrade.Listener(o.fd)
		if packets != nil {
			return serveKCP(cfg, packets)
		}
		return ln, err
	}
	if o.setting == "" || o.given != "" {
		return nil, errors.New("the socket has not been kept")
	}
	l := o.listening
	l.addr = o.ln.Addr().String() // with its port, where any would have done
	return listen(cfg, l)
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
	return serveKCP(cfg, socket.(*net.UDPConn))
}

// serveKCP makes a listener of a socket, which it owns.
func serveKCP(cfg *Config, socket *net.UDPConn) (net.Listener, error) {
	ln, err := cfg.kcp.Serve(socket)
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
