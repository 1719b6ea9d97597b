package main

import (
	"slices"
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
	known := 0
	for _, v := range judge(tab) {
		if !v.Known {
			if v.Met {
				t.Errorf("%+v is met by nothing", v)
			}
			continue
		}
		known++
		want := map[quantity]string{cost: ".80 (≤ .94 ok)", rate: "1.25 (≥ 1.00 ok)", descriptors: "2.00 (≤ 2.00 ok)"}[v.Quantity]
		if v.String() != want {
			t.Errorf("%s of %s: %s, want %s", v.Quantity, v.Workload, v, want)
		}
	}
	if known != 3 {
		t.Errorf("%d bars are known, want 3", known)
	}
}

func TestEveryBarNamesAWorkloadAndIsThereOnce(t *testing.T) {
	seen := make(map[bar]bool)
	for _, b := range bars() {
		if !slices.ContainsFunc(rows(workloads(10)), func(w workload) bool { return w.key == b.Workload }) {
			t.Errorf("no workload is named %s", b.Workload)
		}
		b.Limit = 0
		if seen[b] {
			t.Errorf("%+v is there twice", b)
		}
		seen[b] = true
	}
	if len(seen) != 29 {
		t.Errorf("%d bars", len(seen))
	}
}
