package handover

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
)

// pair returns both ends of a stream.
func pair(t testing.TB) (old, fresh *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return conns[0], conns[1]
}

// made is a tunnel whose descriptors are files that say whose they are.
func made(t testing.TB, name string, pipes bool) Tunnel {
	t.Helper()
	tun := Tunnel{Name: name}
	if pipes {
		tun.Up.InPipe, tun.Down.InPipe = 1, 2
	}
	for i, p := range tun.fds() {
		fd, err := unix.MemfdCreate("tunnel", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Pwrite(fd, fmt.Appendf(nil, "%s %d", name, i), 0); err != nil {
			t.Fatal(err)
		}
		*p = fd
	}
	return tun
}

// check looks whether descriptors are those of the tunnel.
func check(t testing.TB, tun *Tunnel) {
	t.Helper()
	for i, p := range tun.fds() {
		b := make([]byte, 100)
		n, err := unix.Pread(*p, b, 0)
		if want := fmt.Sprintf("%s %d", tun.Name, i); err != nil || string(b[:n]) != want {
			t.Fatalf("descriptor %d of %s is %q, %v", i, tun.Name, b[:n], err)
		}
		if flags, _ := unix.FcntlInt(uintptr(*p), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
			t.Fatal("a descriptor that every child would get")
		}
	}
}

// leaksNothing fails the test if descriptors are left at its end.
func leaksNothing(t testing.TB) {
	before := harness.Descriptors(os.Getpid())
	t.Cleanup(func() {
		if after := harness.Descriptors(os.Getpid()); after > before {
			t.Errorf("%d descriptors, %d before", after, before)
		}
	})
}

func shut(tunnels []Tunnel) { closeAll(descriptorsOf(tunnels)) }

const patience = 20 * time.Second

// agreed returns both ends after they have agreed.
func agreed(t testing.TB, patience time.Duration) (*Sender, *Receiver) {
	t.Helper()
	old, fresh := pair(t)
	type result struct {
		r   *Receiver
		err error
	}
	got := make(chan result, 1)
	go func() {
		r, err := NewReceiver(fresh)
		got <- result{r, err}
	}()
	s, err := NewSender(t.Context(), old, 20*time.Second, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	s.patience = patience
	res := <-got
	if res.err != nil {
		t.Fatal(res.err)
	}
	return s, res.r
}

func TestTunnelsArriveWithTheirDescriptors(t *testing.T) {
	leaksNothing(t)
	s, r := agreed(t, patience)
	var said []string
	idle := false
	r.Idle = func(is bool) { idle = is }
	r.State = func(name string, text []byte) { said = append(said, name+"="+string(text)) }
	want := []Tunnel{made(t, "a", false), made(t, "b", true)}
	want[1].Up.Unsent = make([]byte, 3<<20) // more than any buffer of the stream
	for len(descriptorsOf(want)) <= MaxDescriptors-6 {
		want = append(want, made(t, fmt.Sprint("c", len(want)), len(want)%2 == 0))
	}
	done := make(chan error, 1)
	go func() {
		s.State("bans", []byte("192.0.2.1"))
		done <- errors.Join(s.Send(want), s.Idle())
		s.Close()
	}()
	got, err := r.Next()
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d tunnels, %v", len(got), err)
	}
	for i := range got {
		check(t, &got[i])
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	if err := <-done; err != nil || !idle || strings.Join(said, "") != "bans=192.0.2.1" {
		t.Errorf("%v, idle: %v, %q", err, idle, said)
	}
	shut(got)
	shut(want)
}

func TestAnotherVersionIsRefusedBeforeTheFirstTunnel(t *testing.T) {
	for _, version := range []uint64{0, Version + 1} {
		old, fresh := pair(t)
		w := wire{old}
		go w.write(frame{word: hello, number: version})
		if _, err := NewReceiver(fresh); err == nil || !strings.Contains(err.Error(), "version") {
			t.Errorf("version %d: %v", version, err)
		}
		if f, err := w.read(); err != nil || f.word != refuse || !strings.Contains(string(f.body), "version") {
			t.Errorf("version %d is answered %+v, %v", version, f, err)
		}
	}
	old, fresh := pair(t)
	go Refuse(fresh, "no event loops")
	if _, err := NewSender(t.Context(), old, patience, patience); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "no event loops") {
		t.Errorf("refused: %v", err)
	}
}

func TestAProcessWithoutRoomLeavesABatchToTheOldOne(t *testing.T) {
	leaksNothing(t)
	s, r := agreed(t, patience)
	batch := []Tunnel{made(t, "a", true)}
	full := true
	r.Room = func([]Tunnel) error {
		if full {
			full = false
			return errors.New("full")
		}
		return nil
	}
	done := make(chan error, 2)
	go func() { done <- s.Send(batch); done <- s.Send(batch) }()
	got, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "full") {
		t.Errorf("without room: %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("with room: %v", err)
	}
	check(t, &got[0])
	shut(got)
	shut(batch)
}

func TestADeadlineEndsTheWaitForTunnels(t *testing.T) {
	_, r := agreed(t, patience)
	done := make(chan error)
	go func() { _, err := r.Next(); done <- err }()
	r.conn.SetReadDeadline(time.Unix(1, 0))
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

// Who has which tunnel, whatever happens: two processes that may die or hang at any
// step, or anywhere between two.

// party is one of the two processes.
type party struct {
	conn *net.UnixConn
	dead bool
}

// die closes all that the process has, but for tunnels, which are looked at later.
func (p *party) die() {
	p.dead = true
	p.conn.Close()
}

// trial hands over some batches, in which something happens once.
type trial struct {
	mu       sync.Mutex
	old, new party
	step     string // at which it does
	batch    uint64
	what     string        // "dies" or "hangs"
	wait     time.Duration // of the old one, for an answer of who hangs
	happened bool
	over     chan struct{} // who hangs goes on
	whole    bool          // the batch was sent as a whole
	gaveUp   bool          // its sender has said so
}

var stepsOfOld = []string{"send", "sent", "answered", "give up", "never mind"}
var stepsOfNew = []string{"received", "take", "taken"}

// reach is called at each step.
func (tr *trial) reach(step string, batch uint64) {
	tr.mu.Lock()
	if step == "sent" && batch == tr.batch {
		tr.whole = true
	}
	if step == "never mind" {
		tr.gaveUp = true
	}
	now := !tr.happened && step == tr.step && batch == tr.batch
	tr.happened = tr.happened || now
	what := tr.what
	tr.mu.Unlock()
	if !now {
		return
	}
	p := &tr.new
	for _, s := range stepsOfOld {
		if s == step {
			p = &tr.old
		}
	}
	switch what {
	case "dies":
		p.die()
		panic(errDead)
	case "hangs":
		<-tr.over
	}
}

var errDead = errors.New("dead")

// survive returns whether f came to its end.
func survive(f func()) (lived bool) {
	defer func() {
		if v := recover(); v != nil && v != errDead {
			panic(v)
		}
	}()
	f()
	return true
}

func (tr *trial) run(t *testing.T, r *rand.Rand, name string) {
	wait := patience
	if tr.what == "hangs" || tr.step == "give up" || tr.step == "never mind" {
		wait = tr.wait
	}
	s, rc := agreed(t, wait)
	tr.old.conn, tr.new.conn = s.conn, rc.conn
	tr.over = make(chan struct{})
	at = tr.reach
	defer func() { at = func(string, uint64) {} }()

	const batches = 4
	sent := make([][]Tunnel, batches)
	for i := range sent {
		for j := range 1 + r.IntN(5) {
			tun := made(t, fmt.Sprint(i, ".", j), r.IntN(3) == 0)
			tun.Down.Unsent = make([]byte, r.IntN(2)*r.IntN(300<<10))
			sent[i] = append(sent[i], tun)
		}
	}
	defer func() {
		for _, b := range sent {
			shut(b)
		}
	}()
	oldHas := make([]bool, batches) // what it thinks
	newHas := make([]bool, batches)
	var both sync.WaitGroup
	both.Go(func() {
		survive(func() {
			for i := range sent {
				oldHas[i] = true
				if s.Send(sent[i]) == nil {
					oldHas[i] = false
				}
			}
			if tr.what == "hangs" {
				close(tr.over) // by now it was given up
			}
		})
		s.Close()
	})
	both.Go(func() {
		survive(func() {
			for {
				got, err := rc.Next()
				if err != nil {
					return
				}
				for j := range got {
					check(t, &got[j])
					if len(got[j].Down.Unsent) != len(sent[got[j].batch()][j].Down.Unsent) {
						t.Errorf("%s: bytes of %s are lost", name, got[j].Name)
					}
				}
				newHas[got[0].batch()] = true
				shut(got)
			}
		})
		rc.Close()
	})
	both.Wait()
	for i := range sent {
		b := uint64(i + 1)
		switch {
		case oldHas[i] && newHas[i] && !tr.old.dead:
			t.Errorf("%s: both have batch %d", name, b)
		case tr.old.dead && b == tr.batch && tr.whole && !tr.gaveUp && !newHas[i]:
			t.Errorf("%s: batch %d was there as a whole, and nobody has it", name, b)
		case tr.old.dead, newHas[i], oldHas[i]:
		case tr.new.dead && b <= tr.batch: // they ended with the process that had them
		default:
			t.Errorf("%s: nobody has batch %d", name, b)
		}
		if tr.old.dead && oldHas[i] && newHas[i] && tr.gaveUp {
			t.Errorf("%s: batch %d goes on in both, for as long as the old one lived after", name, b)
		}
	}
}

// batch returns which one a tunnel of a trial belongs to.
func (t *Tunnel) batch() (i int) {
	fmt.Sscan(t.Name[:strings.IndexByte(t.Name, '.')], &i)
	return i
}

func TestWhateverHappensATunnelHasOneProcessAtMost(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	for _, steps := range [][]string{stepsOfOld, stepsOfNew} {
		for _, step := range steps {
			for _, what := range []string{"dies", "hangs"} {
				if what == "hangs" && (step == "taken" || len(steps) == len(stepsOfOld)) {
					continue // nobody waits for who hangs there
				}
				for range 8 {
					tr := &trial{step: step, batch: uint64(1 + r.IntN(4)), what: what}
					name := fmt.Sprintf("%s %s at batch %d", what, step, tr.batch)
					if step == "give up" || step == "never mind" {
						// The new process hangs, and the old one dies when it gives up.
						tr.runGivenUp(t, r, name)
						continue
					}
					// Of who is only slow the other has enough as well, earlier.
					for tr.wait = 20 * time.Millisecond; ; tr.wait *= 10 {
						if tr.run(t, r, name); tr.happened {
							break
						}
						if tr.wait > patience {
							t.Fatalf("%s: it did not", name)
						}
						tr = &trial{step: tr.step, batch: tr.batch, what: tr.what, wait: tr.wait}
					}
				}
			}
		}
	}
}

// runGivenUp has the new process hang before it takes a batch, so that the old one
// gives up, and dies at that.
func (tr *trial) runGivenUp(t *testing.T, r *rand.Rand, name string) {
	inner := &trial{step: []string{"received", "take"}[r.IntN(2)], batch: tr.batch, what: "hangs"}
	died := false
	outer := inner.reach
	s, rc := agreed(t, 20*time.Millisecond)
	inner.old.conn, inner.new.conn = s.conn, rc.conn
	inner.over = make(chan struct{})
	at = func(step string, batch uint64) {
		if step == tr.step {
			died = true
			inner.old.die()
			close(inner.over)
			panic(errDead)
		}
		outer(step, batch)
	}
	defer func() { at = func(string, uint64) {} }()
	batch := []Tunnel{made(t, "0.0", false)}
	defer shut(batch)
	inner.batch = 1
	var got []Tunnel
	var both sync.WaitGroup
	both.Go(func() { survive(func() { s.Send(batch) }) })
	both.Go(func() {
		survive(func() { got, _ = rc.Next() })
		rc.Close()
	})
	both.Wait()
	shut(got)
	// Before it said so, nobody else can have gone on with them.
	if !died || (len(got) > 0) != (tr.step == "give up") {
		t.Errorf("%s: died: %v, the new process has %d tunnels", name, died, len(got))
	}
}

func TestADeathInTheMiddleOfABatchLeavesNoHalfOfIt(t *testing.T) {
	leaksNothing(t)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 3))
	for range 60 {
		s, rc := agreed(t, patience)
		batch := []Tunnel{made(t, "0.0", true)}
		batch[0].Up.Unsent = make([]byte, 1+r.IntN(4<<20))
		ofOld := r.IntN(2) == 0
		victim := s.conn
		if !ofOld {
			victim = rc.conn
		}
		time.AfterFunc(time.Duration(r.IntN(3000))*time.Microsecond, func() { victim.Close() })
		var sendErr error
		var got []Tunnel
		var both sync.WaitGroup
		both.Go(func() { sendErr = s.Send(batch); s.Close() })
		both.Go(func() { got, _ = rc.Next(); rc.Close() })
		both.Wait()
		switch {
		case !ofOld && sendErr != nil && got != nil:
			// It died when it had taken them, as far as it could see.
		case sendErr == nil && got == nil, sendErr != nil && got != nil && !ofOld:
			t.Fatalf("seed %d, old dies: %v: %v, the new process has %d", seed, ofOld, sendErr, len(got))
		}
		for i := range got {
			check(t, &got[i])
			if len(got[i].Up.Unsent) != len(batch[i].Up.Unsent) {
				t.Fatalf("seed %d: half a tunnel", seed)
			}
		}
		shut(got)
		shut(batch)
	}
}

func TestDescriptorsAtTheLimitAreLeftToTheOldProcess(t *testing.T) {
	leaksNothing(t)
	s, r := agreed(t, patience)
	batch := []Tunnel{made(t, "a", true), made(t, "b", true)}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// All numbers below the next free one are taken.
	next, err := unix.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(next)
	low := limit
	low.Cur = uint64(next + 3)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	freed := make(chan struct{})
	go func() {
		done <- s.Send(batch)
		<-freed
		done <- s.Send(batch)
	}()
	taken := make(chan []Tunnel, 1)
	go func() { got, _ := r.Next(); taken <- got }()
	if err := <-done; !errors.Is(err, ErrBusy) {
		t.Errorf("at the limit: %v", err)
	}
	unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	close(freed)
	if err := <-done; err != nil {
		t.Errorf("below it: %v", err)
	}
	got := <-taken
	for i := range got {
		check(t, &got[i])
	}
	shut(got)
	shut(batch)
}

func TestAnAnswerThatComesAtTheLastMomentCounts(t *testing.T) {
	leaksNothing(t)
	s, r := agreed(t, 20*time.Millisecond)
	batch := []Tunnel{made(t, "a", false)}
	goOn, took := make(chan struct{}), make(chan struct{})
	at = func(step string, _ uint64) {
		switch step {
		case "take":
			<-goOn
		case "taken":
			close(took)
		case "give up":
			close(goOn)
			<-took
		}
	}
	defer func() { at = func(string, uint64) {} }()
	taken := make(chan []Tunnel, 1)
	go func() { got, _ := r.Next(); taken <- got }()
	if err := s.Send(batch); err != nil {
		t.Errorf("taken, and the old process thinks otherwise: %v", err)
	}
	got := <-taken
	check(t, &got[0])
	shut(got)
	shut(batch)
	if err := s.Send(batch); err == nil {
		t.Error("a stream that was given up goes on")
	}
}
