package main

import (
	"context"
	"gateway/internal/handshake"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// blackhole returns an address of 127.0.0.0/8 where connects are neither
// accepted nor refused: a listener whose queue is full drops every SYN.
func blackhole(t testing.TB, ip string, port uint16) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(port), Addr: netip.MustParseAddr(ip).As4()}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(sa.(*unix.SockaddrInet4).Port))
	for { // fill the queue
		c, err := net.DialTimeout("tcp", addr.String(), 100*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
}

func TestABlackholedBackendIsATimeOutWithinRetryTimesTimeout(t *testing.T) {
	t.Parallel()
	p := startProcess(t, "-retry=2", "-timeout=200ms")
	c := connect(t, p.addr)
	start := time.Now()
	send(t, c, sealed(t, blackhole(t, "127.0.0.1", 0).String()))
	expectAll(t, c, "504")
	if took := time.Since(start); took < 400*time.Millisecond || took > patience {
		t.Errorf("504 after %v, want 400ms", took)
	}
}

func TestAClientsResetCancelsTheConnect(t *testing.T) {
	t.Parallel()
	p := startProcess(t, "-timeout=1h")
	openTunnel(t, p.addr, startEcho(t)).Close() // its loops accept by now
	p.log.waitLine(t, "tunnel", 1)
	before := descriptorsOf(p.cmd.Process.Pid)
	hole := blackhole(t, "127.0.0.1", 0)
	for range 20 {
		c := connect(t, p.addr)
		send(t, c, sealed(t, hole.String()))
		eventually(t, "the backend is dialed", func() bool { return descriptorsOf(p.cmd.Process.Pid) >= before+2 })
		c.SetLinger(0)
		c.Close()
		eventually(t, "its descriptors are closed", func() bool { return descriptorsOf(p.cmd.Process.Pid) <= before })
	}
}

// RFC 8305: it costs the fourth part of a second, and not a time-out. The attempt
// that lost is given up.
func TestAnAddressThatSwallowsPacketsHoldsUpNobody(t *testing.T) {
	hole := blackhole(t, "127.0.0.2", 0)
	ln, err := net.Listen("tcp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.3"), hole.Port()).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := &dialer{resolver: fixedNames{hole.Addr(), netip.MustParseAddr("127.0.0.3")}}
	addr := parseAddr(t, "game.test:1")
	addr.Port = hole.Port()
	before := descriptorsOf(os.Getpid())
	start := time.Now()
	conn, err := d.dial(t.Context(), anywhere(time.Hour), addr)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 250*time.Millisecond || took > patience {
		t.Errorf("took %v", took)
	}
	if got := conn.RemoteAddr().String(); got != ln.Addr().String() {
		t.Errorf("connected to %s", got)
	}
	conn.Close()
	eventually(t, "all descriptors are closed", func() bool { return descriptorsOf(os.Getpid()) <= before })
}

func TestTheAddressesOfANameShareOneAttemptsTime(t *testing.T) {
	t.Parallel()
	hole := blackhole(t, "127.0.0.2", 0)
	names := map[string][]string{
		"\x03bad":  {"127.0.0.2", "127.0.0.2", "127.0.0.2"},
		"\x04good": {"127.0.0.2", "127.0.0.3"},
	}
	r := anywhere(2 * time.Second)
	d := &dialer{resolver: resolver(t, func(q []byte) []byte {
		for name, addrs := range names {
			if string(q[12:12+len(name)]) == name {
				return answer(q, noError, addrs...)
			}
		}
		return answer(q, noSuchName)
	})}
	addr := parseAddr(t, "bad.test:1")
	addr.Port = hole.Port()
	start := time.Now()
	_, err := d.dial(context.Background(), r, addr)
	if took := time.Since(start); statusOf(err) != handshake.GatewayTimeout || took > 5*r.timeout/2 {
		t.Errorf("%v after %v, want 504 after %v", err, took, r.timeout)
	}

	ln, err := net.Listen("tcp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.3"), hole.Port()).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	addr.Host = "good.test"
	conn, err := d.dial(context.Background(), r, addr)
	if err != nil {
		t.Fatalf("one silent address took the time of the next: %v", err)
	}
	conn.Close()
}
