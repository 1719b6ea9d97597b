package main

import "testing"

func TestNamesAndTicketsLeadToTheBackends(t *testing.T) {
	gateway, err := buildGateway(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := testSuite(t, gatewayContender(gatewayName, gateway, nil), plainProxy)
	for _, w := range workloads(1) {
		if !w.kind.ofNames() {
			continue
		}
		for _, e := range s.entrants {
			if err := s.turn(0, w, e); err != nil {
				t.Fatal(err)
			}
		}
		got := s.table.at(w.key, gatewayName)
		if got == nil || got.Failure != "" || len(got.Samples) != 1 || got.Samples[0].Cost <= 0 {
			t.Errorf("%s: %+v", w.key, got)
		}
		if other := s.table.at(w.key, ioCopyName); other != nil {
			t.Errorf("%s: who knows no names takes part: %+v", w.key, other)
		}
	}
}

func TestNamesHaveTheirNumber(t *testing.T) {
	for name, want := range map[string]int{"_n7": 7, "n42": 42, "t0": 0, "n99": 99} {
		if got := number(name); got != want {
			t.Errorf("%s has the number %d", name, got)
		}
	}
}
