package process

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
)

// slotSizes are of messages that just fit what a batch has for one (internal/uring), and
// of some that do not. One that fills it exactly has nothing behind it.
var slotSizes = []int{1, 64, 2039, 2040, 2043, 2044, 2045, 2047, 2048, 2049, 4096, 16384, 16385, 70_000}

// talker is a client that has messages come back, byte by byte the same.
type talker struct {
	c      *net.TCPConn
	frames *harness.Frames // nil: it speaks plainly
	rnd    *rand.Rand
	noise  *noise
	heard  []byte // and not asked for yet
	urgent bool   // it has an urgent byte among its others, which is nobody's
}

// say sends a message in one piece or two.
func (k *talker) say(msg []byte) error {
	at := k.rnd.IntN(len(msg))
	if k.frames != nil {
		k.frames.Say(msg)
		msg, k.frames.Out = k.frames.Out, nil
	}
	if _, err := k.c.Write(msg[:at]); err != nil {
		return err
	}
	if k.urgent {
		raw, err := k.c.SyscallConn()
		if err == nil {
			raw.Control(func(fd uintptr) { err = syscall.Sendto(int(fd), []byte("!"), syscall.MSG_OOB, nil) })
		}
		if err != nil {
			return err
		}
	}
	_, err := k.c.Write(msg[at:])
	return err
}

// hear reads the echo of a message.
func (k *talker) hear(msg []byte) error {
	buf := make([]byte, 32<<10)
	for len(k.heard) < len(msg) {
		n, err := k.c.Read(buf)
		if err != nil {
			return fmt.Errorf("after %d bytes of %d: %w", len(k.heard), len(msg), err)
		}
		b := buf[:n]
		if k.frames != nil {
			if b, err = k.frames.Hear(b); err != nil {
				return err
			}
		}
		k.heard = append(k.heard, b...)
	}
	if !bytes.Equal(k.heard, msg) {
		return fmt.Errorf("%d bytes come back that are not the %d that were sent", len(k.heard), len(msg))
	}
	k.heard = k.heard[:0]
	return nil
}

// All talk at once, round by round, so that there are full batches. Meanwhile others
// connect, leave, break off, do not read and are cut, and the gateway is upgraded.
// TALKERS=1000 has as many of them; each takes two descriptors here.
func TestWhoeverTalksAtOnceGetsHisOwnBytesWhateverOthersDo(t *testing.T) {
	harness.Long(t)
	talkers := 96
	if n, err := strconv.Atoi(os.Getenv("TALKERS")); err == nil {
		talkers = n
	}
	for way, tt := range map[string]struct{ env, flags []string }{
		"one loop":      {nil, []string{"-loops=1"}},
		"two loops":     {nil, []string{"-loops=2"}},
		"one processor": {[]string{"GOMAXPROCS=1"}, nil},
		"no io_uring":   {nil, []string{"-loops=1", "-io-uring=0"}},
	} {
		t.Run(way, func(t *testing.T) {
			a := harness.NewAdmin(t)
			flags := append([]string{"-secret=" + harness.Secret, "-addr=127.0.0.1:0", "-log-format=json",
				"-timeout=" + harness.Patience.String(), a.Flag}, tt.flags...)
			u := harness.Adopt(t, harness.StartCommand(t, harness.Command(t, tt.env, flags...)))
			talkAtOnce(t, u, a, talkers)
			u.EndMain(t)
		})
	}
}

// openFrom opens a tunnel from an address of this host.
func openFrom(t *testing.T, from, gateway, backend string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", gateway)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(harness.Patience))
	harness.Send(t, c, harness.Line(backend))
	harness.Expect(t, c, "200")
	return c
}

func talkAtOnce(t *testing.T, u *harness.Upgraded, a *harness.Admin, talkers int) {
	const rounds = 42
	echo := harness.StartEcho(t)
	var all []*talker
	for i := range talkers {
		k := &talker{rnd: rand.New(rand.NewPCG(rand.Uint64(), 0)), noise: newNoise(uint64(i)), urgent: i%16 == 1}
		if i%3 == 0 {
			k.c, k.frames = openWebSocket(t, harness.Connect(t, u.Addr), echo, ""), harness.NewFrames(k.rnd)
		} else {
			k.c = harness.OpenTunnel(t, u.Addr, echo)
		}
		all = append(all, k)
	}
	ctx, stop := context.WithCancel(t.Context())
	var others sync.WaitGroup
	defer others.Wait()
	defer stop()
	flood := harness.StartBackend(t, func(c *net.TCPConn) {
		harness.SmallBuffers(c)
		for b := make([]byte, 64<<10); ; {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})
	for range 8 { // who does not read
		c := harness.OpenTunnel(t, u.Addr, flood)
		harness.SmallBuffers(c)
		defer harness.Reset(c)
	}
	for range 3 { // who comes and goes
		others.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				c, err := net.Dial("tcp", u.Addr)
				if err != nil {
					continue // more than the machine can have
				}
				io.WriteString(c, harness.Line(echo))
				c.SetDeadline(time.Now().Add(harness.Patience))
				b := make([]byte, 3)
				if _, err := io.ReadFull(c, b); err == nil && string(b) == "200" {
					io.WriteString(c, "hello")
					if n%4 > 0 {
						if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
							t.Errorf("who comes and goes: %v", err)
						}
					}
				}
				switch n % 3 {
				case 0:
					harness.Reset(c)
				case 1:
					c.(*net.TCPConn).CloseWrite()
					io.Copy(io.Discard, c)
				}
				c.Close()
			}
		})
	}
	for round := range rounds {
		var victims []net.Conn
		if round%6 == 2 { // who is cut in the middle
			for range 4 {
				c := openFrom(t, "127.0.0.77", u.Addr, echo)
				victims = append(victims, c)
				others.Go(func() {
					for {
						if _, err := io.WriteString(c, "for nobody"); err != nil {
							return
						}
						if _, err := c.Read(make([]byte, 10)); err != nil {
							return
						}
					}
				})
			}
		}
		var working sync.WaitGroup
		start := make(chan struct{})
		for i, k := range all {
			msg := k.noise.next(slotSizes[(round+i*5)%len(slotSizes)])
			if round%2 == 0 {
				msg = msg[:min(len(msg), 100)] // all of them plain
			}
			k.c.SetDeadline(time.Now().Add(harness.Patience))
			working.Go(func() {
				<-start
				err := k.say(msg)
				if err == nil {
					err = k.hear(msg)
				}
				if err != nil {
					t.Errorf("talker %d of round %d, %d bytes, urgent %v, WebSocket %v: %v", i, round, len(msg), k.urgent, k.frames != nil, err)
				}
			})
		}
		close(start)
		if len(victims) > 0 {
			if status, answer := a.Do(t, "POST", "/api/tunnels/cut", `{"client": "127.0.0.77"}`); status != 200 {
				t.Errorf("cut: %d %s", status, answer)
			}
			for _, c := range victims {
				defer c.Close()
			}
		}
		if round%12 == 9 {
			u.Upgrade(t)
		}
		if working.Wait(); t.Failed() {
			return
		}
	}
	for _, k := range all {
		k.c.SetDeadline(time.Now().Add(harness.Patience))
		if k.frames != nil {
			k.frames.Close()
			k.c.Write(k.frames.Out)
		} else {
			k.c.CloseWrite()
		}
		if rest, err := io.ReadAll(k.c); err != nil || k.frames == nil && len(rest) > 0 {
			t.Errorf("at the end: %d bytes, %v", len(rest), err)
		}
	}
}
