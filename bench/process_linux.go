package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fleet is all processes of a run. They are started by one thread, end with
// it, and are killed together.
type fleet struct {
	dir string       // for configurations and logs
	cpu *unix.CPUSet // what they may run on; nil: everything

	mu     sync.Mutex
	alive  map[*process]struct{}
	sunk   bool // nothing is started any more
	serial int
}

// process is a contender or helper, with all its children: a process group.
type process struct {
	name  string
	pid   int // and its group's id
	log   string
	fleet *fleet
	ended chan struct{}
}

func newFleet(dir string, cpu *unix.CPUSet) *fleet {
	return &fleet{dir: dir, cpu: cpu, alive: make(map[*process]struct{})}
}

// start starts cmd on the fleet's CPUs. Those are set before, so the process
// sees them in its affinity mask from its first instruction on. The calling
// goroutine must be locked to its thread for good: when that ends, the kernel
// kills the process.
func (f *fleet) start(cmd *exec.Cmd, name string) (*process, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sunk {
		return nil, errors.New("the run has been ended")
	}
	f.serial++
	p := &process{name: name, fleet: f, ended: make(chan struct{})}
	p.log = filepath.Join(f.dir, fmt.Sprintf("%d-%s.log", f.serial, name))
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := onCPUs(f.cpu, cmd.Start); err != nil {
		return nil, err
	}
	p.pid = cmd.Process.Pid
	f.alive[p] = struct{}{}
	go func() {
		cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// onCPUs runs do with this thread on the given CPUs.
func onCPUs(cpu *unix.CPUSet, do func() error) error {
	if cpu == nil {
		return do()
	}
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return os.NewSyscallError("sched_getaffinity", err)
	}
	if err := unix.SchedSetaffinity(0, cpu); err != nil {
		return os.NewSyscallError("sched_setaffinity", err)
	}
	defer unix.SchedSetaffinity(0, &before)
	return do()
}

// sink kills every process of the fleet, from any goroutine.
func (f *fleet) sink() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sunk = true
	for p := range f.alive {
		p.signal(syscall.SIGKILL)
		delete(f.alive, p)
	}
}

func (p *process) signal(s syscall.Signal) { syscall.Kill(-p.pid, s) }

// kill ends the process and its children, and waits for it.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.ended
	p.fleet.mu.Lock()
	delete(p.fleet.alive, p)
	p.fleet.mu.Unlock()
}

func (p *process) rest()  { p.signal(syscall.SIGSTOP) }
func (p *process) awake() { p.signal(syscall.SIGCONT) }

func (p *process) isAlive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// lastWords is the end of what the process has logged.
func (p *process) lastWords() string {
	text, _ := os.ReadFile(p.log)
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return "it has logged nothing"
	}
	lines := strings.Split(string(text[max(0, len(text)-600):]), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "; ")
}

// pids lists the processes of the group.
func (p *process) pids() []int {
	var list []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && groupOf(pid) == p.pid {
			list = append(list, pid)
		}
	}
	return list
}

// groupOf returns the process group of pid, 0 if it is gone.
func groupOf(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	return groupIn(string(stat))
}

// groupIn finds the process group in a line of /proc/PID/stat: the third field
// behind the command, which may hold spaces and parentheses itself.
func groupIn(stat string) int {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 3 {
		return 0
	}
	group, _ := strconv.Atoi(fields[2])
	return group
}

// atRest tells whether all threads of the group sleep. One that would go on but
// has to wait for a CPU does not.
func (p *process) atRest() bool {
	for _, pid := range p.pids() {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, file := range threads {
			stat, err := os.ReadFile(file)
			if err == nil && stateIn(string(stat)) != 'S' {
				return false
			}
		}
	}
	return true
}

// stateIn finds the state in a line of /proc/PID/stat, 0 if there is none: the
// first letter behind the command.
func stateIn(stat string) byte {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) == 0 || !strings.Contains(stat, ")") {
		return 0
	}
	return fields[0][0]
}

// cpuTime is what all threads of the group have used so far, those that have
// ended included, to the nanosecond. (/proc/PID/stat counts in ticks of 10 ms,
// /proc/PID/schedstat only the first thread.)
func (p *process) cpuTime() (time.Duration, error) {
	var sum time.Duration
	pids := p.pids()
	for _, pid := range pids {
		var ts unix.Timespec
		// What clock_getcpuclockid(3) returns for the clock CPUCLOCK_SCHED.
		if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
			return 0, os.NewSyscallError("clock_gettime", err)
		}
		sum += time.Duration(ts.Nano())
	}
	if len(pids) == 0 {
		return 0, fmt.Errorf("%s has ended: %s", p.name, p.lastWords())
	}
	return sum, nil
}

// rss is the resident memory of the group in bytes.
func (p *process) rss() (int64, error) {
	var sum int64
	for _, pid := range p.pids() {
		n, err := rssOf(pid)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// rssOf asks smaps_rollup, which adds up the pages; VmRSS in status is an
// estimate that may be off by some hundred KiB.
func rssOf(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err == nil {
		return kilobytesIn(string(text), "Rss:")
	}
	if text, err = os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err != nil {
		return 0, err
	}
	return kilobytesIn(string(text), "VmRSS:")
}

// kilobytesIn reads "NAME   123 kB".
func kilobytesIn(text, name string) (int64, error) {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no %s in /proc", name)
}

// descriptors counts what the group has open.
func (p *process) descriptors() (int, error) {
	sum := 0
	for _, pid := range p.pids() {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return 0, err
		}
		sum += len(entries)
	}
	return sum, nil
}
