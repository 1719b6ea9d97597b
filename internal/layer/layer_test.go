package layer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
)

// lower is a connection that says what is done to it.
type lower struct {
	net.Conn
	did string
}

func (c *lower) Close() error      { c.did += " close"; return nil }
func (c *lower) CloseWrite() error { c.did += " closeWrite"; return nil }

// upper is a layer without anything of its own.
type upper struct{ net.Conn }

func (c upper) NetConn() net.Conn { return c.Conn }

// own is a layer that does everything itself.
type own struct {
	upper
	did *string
}

func (c own) FailWrite() error { *c.did += " failWrite"; return nil }
func (c own) Abort()           { *c.did += " abort" }
func (c own) Broken() error    { return syscall.EPIPE }

// window is a layer that is broken when what it shows is.
type window struct {
	net.Conn
	below net.Conn
}

func (c window) Below() net.Conn { return c.below }

func TestALayerDoesWhatItCanAndTheNearestThingElse(t *testing.T) {
	l := &lower{}
	if Socket(upper{upper{l}}) != net.Conn(l) || Socket(l) != net.Conn(l) {
		t.Error("the lowest layer is not found")
	}
	CloseWrite(l)
	CloseWrite(upper{l}) // has no half-close
	FailWrite(l)
	Abort(upper{upper{l}})
	if l.did != " closeWrite closeWrite close" {
		t.Errorf("did%s", l.did)
	}
	var did string
	o := own{upper{l}, &did}
	FailWrite(o)
	Abort(o)
	if did != " failWrite abort" || l.did != " closeWrite closeWrite close" {
		t.Errorf("did%s, and below%s", did, l.did)
	}
	if err := Broken(o); err != syscall.EPIPE {
		t.Errorf("broken: %v", err)
	}
	if err := Broken(window{l, o}); err != syscall.EPIPE {
		t.Errorf("broken behind a window: %v", err)
	}
	if err := Broken(l); err != nil { // nobody can tell
		t.Errorf("broken: %v", err)
	}
	if RawConn(l) != nil {
		t.Error("what is no socket has a descriptor")
	}
}

func TestAddressesHaveOneSpelling(t *testing.T) {
	for _, tt := range []struct {
		addr net.Addr
		want string
	}{
		{&net.TCPAddr{IP: net.ParseIP("::ffff:10.0.0.7"), Port: 1}, "10.0.0.7:1"},
		{&net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: 2, Zone: "eth0"}, "[fe80::1]:2"},
		{&net.UDPAddr{IP: net.ParseIP("10.0.0.7").To4(), Port: 3}, "10.0.0.7:3"},
		{&net.UnixAddr{Name: "x"}, "invalid AddrPort"},
	} {
		if got := AddrPort(tt.addr).String(); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.addr, got, tt.want)
		}
	}
}

func TestTimeOutsAreToldFromOtherErrors(t *testing.T) {
	for err, want := range map[error]bool{
		os.ErrDeadlineExceeded:                 true,
		context.DeadlineExceeded:               true,
		syscall.ETIMEDOUT:                      true,
		fmt.Errorf("dial: %w", syscall.EAGAIN): true,
		&net.DNSError{IsTimeout: true}:         true,
		syscall.ECONNRESET:                     false,
		errors.New("time is over"):             false,
	} {
		if got := IsTimeout(err); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}
