package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"gateway/internal/sockopt"
)

func TestAnIPv4AddressIsForIPv4Alone(t *testing.T) {
	for addr, want := range map[string]string{
		"0.0.0.0:80": "tcp4", "127.0.0.1:0": "tcp4", "[::ffff:127.0.0.1]:1": "tcp4",
		"[::]:80": "tcp", ":80": "tcp", "localhost:80": "tcp", "nonsense": "tcp",
	} {
		if got := Network("tcp", addr); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

// taken returns an address that somebody listens on, sharing its port or not.
func taken(t *testing.T, network string, shares bool) string {
	var lc net.ListenConfig
	if shares {
		lc.Control = sockopt.ReusePort
	}
	if strings.HasPrefix(network, "udp") {
		c, err := lc.ListenPacket(context.Background(), network, "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.LocalAddr().String()
	}
	ln, err := lc.Listen(context.Background(), network, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.Addr().String()
}

func TestATakenAddressIsToldFromAFreeOne(t *testing.T) {
	for _, network := range []string{"tcp4", "udp4"} {
		if err := Check(network, "127.0.0.1:0", false); err != nil {
			t.Errorf("%s: a free port: %v", network, err)
		}
		for range 2 { // looking at it does not take it
			if err := Check(network, taken(t, network, false), false); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("%s: a taken port: %v", network, err)
			}
		}
	}
}

func TestWhoCannotListenIsToldWhatToDo(t *testing.T) {
	failed := func(err error) error { return &net.OpError{Op: "listen", Err: err} }
	for _, tt := range []struct {
		err   error
		reuse bool
		want  string
	}{
		{failed(syscall.EADDRINUSE), false, "-reuse=1"},
		{failed(syscall.EADDRINUSE), true, ""},
		{failed(syscall.EACCES), false, "CAP_NET_BIND_SERVICE"},
		{failed(syscall.EADDRNOTAVAIL), false, "no interface"},
		{failed(&net.DNSError{Err: "no such host"}), false, "an address of this machine"},
		{failed(syscall.ENOBUFS), false, ""},
	} {
		got := Remedy(tt.err, tt.reuse)
		if !errors.Is(got, tt.err) {
			t.Errorf("%v became %v", tt.err, got)
		}
		if told := got.Error() != tt.err.Error(); told != (tt.want != "") || !strings.Contains(got.Error(), tt.want) {
			t.Errorf("of %v, reuse %v, it is told %q, want %q in it", tt.err, tt.reuse, got, tt.want)
		}
	}
}

func TestWhatIsPrivateIsNotShared(t *testing.T) {
	if err := PrivateRemedy("admin", nil); err != nil {
		t.Errorf("of nothing: %v", err)
	}
	err := PrivateRemedy("admin", fmt.Errorf("listen: %w", syscall.EADDRINUSE))
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.HasPrefix(err.Error(), "-admin: ") || !strings.Contains(err.Error(), "an -admin of its own") && !strings.Contains(err.Error(), "a -admin of its own") {
		t.Errorf("told %v", err)
	}
	if err := PrivateRemedy("pprof", fmt.Errorf("listen: %w", syscall.EACCES)); !strings.HasPrefix(err.Error(), "-pprof: ") || !strings.Contains(err.Error(), "1024") {
		t.Errorf("told %v", err)
	}
}

func TestWhoMayNotMakeASocketIsNotToldOfPorts(t *testing.T) {
	for _, err := range []error{
		&os.PathError{Op: "open", Path: "/x", Err: syscall.EACCES},
		&net.OpError{Op: "listen", Net: "unix", Err: os.NewSyscallError("bind", syscall.EACCES)},
	} {
		if got := PrivateRemedy("admin", err).Error(); strings.Contains(got, "1024") || !strings.Contains(got, "in a folder") || !strings.HasPrefix(got, "-admin: ") {
			t.Errorf("told %q", got)
		}
	}
	tcp := &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EACCES)}
	if got := PrivateRemedy("admin", tcp).Error(); !strings.Contains(got, "1024") {
		t.Errorf("of a port: %q", got)
	}
}

func TestASharedPortIsFreeForWhoSharesIt(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("who may share a port is for each system to say")
	}
	for _, network := range []string{"tcp4", "udp4"} {
		addr := taken(t, network, true)
		if err := Check(network, addr, true); err != nil {
			t.Errorf("%s: %v", network, err)
		}
		if err := Check(network, addr, false); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%s: for who does not share it: %v", network, err)
		}
	}
}
