package main

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
	"gateway/internal/listen"
)

// What the loops ask of a tunnel's two sockets.

func TestRoomIsAskedForOnlyOnceThereWasNone(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, nil)
	wants := func(c net.Conn) (wants bool) {
		t.Helper()
		look(t, g, c, func(_ *loop, s *tunnel) { wants = s.sockets[clientSide].wantOut })
		return wants
	}
	const size = 16 << 20
	c := openTunnel(t, g.addr, startBackend(t, func(b *net.TCPConn) {
		io.CopyN(b, b, 5)
		b.Write(make([]byte, size)) // more than the client takes
	}))
	harness.SmallBuffers(c)
	for _, part := range []string{"he", "llo"} {
		send(t, c, part)
		expect(t, c, part)
		if part == "he" && wants(c) {
			t.Error("EPOLLOUT was asked for, though there always was room")
		}
	}
	eventually(t, "EPOLLOUT is asked for", func() bool { return wants(c) })
	expectAll(t, c, string(make([]byte, size)))
}

func TestBothSocketsOfATunnelHaveTheirOptions(t *testing.T) {
	t.Parallel()
	type option struct {
		name       string
		level, opt int
	}
	options := []option{
		{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY},
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
		{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT},
	}
	all := "TCP_NODELAY=1 SO_KEEPALIVE=1 TCP_KEEPIDLE=21 TCP_KEEPINTVL=7 TCP_KEEPCNT=3 TCP_USER_TIMEOUT=12345"
	for _, tt := range []struct {
		name                   string
		keepalive, userTimeout time.Duration
		want                   string // of all options; those of keepalive only where it is on
	}{
		{"all", 21 * time.Second, 12345 * time.Millisecond, all},
		{"no keepalive", 0, 0, "TCP_NODELAY=1 SO_KEEPALIVE=0 TCP_USER_TIMEOUT=0"},
		{"less than a second", 300 * time.Millisecond, 0,
			"TCP_NODELAY=1 SO_KEEPALIVE=1 TCP_KEEPIDLE=1 TCP_KEEPINTVL=1 TCP_KEEPCNT=3 TCP_USER_TIMEOUT=0"},
	} {
		g := startConfigured(t, func(cfg *Config) {
			cfg.Keepalive, cfg.UserTimeout = tt.keepalive, tt.userTimeout
			cfg.HalfCloseTimeout = 100 * time.Millisecond // has the sweep come soon
		}, func(g *Gateway) {
			g.dialer.resolver = resolver(t, func(query []byte) []byte { return answer(query, noError, "127.0.0.1") })
		})
		backend := startEcho(t)
		_, port, _ := net.SplitHostPort(backend)
		for way, request := range map[string][]string{
			"at once":   {sealed(t, backend)},
			"a name":    {sealed(t, "game.test:"+port)},
			"in pieces": {sealed(t, backend)[:10], sealed(t, backend)},
		} {
			t.Run(tt.name+", "+way, func(t *testing.T) {
				c := connect(t, g.addr)
				if len(request) == 2 {
					send(t, c, request[0])
					harness.Delivered(t, c)
					request = []string{request[1][10:]}
					c.Close() // another line has another salt
					c = connect(t, g.addr)
					line := sealed(t, backend)
					send(t, c, line[:10])
					harness.Delivered(t, c)
					request = []string{line[10:]}
				}
				send(t, c, request[0])
				expect(t, c, "200")
				for side, name := range []string{"client", "backend"} {
					var got string
					defer func() {
						if t.Failed() {
							t.Logf("the %s's: %s", name, got)
						}
					}()
					eventually(t, "the "+name+"'s socket has "+tt.want, func() bool {
						look(t, g, c, func(_ *loop, s *tunnel) {
							var values []string
							fd := int(s.sockets[side].fd)
							for _, o := range options {
								v, err := unix.GetsockoptInt(fd, o.level, o.opt)
								if err != nil {
									t.Errorf("%s: %v", o.name, err)
								}
								if tt.keepalive > 0 || !strings.HasPrefix(o.name, "TCP_KEEP") {
									values = append(values, fmt.Sprintf("%s=%d", o.name, v))
								}
							}
							got = strings.Join(values, " ")
							if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
								t.Errorf("the %s's socket stays open in a child process", name)
							}
							if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); flags&unix.O_NONBLOCK == 0 {
								t.Errorf("the %s's socket blocks", name)
							}
						})
						return got == tt.want
					})
				}
			})
		}
	}
}

// legOptions returns what a test looks at of a tunnel's two sockets.
func legOptions(t testing.TB, l *loop) (found [][4]int) {
	t.Helper()
	inLoop(t, l, func() {
		for _, tn := range l.slots {
			if tn.state != stateOpen {
				continue
			}
			for _, s := range tn.sockets {
				get := func(level, name int) int {
					v, err := unix.GetsockoptInt(int(s.fd), level, name)
					if err != nil {
						t.Error(err)
					}
					return v
				}
				found = append(found, [4]int{
					get(unix.IPPROTO_TCP, unix.TCP_NODELAY), get(unix.SOL_SOCKET, unix.SO_KEEPALIVE),
					get(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE), get(unix.IPPROTO_TCP, unix.TCP_KEEPCNT)})
			}
		}
	})
	return found
}

// The slow way once had net's own keepalive, and clients that connected before
// Serve had none.
func TestBothLegsHaveTheConfiguredKeepaliveOnEveryWay(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		keepalive time.Duration
		slow      bool
		want      func(o [4]int) bool
	}{
		{"the short way", 77 * time.Second, false, func(o [4]int) bool { return o == [4]int{1, 1, 77, 3} }},
		{"the slow way", 77 * time.Second, true, func(o [4]int) bool { return o == [4]int{1, 1, 77, 3} }},
		{"the short way, none", 0, false, func(o [4]int) bool { return o[0] == 1 && o[1] == 0 }},
		{"the slow way, none", 0, true, func(o [4]int) bool { return o[0] == 1 && o[1] == 0 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := defaultConfig()
			cfg.Keepalive = tt.keepalive
			ln, err := listen.Open(listen.Address{Addr: "127.0.0.1:0"}, howToListen(cfg))
			if err != nil {
				t.Fatal(err)
			}
			line := sealed(t, startEcho(t))
			c := connect(t, ln.Addr().String()) // nobody serves yet
			g := startConfigured(t, func(cfg *Config) {
				cfg.Loops, cfg.Keepalive, cfg.HalfCloseTimeout = 1, tt.keepalive, 100*time.Millisecond
				if tt.slow {
					theSlowWay(cfg)
				}
			}, nil)
			served := make(chan error, 1)
			go func() { served <- g.Serve(ln) }()
			defer func() { g.Close(); <-served }()
			if tt.slow {
				send(t, c, line[:10])
				eventually(t, "a goroutine has it", func() bool { return g.goroutinesServe() == 1 })
				line = line[10:]
			}
			send(t, c, line)
			expect(t, c, "200")
			var got [][4]int
			defer func() {
				if t.Failed() {
					t.Logf("options %v", got)
				}
			}()
			eventually(t, "both legs have their options", func() bool {
				got = legOptions(t, g.engine.(*loops).all[0])
				return len(got) == 2 && tt.want(got[0]) && tt.want(got[1])
			})
		})
	}
}
