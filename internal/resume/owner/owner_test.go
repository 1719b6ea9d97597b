package owner

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gateway/internal/resume"
)

// carried is a tunnel whose bytes nobody moves.
type carried struct {
	*Tunnel
	ticket string
	key    [32]byte
	over   atomic.Bool
}

func (c *carried) Resume(q *Return) (Resumed, error) {
	if err := c.Session().Resume(q.Request); err != nil {
		return Resumed{}, err
	}
	return c.Tunnel.Resumed(q), nil
}

func (c *carried) End(why error, losses int) bool {
	if losses != c.Losses() || c.Session().Attached() {
		return false
	}
	c.over.Store(true)
	c.Over()
	return true
}

func (c *carried) lose() {
	c.Session().Detach()
	c.Lost(errors.New("a test"))
}

func (c *carried) request(seq uint64) *resume.Request {
	r := &resume.Request{Ticket: c.ticket, Seq: seq}
	line := r.AppendSigned(nil, c.key)
	_, r, _ = resume.Parse(line[:len(line)-1])
	return r
}

func newTestOwner(t testing.TB, o Options) *Owner {
	tickets, err := resume.NewTickets([][]byte{[]byte("secret")})
	if err != nil {
		t.Fatal(err)
	}
	o.Tickets, o.Log, o.Buffer = tickets, slog.New(slog.DiscardHandler), resume.MinWindow
	if o.Memory == 0 {
		o.Memory = 1 << 30
	}
	return New(o)
}

func (o *Owner) openTest(t testing.TB) *carried {
	tun, hello, err := o.Open(&resume.Open{})
	if err != nil {
		t.Fatal(err)
	}
	client := resume.NewClient()
	if err := client.Input(hello); err != nil {
		t.Fatal(err)
	}
	h, _ := client.Hello()
	c := &carried{Tunnel: tun, ticket: h.Ticket, key: h.Secret}
	tun.CarriedBy(c, netip.MustParseAddrPort("192.0.2.1:1"))
	return c
}

// Whatever comes and goes, each tunnel that is away is given up when its hold is over, and
// not before; and no other.
func TestEachTunnelIsHeldForItsOwnTime(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			const hold = time.Second
			o := newTestOwner(t, Options{Hold: hold, Max: 1 << 20})
			defer o.Close()
			var all []*carried
			lost := map[*carried]time.Time{}
			seqs := map[*carried]uint64{}
			for range 40 {
				all = append(all, o.openTest(t))
			}
			for range 400 {
				time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
				synctest.Wait()
				c := all[r.IntN(len(all))]
				for _, c := range all {
					since, away := lost[c]
					if gone := away && time.Since(since) >= hold; gone != c.over.Load() {
						t.Fatalf("seed %d: away for %v, over: %v", seed, time.Since(since), c.over.Load())
					}
				}
				since, away := lost[c]
				switch {
				case c.over.Load():
				case !away:
					c.lose()
					lost[c] = time.Now()
				case r.IntN(4) == 0: // as in a hand-over that comes to nothing
					c.Freeze()
					c.Thaw(true)
				default:
					seqs[c]++
					how, err := c.Resume(&Return{Request: c.request(seqs[c])})
					if err != nil || how.Stall != time.Since(since) || how.Count != int(seqs[c]) {
						t.Fatalf("seed %d: %+v, %v", seed, how, err)
					}
					delete(lost, c)
				}
			}
			for c := range lost {
				c.Freeze() // or time would go on for as long as it is held
			}
		})
	}
}

func TestTheOldestGivesWayAndNoMoreThanThat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestOwner(t, Options{Hold: time.Hour, Max: 3})
		defer o.Close()
		var all []*carried
		for range 10 {
			all = append(all, o.openTest(t))
		}
		for _, i := range rand.Perm(len(all)) {
			all[i].lose()
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		slices.SortFunc(all, func(a, b *carried) int { return a.lostAt.Compare(b.lostAt) })
		for i, c := range all {
			if want := i < len(all)-3; c.over.Load() != want {
				t.Errorf("the one that was lost as number %d is over: %v", i, c.over.Load())
			}
		}
		if s := o.Stats(); s.Tunnels != 3 || s.Detached != 3 {
			t.Errorf("%+v", s)
		}
		for _, c := range all {
			c.Freeze()
		}
	})
}

func TestGuessesAreRefusedAtOnce(t *testing.T) {
	o := newTestOwner(t, Options{Hold: time.Hour, Max: 10})
	c := o.openTest(t)
	if err := o.Refuses(c.request(1)); err != nil {
		t.Errorf("a good request: %v", err)
	}
	forged := c.request(1)
	forged.Recv++
	if err := o.Refuses(forged); err != resume.ErrForged {
		t.Errorf("a forged one: %v", err)
	}
	if _, err := c.Resume(&Return{Request: c.request(1)}); err != nil {
		t.Fatal(err)
	}
	if err := o.Refuses(c.request(1)); err != resume.ErrUsed {
		t.Errorf("one that was used: %v", err)
	}
	altered := c.request(2)
	altered.Ticket = "AAAA" + altered.Ticket[4:]
	if err := o.Refuses(altered); err != ErrTicket {
		t.Errorf("an altered ticket: %v", err)
	}
}

func TestWhoComesBeforeItsTunnelWaitsForIt(t *testing.T) {
	from, to := newTestOwner(t, Options{Hold: time.Hour, Max: 10}), newTestOwner(t, Options{Hold: time.Hour, Max: 10})
	moved, stays := from.openTest(t), from.openTest(t)
	moved.lose()
	arrived := to.Expect()
	var both sync.WaitGroup
	both.Go(func() {
		tun, err := to.Find(moved.request(1))
		if err != nil || tun.ID() != moved.ID() {
			t.Errorf("its own: %v", err)
		}
	})
	both.Go(func() {
		if _, err := to.Find(stays.request(1)); err != ErrUnknown {
			t.Errorf("one that has not come: %v", err)
		}
	})
	to.Inherit(from.Boots())
	moved.Freeze()
	state := moved.Session().Append(moved.Append(nil))
	c := &carried{}
	tun, session, err := to.Adopt(state, c)
	if err != nil {
		t.Fatal(err)
	}
	c.Tunnel = tun
	if session.Attached() || tun.resumes != 0 || tun.client != moved.client {
		t.Errorf("adopted as %+v", tun)
	}
	tun.Thaw(true)
	moved.Over()
	from.Leave(true)
	arrived()
	arrived()
	both.Wait()
	if _, err := from.Find(moved.request(1)); err != ErrMoving {
		t.Errorf("where it was: %v", err)
	}
	if _, _, err := to.Adopt(state, c); err == nil {
		t.Error("adopted twice")
	}
	for n := range len(state) {
		if _, _, err := to.Adopt(state[:n], c); err == nil {
			t.Errorf("adopted from %d bytes of %d", n, len(state))
		}
	}
	if s := to.Stats(); s.Tunnels != 1 || s.Detached != 1 {
		t.Errorf("%+v", s)
	}
	tun.Over()
	to.Close()
}
