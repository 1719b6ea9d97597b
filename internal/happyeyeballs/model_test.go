package happyeyeballs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const forever = time.Duration(math.MaxInt64)

// schedule is one race, at random: who is there, who comes when, and how long
// it may take.
type schedule struct {
	hosts   map[netip.Addr]host
	first   []netip.Addr
	late    []batch       // by time; nil: no channel
	closes  time.Duration // when the channel is closed
	timeout time.Duration
	cancel  time.Duration // forever: never
}

type batch struct {
	at    time.Duration
	addrs []netip.Addr
}

// moment returns a time that nothing else in a race happens at.
func moment(r *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(r.Int64N(int64(most))) + 1
}

func randomSchedule(r *rand.Rand) schedule {
	s := schedule{hosts: make(map[netip.Addr]host), closes: forever, timeout: forever, cancel: forever}
	var pool []netip.Addr
	endless := false // without a time-out
	for i := range r.IntN(8) {
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		if r.IntN(2) == 0 {
			a = netip.AddrFrom16([16]byte{0x20, 1, 15: byte(i)})
		}
		pool = append(pool, a)
		h := host{after: moment(r, 600*ms), deaf: r.IntN(4) == 0}
		switch r.IntN(6) {
		case 0:
			h.after, h.deaf, endless = -1, false, true
		case 1, 2:
			h.err = fmt.Errorf("refused by %v", a)
		case 3:
			h.err = timeout{fmt.Errorf("time-out at %v", a)}
		case 4:
			h.err = Skip{fmt.Errorf("%v is denied", a)}
		}
		s.hosts[a] = h
	}
	some := func() (list []netip.Addr) { // with repetitions
		for range r.IntN(5) {
			if len(pool) > 0 {
				list = append(list, pool[r.IntN(len(pool))])
			}
		}
		return list
	}
	s.first = some()
	if r.IntN(2) == 0 {
		s.late = []batch{}
		at := time.Duration(0)
		for range r.IntN(3) + 1 {
			at += moment(r, 400*ms)
			s.late = append(s.late, batch{at, some()})
		}
		if r.IntN(2) == 0 {
			s.closes = at + moment(r, 400*ms)
		}
	}
	if r.IntN(2) == 0 || endless || s.late != nil && s.closes == forever {
		s.timeout = moment(r, 2*time.Second)
	}
	if r.IntN(5) == 0 {
		s.cancel = moment(r, time.Second)
	}
	return s
}

// result is what came of a race.
type result struct {
	dials string
	won   netip.Addr
	err   string
	took  time.Duration
}

var errCancelled = errors.New("cancelled")

// expect plays a schedule event by event.
func (s schedule) expect() result {
	type attempt struct {
		addr netip.Addr
		ends time.Duration
	}
	var (
		now, turn  time.Duration // turn: when the next attempt is due
		waiting    []netip.Addr
		known      = make(map[netip.Addr]bool)
		lastFamily = -1
		running    []attempt
		begun      []string
		last       netip.Addr
		errs       []error
		late       = s.late
		open       = s.late != nil
		patience   = forever // until when late is waited for
		limit      = min(s.timeout, s.cancel)
		learn      = func(list []netip.Addr) {
			for _, a := range list {
				if !known[a] {
					known[a] = true
					waiting = append(waiting, a)
				}
			}
		}
		end = func(err error) result {
			return result{strings.Join(begun, ", "), netip.Addr{}, err.Error(), now}
		}
	)
	learn(s.first)
	for {
		if len(waiting) > 0 && now >= turn {
			i := slices.IndexFunc(waiting, func(a netip.Addr) bool { return family(a) != lastFamily })
			i = max(i, 0)
			last, lastFamily = waiting[i], family(waiting[i])
			waiting = slices.Delete(waiting, i, i+1)
			h := s.hosts[last]
			ends := forever
			if h.after >= 0 {
				ends = now + h.after
			}
			running = append(running, attempt{last, ends})
			begun = append(begun, fmt.Sprintf("+%d %v", now.Milliseconds(), last))
			pause := 250 * ms
			if s.timeout < forever {
				turns := len(waiting) + 1
				if open {
					turns++
				}
				pause = min(pause, max(10*ms, (s.timeout-now)/time.Duration(turns)))
			}
			turn = now + pause
		}
		if len(running) == 0 && len(waiting) == 0 && (!open || now >= patience) {
			return end(telling(errs))
		}
		// What is next?
		next := min(limit, patience)
		if len(waiting) > 0 {
			next = min(next, turn)
		}
		for _, a := range running {
			next = min(next, a.ends)
		}
		if open && len(late) > 0 {
			next = min(next, late[0].at)
		} else if open {
			next = min(next, s.closes)
		}
		now = next
		if now == limit {
			if s.cancel == limit {
				return end(errCancelled)
			}
			if len(running) > 0 {
				errs = append(errs, timeout{fmt.Errorf("dial %v: i/o timeout", running[0].addr)})
			} else if len(errs) == 0 {
				errs = append(errs, context.DeadlineExceeded)
			}
			return end(telling(errs))
		}
		if open && len(late) > 0 && late[0].at == now {
			learn(late[0].addrs)
			late = late[1:]
			if len(waiting) > 0 {
				patience = forever
			}
			continue
		}
		if now == s.closes {
			open = false
		}
		if i := slices.IndexFunc(running, func(a attempt) bool { return a.ends == now }); i >= 0 {
			a := running[i].addr
			running = slices.Delete(running, i, i+1)
			if s.hosts[a].err == nil {
				return result{strings.Join(begun, ", "), a, "", now}
			}
			errs = append(errs, s.hosts[a].err)
			if a == last || len(running) == 0 {
				turn = now
			}
			if len(running) == 0 && len(waiting) == 0 {
				patience = now + 250*ms
			}
		}
	}
}

// telling returns the error that a race should have.
func telling(errs []error) error {
	var skip Skip
	for _, err := range errs {
		if isTimeout(err) && !errors.As(err, &skip) {
			return err
		}
	}
	for _, err := range errs {
		if !errors.As(err, &skip) {
			return err
		}
	}
	if len(errs) == 0 {
		return ErrNoAddress
	}
	return errs[len(errs)-1]
}

func (s schedule) play(t *testing.T) result {
	w := &world{hosts: s.hosts, start: time.Now()}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	if s.cancel < forever {
		stop := time.AfterFunc(s.cancel, func() { cancel(errCancelled) })
		defer stop.Stop()
	}
	if s.timeout < forever {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, s.timeout)
		defer stop()
	}
	var late chan []netip.Addr
	if s.late != nil {
		late = make(chan []netip.Addr, len(s.late))
		go func() {
			for _, b := range s.late {
				time.Sleep(b.at - time.Since(w.start))
				late <- b.addrs
			}
			if s.closes < forever {
				time.Sleep(s.closes - time.Since(w.start))
				close(late)
			}
		}()
	}
	c, err := Dial(ctx, s.first, late, w.dial)
	got := result{took: time.Since(w.start)}
	w.mu.Lock()
	got.dials = strings.Join(w.dials, ", ")
	w.mu.Unlock()
	switch {
	case err != nil:
		got.err = err.Error()
	default:
		got.won = c.(*conn).addr
	}
	w.settle(t, c)
	return got
}

// Every race goes as the model says: who is dialed when, who wins, and with which
// error it ends. Each connection is returned or closed, and no goroutine stays,
// or the bubble fails.
func TestRandomRacesGoAsTheModelSays(t *testing.T) {
	rounds := 20_000
	if testing.Short() {
		rounds = 1000
	}
	for seed := range rounds {
		s := randomSchedule(rand.New(rand.NewPCG(uint64(seed), 1)))
		want := s.expect()
		var got result
		synctest.Test(t, func(t *testing.T) { got = s.play(t) })
		if got != want {
			t.Fatalf("seed %d: %+v\ngot  %+v\nwant %+v", seed, s, got, want)
		}
		if t.Failed() {
			t.Fatalf("seed %d: %+v", seed, s)
		}
	}
}
