package kcp

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"
)

func TestADialerReachesItsOwnKind(t *testing.T) {
	for name, set := range map[string]func(*Options){
		"clear":                    func(*Options) {},
		"aes":                      func(o *Options) { o.Crypt, o.Key = "aes", "secret" },
		"error correction":         func(o *Options) { o.DataShards, o.ParityShards = 10, 3 },
		"aes and error correction": func(o *Options) { o.Crypt, o.Key, o.DataShards, o.ParityShards = "aes", "secret", 10, 3 },
	} {
		t.Run(name, func(t *testing.T) {
			o := options()
			set(&o)
			l := listen(t, o, echo)
			c := dial(t, o, l.Addr().String())
			roundTrip(t, c, "hello")
			if c.RemoteAddr().String() != l.Addr().String() {
				t.Errorf("remote address %v", c.RemoteAddr())
			}
		})
	}
}

// serveKcpgo runs kcp-go's own server.
func serveKcpgo(t *testing.T, block kcpgo.BlockCrypt, dataShards, parityShards int, serve func(net.Conn)) string {
	t.Helper()
	l, err := kcpgo.ListenWithOptions("127.0.0.1:0", block, dataShards, parityShards)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			s, err := l.AcceptKCP()
			if err != nil {
				return
			}
			t.Cleanup(func() { s.Close() })
			go serve(s)
		}
	}()
	return l.Addr().String()
}

func TestADialerReachesKcpgosServer(t *testing.T) {
	t.Parallel()
	o := options()
	clear := o
	o.Crypt, o.Key = "aes", "secret"
	sealed := o
	o.DataShards, o.ParityShards = 10, 3
	for name, o := range map[string]Options{"clear": clear, "aes": sealed, "aes with error correction": o} {
		t.Run(name, func(t *testing.T) {
			var block kcpgo.BlockCrypt
			if o.Crypt == "aes" {
				block = aes(transport(t, o))
			}
			addr := serveKcpgo(t, block, o.DataShards, o.ParityShards, func(c net.Conn) { io.Copy(onlyWriter{c}, onlyReader{c}) })
			c := dial(t, o, lossy(t, addr, .1))
			text, _ := random(6, 100<<10)
			roundTrip(t, c, string(text))
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAServerMaySpeakFirst(t *testing.T) {
	addr := serveKcpgo(t, nil, 0, 0, func(c net.Conn) { io.WriteString(c, "welcome") })
	expect(t, dial(t, options(), addr), "welcome")
}

// silent is a UDP port that never answers.
func silent(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestDialSaysWhyItFailed(t *testing.T) {
	free := silent(t)
	free.Close()
	mute := silent(t).LocalAddr().String()
	tr := transport(t, options())
	t.Run("nobody has the port", func(t *testing.T) {
		if _, err := tr.Dial(t.Context(), free.LocalAddr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no answer in time", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := tr.Dial(ctx, mute); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		if _, err := tr.Dial(ctx, mute); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the idle timeout bounds it", func(t *testing.T) {
		o := options()
		o.IdleTimeout = 50 * time.Millisecond
		if _, err := transport(t, o).Dial(t.Context(), mute); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no address", func(t *testing.T) {
		if _, err := tr.Dial(t.Context(), "127.0.0.1"); err == nil {
			t.Error("no error")
		}
	})
}

func TestABackendWhosePortIsGoneEndsTheSession(t *testing.T) {
	ours := transport(t, options())
	socket := silent(t)
	l, err := ours.Serve(socket)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, options(), l.Addr().String())
	io.WriteString(c, "hello")
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s.Abort() // the last session takes the socket with it
	go io.WriteString(c, "anybody there?")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v", err)
	}
}
