package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The charts that documents show, of the pinned table.

const (
	chartWidth  = 880.0
	labelWidth  = 196.0
	plotRight   = chartWidth - 60
	barHeight   = 11.0
	textWidth   = 28.0 // of a ratio behind its bar
	barPitch    = 14.0
	groupGap    = 14.0
	plotTop     = 92.0
	mostRatio   = 2.0 // of the axis; longer bars are cut, and say so
	footerSpace = 60.0
)

// writeCharts writes those charts for which there are figures.
func writeCharts(dir string, t *table, rows []workload, footer []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	rows = slices.DeleteFunc(measured(t, rows), func(w workload) bool { return w.kind == stalled || w.kind == beside })
	var err error
	for name, chart := range map[string]string{
		"cpu.svg":     ratioChart(t, rows, footer),
		"latency.svg": latencyChart(t, ofKind(rows, echo, short), footer),
	} {
		if chart != "" {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(chart), 0o644))
		}
	}
	return err
}

// charted leaves out of names who has no bar of its own at a workload: as a
// plain port forward the gateway differs in how connections begin, and in
// nothing else.
func charted(names []string, w workload) []string {
	if w.kind == short || !slices.Contains(names, gatewayName) {
		return names
	}
	return without(names, forwardName)
}

// heightOf is what the groups of bars take together.
func heightOf(rows []workload, names []string) float64 {
	height := 0.0
	for _, w := range rows {
		height += groupHeight(w, names)
	}
	return height
}

func groupHeight(w workload, names []string) float64 {
	return float64(len(charted(names, w)))*barPitch + groupGap
}

// shade returns the class of a contender's colour: its place among the usual
// ones, or the last.
func shade(contender string) string {
	for i, name := range []string{gatewayName, haproxyName, splicedName, nginxName, ioCopyName, forwardName, epollName} {
		if contender == name {
			return fmt.Sprintf("c%d", i)
		}
	}
	return "c7"
}

// label is what the legend calls a contender.
func label(contender string) string {
	switch contender {
	case forwardName:
		return "gateway -forward"
	case epollName:
		return "gateway -io-uring=0"
	}
	return contender
}

// ratioChart shows each contender's least cost as a ratio to HAProxy's.
func ratioChart(t *table, rows []workload, footer []string) string {
	names := without(without(t.Contenders, directName), haproxyName)
	var shown []workload
	for _, w := range rows {
		if first(t.at(w.key, haproxyName).costs()) > 0 {
			shown = append(shown, w)
		}
	}
	if len(shown) == 0 || len(names) == 0 {
		return ""
	}
	bottom := plotTop + heightOf(shown, names)
	p := &picture{width: chartWidth, height: bottom + 24 + footerSpace}
	p.text(20, 30, "title", "What a proxy costs, HAProxy = 1 (less is better)")
	p.legend(20, 56, names, label, shade)
	x := func(v float64) float64 { return labelWidth + min(v, mostRatio)/mostRatio*(plotRight-labelWidth) }
	for v := 0.0; v <= mostRatio; v += .25 {
		p.line(x(v), plotTop-6, x(v), bottom-6, "grid")
		p.text(x(v), bottom+10, "note middle", fmt.Sprint(v))
	}
	p.line(x(1), plotTop-6, x(1), bottom-6, "base")
	p.text(x(1), plotTop-12, "note middle", "HAProxy")
	y := plotTop
	for _, w := range shown {
		p.text(labelWidth-12, y+(groupHeight(w, names)-groupGap)/2+4, "right", w.title)
		for _, name := range charted(names, w) {
			value, ok := ratio(first(t.at(w.key, name).costs()), first(t.at(w.key, haproxyName).costs()))
			if ok {
				p.rect(labelWidth, y, x(value)-labelWidth, barHeight, "bar "+shade(name))
				text, class := short2(value), "value"
				if value > mostRatio {
					text = "→ " + text
				}
				if name == gatewayName || name == forwardName {
					class = "strong"
				}
				at := x(value) + 5
				if at < x(1)+5 && at+textWidth > x(1) {
					at = x(1) + 5 // the dashed line would cross it
				}
				p.text(at, y+barHeight-1.5, class, text)
			}
			y += barPitch
		}
		y += groupGap
	}
	writeFooter(p, append([]string{"CPU time of the proxy per MiB, round trip or connection; idle: resident memory per tunnel. " +
		"Best of " + fmt.Sprint(t.Rounds) + " rounds."}, footer...))
	return p.String()
}

// latencyChart shows percentiles on a logarithmic axis.
func latencyChart(t *table, rows []workload, footer []string) string {
	names := without(t.Contenders, directName)
	least, most := math.Inf(1), 0.0
	for _, w := range rows {
		for _, name := range charted(names, w) {
			if s := t.at(w.key, name); s != nil && s.P50 > 0 {
				least = min(least, float64(s.P50))
				most = max(most, float64(s.P999))
			}
		}
	}
	if most == 0 || len(names) == 0 {
		return ""
	}
	low, high := math.Floor(math.Log10(least)), math.Ceil(math.Log10(most))
	bottom := plotTop + heightOf(rows, names)
	p := &picture{width: chartWidth, height: bottom + 24 + footerSpace}
	p.text(20, 30, "title", "How long an answer takes: 50, 99 and 99.9 % (less is better)")
	p.legend(20, 56, names, label, shade)
	x := func(ns float64) float64 {
		return labelWidth + (math.Log10(ns)-low)/(high-low)*(plotRight-labelWidth)
	}
	for e := low; e <= high; e++ {
		for _, m := range []float64{1, 2, 5} {
			if ns := m * math.Pow(10, e); ns <= math.Pow(10, high) {
				p.line(x(ns), plotTop-6, x(ns), bottom-6, "grid")
				p.text(x(ns), bottom+10, "note middle", round(ns))
			}
		}
	}
	y := plotTop
	for _, w := range rows {
		p.text(labelWidth-12, y+(groupHeight(w, names)-groupGap)/2+4, "right", w.title)
		for _, name := range charted(names, w) {
			if s := t.at(w.key, name); s != nil && s.P50 > 0 {
				middle := y + barHeight/2
				p.line(x(float64(s.P50)), middle, x(float64(s.P999)), middle, "line "+shade(name))
				for _, end := range []time.Duration{s.P50, s.P99, s.P999} {
					p.dot(x(float64(end)), middle, 3.5, shade(name))
				}
			}
			y += barPitch
		}
		y += groupGap
	}
	writeFooter(p, append([]string{"Clients wait for each answer before they send again; proxy, clients and backend share one CPU."}, footer...))
	return p.String()
}

func writeFooter(p *picture, lines []string) {
	y := p.height - footerSpace + 12
	for _, line := range lines {
		p.text(20, y, "note", line)
		y += 17
	}
}

// round writes a round number of nanoseconds.
func round(ns float64) string {
	return strings.NewReplacer("000µs", "ms", "µs", " µs", "ms", " ms").Replace(time.Duration(math.Round(ns)).String())
}
