package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// wellFormed fails the test unless text is XML.
func wellFormed(t *testing.T, name, text string) {
	t.Helper()
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, text)
		}
	}
}

func TestChartsAreWellFormedAndStayInside(t *testing.T) {
	tab, all := sampleTable()
	tab.at("short", haproxyName).Samples[0].Cost = 1 // a ratio of 1000 and more
	dir := filepath.Join(t.TempDir(), "charts")
	if err := writeCharts(dir, tab, all, []string{"a <CPU> & more", "made today"}); err != nil {
		t.Fatal(err)
	}
	number := regexp.MustCompile(` (x|x1|x2|cx|y|y1|y2|cy)="([^"]+)"`)
	for _, name := range []string{"cpu.svg", "latency.svg"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		wellFormed(t, name, string(text))
		for _, want := range []string{"<svg ", "prefers-color-scheme: dark", "64 B echo, 64 tunnels", "gateway", "a &lt;CPU&gt; &amp; more"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s: no %q", name, want)
			}
		}
		size := regexp.MustCompile(`viewBox="0 0 (\d+) (\d+)"`).FindStringSubmatch(string(text))
		for _, m := range number.FindAllStringSubmatch(string(text), -1) {
			v, err := strconv.ParseFloat(m[2], 64)
			limit, _ := strconv.ParseFloat(size[1], 64)
			if strings.Contains(m[1], "y") {
				limit, _ = strconv.ParseFloat(size[2], 64)
			}
			if err != nil || v < 0 || v > limit {
				t.Errorf("%s: %s is outside of 0 to %v", name, m[0], limit)
			}
		}
	}
}

func TestForwardingIsChartedWhereItDiffers(t *testing.T) {
	tab, all := sampleTable()
	dir := t.TempDir()
	if err := writeCharts(dir, tab, all, nil); err != nil {
		t.Fatal(err)
	}
	own := fmt.Sprintf(`class="bar %s"`, shade(forwardName))
	text, err := os.ReadFile(filepath.Join(dir, "cpu.svg"))
	if err != nil {
		t.Fatal(err)
	}
	// One stands for it in the legend, one for short connections.
	if n := strings.Count(string(text), own); n != 2 || !strings.Contains(string(text), "gateway -forward") {
		t.Errorf("%d bars and signs, want 2", n)
	}
	if strings.Contains(string(text), "stalled") {
		t.Error("stalled readers are a chart's subject")
	}
	tab.Contenders = without(tab.Contenders, gatewayName)
	want := 1 + len(all) - 2*len(restingOver()) // of which HAProxy has none
	if n := strings.Count(ratioChart(tab, all, nil), own); n != want {
		t.Errorf("alone it has %d bars and signs, want %d", n, want)
	}
}

func TestThereIsNoChartWithoutFigures(t *testing.T) {
	dir := t.TempDir()
	tab := &table{Contenders: []string{directName}}
	tab.cell("bulk-up-1", directName).add(sample{Rate: 1}, nil)
	if err := writeCharts(dir, tab, rows(workloads(10)), nil); err != nil {
		t.Fatal(err)
	}
	if files, _ := os.ReadDir(dir); len(files) > 0 {
		t.Errorf("there is %s", files[0].Name())
	}
}

func TestContendersHaveColoursOfTheirOwn(t *testing.T) {
	seen := make(map[string]string)
	for _, name := range []string{gatewayName, haproxyName, splicedName, nginxName, ioCopyName, forwardName, epollName, "another"} {
		class := shade(name)
		if other, ok := seen[class]; ok {
			t.Errorf("%s looks like %s", name, other)
		}
		if seen[class] = name; strings.Count(style, "."+class+" {") == 0 {
			t.Errorf("%s has no colour", name)
		}
	}
}

func TestRoundNumbers(t *testing.T) {
	for ns, want := range map[float64]string{1e4: "10 µs", 5e5: "500 µs", 1e6: "1 ms", 2e7: "20 ms", 1e9: "1s"} {
		if got := round(ns); got != want {
			t.Errorf("%v ns is written %q, want %q", ns, got, want)
		}
	}
}
