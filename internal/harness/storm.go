package harness

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Storm is tunnels through a gateway, many at once, each of which does what chance
// wants: sizes, pieces, pauses, who ends it and how. The seed is logged;
// STRESS_SEED=seed draws the same tunnels again.
type Storm struct {
	Resolver string // for the gateway, which learns there where some backends are
	host     string
	trials   []*trial
}

// NewStorm draws n tunnels, for a gateway that serves on event loops or with
// goroutines.
func NewStorm(t testing.TB, n int, loops bool) *Storm {
	t.Helper()
	if testing.Short() {
		n /= 5
	}
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv("STRESS_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("STRESS_SEED=%d", seed)
	// An address of its own spares the test the connections that others try to
	// make to ports where nobody listened a moment ago.
	host := "127.0.0.1"
	if runtime.GOOS == "linux" { // all of 127.0.0.0/8 is this host
		host = fmt.Sprintf("127.%d.%d.1", 1+rand.IntN(254), rand.IntN(256))
	}
	s := &Storm{Resolver: StartDNS(t, host), host: host, trials: make([]*trial, n)}
	for i := range s.trials {
		tr := newTrial(seed, i)
		tr.host = host
		// net reports a backend that resets at once as one that it could not
		// connect; a loop still delivers what it sent.
		tr.hasty = loops && !tr.name && !tr.dribble
		s.trials[i] = tr
	}
	return s
}

// Run drives the tunnels and checks what arrives, and how the gateway accounts for
// each in its log of info level, in which the tunnels are all that has been since
// the first before lines.
func (s *Storm) Run(t testing.TB, gateway string, log *Log) {
	t.Helper()
	const atOnce = 100
	// Lines but those for the beginning of a tunnel, which the level of some tests brings.
	lines := func() int {
		text := log.String()
		return strings.Count(text, "\n") - strings.Count(text, `"msg":"connected"`)
	}
	before := lines()
	var next, failed atomic.Int64
	fail := func(i int, err error) {
		if failed.Add(1) <= 5 { // more tell nothing more
			t.Errorf("tunnel %d (%v): %v", i, s.trials[i], err)
		}
	}
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(s.trials) && !t.Failed(); i = int(next.Add(1)) - 1 {
				if err := s.trials[i].run(gateway); err != nil {
					fail(i, err)
				}
			}
		})
	}
	workers.Wait()
	defer func() {
		for _, tr := range s.trials {
			if tr.listener != nil {
				tr.listener.Close()
			}
		}
	}()
	if t.Failed() {
		t.Fatalf("%d tunnels failed", failed.Load())
	}

	Eventually(t, "each connection has its line in the log", func() bool {
		return lines() >= before+len(s.trials)
	})
	if n := lines() - before; n != len(s.trials) {
		t.Errorf("%d lines in the log for %d connections", n, len(s.trials))
	}
	accounts := make(map[string]map[string]any)
	for _, line := range log.Lines("tunnel") {
		accounts[fmt.Sprint(line["client"], line["backend"])] = line
	}
	for i, tr := range s.trials {
		if err := tr.checkHurry(); err != nil {
			fail(i, err)
		}
		if err := tr.checkAccount(accounts[tr.client+tr.backend]); err != nil {
			fail(i, err)
		}
	}
}

// checkHurry checks what the backend has heard of a client that hurries.
func (tr *trial) checkHurry() error {
	if tr.finale != clientHurries {
		return nil
	}
	tr.listener.Close()
	// A dial that is cancelled may leave a connection behind that has not had a
	// byte; net ends it with a FIN.
	if b, ok := <-tr.backends; ok && b.got > 0 && !IsReset(b.readEnd) && !IsReset(b.writeEnd) {
		return fmt.Errorf("backend: %v", b)
	}
	return nil
}
