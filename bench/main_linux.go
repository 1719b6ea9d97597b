// Command bench compares the gateway with other proxies: the same work for
// each in turn, in one run, on one CPU. README.md says how to read it.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if role := os.Getenv(roleVariable); role != "" {
		if err := play(role, os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", role, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// The exit codes: what was asked could not be measured in full, or was not
// understood. Bars that are missed are a result, not a failure.
const (
	exitFailed = 1
	exitUsage  = 2
)

func run(args []string, stdout, stderr io.Writer) int {
	fail := func(err error) int {
		fmt.Fprintln(stderr, "bench:", err)
		return exitFailed
	}
	opt, err := parseOptions(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return exitUsage
	}
	if err := opt.absolute(); err != nil {
		return fail(err)
	}
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	inside := os.Getenv(insideVariable) != ""
	if opt.gateway == "" && (opt.wants(gatewayName) || opt.wants(forwardName) || opt.wants(epollName)) {
		if opt.gateway, err = buildGateway(dir); err != nil {
			return fail(err)
		}
	}
	if opt.own && !inside {
		// The last -gateway counts.
		code, err := runInNamespace(append(slices.Clone(args), "-gateway="+opt.gateway), stdout, stderr)
		if !errors.Is(err, errNoNamespace) {
			if err != nil {
				return fail(err)
			}
			return code
		}
		fmt.Fprintf(stderr, "bench: %v; going on in the machine's\n", err)
	}
	if opt.upgrades > 0 || opt.watched {
		if err := apart(opt, inside, dir, stdout, stderr); err != nil {
			return fail(err)
		}
		return 0
	}
	report, err := measureAll(opt, inside, dir, stderr)
	if report != nil {
		if err := errors.Join(err, report.publish(opt, stdout)); err != nil {
			return fail(err)
		}
		return report.exitCode()
	}
	return fail(err)
}

// buildGateway builds the gateway of this tree as the Makefile does.
func buildGateway(dir string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "gateway")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, ".")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the gateway: %w: %s", err, out)
	}
	return path, nil
}

// report is all there is to tell.
type report struct {
	Made     time.Time
	Machine  *machine
	Workload map[string]string // key to title
	Pinned   *table            `json:",omitempty"`
	Unpinned *table            `json:",omitempty"`
	Bars     []verdict         `json:",omitempty"`
	rows     []workload
}

// apart is measureAll for -upgrades and -watched.
func apart(opt *options, inside bool, dir string, stdout, stderr io.Writer) error {
	runtime.LockOSThread() // see measureAll
	if inside {
		if err := furnishNamespace(stderr); err != nil {
			return err
		}
	}
	files, err := raiseFileLimit()
	if err != nil {
		return err
	}
	if opt.upgrades > 0 {
		return measureUpgrades(opt, newFleet(dir, nil), runtime.NumCPU(), min(files, 1<<16), stdout)
	}
	say := newProgress(stderr).say
	if opt.pinned {
		cpu, err := lastCPU()
		if err != nil {
			return err
		}
		if err := measureWatched(opt, newFleet(dir, cpu), 1, files, stdout, say); err != nil {
			return err
		}
	}
	if opt.unpinned {
		return measureWatched(opt, newFleet(dir, nil), runtime.NumCPU(), files, stdout, say)
	}
	return nil
}

// leastFiles is what 1000 tunnels take, with some to spare.
const leastFiles = 4096

// measureAll makes the tables. Its report holds what was measured until an
// error.
func measureAll(opt *options, inside bool, dir string, stderr io.Writer) (*report, error) {
	// The kernel ends the children with the thread that has started them.
	runtime.LockOSThread()
	if inside {
		if err := furnishNamespace(stderr); err != nil {
			return nil, err
		}
	}
	files, err := raiseFileLimit()
	if err != nil {
		return nil, err
	}
	m, err := describeMachine(inside)
	if err != nil {
		return nil, err
	}
	m.Files = files
	if files < leastFiles {
		fmt.Fprintf(stderr, "bench: a limit of %d descriptors is too low for some workloads; ulimit -Hn should say %d or more\n", files, leastFiles)
	}
	if most := max((files-1500)/2, 100); opt.idle > most {
		fmt.Fprintf(stderr, "bench: %d idle tunnels: the limit of %d descriptors does not allow more\n", most, files)
		opt.idle = most
	}
	all, missing := contenders(opt)
	all = slices.DeleteFunc(all, func(c *contender) bool { return !opt.wants(c.name) })
	if len(all) == 0 {
		return nil, fmt.Errorf("-only: there is no contender named %s", strings.Join(opt.only, ", "))
	}
	for _, c := range all {
		if v := programVersion(c); v != "" {
			m.Versions[c.name] = v
		}
	}
	for _, why := range missing {
		if name, _, _ := strings.Cut(why, ":"); opt.wants(name) {
			m.Missing = append(m.Missing, why)
		}
	}
	r := &report{Made: time.Now().UTC().Truncate(time.Second), Machine: m, Workload: make(map[string]string), rows: rows(opt.workloads())}
	for _, w := range r.rows {
		r.Workload[w.key] = w.title
	}
	m.write(stderr)
	if opt.pinned {
		cpu, err := lastCPU()
		if err != nil {
			return nil, err
		}
		if r.Pinned, err = measureTable(opt, all, newFleet(dir, cpu), 1, files, stderr); err != nil {
			return r, err
		}
		r.Bars = judge(r.Pinned)
	}
	if opt.unpinned {
		if r.Unpinned, err = measureTable(opt, all, newFleet(dir, nil), runtime.NumCPU(), files, stderr); err != nil {
			return r, err
		}
	}
	return r, nil
}

// measureTable makes one table, and ends all processes that it took.
func measureTable(opt *options, all []*contender, f *fleet, threads, files int, stderr io.Writer) (*table, error) {
	defer f.sink()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-over:
		case sig := <-signals:
			f.sink()
			os.RemoveAll(f.dir)
			fmt.Fprintf(stderr, "\nbench: ended by %v\n", sig)
			os.Exit(128 + int(sig.(syscall.Signal)))
		}
	}()
	p := newProgress(stderr)
	p.say("%s", heading(f.cpu != nil, threads))
	s, err := newSuite(opt, all, f, threads, files, f.cpu != nil, p.say)
	if err != nil {
		return nil, err
	}
	return s.table, s.run(p.step)
}

func heading(pinned bool, cpus int) string {
	if pinned {
		return "Pinned: proxy, clients and backend on one CPU"
	}
	return fmt.Sprintf("Unpinned: all %d CPUs", cpus)
}

// publish writes the tables, and the files that were asked for.
func (r *report) publish(opt *options, out io.Writer) error {
	r.Machine.write(out)
	for _, t := range []*table{r.Pinned, r.Unpinned} {
		if t == nil {
			continue
		}
		fmt.Fprintf(out, "\n## %s\n", heading(t.Pinned, t.CPUs))
		fmt.Fprintf(out, "\nOn this machine %s. Where it takes more or less, so does all that follows: between machines, compare ratios.\n", r.Machine.yardstick())
		writeTable(out, t, r.rows)
		if t.Pinned {
			writeVerdict(out, r.Bars)
		}
	}
	var err error
	if opt.json != "" {
		text, jsonErr := json.MarshalIndent(r, "", "\t")
		err = errors.Join(jsonErr, os.WriteFile(opt.json, append(text, '\n'), 0o644))
	}
	if opt.svg != "" && r.Pinned != nil {
		err = errors.Join(err, writeCharts(opt.svg, r.Pinned, r.rows, r.footer()))
	}
	return err
}

// footer says in the charts where they come from.
func (r *report) footer() []string {
	m := r.Machine
	var peers []string
	for _, name := range []string{haproxyName, nginxName} {
		if v, _, _ := strings.Cut(m.Versions[name], "-"); v != "" {
			peers = append(peers, name+" "+v)
		}
	}
	return []string{
		strings.Join(append(peers, m.Go, m.CPU, "Linux "+m.Kernel, m.Congestion), ", "),
		fmt.Sprintf("make bench, %s; on this machine %s", r.Made.Format(time.DateOnly), r.Machine.yardstick()),
	}
}

// exitCode tells whether everything could be measured.
func (r *report) exitCode() int {
	for _, t := range []*table{r.Pinned, r.Unpinned} {
		if t != nil && len(t.failures()) > 0 {
			return exitFailed
		}
	}
	return 0
}

// progress tells what is going on: on a terminal in one line that changes.
type progress struct {
	out      io.Writer
	terminal bool
	begin    time.Time
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out, begin: time.Now()}
	if file, ok := out.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
		p.terminal = err == nil
	}
	return p
}

func (p *progress) say(format string, args ...any) {
	fmt.Fprintf(p.out, format+"\n", args...)
}

func (p *progress) step(done, total int, what string) {
	elapsed := time.Since(p.begin).Round(time.Second)
	line := fmt.Sprintf("[%*d of %d, %v] %s", len(fmt.Sprint(total)), done, total, elapsed, what)
	switch {
	case !p.terminal:
		fmt.Fprintln(p.out, line)
	case done == total:
		fmt.Fprintf(p.out, "\r\x1b[K%s\n", line)
	default:
		fmt.Fprintf(p.out, "\r\x1b[K%.110s", line)
	}
}
