package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/address"
	"gateway/internal/harness"
	"gateway/internal/reactor"
)

// How the loops dial: time-outs, clients that leave meanwhile, and sockets that
// meet themselves.

func TestABlackholedBackendIsDialedAsOftenAsConfigured(t *testing.T) {
	t.Parallel()
	const timeout, retry = 150 * time.Millisecond, 3
	onEveryWay(t, func(cfg *Config) { cfg.Timeout, cfg.Retry = timeout, retry }, func(t *testing.T, g *testGateway) {
		hole := blackhole(t, "127.0.0.1", 0).String()
		c := connect(t, g.addr)
		start := time.Now()
		send(t, c, sealed(t, hole))
		expectAll(t, c, "504")
		if took := time.Since(start); took < retry*timeout {
			t.Errorf("504 after %v, want %v", took, retry*timeout)
		}
		if line := g.log.waitLine(t, "refused", 1); line["reason"] != "timeout" || harness.Status(line) != "504" {
			t.Errorf("refused: %v", line)
		}
	})
}

func TestAClientsResetEndsItsDialAndItsFINDoesNot(t *testing.T) {
	t.Parallel()
	onEveryWay(t, func(cfg *Config) { cfg.Timeout = time.Second }, func(t *testing.T, g *testGateway) {
		hole := blackhole(t, "127.0.0.1", 0).String()
		for _, early := range []string{"", "early"} {
			fin, reset := connect(t, g.addr), connect(t, g.addr)
			for _, c := range []*net.TCPConn{fin, reset} {
				send(t, c, sealed(t, hole)+early)
				harness.Delivered(t, c)
			}
			fin.CloseWrite()
			reset.SetLinger(0)
			reset.Close()
			expectAll(t, fin, "504")
			var how string
			eventually(t, "both are accounted for", func() bool {
				found := 0
				for _, line := range g.log.lines("refused") {
					switch line["client"] {
					case reset.LocalAddr().String():
						found++
						how = fmt.Sprint(line["reason"], harness.Status(line))
					case fin.LocalAddr().String():
						found++
					}
				}
				return found == 2
			})
			if how != "client_gone" {
				t.Errorf("the reset led to %s", how)
			}
		}
	})
}

// enterNetwork moves the calling thread into an empty network of its own, with
// few local ports for the kernel to pick.
func enterNetwork(ports string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return err
	}
	return setLocalPorts(ports)
}

func setLocalPorts(ports string) error {
	return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte(ports), 0)
}

// connectOnce connects to a port of 127.0.0.1, from a port that the kernel
// picks or from a given one, and returns the socket and its own port.
func connectOnce(from, to int) (fd, port int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, 0, err
	}
	local := &unix.SockaddrInet4{Port: from, Addr: [4]byte{127, 0, 0, 1}}
	if from != 0 {
		err = unix.Bind(fd, local)
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: to, Addr: local.Addr})
	}
	if err != nil {
		unix.Close(fd)
		return -1, 0, err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fd, 0, err
	}
	return fd, sa.(*unix.SockaddrInet4).Port, nil
}

// Without somebody who listens there, a socket may meet itself: the port that
// it dials is one that the kernel may give it.
func TestNoTunnelLeadsToItself(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, nil)
	l := g.engine.(*loops).all[0]
	var err error
	var fd, own int
	inLoop(t, l, func() { // the thread ends with its loop
		if err = enterNetwork("40000 40001"); err == nil {
			fd, own, err = connectOnce(0, 40000)
		}
	})
	if err != nil {
		t.Skip("no network of our own, or none where sockets meet themselves: ", err)
	}
	defer unix.Close(fd)
	if own != 40000 {
		t.Fatalf("connected from port %d", own)
	}
	// A port that was joined to itself is not to be had again for a while.
	const rounds = 20
	for i := range rounds {
		port := 40002 + 2*i
		inLoop(t, l, func() { err = setLocalPorts(fmt.Sprint(port, port+1)) })
		if err != nil {
			t.Fatal(err)
		}
		c := connect(t, g.addr)
		send(t, c, sealed(t, fmt.Sprint("127.0.0.1:", port))+"hello")
		expectAll(t, c, "502")
		c.Close()
	}
	g.log.waitLine(t, "refused", rounds)
	for _, line := range g.log.lines("refused") {
		if line["reason"] != "refused" { // from the second port
			t.Errorf("refused: %v", line)
		}
	}
	wantAtRest(t, g)
}

func TestWithoutALocalPortTheClientIsTold(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, nil)
	l := g.engine.(*loops).all[0]
	var err error
	var ln, only int
	inLoop(t, l, func() {
		if err = enterNetwork("40000 40000"); err != nil {
			return
		}
		if ln, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		unix.Bind(ln, &unix.SockaddrInet4{Port: 50000, Addr: [4]byte{127, 0, 0, 1}})
		unix.Listen(ln, 10)
		only, _, err = connectOnce(0, 50000)
	})
	if err != nil {
		t.Skip("no network of our own: ", err)
	}
	defer unix.Close(ln)
	defer unix.Close(only)
	c := connect(t, g.addr)
	send(t, c, sealed(t, "127.0.0.1:50000"))
	expectAll(t, c, "502")
	if line := g.log.waitLine(t, "refused", 1); line["reason"] != "no_local_port" {
		t.Errorf("refused: %v", line)
	}
	c.Close()
	wantAtRest(t, g)
}

func TestASocketThatMetItselfIsRecognized(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, nil)
	l := g.engine.(*loops).all[0]
	var fd, port int
	for range 100 { // until a port is free
		port = int(new(localPorts).first(0)) + rand.IntN(1000)
		var err error
		if fd, _, err = connectOnce(port, port); err == nil {
			defer unix.Close(fd)
			break
		}
		fd = -1
	}
	if fd < 0 {
		t.Skip("this kernel joins no socket to itself")
	}
	s := &tunnel{}
	s.sockets[backendSide].fd = int32(fd)
	for addr, want := range map[string]bool{
		fmt.Sprint("127.0.0.1:", port):          true,
		fmt.Sprint("[::ffff:127.0.0.1]:", port): true,
		fmt.Sprint("0.0.0.0:", port):            true, // this host too
		fmt.Sprint("127.0.0.1:", port+1):        false,
		"127.0.0.1:80":                          false,
	} {
		s.upstream.backend = parseAddr(t, addr)
		var got bool
		inLoop(t, l, func() { got = l.isSelfConnect(s) })
		if got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}

// The kernel reads 0.0.0.0 as this host, whose own address then differs.
func TestASelfConnectIsSeenInEverySpelling(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := sa.(*unix.SockaddrInet4).Port
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err) // with nobody else there, it connects to itself
	}
	l := &handshakes{localPorts: localPorts{least: 1, readAt: 1}}
	l.reactor = &reactor.Reactor{}
	for _, host := range []string{"127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1"} {
		tn := &tunnel{}
		tn.sockets[backendSide].fd = int32(fd)
		tn.upstream.backend = address.Address{Host: host, IP: netip.MustParseAddr(host), Port: uint16(port)}
		if !l.isSelfConnect(tn) {
			t.Errorf("not seen when dialed as %s", host)
		}
	}
}

// Whoever lowers the range would have clients connected to themselves.
func TestTheRangeOfLocalPortsIsReadAgain(t *testing.T) {
	p := localPorts{least: 65535, readAt: 1} // as it once was
	if got := p.first(2); got != 65535 {
		t.Errorf("what has just been read is read again: %d", got)
	}
	if got := p.first(1 + localPortsAge); got == 65535 || got == 0 {
		t.Errorf("the least is still %d", got)
	}
}
