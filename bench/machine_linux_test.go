package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestANullSystemCallTakesItsTime(t *testing.T) {
	// The cheapest machine takes some 30 ns, a traced process some µs.
	if ns := nullSyscall(); ns < 10 || ns > 1e6 {
		t.Errorf("%v ns", ns)
	}
}

func TestWhatANullSystemCallTakesStandsBesideTheFigures(t *testing.T) {
	tab, all := sampleTable()
	unpinned, _ := sampleTable()
	unpinned.Pinned, unpinned.CPUs = false, 2
	dir := t.TempDir()
	opt := &options{json: filepath.Join(dir, "all.json"), svg: dir}
	r := &report{Made: time.Now(), Machine: &machine{NullSyscall: 123.4}, Pinned: tab, Unpinned: unpinned, rows: all}
	const want = "a null system call takes 123 ns"

	var out bytes.Buffer
	if err := r.publish(opt, &out); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(out.String(), "\n## ")
	if len(parts) != 3 {
		t.Fatalf("%d tables in\n%s", len(parts)-1, &out)
	}
	for _, part := range parts { // the machine, and both tables
		if strings.Count(part, want) != 1 {
			t.Errorf("no %q in\n%s", want, part)
		}
	}
	if got := readReport(t, opt.json).Machine.NullSyscall; got != 123.4 {
		t.Errorf("the JSON has %v", got)
	}
	for _, name := range []string{"cpu.svg", "latency.svg"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		wellFormed(t, name, string(text))
		if !strings.Contains(string(text), want) {
			t.Errorf("%s: no %q", name, want)
		}
	}
}

func TestTheMachineIsDescribedInFull(t *testing.T) {
	m := &machine{CPU: "a CPU", CPUs: 3, Kernel: "6.1", System: "an OS", Go: "go1", Congestion: "cubic",
		Versions: map[string]string{gatewayName: "v1"}, Missing: []string{"nginx: gone"}, NullSyscall: 1500}
	var out bytes.Buffer
	m.write(&out)
	for _, want := range []string{"a CPU, 3 CPUs; Linux 6.1; an OS; go1\n", "takes 1.50 µs\n", "cubic\n", "gateway v1\n", "skipped: nginx: gone\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}
