package main

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// writeGrid writes rows of equal length, the first being the head, as a
// Markdown table that is aligned for the eye too.
func writeGrid(out io.Writer, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, text := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(text))
		}
	}
	for n, row := range rows {
		var line strings.Builder
		for i, text := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			if i == 0 {
				line.WriteString("| " + text + pad + " |")
			} else {
				line.WriteString(" " + pad + text + " |")
			}
		}
		fmt.Fprintln(out, line.String())
		if n == 0 {
			for i, width := range widths {
				if i == 0 {
					fmt.Fprint(out, "|"+strings.Repeat("-", width+2)+"|")
				} else {
					fmt.Fprint(out, strings.Repeat("-", width+1)+":|")
				}
			}
			fmt.Fprintln(out)
		}
	}
}

// writeTable writes all that t holds.
func writeTable(out io.Writer, t *table, all []workload) {
	all = measured(t, all)
	var work, resting []workload
	for _, w := range all {
		if w.kind.rests() {
			resting = append(resting, w)
		} else {
			work = append(work, w)
		}
	}
	proxies := without(t.Contenders, directName)

	if len(work) > 0 && len(proxies) > 0 {
		fmt.Fprintf(out, "\nCPU time of the proxy per MiB, round trip or connection, best (median) of %d:\n\n", t.Rounds)
		grid(out, "", work, proxies, func(w workload, _ string, s *series) string {
			costs := s.costs()
			return fmt.Sprintf("%s (%s)", duration(first(costs)), duration(median(costs)))
		}, t)
	}
	verdicts := verdictsOf(t)
	for _, name := range []string{gatewayName, forwardName, epollName} {
		if slices.Contains(t.Contenders, name) {
			writeRatios(out, t, all, name, verdicts)
		}
	}
	writeStalled(out, t, verdicts)
	writeFloods(out, t, all)
	if len(work) > 0 {
		fmt.Fprintf(out, "\nThroughput, best (median) of %d:\n\n", t.Rounds)
		grid(out, "", work, t.Contenders, func(w workload, _ string, s *series) string {
			rates := s.rates()
			return fmt.Sprintf("%s (%s)", perSecond(w, last(rates)), perSecond(w, median(rates)))
		}, t)
	}
	if talking := ofKind(work, echo, echoTLS, short, shortTLS, byToken, badToken, bySRV, byAsk, byTicket, byNew, byNewSRV, stalled, beside); len(talking) > 0 {
		fmt.Fprintf(out, "\nLatency in µs, 50 / 99 / 99.9 %% of all rounds together:\n\n")
		grid(out, "", talking, t.Contenders, func(w workload, _ string, s *series) string {
			return fmt.Sprintf("%s / %s / %s", micros(s.P50), micros(s.P99), micros(s.P999))
		}, t)
	}
	if len(resting) > 0 && len(proxies) > 0 {
		fmt.Fprintf(out, "\nIdle tunnels: resident memory of each, best (median) of %d, descriptors of each, and resident memory of the whole process:\n\n", t.Rounds)
		grid(out, "", resting, proxies, func(w workload, _ string, s *series) string {
			costs := s.costs()
			return fmt.Sprintf("%s (%s), %.3g, %s", kilobytes(first(costs)), kilobytes(median(costs)),
				median(s.descriptors()), megabytes(median(s.residents())))
		}, t)
	}
	if failures := t.failures(); len(failures) > 0 {
		fmt.Fprintf(out, "\nNot measured:\n\n")
		for _, f := range failures {
			fmt.Fprintf(out, "- %s\n", f)
		}
	}
}

// verdictsOf returns what the bars say, by the bar without its limit; nothing
// unless t is the judged run.
func verdictsOf(t *table) map[bar]verdict {
	verdicts := make(map[bar]verdict)
	if t.Pinned {
		for _, v := range judge(t) {
			b := v.bar
			b.Limit = 0
			verdicts[b] = v
		}
	}
	return verdicts
}

// compared is a ratio as the tables show it: a verdict where there is one.
func compared(t *table, b bar, verdicts map[bar]verdict) string {
	if v := verdicts[b]; v.Known {
		return v.String()
	}
	if value, ok := b.value(t); ok {
		return short2(value)
	}
	return "–"
}

// writeRatios writes one contender's figures as ratios to its peers'.
func writeRatios(out io.Writer, t *table, all []workload, ours string, verdicts map[bar]verdict) {
	peers := without(without(t.Contenders, directName), ours)
	if ours == forwardName { // the other table has that
		peers = without(peers, gatewayName)
	}
	if len(peers) == 0 {
		return
	}
	all = slices.DeleteFunc(slices.Clone(all), func(w workload) bool {
		return t.at(w.key, ours) == nil || !slices.ContainsFunc(peers, func(p string) bool { return t.at(w.key, p) != nil })
	})
	compare := func(q quantity, rows []workload) {
		grid(out, ours+" to", rows, peers, func(w workload, peer string, _ *series) string {
			return compared(t, bar{Contender: ours, Workload: w.key, Peer: peer, Quantity: q}, verdicts)
		}, t)
	}
	fmt.Fprintf(out, "\nCPU time per unit (idle: memory per tunnel) of %s as a ratio to its peers', best to best; less is better:\n\n", ours)
	compare(cost, all)
	if work := ofKind(all, bulkUp, bulkDown, upTLS, downTLS, echo, echoTLS, short, shortTLS, byToken, badToken, bySRV, byAsk, byTicket, byNew, byNewSRV, stalled); len(work) > 0 {
		fmt.Fprintf(out, "\nThroughput of %s as a ratio to its peers', best to best; more is better:\n\n", ours)
		compare(rate, work)
	}
}

// writeStalled writes what stalled readers cost the others of each contender.
func writeStalled(out io.Writer, t *table, verdicts map[bar]verdict) {
	lines := [][]string{{""}, {"CPU time per round trip"}, {"throughput"}}
	for _, name := range t.Contenders {
		if t.at("stalled", name) == nil {
			continue
		}
		lines[0] = append(lines[0], name)
		for i, q := range []quantity{cost, rate} {
			b := bar{Contender: name, Workload: "stalled", Peer: name, Than: withoutStalled, Quantity: q}
			lines[i+1] = append(lines[i+1], compared(t, b, verdicts))
		}
	}
	if len(lines[0]) > 1 {
		fmt.Fprintf(out, "\n%d stalled readers beside 100 busy tunnels: what these take, as a ratio to without, best to best:\n\n", stalledReaders)
		writeGrid(out, lines)
	}
}

// writeFloods writes what floods do to the latency of each contender.
func writeFloods(out io.Writer, t *table, all []workload) {
	floods := slices.DeleteFunc(ofKind(all, beside), func(w workload) bool { return w.key == withoutFlood })
	var columns []string
	for _, name := range t.Contenders {
		if t.at(withoutFlood, name) != nil {
			columns = append(columns, name)
		}
	}
	if len(floods) == 0 || len(columns) == 0 {
		return
	}
	fmt.Fprintf(out, "\n100 tunnels beside a flood, with equal limits: their p99, and as a ratio to that without the flood:\n\n")
	grid(out, "", floods, columns, func(w workload, name string, s *series) string {
		without := t.at(withoutFlood, name)
		if without.P99 == 0 {
			return "–"
		}
		return fmt.Sprintf("%s, %s", micros(s.P99), short2(float64(s.P99)/float64(without.P99)))
	}, t)
}

// grid writes one figure of every workload and contender.
func grid(out io.Writer, corner string, rows []workload, columns []string, figure func(w workload, contender string, s *series) string, t *table) {
	head := []string{corner}
	head = append(head, columns...)
	lines := [][]string{head}
	for _, w := range rows {
		line := []string{w.title}
		for _, c := range columns {
			text := "–"
			if s := t.at(w.key, c); s != nil && len(s.Samples) > 0 {
				text = figure(w, c, s)
			} else if s != nil && s.Failure != "" {
				text = "failed"
			}
			line = append(line, text)
		}
		lines = append(lines, line)
	}
	writeGrid(out, lines)
}

// measured leaves out the workloads of which t holds nothing.
func measured(t *table, all []workload) []workload {
	var list []workload
	for _, w := range all {
		for _, r := range t.Results {
			if r.Workload == w.key {
				list = append(list, w)
				break
			}
		}
	}
	return list
}

func ofKind(all []workload, kinds ...kind) []workload {
	var list []workload
	for _, w := range all {
		for _, k := range kinds {
			if w.kind == k {
				list = append(list, w)
			}
		}
	}
	return list
}

func without(list []string, name string) []string {
	var rest []string
	for _, s := range list {
		if s != name {
			rest = append(rest, s)
		}
	}
	return rest
}

// duration writes nanoseconds with three figures.
func duration(ns float64) string {
	switch {
	case ns < 1e3:
		return figures(ns) + " ns"
	case ns < 1e6:
		return figures(ns/1e3) + " µs"
	default:
		return figures(ns/1e6) + " ms"
	}
}

// perSecond writes a rate: of bytes for bulk, of units otherwise.
func perSecond(w workload, units float64) string {
	if k := cmp.Or(w.kind.insideTLS(), w.kind); k == bulkUp || k == bulkDown {
		return figures(units*(1<<20)/1e9) + " GB/s"
	}
	return figures(units/1e3) + " k/s"
}

func kilobytes(bytes float64) string { return figures(bytes/1024) + " KiB" }

func megabytes(bytes float64) string { return figures(bytes/(1<<20)) + " MiB" }

func micros(d time.Duration) string { return figures(float64(d) / 1e3) }

// figures writes v with three significant figures and no exponent.
func figures(v float64) string {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return "0"
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	return fmt.Sprintf("%.*f", min(max(digits, 0), 3), v)
}

// writeVerdict sums up the bars.
func writeVerdict(out io.Writer, verdicts []verdict) {
	met, known := 0, 0
	var missed []string
	for _, v := range verdicts {
		switch {
		case !v.Known:
			continue
		case v.Met:
			met++
		default:
			of := v.Contender + "'s " + string(v.Quantity)
			switch {
			case v.Than != "":
				of += " to without"
			case v.Peer != "":
				of += " to " + v.Peer
			}
			missed = append(missed, fmt.Sprintf("%s, %s: %s", v.Workload, of, v))
		}
		known++
	}
	if known == 0 {
		return
	}
	fmt.Fprintf(out, "\nBars: %d of %d met.\n", met, known)
	for _, m := range missed {
		fmt.Fprintf(out, "- %s\n", m)
	}
}
