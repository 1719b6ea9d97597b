package main

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// sampleTable is a table with something of everything.
func sampleTable() (*table, []workload) {
	t := &table{Pinned: true, CPUs: 1, Rounds: 2, Contenders: []string{gatewayName, haproxyName, nginxName, forwardName, directName}}
	all := rows(workloads(100))
	for _, w := range all {
		for i, name := range t.Contenders {
			if w.kind.rests() && name == directName || w.kind.layer() != "" && name != gatewayName {
				continue
			}
			one := sample{Cost: float64(1000 * (i + 1)), Rate: 5e4 / float64(i+1), Descriptors: 2, Resident: 8 << 20}
			t.cell(w.key, name).add(one, []uint32{uint32(bucketOf(int64(20_000 * (i + 1)))), 5, uint32(bucketOf(9e6)), 1})
		}
	}
	t.cell("short", nginxName).Samples = nil
	t.cell("short", nginxName).Failure = "it hung"
	return t, all
}

// restingOver are the workloads of gateways alone whose tunnels rest.
func restingOver() []workload {
	var list []workload
	for _, w := range workloads(20) {
		if w.kind.layer() != "" {
			list = append(list, w)
		}
	}
	return list
}

func TestAGridIsAligned(t *testing.T) {
	var out strings.Builder
	writeGrid(&out, [][]string{{"", "µs", "long head"}, {"a row", "1", "–"}, {"b", "123456", "2"}})
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for _, line := range lines {
		if utf8.RuneCountInString(line) != utf8.RuneCountInString(lines[0]) {
			t.Errorf("lines of different length:\n%s", out.String())
		}
		if strings.Count(line, "|") != 4 {
			t.Errorf("not three columns: %s", line)
		}
	}
	if len(lines) != 4 || lines[1] != "|-------|-------:|----------:|" {
		t.Errorf("got:\n%s", out.String())
	}
}

func TestTheTableTellsEverything(t *testing.T) {
	tab, all := sampleTable()
	var out strings.Builder
	writeTable(&out, tab, all)
	writeVerdict(&out, judge(tab))
	for _, want := range []string{
		"best (median) of 2",
		"1.00 µs (1.00 µs)",                  // cost
		".50 (≤ .92 ok)",                     // a bar that is met
		".50 (≤ .16 MISSED)",                 // and one that is not
		"failed",                             // nginx on short connections
		"50.0 k/s",                           // a rate
		"52.4 GB/s",                          // of bulk
		"20.1 / ",                            // a latency
		"0.977 KiB (0.977 KiB), 2, 8.00 MiB", // memory
		"| idle WebSockets over TLS, after 256 KiB each |",
		"- short, nginx: it hung",
		"bulk-up-1, gateway's cost to haproxy: .50",
		"short, forward's cost to haproxy: 2.00 (≤ .80 MISSED)",
		"| gateway to ",
		"| forward to ",
		"100 stalled readers beside 100 busy tunnels",
		"1.00 (≤ 1.05 ok)",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "| idle") && strings.Contains(line, directName) {
			t.Errorf("nothing rests in %s", line)
		}
	}
}

func TestForwardingIsComparedWithTheGatewayOnce(t *testing.T) {
	tab, all := sampleTable()
	var out strings.Builder
	writeTable(&out, tab, all)
	for line := range strings.Lines(out.String()) {
		switch {
		case strings.HasPrefix(line, "| gateway to") && !strings.Contains(line, "| forward |"),
			strings.HasPrefix(line, "| forward to") && strings.Contains(line, "gateway"):
			t.Error(line)
		}
	}
}

func TestWhatNoPeerDoesIsNotCompared(t *testing.T) {
	tab, all := sampleTable()
	count := func() int {
		var out strings.Builder
		writeTable(&out, tab, all)
		return strings.Count(out.String(), "idle over TLS, 100 tunnels")
	}
	if n := count(); n != 1 {
		t.Errorf("it stands in %d tables, want 1", n)
	}
	tab.Contenders = append(tab.Contenders, "old")
	tab.cell("idle-tls", "old").add(sample{Cost: 1}, nil)
	if n := count(); n != 2 {
		t.Errorf("with another gateway it stands in %d tables, want 2", n)
	}
}

func TestStalledReadersAreShownOfAllWhoHadThem(t *testing.T) {
	tab := &table{Rounds: 1, Contenders: []string{haproxyName, nginxName, directName}}
	for _, name := range []string{haproxyName, directName} {
		tab.cell(withoutStalled, name).add(sample{Cost: 100, Rate: 1000}, nil)
		tab.cell("stalled", name).add(sample{Cost: 130, Rate: 700}, nil)
	}
	tab.cell("stalled", nginxName).Failure = "it hung"
	var out strings.Builder
	writeTable(&out, tab, rows(workloads(100)))
	for _, want := range []string{
		"|                         | haproxy | nginx | direct |\n",
		"| CPU time per round trip |    1.30 |     – |   1.30 |\n",
		"| throughput              |     .70 |     – |    .70 |\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestOnlyTheJudgedTableShowsBars(t *testing.T) {
	tab, all := sampleTable()
	tab.Pinned = false
	var out strings.Builder
	writeTable(&out, tab, all)
	if strings.Contains(out.String(), "MISSED") || strings.Contains(out.String(), "≤") {
		t.Errorf("got:\n%s", out.String())
	}
}

func TestATableOfPeersAloneIsWrittenToo(t *testing.T) {
	tab := &table{Rounds: 1, Contenders: []string{directName}}
	tab.cell("short", directName).add(sample{Rate: 1000}, nil)
	var out strings.Builder
	writeTable(&out, tab, rows(workloads(100)))
	if !strings.Contains(out.String(), "1.00 k/s") || strings.Contains(out.String(), "bulk") {
		t.Errorf("got:\n%s", out.String())
	}
	out.Reset()
	writeTable(&out, &table{}, nil) // nothing at all
}

func TestFiguresAreThree(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", .00123: "0.001", .1234: "0.123", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 1234.5: "1234", 99.96: "100.0",
	} {
		if got := figures(v); got != want {
			t.Errorf("%v is written %s, want %s", v, got, want)
		}
	}
	for ns, want := range map[float64]string{12: "12.0 ns", 1500: "1.50 µs", 2.5e6: "2.50 ms"} {
		if got := duration(ns); got != want {
			t.Errorf("%v ns is written %s, want %s", ns, got, want)
		}
	}
	if got := micros(1234 * time.Nanosecond); got != "1.23" {
		t.Errorf("got %s", got)
	}
}
