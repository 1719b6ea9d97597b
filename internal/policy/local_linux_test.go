package policy

import (
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inNamespace moves the calling test into a network namespace of its own with
// these "ip" commands done, or skips it. The test's thread ends with it.
func inNamespace(t *testing.T, commands ...string) {
	t.Helper()
	ip, err := exec.LookPath("ip")
	if err != nil {
		t.Skip(err)
	}
	runtime.LockOSThread() // for good
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("a network namespace: %v", err)
	}
	for _, c := range commands {
		if out, err := exec.Command(ip, strings.Fields(c)...).CombinedOutput(); err != nil {
			t.Skipf("ip %s: %v: %s", c, err, out)
		}
	}
}

func TestLocalIsWhereOurOwnListenerAnswers(t *testing.T) {
	inNamespace(t,
		"link set lo up",
		"addr add 10.0.0.5/32 dev lo",
		"addr add fd00::5/128 dev lo",
		"route add local 10.9.0.0/16 dev lo",
		"route add local 10.8.0.0/16 dev lo src 10.0.0.5",
		"-6 route add local fd99::/64 dev lo",
		"route add 10.7.0.0/16 dev lo", // not local: lo drops what nobody takes
		"-6 route add fd77::/64 dev lo",
		"route add unreachable 10.6.0.0/16",
		"route add blackhole 10.4.0.0/16",
		"-6 route add unreachable fd66::/64",
	)
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var p Policy
	own := ln.Addr().(*net.TCPAddr).AddrPort()
	p.Own(own)

	for _, s := range []string{
		"127.0.0.1", "127.9.9.9", "10.0.0.5", "10.9.1.1", "10.9.255.255", "10.8.1.1", "::1", "fd00::5", "fd99::1", "fd99::abcd",
	} {
		ap := netip.AddrPortFrom(netip.MustParseAddr(s), own.Port())
		conn, err := net.DialTimeout("tcp", ap.String(), 20*time.Second)
		if err != nil {
			t.Errorf("not even the kernel takes %s for local: %v", s, err)
			continue
		}
		conn.Close()
		if err := p.Check(ap); !errors.Is(err, ErrOwn) {
			t.Errorf("Check(%v): %v; want: %v", ap, err, ErrOwn)
		}
	}
	for _, s := range []string{"10.0.0.4", "10.0.0.6", "10.7.1.1", "10.6.1.1", "10.4.1.1", "fd00::6", "fd77::1", "fd66::1", "203.0.113.77"} {
		ap := netip.AddrPortFrom(netip.MustParseAddr(s), own.Port())
		if err := p.Check(ap); err != nil {
			t.Errorf("Check(%v): %v; want it allowed", ap, err)
		}
	}

	// Without netlink a prefix that is routed to this machine is told by its
	// source address, if its route names no other. fd99::/64 is not told.
	for s, want := range map[string]bool{
		"10.0.0.5": true, "10.9.1.1": true, "fd00::5": true, "10.7.1.1": false, "10.6.1.1": false, "10.4.1.1": false, "fd77::1": false, "203.0.113.77": false,
	} {
		if local, err := isOwnSource(netip.MustParseAddr(s)); local != want || err != nil {
			t.Errorf("isOwnSource(%s) = %v, %v; want %v", s, local, err, want)
		}
	}
}

func TestAnAddressThatBecomesOursIsDenied(t *testing.T) {
	inNamespace(t, "link set lo up")
	ap := netip.MustParseAddrPort("10.0.0.5:8000")
	var p Policy
	p.Own(netip.MustParseAddrPort("0.0.0.0:8000"))
	check(t, &p, nil, ap.String())
	if out, err := exec.Command("ip", "addr", "add", "10.0.0.5/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if errors.Is(p.Check(ap), ErrOwn) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("still allowed")
		}
	}
}

func TestAnAddressThatCannotBeToldFromOurOwnIsDenied(t *testing.T) {
	var p Policy
	p.Own(netip.MustParseAddrPort("0.0.0.0:8000"))
	ap := netip.MustParseAddrPort("203.0.113.77:8000")

	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	err := p.Check(ap)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, ErrUnknown) {
		t.Errorf("Check without descriptors: %v; want: %v", err, ErrUnknown)
	}
	check(t, &p, nil, ap.String())
}

func TestAskingLeavesNoDescriptor(t *testing.T) {
	lowest := func() int {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		return fd
	}
	askSystem(netip.MustParseAddr("127.0.0.1"))
	isOwnSource(netip.MustParseAddr("127.0.0.1")) // the poller's own
	before := lowest()
	for _, s := range []string{"127.0.0.1", "203.0.113.77", "::1", "2001:db8::77"} {
		askSystem(netip.MustParseAddr(s))
		isOwnSource(netip.MustParseAddr(s))
	}
	if after := lowest(); after != before {
		t.Errorf("the lowest free descriptor was %d and is %d", before, after)
	}
}
