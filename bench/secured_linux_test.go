package main

import (
	"testing"
)

func TestEachContenderWorksInsideTLS(t *testing.T) {
	gateway, err := buildGateway(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	all, missing := contenders(&options{gateway: gateway})
	t.Logf("missing: %v", missing)
	var secured []*contender
	for _, c := range all {
		if c.secured != nil {
			secured = append(secured, c)
		}
	}
	s := testSuite(t, append(secured, &contender{name: directName})...)
	for _, w := range workloads(1) {
		if w.kind.insideTLS() == "" {
			continue
		}
		w.tunnels = min(w.tunnels, 5)
		for _, e := range s.entrants {
			if err := s.turn(0, w, e); err != nil {
				t.Fatal(err)
			}
			got := s.table.at(w.key, e.name)
			if e.name == directName {
				if got != nil {
					t.Errorf("%s: who speaks no TLS takes part: %+v", w.key, got)
				}
				continue
			}
			if got == nil || got.Failure != "" || len(got.Samples) != 1 {
				t.Errorf("%s, %s: %+v", w.key, e.name, got)
				continue
			}
			if one := got.Samples[0]; one.Cost <= 0 || one.Rate <= 0 || one.LoadCost <= 0 {
				t.Errorf("%s, %s: %+v", w.key, e.name, one)
			}
		}
	}
}
