package limit

import (
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gateway/internal/harness"
)

func load(t *testing.T, text string, mayBeEmpty bool) (*Clients, error) {
	t.Helper()
	var sources []Source
	for _, word := range strings.Split(text, ",") {
		s, err := ParseSource(word)
		if err != nil {
			return nil, err
		}
		sources = append(sources, s)
	}
	return LoadClients(sources, mayBeEmpty, slog.New(slog.DiscardHandler))
}

func TestClientsAreThoseOfTheirNetworks(t *testing.T) {
	c, err := load(t, "10.0.0.0/8,192.0.2.1,2001:db8::/32,::ffff:198.51.100.0/120", true)
	if err != nil {
		t.Fatal(err)
	}
	for client, want := range map[string]bool{
		"10.1.2.3": true, "11.0.0.0": false, "192.0.2.1": true, "192.0.2.2": false,
		"2001:db8:ffff::1": true, "2001:db9::": false, "198.51.100.9": true, "198.51.101.0": false,
	} {
		if c.contains(ip(client)) != want {
			t.Errorf("%s: want %v", client, want)
		}
	}
	var nobody *Clients
	if nobody.contains(ip("10.0.0.1")) {
		t.Error("nobody contains somebody")
	}
}

func TestWhatIsNoNetworkIsRefused(t *testing.T) {
	for _, word := range []string{"", "@", "10.0.0.1/8", "10.0.0.0/33", "example.com", "10.0.0.0/8:80", "fe80::1%eth0", "10.0.0", "::ffff:0:0/90"} {
		if _, err := ParseSource(word); err == nil {
			t.Errorf("%q is taken", word)
		}
	}
}

// The model asks each network.
func TestNetworksContainWhatOneOfThemContains(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 6))
		var set networks[int]
		model := make(map[netip.Prefix]int)
		random := func() netip.Addr {
			if rnd.IntN(2) == 0 {
				return netip.AddrFrom4([4]byte{10, byte(rnd.IntN(2)), byte(rnd.IntN(4)), byte(rnd.IntN(256))})
			}
			return netip.AddrFrom16([16]byte{0x20, 1, byte(rnd.IntN(2)), 9: byte(rnd.IntN(4)), 15: byte(rnd.IntN(256))})
		}
		for step := range 200 {
			a := random()
			p, _ := a.Prefix(rnd.IntN(a.BitLen() + 1))
			if rnd.IntN(3) > 0 {
				set.put(p, step)
				model[p] = step
			} else {
				for p := range model {
					set.remove(p)
					delete(model, p)
					break
				}
				set.remove(p)
				delete(model, p)
			}
			a = random()
			found := make(map[netip.Prefix]int)
			set.find(a, func(p netip.Prefix, v int) bool { found[p] = v; return true })
			for p, v := range model {
				if got, ok := found[p]; ok != p.Contains(a) || ok && got != v {
					t.Fatalf("seed %d, step %d: %v in %v: %v", seed, step, a, p, ok)
				}
				delete(found, p)
			}
			if len(found) > 0 {
				t.Fatalf("seed %d: found %v besides", seed, found)
			}
		}
	}
}

func TestAListIsReadAgainWhenItChangesAndABadOneKeepsTheOld(t *testing.T) {
	file := filepath.Join(t.TempDir(), "clients")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# ours\n10.0.0.0/8 # the office\n\n2001:db8::/32\r\n")
	log := new(harness.Log)
	s, _ := ParseSource("@" + file)
	c, err := LoadClients([]Source{s}, false, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if !c.contains(ip("10.0.0.1")) || !c.contains(ip("2001:db8::1")) || c.contains(ip("11.0.0.1")) {
		t.Error("not those of the file")
	}
	write("11.0.0.0/8\n")
	harness.Eventually(t, "the new list", func() bool { return c.contains(ip("11.0.0.1")) && !c.contains(ip("10.0.0.1")) })
	write("12.0.0.0/8\nnonsense\n")
	harness.Eventually(t, "the error", func() bool {
		if c.contains(ip("12.0.0.1")) || !c.contains(ip("11.0.0.1")) {
			t.Fatal("half of a bad list is used")
		}
		return strings.Contains(log.String(), "line 2")
	})
	write("# nothing\n")
	harness.Eventually(t, "the other error", func() bool {
		c.contains(ip("11.0.0.1"))
		return strings.Contains(log.String(), "no network")
	})
	os.Remove(file)
	harness.Eventually(t, "the third error", func() bool {
		if !c.contains(ip("11.0.0.1")) {
			t.Fatal("the old list is gone")
		}
		return strings.Contains(log.String(), "no such file")
	})
	write("13.0.0.0/8\n")
	harness.Eventually(t, "the list that is good again", func() bool { return c.contains(ip("13.0.0.1")) })
}

func TestABadFileIsRefusedByItsName(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "clients")
	for text, want := range map[string]string{
		"10.0.0.1/8\n":       "line 1",
		"10.0.0.0/8\nbad\n":  "line 2",
		"10.0.0.0/8 11.0/8":  "line 1",
		"# nobody\n":         "no network",
		"":                   "is empty",
		"\ufeff \n":          "is empty",
		"10.0.0.0/8,1.1.1.1": "line 1",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := load(t, "@"+file, false); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := load(t, "@"+file+".none", true); err == nil {
		t.Error("no file is taken")
	}
	os.WriteFile(file, nil, 0o600)
	if _, err := load(t, "@"+file, true); err == nil || !strings.Contains(err.Error(), file+" is empty") {
		t.Errorf("an empty file: %v", err)
	}
	os.WriteFile(file, []byte("# nobody\n"), 0o600)
	if c, err := load(t, "@"+file, true); err != nil || c.contains(ip("10.0.0.1")) {
		t.Errorf("an empty list: %v", err)
	}
}

func TestRefusalsAreToldInOneLine(t *testing.T) {
	log := new(harness.Log)
	tally := NewTally(slog.New(slog.NewTextHandler(log, nil)))
	for range 3000 {
		tally.Refused(TooFast, ip("192.0.2.1"))
	}
	tally.Refused(Banned, ip("192.0.2.2"))
	harness.Eventually(t, "a line", func() bool { return strings.Contains(log.String(), "rate_per_ip=3000") })
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "banned=1 ") || !strings.Contains(text, "client=192.0.2.1") {
		t.Errorf("the log says %q", text)
	}
	tally.Refused(TooMany, ip("192.0.2.2"))
	if !tally.Flush() || tally.Flush() {
		t.Error("what is left is not told once")
	}
	if tally.Count(TooFast) != 3000 || tally.Count(TooMany) != 1 || tally.Count(NotAllowed) != 0 {
		t.Error("wrong counts")
	}
}

func TestSeatsAreTakenAndGivenBack(t *testing.T) {
	var s Seats[string]
	if !s.Take("a", 1) || !s.Take("a", 2) || s.Take("a", 2) || !s.Take("b", 1) || s.Taken("a") != 2 {
		t.Error("not two of a and one of b")
	}
	s.Give("a")
	if !s.Take("a", 2) {
		t.Error("what was given back cannot be taken")
	}
	s.Give("a")
	s.Give("a")
	s.Give("b")
	if len(s.taken) != 0 {
		t.Errorf("%v are remembered", s.taken)
	}
}

// blocked is a log whose lines wait until it is closed.
type blocked struct{ lines, open chan struct{} }

func (b blocked) Write(p []byte) (int, error) {
	b.lines <- struct{}{}
	<-b.open
	return len(p), nil
}

// An event loop asks, and all of its tunnels would wait.
func TestNobodyWaitsUntilAListHasBeenReadAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "clients")
	if err := os.WriteFile(file, []byte("10.0.0.0/8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log := blocked{make(chan struct{}), make(chan struct{})}
	s, _ := ParseSource("@" + file)
	c, err := LoadClients([]Source{s}, false, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("11.0.0.0/8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Asked in this goroutine, so this would never end if the one who asks had to wait.
	harness.Eventually(t, "it is read", func() bool {
		c.contains(ip("11.0.0.1"))
		select {
		case <-log.lines:
			return true
		default:
			return false
		}
	})
	if !c.contains(ip("11.0.0.1")) {
		t.Error("the new list is not used")
	}
	close(log.open)
}
