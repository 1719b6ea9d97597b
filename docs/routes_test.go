package docs_test

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"gateway/internal/address"
	"gateway/internal/balance"
)

// What docs/backends.md says of several backends and of discovery is compared
// with what those rooms do, in both languages.

func TestDocumentedRoutesAreRoutes(t *testing.T) {
	for _, name := range backends {
		d := readDocument(t, name)
		for _, first := range []string{"10.20.0.7:4000,10.20.0.8:4000", "srv:lobby.service.consul"} {
			for _, row := range d.tableWith(t, first) {
				text := strings.TrimPrefix(row[0], "-forward=")
				if _, err := address.ParseRoute(text); err != nil {
					t.Errorf("%s: %s: %v", name, text, err)
				}
			}
		}
		for _, row := range d.tableWith(t, "10.20.0.7:4000*0") {
			_, err := address.ParseRoute(row[0])
			if want := firstCode(row[1]); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %s: %v; the page says %q", name, row[0], err, want)
			}
		}
		if !strings.Contains(d.text, fmt.Sprintf(" %d ", address.MaxTargets)) {
			t.Errorf("%s does not say that there are at most %d targets", name, address.MaxTargets)
		}
		for _, n := range []int{balance.MaxTargets, balance.MaxGroups} {
			if !strings.Contains(d.text, fmt.Sprintf(" %d ", n)) {
				t.Errorf("%s does not name the bound of %d", name, n)
			}
		}
	}
}

func TestDocumentedAlgorithmsAreThoseOfBalance(t *testing.T) {
	for _, name := range backends {
		var got []string
		for _, row := range readDocument(t, name).tableWith(t, "roundrobin") {
			got = append(got, row[0])
			if _, err := balance.ParseAlgorithm(row[0]); err != nil {
				t.Errorf("%s: %s: %v", name, row[0], err)
			}
		}
		if s := settingOf(t, "balance"); s.arg != strings.Join(got, "|") || s.def != got[0] {
			t.Errorf("%s lists %q; -help has %s, and %s by default", name, got, s.arg, s.def)
		}
	}
}

func TestDocumentedTurnsAreTaken(t *testing.T) {
	turns := regexp.MustCompile("\\| `roundrobin` \\|.*`a\\*5,b,c`.* ((?:[abc] ){6}[abc]) \\|")
	for _, name := range backends {
		m := turns.FindStringSubmatch(readText(t, name))
		if m == nil {
			t.Errorf("%s shows no turns", name)
			continue
		}
		route, err := address.ParseRoute("a:1*5,b:1,c:1")
		if err != nil {
			t.Fatal(err)
		}
		group := balance.NewTable(balance.RoundRobin).Group(route, 0)
		var got []string
		for range 7 {
			a := group.Start(netip.Addr{})
			addr, _ := a.Next(0)
			got = append(got, addr.Host)
			a.Release()
		}
		if strings.Join(got, " ") != m[1] {
			t.Errorf("%s shows the turns %q; they are %q", name, m[1], got)
		}
	}
}
