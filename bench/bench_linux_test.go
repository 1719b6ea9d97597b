package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// roleLossy is a proxy for the tests, which loses a byte of every connection
// that is of one mode: ADDRESS BACKEND MODE.
const roleLossy = "lossy"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVariable); role {
	case "":
		if os.Getenv(insideVariable) != "" { // see TestItsOwnNamespaceHasCubic
			os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
		}
		os.Exit(m.Run())
	case roleLossy:
		ln, err := net.Listen("tcp4", os.Args[1])
		if err == nil {
			err = lossyProxy(ln, os.Args[2], os.Args[3][0])
		}
		fmt.Fprintln(os.Stderr, err)
	case roleFaulty:
		fmt.Fprintln(os.Stderr, faultyProxy(os.Args[1], os.Args[2], os.Args[3]))
	default:
		if err := play(role, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func lossyProxy(ln net.Listener, backend string, mode byte) error {
	for {
		client, err := ln.Accept()
		if err != nil {
			return err
		}
		server, err := net.Dial("tcp4", backend)
		if err != nil {
			return err
		}
		go func() {
			first := make([]byte, 1)
			io.ReadFull(client, first)
			server.Write(first)
			if first[0] == mode {
				io.ReadFull(client, first)
			}
			io.Copy(server, client)
			server.(*net.TCPConn).CloseWrite()
		}()
		go func() {
			defer client.Close()
			io.Copy(client, server)
		}()
	}
}

func lossy(mode byte) *contender {
	return &contender{name: "lossy", command: func(at site) (*exec.Cmd, error) {
		return roleCommand(roleLossy, at.listen, at.backends[0], string(mode)), nil
	}}
}

// children lists this process's children that have not ended.
func children(t *testing.T) []string {
	t.Helper()
	var list []string
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		stat, _ := os.ReadFile(file)
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[0] != "Z" && fields[1] == fmt.Sprint(os.Getpid()) {
			list = append(list, string(stat))
		}
	}
	return list
}

// noChildrenStay waits until all children have ended.
func noChildrenStay(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for len(children(t)) > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("processes stay: %s", children(t))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func readReport(t *testing.T, file string) (r report) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return r
}

func TestARunMeasuresEveryWorkload(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "all.json")
	var out, progress bytes.Buffer
	code := run([]string{"-namespace=false", "-pinned", "-only=go-io.Copy,direct", "-rounds=2", "-time=10ms", "-idle=20",
		"-workloads=bulk,echo-64B-1,echo-64B-64,echo-1KiB,short,stalled,idle", "-json=" + file, "-svg=" + dir}, &out, &progress)
	if code != 0 {
		t.Fatalf("code %d\n%s\n%s", code, &out, &progress)
	}
	noChildrenStay(t)
	r := readReport(t, file)
	if r.Machine.Congestion == "" || r.Machine.Kernel == "" || r.Machine.NullSyscall <= 0 || r.Unpinned != nil || len(r.Workload) != 18 {
		t.Errorf("got %+v", r)
	}
	for key := range r.Workload {
		for _, name := range []string{ioCopyName, directName} {
			s := r.Pinned.at(key, name)
			if strings.HasPrefix(key, "idle") && (name == directName || key != "idle" && key != idleBurst) {
				if s != nil {
					t.Errorf("%s, %s: %+v", key, name, s)
				}
				continue
			}
			if s == nil || len(s.Samples) != 2 {
				t.Fatalf("%s, %s: %+v", key, name, s)
			}
			for _, one := range s.Samples {
				if strings.HasPrefix(key, "idle") {
					continue // so few may fit into what the others have left
				}
				if one.Cost <= 0 && name != directName || one.Rate <= 0 {
					t.Errorf("%s, %s: %+v", key, name, one)
				}
			}
		}
	}
	// io.Copy's two pipes, of which this proxy may have some to spare.
	if fds := median(r.Pinned.at("idle", ioCopyName).descriptors()); fds < 2 || fds > 6 {
		t.Errorf("a tunnel of %s has %v descriptors", ioCopyName, fds)
	}
	if !strings.Contains(out.String(), "64 B echo, 64 tunnels") || !strings.Contains(out.String(), "100 stalled readers beside") || !strings.Contains(progress.String(), "of 52") {
		t.Errorf("%s\n%s", &out, &progress)
	}
}

func TestItsOwnNamespaceHasCubic(t *testing.T) {
	file := filepath.Join(t.TempDir(), "all.json")
	var out, progress bytes.Buffer
	code := run([]string{"-pinned", "-only=go-io.Copy", "-rounds=1", "-time=5ms", "-workloads=echo-64B-64", "-json=" + file}, &out, &progress)
	if strings.Contains(progress.String(), errNoNamespace.Error()) || strings.Contains(progress.String(), "no cubic") {
		t.Skip(progress.String())
	}
	if code != 0 {
		t.Fatalf("code %d\n%s\n%s", code, &out, &progress)
	}
	noChildrenStay(t)
	r := readReport(t, file)
	if !r.Machine.Namespace || r.Machine.Congestion != "cubic" || r.Pinned.Congestion != "cubic" {
		t.Errorf("namespace %v; %s on loopback, %s while it was measured",
			r.Machine.Namespace, r.Machine.Congestion, r.Pinned.Congestion)
	}
}

func TestAUsageErrorIsCode2(t *testing.T) {
	var stderr bytes.Buffer
	if code := run([]string{"-rounds=0"}, io.Discard, &stderr); code != exitUsage || !strings.Contains(stderr.String(), "-rounds") {
		t.Errorf("%d: %s", code, &stderr)
	}
}

// testSuite is a suite with the given contenders, all of which take part.
func testSuite(t *testing.T, all ...*contender) *suite {
	t.Helper()
	s := openSuite(t, all...)
	if len(s.entrants) != len(all) {
		t.Fatalf("%d of %d contenders take part: %q", len(s.entrants), len(all), s.table.failures())
	}
	return s
}

// openSuite is a suite with those of the given contenders that pass the proof.
func openSuite(t *testing.T, all ...*contender) *suite {
	t.Helper()
	runtime.LockOSThread()
	cpu, err := lastCPU()
	if err != nil {
		t.Fatal(err)
	}
	f := newFleet(t.TempDir(), cpu)
	t.Cleanup(func() {
		f.sink()
		noChildrenStay(t)
		runtime.UnlockOSThread()
	})
	opt := &options{rounds: 1, time: 10 * time.Millisecond, idle: 10}
	s, err := newSuite(opt, all, f, 1, 1000, true, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// outcome is what came of a contender's turn at a workload.
func (s *suite) outcome(t *testing.T, workload, contender string) *series {
	t.Helper()
	got := s.table.at(workload, contender)
	if got == nil {
		t.Fatalf("%s had no turn at %s", contender, workload)
	}
	return got
}

func TestAContenderThatLosesAByteDoesNotTakePart(t *testing.T) {
	s := openSuite(t, lossy(modeEcho))
	if len(s.entrants) != 0 || len(s.table.failures()) != 1 || !strings.Contains(s.table.failures()[0], "pattern") {
		t.Errorf("%d take part; %q", len(s.entrants), s.table.failures())
	}
}

func TestAByteThatIsLostLaterIsNoticedToo(t *testing.T) {
	s := testSuite(t, lossy(modeSink))
	w := workload{"bulk-up-8", "bulk up", bulkUp, 8, 1}
	if err := s.turn(0, w, s.entrants[0]); err != nil {
		t.Fatal(err)
	}
	if got := s.outcome(t, w.key, "lossy"); !strings.Contains(got.Failure, "but the backend received") || len(got.Samples) > 0 {
		t.Errorf("got %+v", got)
	}
}

func TestAContenderThatEndsDoesNotTakePart(t *testing.T) {
	s := openSuite(t, &contender{name: "short-lived", command: func(site) (*exec.Cmd, error) {
		return exec.Command("sh", "-c", "echo that was all >&2"), nil
	}})
	if len(s.entrants) != 0 || !strings.Contains(strings.Join(s.table.failures(), ""), "that was all") {
		t.Errorf("%d take part; %q", len(s.entrants), s.table.failures())
	}
}

var plainProxy = &contender{name: ioCopyName, command: ioCopyCommand}

func TestWhoRestsIsStoppedAndOnOneCPU(t *testing.T) {
	s := testSuite(t, plainProxy)
	p := s.entrants[0].process
	state := func() byte {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
		if err != nil {
			t.Fatal(err)
		}
		return stateIn(string(stat))
	}
	for deadline := time.Now().Add(patience); state() != 'T'; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("state %c", state())
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if list, ok := strings.CutPrefix(line, "Cpus_allowed_list:"); ok && strings.ContainsAny(list, ",-") {
			t.Errorf("it may run on %s", list)
		}
	}
}

func TestTheCPUTimeOfChildrenCounts(t *testing.T) {
	s := testSuite(t)
	begin := time.Now()
	p, err := s.fleet.start(exec.Command("sh", "-c", "(while :; do :; done) & wait"), "busy")
	if err != nil {
		t.Fatal(err)
	}
	for {
		used, err := p.cpuTime()
		if err != nil {
			t.Fatal(err)
		}
		if elapsed := time.Since(begin); used > elapsed || elapsed > patience {
			t.Fatalf("%v in %v", used, elapsed)
		}
		if used > 20*time.Millisecond { // starting the shell took less
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAContenderThatDiesIsReportedAndStartedAnew(t *testing.T) {
	s := testSuite(t, plainProxy)
	e := s.entrants[0]
	w := workload{"echo-64B-1", "echo", echo, 1, 64}
	e.process.kill()
	if err := s.turn(0, w, e); err != nil {
		t.Fatal(err)
	}
	if s.outcome(t, w.key, e.name).Failure == "" {
		t.Error("a dead process was measured")
	}
	w.key = "another"
	if err := s.turn(0, w, e); err != nil {
		t.Fatal(err)
	}
	if cell := s.outcome(t, w.key, e.name); cell.Failure != "" || len(cell.Samples) != 1 {
		t.Errorf("got %+v", cell)
	}
}
