package harness

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
)

// WithPprof is the flag that Goroutines, LiveHeap and what builds on them need.
const WithPprof = "-pprof=127.0.0.1:0"

// Goroutines counts those of a gateway that was started WithPprof, with the same few
// that serve the count each time.
func (p *Process) Goroutines(t testing.TB) (n int) {
	t.Helper()
	text := p.profile(t, "goroutine?debug=1")
	if _, err := fmt.Sscanf(text, "goroutine profile: total %d", &n); err != nil {
		t.Fatalf("no count of goroutines in %.100q: %v", text, err)
	}
	return n
}

// LiveHeap returns the bytes of a gateway's heap after a collection. It must have
// been started WithPprof.
func (p *Process) LiveHeap(t testing.TB) (bytes int) {
	t.Helper()
	return memStat(t, p.profile(t, "heap?gc=1&debug=1"), "HeapAlloc")
}

// LiveMemory is LiveHeap with the stacks of the goroutines.
func (p *Process) LiveMemory(t testing.TB) (bytes int) {
	t.Helper()
	profile := p.profile(t, "heap?gc=1&debug=1")
	return memStat(t, profile, "HeapAlloc") + memStat(t, profile, "Stack")
}

// WaitForMemory waits until count clients have added no more to the LiveMemory from before
// than most bytes each. What served them until they rested is collected bit by bit: a stack
// with its goroutine, what is pooled after two rounds.
func (p *Process) WaitForMemory(t testing.TB, before, count, most int) {
	t.Helper()
	each := 0
	defer func() { t.Logf("%d bytes for each", each) }()
	Eventually(t, fmt.Sprintf("%d clients hold no more than %d bytes each", count, most), func() bool {
		each = (p.LiveMemory(t) - before) / count
		return each <= most
	})
}

func memStat(t testing.TB, profile, name string) (bytes int) {
	t.Helper()
	_, text, _ := strings.Cut(profile, "\n# "+name+" = ")
	if _, err := fmt.Sscan(text, &bytes); err != nil {
		t.Fatalf("no %s in the profile: %v", name, err)
	}
	return bytes
}

func (p *Process) profile(t testing.TB, name string) string {
	t.Helper()
	url := p.Log.WaitLine(t, "pprof is on", 1)["url"].(string) + name
	resp, err := p.pprof.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return string(text)
}

// AtRest is what a gateway holds while nothing goes on, but for pipes, of which its
// loops keep some for the next tunnel.
type AtRest struct{ Goroutines, Descriptors int }

func (p *Process) atRest(t testing.TB) AtRest {
	return AtRest{p.Goroutines(t), Descriptors(p.PID()) - PipeEnds(p.PID())}
}

// PipeEnds counts the descriptors of a process that are pipes, or returns 0 where
// the system does not tell.
func PipeEnds(pid int) (n int) {
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if to, err := os.Readlink(dir + e.Name()); err == nil && strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

// Rest waits until a gateway that was started WithPprof holds the same for a
// while, and returns it.
func (p *Process) Rest(t testing.TB) (rest AtRest) {
	t.Helper()
	same := 0
	Eventually(t, "all is quiet", func() bool {
		now := p.atRest(t)
		if same++; now != rest {
			rest, same = now, 0
		}
		return same == 5
	})
	return rest
}

// WaitForRest waits until a gateway holds no more than it did.
func (p *Process) WaitForRest(t testing.TB, before AtRest) {
	t.Helper()
	var now AtRest
	t.Cleanup(func() {
		if now.Goroutines > before.Goroutines && t.Failed() && p.Runs() {
			t.Logf("what stays:\n%.8000s", p.profile(t, "goroutine?debug=1"))
		}
	})
	Eventually(t, fmt.Sprintf("nothing more than %+v stays", before), func() bool {
		now = p.atRest(t)
		return now.Goroutines <= before.Goroutines && now.Descriptors <= before.Descriptors
	})
}
