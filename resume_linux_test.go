package main

import (
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/handshake"
	"gateway/internal/harness"
	"gateway/internal/resume"
)

// roamer is the client's end of a resumable tunnel.
type roamer struct {
	*resume.Session
	ticket string
	conn   net.Conn
}

// openRoamer opens a resumable tunnel.
func openRoamer(t *testing.T, addr, backend string) *roamer {
	t.Helper()
	pair, err := resume.NewKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	r := &roamer{Session: resume.NewClient(), conn: harness.Connect(t, addr)}
	send(t, r.conn, string(resume.AppendOpen(nil, pair.PublicKey().Bytes(), sealedTo(t, backend))))
	expect(t, r.conn, "200")
	r.read(t, r.Greeted)
	h, _ := r.Hello()
	key, err := resume.ClientKey(pair, h.Secret)
	if err != nil {
		t.Fatal(err)
	}
	r.ticket = h.Ticket
	r.SetKey(key)
	return r
}

func (r *roamer) read(t *testing.T, enough func() bool) {
	t.Helper()
	buf := make([]byte, 4096)
	for !enough() {
		n, err := r.conn.Read(buf)
		if err == nil {
			err = r.Input(buf[:n])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// echo says something and hears it back.
func (r *roamer) echo(t *testing.T, text string) {
	t.Helper()
	r.Send([]byte(text))
	send(t, r.conn, string(r.Output(nil, 1<<20, 0)))
	r.hear(t, text)
}

func (r *roamer) hear(t *testing.T, text string) {
	t.Helper()
	r.read(t, func() bool { return r.Buffered() >= len(text) })
	got := make([]byte, len(text))
	if r.Take(got); string(got) != text {
		t.Fatalf("heard %q, want %q", got, text)
	}
	r.Pass(false, 0)
}

// resume goes on by another connection, and returns the answer.
func (r *roamer) resume(t *testing.T, addr string) string {
	t.Helper()
	r.conn = harness.Connect(t, addr)
	send(t, r.conn, string(r.Reattach(r.ticket)))
	var status [3]byte
	if _, err := io.ReadFull(r.conn, status[:]); err != nil {
		t.Fatal(err)
	}
	return string(status[:])
}

// A resumable tunnel that is on its way to another process is nobody's: its client is to
// try again, and its hold does not end. Then both go on, here or there.
func TestAFrozenTunnelIsNeitherResumedNorGivenUp(t *testing.T) {
	t.Parallel()
	const hold = time.Second // of which a busy machine takes a good part
	for name, moves := range map[string]bool{"stays": false, "moves": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := startLoops(t, 1, func(cfg *Config) { cfg.Resume, cfg.ResumeHold = true, hold })
			addr := g.addr
			var to *Gateway
			if moves {
				to = another(t, g)
				g.partner = to
				to.owner.Inherit(g.owner.Boots())
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				addr = ln.Addr().String()
				go to.Serve(ln)
			}
			r := openRoamer(t, g.addr, startEcho(t))
			r.echo(t, "before")
			first := r.conn
			frozen(t, g, to, first, func() {
				if got := r.resume(t, g.addr); got != string(handshake.BadGateway) {
					t.Errorf("while it was frozen: %q", got)
				}
				r.Detach()
				first.Close()
				time.Sleep(2 * hold)
			})
			eventually(t, "the tunnel is where it goes on", func() bool {
				for _, has := range []*Gateway{to, g.Gateway} {
					if has != nil {
						return has.owner.Stats().Tunnels == 1
					}
				}
				return false
			})
			if got := r.resume(t, addr); got != string(handshake.OK) {
				t.Fatalf("after that: %q", got)
			}
			r.echo(t, "after")

			// Away before it is frozen, for longer than its hold by the time that it goes on.
			r.Detach()
			r.conn.Close()
			has := g.Gateway
			if moves {
				has = to
			}
			eventually(t, "its client is away", func() bool { return has.owner.Stats().Detached == 1 })
			l := has.engine.(*loops).all[0]
			p := &parcel{}
			l.do(func() { l.yield(p, 0) })
			time.Sleep(2 * hold)
			if s := has.owner.Stats(); s.Tunnels != 1 || len(p.tunnels) != 1 {
				t.Errorf("%d are frozen, and the owner has %+v", len(p.tunnels), s)
			}
			l.do(func() { l.resume(p) })
			eventually(t, "it is given up", func() bool { return has.owner.Stats().Tunnels == 0 })
		})
	}
}

// The last that there is to say to a client may find no room.
func TestACloseWaitsForRoom(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, func(cfg *Config) { cfg.Resume = true })
	reset := make(chan struct{})
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		expect(t, c, "x")
		send(t, c, "y")
		<-reset
		harness.Reset(c)
	})
	r := openRoamer(t, g.addr, backend)
	r.Send([]byte("x"))
	send(t, r.conn, string(r.Output(nil, 1<<20, 0)))
	r.hear(t, "y")
	filled := int64(0)
	look(t, g, r.conn, func(_ *loop, s *tunnel) {
		for {
			n, err := unix.Write(int(s.sockets[clientSide].fd), make([]byte, 1000))
			if err != nil {
				break
			}
			filled += int64(n)
		}
	})
	close(reset)
	eventually(t, "the backend's reset is known", func() (known bool) {
		for _, l := range g.engine.(*loops).all {
			inLoop(t, l, func() {
				known = l.load.Load() == 0
				for _, s := range l.slots {
					known = known || s.deaf || s.state == stateLinger
				}
			})
		}
		return known
	})
	if _, err := io.CopyN(io.Discard, r.conn, filled); err != nil {
		t.Fatal(err)
	}
	r.read(t, func() bool { _, closed := r.Closed(); return closed })
	if why, _ := r.Closed(); why != resume.BackendReset {
		t.Errorf("CLOSE %v", why)
	}
}

// There is nothing to do for it until then, and its loop sleeps.
func TestATunnelWithoutItsClientIsLeftAlone(t *testing.T) {
	t.Parallel()
	g := startLoops(t, 1, func(cfg *Config) { cfg.Resume = true })
	r := openRoamer(t, g.addr, startEcho(t))
	r.echo(t, "x")
	r.Detach()
	r.conn.Close()
	eventually(t, "its client is away", func() bool { return g.owner.Stats().Detached == 1 })
	l := g.engine.(*loops).all[0]
	eventually(t, "nobody is to be told anything", func() (quiet bool) {
		inLoop(t, l, func() {
			_, due := l.acks.Next()
			quiet = !due
		})
		return quiet
	})
	if got := r.resume(t, g.addr); got != string(handshake.OK) {
		t.Fatalf("answered %q", got)
	}
	r.echo(t, "y")
	if r.Unacked() > 1 {
		t.Errorf("%d bytes are not acknowledged", r.Unacked())
	}
	r.CloseNow(resume.ByApplication) // its backend need not wait for the hold
	send(t, r.conn, string(r.Output(nil, 100, 0)))
}
