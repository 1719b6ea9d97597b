package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// event is a line of go test -json (go doc test2json; go help buildjson).
type event struct {
	Action     string
	Package    string
	ImportPath string // of what could not be built
	Test       string
	Elapsed    float64 // seconds
	Output     string
}

// slow is when a test that passes gets a line of its own.
const slow = time.Second

// line is what a test or one of its subtests has printed, or a part of it.
type line struct{ test, text string }

// report writes what events tell.
type report struct {
	out     io.Writer
	begin   time.Time
	passed  int
	skipped int
	failed  []string             // tests and packages
	running map[string]time.Time // names of tests that are under way, since when
	output  map[string][]line    // of top-level tests and packages so far
	counts  map[string]int       // tests that have passed, by package
}

func newReport(out io.Writer) *report {
	return &report{
		out: out, begin: time.Now(),
		running: make(map[string]time.Time), output: make(map[string][]line), counts: make(map[string]int),
	}
}

// take takes a line of the command's, and tells whether it has written any.
func (r *report) take(text []byte) (written bool) {
	var e event
	if json.Unmarshal(text, &e) != nil || e.Action == "" {
		r.out.Write(text)
		return true
	}
	test, _, sub := strings.Cut(e.Test, "/")
	name := strings.TrimSpace(e.Package + " " + test)
	switch {
	case e.Action == "build-output":
		fmt.Fprint(r.out, e.Output)
		return true
	case e.Action == "output":
		if !strings.HasPrefix(e.Output, "=== ") { // RUN, PAUSE, CONT, NAME
			r.output[name] = append(r.output[name], line{e.Test, e.Output})
		}
		return false
	case sub:
		if e.Action == "pass" { // what it has printed explains no failure
			r.output[name] = slices.DeleteFunc(r.output[name], func(l line) bool { return l.test == e.Test })
		}
		return false
	case e.Test == "":
		return r.ofPackage(e)
	}
	return r.ofTest(e, name)
}

// ofTest takes an event of a top-level test.
func (r *report) ofTest(e event, name string) (written bool) {
	switch e.Action {
	case "run", "cont":
		r.running[name] = time.Now()
		return false
	case "pause": // until it may run beside others
		delete(r.running, name)
		return false
	case "pass":
		r.passed++
		r.counts[e.Package]++
	case "skip":
		r.skipped++
	case "fail":
		r.fail(name)
		written = true
	default:
		return false
	}
	delete(r.running, name)
	delete(r.output, name)
	if elapsed := seconds(e.Elapsed); e.Action == "pass" && elapsed >= slow {
		fmt.Fprintf(r.out, "      %s (%v)\n", name, elapsed)
		written = true
	}
	return written
}

// ofPackage takes an event of a whole package.
func (r *report) ofPackage(e event) (written bool) {
	switch e.Action {
	case "pass":
		fmt.Fprintf(r.out, "ok    %s (%v, %d tests)\n", e.Package, seconds(e.Elapsed), r.counts[e.Package])
		written = true
	case "fail":
		r.failPackage(e.Package)
		written = true
	case "skip": // it has no tests
	default:
		return false
	}
	maps.DeleteFunc(r.output, func(name string, _ []line) bool { return isOf(name, e.Package) })
	maps.DeleteFunc(r.running, func(name string, _ time.Time) bool { return isOf(name, e.Package) })
	return written
}

// isOf tells whether a name is the package's, or that of one of its tests.
func isOf(name, pkg string) bool { return name == pkg || strings.HasPrefix(name, pkg+" ") }

// failPackage tells of a package, and of its tests that have not come to an
// end: they were running when it died.
func (r *report) failPackage(pkg string) {
	for _, name := range slices.Sorted(maps.Keys(r.running)) {
		if isOf(name, pkg) {
			r.fail(name)
		}
	}
	r.fail(pkg)
}

func (r *report) fail(name string) {
	r.failed = append(r.failed, name)
	fmt.Fprintf(r.out, "FAIL  %s\n", name)
	writeShort(r.out, r.output[name])
}

// goingOn says what is under way, the longest first.
func (r *report) goingOn() {
	const most = 3
	names := slices.SortedFunc(maps.Keys(r.running), func(a, b string) int {
		return cmp.Or(r.running[a].Compare(r.running[b]), cmp.Compare(a, b))
	})
	var list []string
	for _, name := range names[:min(most, len(names))] {
		list = append(list, fmt.Sprintf("%s (%v)", name, time.Since(r.running[name]).Round(time.Second)))
	}
	if n := len(names) - most; n > 0 {
		list = append(list, fmt.Sprintf("%d more", n))
	}
	if len(list) == 0 {
		list = []string{"being built"}
	}
	fmt.Fprintf(r.out, "...   %v, %d passed: %s\n", r.elapsed(), r.passed, strings.Join(list, ", "))
}

// finish sums up.
func (r *report) finish() {
	fmt.Fprintf(r.out, "%d tests passed, %d were skipped, in %v\n", r.passed, r.skipped, r.elapsed())
	if len(r.failed) > 0 {
		fmt.Fprintf(r.out, "failed:\n  %s\n", strings.Join(r.failed, "\n  "))
	}
}

func (r *report) elapsed() time.Duration { return time.Since(r.begin).Round(time.Second) }

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(10 * time.Millisecond)
}

// What is shown at most of what a failure has printed: the cause stands at the
// beginning, and the verdict at the end.
const (
	headLines = 60
	tailLines = 20
	lineBytes = 1000
)

func writeShort(out io.Writer, lines []line) {
	left := len(lines) - headLines - tailLines
	for i, l := range lines {
		switch {
		case left > 0 && i == headLines:
			fmt.Fprintf(out, "... %d lines left out; the test by itself prints all\n", left)
		case left > 0 && i > headLines && i < len(lines)-tailLines:
		case len(l.text) > lineBytes:
			fmt.Fprintf(out, "%s... (%d bytes)\n", l.text[:lineBytes], len(l.text))
		default:
			io.WriteString(out, l.text)
		}
	}
}
