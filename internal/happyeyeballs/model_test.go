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

	"gateway/internal/layer"
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

// model is a race as it should go. It jumps from one event to the next.
type model struct {
	schedule
	now     time.Duration
	turn    time.Duration // when the next attempt is due
	lateEnd time.Duration // until when late is waited for
	open    bool          // late may bring more

	waiting []netip.Addr
	known   map[netip.Addr]bool
	running []attempt
	last    netip.Addr // began last
	errs    []error
	begun   []string
}

type attempt struct {
	addr netip.Addr
	ends time.Duration
}

// expect plays a schedule.
func (s schedule) expect() result {
	m := &model{schedule: s, lateEnd: forever, open: s.late != nil, known: make(map[netip.Addr]bool)}
	m.learn(s.first)
	for {
		if len(m.waiting) > 0 && m.now >= m.turn {
			m.begin()
		}
		if len(m.running) == 0 && len(m.waiting) == 0 && (!m.open || m.now >= m.lateEnd) {
			return m.result(netip.Addr{}, telling(m.errs))
		}
		m.now = m.next()
		switch {
		case m.now == m.cancel:
			return m.result(netip.Addr{}, errCancelled)
		case m.now == m.timeout:
			return m.result(netip.Addr{}, m.timedOut())
		case m.now == m.closes:
			m.open = false
		case m.open && len(m.late) > 0 && m.late[0].at == m.now:
			m.learn(m.late[0].addrs)
			m.late = m.late[1:]
		default:
			if won := m.end(); won.IsValid() {
				return m.result(won, nil)
			}
		}
	}
}

func (m *model) result(won netip.Addr, err error) result {
	r := result{dials: strings.Join(m.begun, ", "), won: won, took: m.now}
	if err != nil {
		r.err = err.Error()
	}
	return r
}

// next returns when the next event is.
func (m *model) next() time.Duration {
	next := min(m.timeout, m.cancel, m.lateEnd)
	if len(m.waiting) > 0 {
		next = min(next, m.turn)
	}
	for _, a := range m.running {
		next = min(next, a.ends)
	}
	if m.open && len(m.late) > 0 {
		return min(next, m.late[0].at)
	} else if m.open {
		return min(next, m.closes)
	}
	return next
}

func (m *model) learn(list []netip.Addr) {
	for _, a := range list {
		if !m.known[a] {
			m.known[a] = true
			m.waiting = append(m.waiting, a)
			m.lateEnd = forever
		}
	}
}

// begin begins an attempt, of the other family than the last if there is one.
func (m *model) begin() {
	other := slices.IndexFunc(m.waiting, func(a netip.Addr) bool { return !m.last.IsValid() || a.Is4() != m.last.Is4() })
	i := max(other, 0)
	m.last = m.waiting[i]
	m.waiting = slices.Delete(m.waiting, i, i+1)
	ends := forever
	if h := m.hosts[m.last]; h.after >= 0 {
		ends = m.now + h.after
	}
	m.running = append(m.running, attempt{m.last, ends})
	m.begun = append(m.begun, fmt.Sprintf("+%d %v", m.now.Milliseconds(), m.last))
	pause := 250 * ms
	if m.timeout < forever {
		turns := len(m.waiting) + 1
		if m.open {
			turns++
		}
		pause = min(pause, max(10*ms, (m.timeout-m.now)/time.Duration(turns)))
	}
	m.turn = m.now + pause
}

// end ends the attempt whose time has come, if there is one, and returns the
// address if it has connected.
func (m *model) end() (won netip.Addr) {
	i := slices.IndexFunc(m.running, func(a attempt) bool { return a.ends == m.now })
	if i < 0 {
		return won
	}
	addr := m.running[i].addr
	m.running = slices.Delete(m.running, i, i+1)
	if m.hosts[addr].err == nil {
		return addr
	}
	m.errs = append(m.errs, m.hosts[addr].err)
	if addr == m.last || len(m.running) == 0 {
		m.turn = m.now
	}
	if len(m.running) == 0 && len(m.waiting) == 0 {
		m.lateEnd = m.now + 250*ms
	}
	return won
}

// timedOut returns the error of a race that runs into its deadline.
func (m *model) timedOut() error {
	if len(m.running) > 0 {
		m.errs = append(m.errs, timeout{fmt.Errorf("dial %v: i/o timeout", m.running[0].addr)})
	}
	if len(m.errs) == 0 {
		return context.DeadlineExceeded
	}
	return telling(m.errs)
}

// telling returns the error that a race should have.
func telling(errs []error) error {
	var skip Skip
	for _, err := range errs {
		if layer.IsTimeout(err) && !errors.As(err, &skip) {
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
