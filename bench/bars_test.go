package main

import (
	"cmp"
	"slices"
	"strings"
	"testing"
)

func TestABarIsJudgedWithTwoDecimals(t *testing.T) {
	for _, test := range []struct {
		quantity     quantity
		value, limit float64
		met          bool
	}{
		{cost, .16, .16, true},
		{cost, .164, .16, true},
		{cost, .165, .16, false},
		{cost, 1.08, 1.08, true},
		{cost, 1.086, 1.08, false},
		{rate, .95, .95, true},
		{rate, .946, .95, true},
		{rate, .944, .95, false},
		{descriptors, 2, 2, true},
		{descriptors, 2.01, 2, false},
	} {
		b := bar{Quantity: test.quantity, Limit: test.limit}
		if b.met(test.value) != test.met {
			t.Errorf("%s of %v against %v: met is %v", test.quantity, test.value, test.limit, !test.met)
		}
	}
}

func TestBarsCompareBestWithBest(t *testing.T) {
	tab := &table{Pinned: true}
	for _, c := range []float64{90, 80, 100} {
		tab.cell("echo-64B-1", gatewayName).add(sample{Cost: c, Rate: 1000 / c}, nil)
	}
	for _, c := range []float64{150, 100} {
		tab.cell("echo-64B-1", haproxyName).add(sample{Cost: c, Rate: 1000 / c}, nil)
	}
	tab.cell("idle", gatewayName).add(sample{Cost: 500, Descriptors: 2}, nil)
	tab.cell("short", forwardName).add(sample{Cost: 92, Rate: 500}, nil)
	tab.cell("short", haproxyName).add(sample{Cost: 100, Rate: 500}, nil)
	tab.cell(withoutStalled, forwardName).add(sample{Cost: 100, Rate: 500}, nil)
	tab.cell("stalled", forwardName).add(sample{Cost: 106, Rate: 450}, nil)
	known := 0
	for _, v := range judge(tab) {
		if !v.Known {
			if v.Met {
				t.Errorf("%+v is met by nothing", v)
			}
			continue
		}
		known++
		want := map[string]string{
			"gateway echo-64B-1 cost": ".80 (≤ .92 ok)", "gateway echo-64B-1 rate": "1.25 (≥ 1.00 ok)",
			"gateway idle descriptors": "2.00 (≤ 2.00 ok)",
			"forward short cost":       ".92 (≤ .80 MISSED)", "forward short rate": "1.00 (≥ 1.00 ok)",
			"forward stalled cost": "1.06 (≤ 1.05 MISSED)", "forward stalled rate": ".90 (≥ .95 MISSED)",
		}[v.Contender+" "+v.Workload+" "+string(v.Quantity)]
		if v.String() != want {
			t.Errorf("%s of %s: %s, want %s", v.Quantity, v.Workload, v, want)
		}
	}
	if known != 7 {
		t.Errorf("%d bars are known, want 7", known)
	}
}

func TestEveryBarNamesAWorkloadAndIsThereOnce(t *testing.T) {
	seen := make(map[bar]bool)
	for _, b := range bars() {
		for _, key := range []string{b.Workload, cmp.Or(b.Than, b.Workload)} {
			if !slices.ContainsFunc(rows(workloads(10)), func(w workload) bool { return w.key == key }) {
				t.Errorf("no workload is named %s", key)
			}
		}
		b.Limit = 0
		if seen[b] {
			t.Errorf("%+v is there twice", b)
		}
		seen[b] = true
	}
	if len(seen) != 111 {
		t.Errorf("%d bars", len(seen))
	}
}

func TestForwardingHasTheGatewaysBarsAndMore(t *testing.T) {
	limits := make(map[bar]float64)
	for _, b := range bars() {
		limit := b.Limit
		b.Limit = 0
		limits[b] = limit
	}
	for b, limit := range limits {
		if b.Contender != gatewayName || b.Workload == "ask" || b.Workload == "ticket" || strings.HasPrefix(b.Workload, "tls-") || strings.HasPrefix(b.Workload, "ws-") || strings.HasPrefix(b.Workload, "roam-") || strings.HasPrefix(b.Workload, "through-") { // who forwards is asked for nothing
			continue
		}
		b.Contender = forwardName
		if b.Peer == gatewayName {
			b.Peer = forwardName
		}
		got, ok := limits[b]
		if want := limit; !ok || got != want && b.Workload != "short" {
			t.Errorf("%+v: %v, want %v", b, got, want)
		}
	}
	for name, want := range map[string]float64{gatewayName: .80, forwardName: .80, epollName: 1.08} {
		if got := limits[bar{Contender: name, Workload: "short", Peer: haproxyName, Quantity: cost}]; got != want {
			t.Errorf("%s on short connections: %v, want %v", name, got, want)
		}
	}
}
