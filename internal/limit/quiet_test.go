package limit

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
)

// quietLog returns a Quiet, and what it tells but for times.
func quietLog(rate int) (*Quiet, func() []string) {
	var b bytes.Buffer
	q := NewQuiet(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}})))
	q.Set(rate, 64)
	return q, func() []string {
		q.Flush()
		lines := strings.Split(strings.TrimSpace(b.String()), "\n")
		slices.Sort(lines)
		return lines
	}
}

func TestLinesBeyondTheRateAreCountedByReasonAndNetwork(t *testing.T) {
	q, told := quietLog(3)
	q.Flush() // the window begins with the next
	allowed := 0
	for _, c := range []struct {
		reason string
		client string
		n      int
	}{
		{"bad_base64", "192.0.2.1", 4},
		{"bad_base64", "::ffff:192.0.2.200", 4},
		{"bad_base64", "198.51.100.1", 3},
		{"eof", "192.0.2.1", 5},
		{"eof", "2001:db8::1", 2},
		{"eof", "2001:db8::ffff:1", 2},
		{"eof", "2001:db8:0:1::1", 3},
	} {
		for range c.n {
			if q.Allow(c.reason, netip.MustParseAddr(c.client)) {
				allowed++
			}
		}
	}
	want := []string{
		`msg="more were refused" reason=bad_base64 clients=192.0.2.0/24 count=5`,
		`msg="more were refused" reason=eof clients=192.0.2.0/24 count=2`,
		`msg="more were refused" reason=eof clients=2001:db8::/64 count=1`,
	}
	if got := told(); !slices.Equal(got, want) {
		t.Errorf("told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if want := 3 + 3 + 3 + 3 + 3; allowed != want {
		t.Errorf("%d lines were allowed, want %d", allowed, want)
	}
}

func TestManyNetworksCostNoMoreThanSoManyCounts(t *testing.T) {
	q, told := quietLog(1)
	allowed := 0
	for i := range 3 * quietKeys {
		if q.Allow("eof", netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1})) {
			allowed++
		}
	}
	if len(q.counts) > quietKeys+1 {
		t.Errorf("%d counts", len(q.counts))
	}
	sum := 0
	for _, line := range told() {
		n := 0
		fmt.Sscanf(line[strings.Index(line, "count="):], "count=%d", &n)
		sum += n
	}
	if allowed+sum != 3*quietKeys {
		t.Errorf("%d lines and %d counted, of %d", allowed, sum, 3*quietKeys)
	}
}

func TestNothingIsLostWhoeverCountsAtTheSameTime(t *testing.T) {
	q, told := quietLog(2)
	var mu sync.Mutex
	var all sync.WaitGroup
	allowed := 0
	for range 8 {
		all.Go(func() {
			for range 1000 {
				if q.Allow("reset", netip.MustParseAddr("192.0.2.1")) {
					mu.Lock()
					allowed++
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	sum := 0
	for _, line := range told() {
		n := 0
		fmt.Sscanf(line[strings.Index(line, "count="):], "count=%d", &n)
		sum += n
	}
	if allowed+sum != 8000 || allowed > 200 {
		t.Errorf("%d lines and %d counted, of 8000", allowed, sum)
	}
}

func TestARateOfZeroLetsAllThrough(t *testing.T) {
	q, _ := quietLog(0)
	for range 1000 {
		if !q.Allow("eof", netip.MustParseAddr("192.0.2.1")) {
			t.Fatal("one was kept back")
		}
	}
	if !(*Quiet)(nil).Allow("eof", netip.Addr{}) {
		t.Error("none keeps nothing back")
	}
}
