package main

import (
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// machine says on what figures were made.
type machine struct {
	CPU    string
	CPUs   int // that we may use
	Kernel string
	System string
	Go     string

	// NullSyscall is what a system call that does nothing takes, in
	// nanoseconds. A proxy does little else than system calls, and hypervisors
	// and mitigations make them several times as dear on one machine as on
	// another of the same name.
	NullSyscall float64

	Namespace  bool   // whether the network was our own
	Congestion string // in force on both ends of a loopback connection
	Files      int    // limit of descriptors
	Versions   map[string]string
	Missing    []string `json:",omitempty"` // contenders, and why
}

// describeMachine must be called by a goroutine that is locked to its thread.
func describeMachine(namespace bool) (*machine, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, os.NewSyscallError("uname", err)
	}
	congestion, err := congestionInForce()
	if err != nil {
		return nil, err
	}
	cpu, err := lastCPU() // where the judged table is made
	if err != nil {
		return nil, err
	}
	m := &machine{
		CPU:        fieldOf("/proc/cpuinfo", "model name"),
		CPUs:       runtime.NumCPU(),
		Kernel:     fmt.Sprintf("%s %s", unix.ByteSliceToString(uts.Release[:]), unix.ByteSliceToString(uts.Machine[:])),
		System:     strings.Trim(fieldOf("/etc/os-release", "PRETTY_NAME"), `"`),
		Go:         runtime.Version(),
		Namespace:  namespace,
		Congestion: congestion,
		Versions:   make(map[string]string),
	}
	return m, onCPUs(cpu, func() error {
		m.NullSyscall = nullSyscall()
		return nil
	})
}

// nullSyscall measures machine.NullSyscall: the best of many short loops, for
// what disturbs one only ever adds.
func nullSyscall() float64 {
	const loops, calls = 100, 1000
	best := math.Inf(1)
	for range loops {
		begin := time.Now()
		for range calls {
			unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
		}
		best = min(best, float64(time.Since(begin))/calls)
	}
	return math.Round(best*10) / 10
}

// yardstick says how dear system calls are here.
func (m *machine) yardstick() string {
	return "a null system call takes " + duration(m.NullSyscall)
}

// fieldOf finds the first "name: value" or "name=value" in a file.
func fieldOf(file, name string) string {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimLeft(strings.TrimSpace(rest), ":= \t")
		}
	}
	return "unknown"
}

// congestionInForce asks both ends of a living connection: settings only say
// what was meant.
func congestionInForce() (string, error) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	client, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		return "", err
	}
	defer client.Close()
	server, err := ln.Accept()
	if err != nil {
		return "", err
	}
	defer server.Close()
	var names []string
	for _, c := range []net.Conn{client, server} {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			return "", err
		}
		raw.Control(func(fd uintptr) {
			name, _ := congestionOf(int(fd))
			names = append(names, name)
		})
	}
	if names[0] != names[1] {
		return strings.Join(names, " and "), nil
	}
	return names[0], nil
}

func (m *machine) write(out io.Writer) {
	network := "the machine's network"
	if m.Namespace {
		network = "a network namespace of its own"
	}
	fmt.Fprintf(out, "%s, %d CPUs; Linux %s; %s; %s\n", m.CPU, m.CPUs, m.Kernel, m.System, m.Go)
	fmt.Fprintln(out, m.yardstick())
	fmt.Fprintf(out, "loopback in %s, congestion control %s\n", network, m.Congestion)
	var versions []string
	for _, name := range []string{gatewayName, haproxyName, nginxName} {
		if v := m.Versions[name]; v != "" {
			versions = append(versions, name+" "+v)
		}
	}
	fmt.Fprintln(out, strings.Join(versions, ", "))
	for _, why := range m.Missing {
		fmt.Fprintf(out, "skipped: %s\n", why)
	}
}

// raiseFileLimit allows this process and those it starts all descriptors that
// they may have.
func raiseFileLimit() (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	// nginx allocates for each that it might have.
	limit.Cur = min(limit.Max, 1<<18)
	// By syscall: what the runtime itself has raised it hides from children.
	err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	return int(limit.Cur), os.NewSyscallError("setrlimit", err)
}

// lastCPU is the last that this thread may run on. The first often serves the
// devices.
func lastCPU() (*unix.CPUSet, error) {
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, os.NewSyscallError("sched_getaffinity", err)
	}
	for cpu := len(all)*64 - 1; cpu >= 0; cpu-- {
		if all.IsSet(cpu) {
			one.Set(cpu)
			return &one, nil
		}
	}
	return nil, fmt.Errorf("no CPU in the affinity mask")
}

// moduleRoot is the folder of the gateway's go.mod, from here upwards.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), "module gateway\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("not inside the gateway's source tree: give -gateway=PATH")
		}
	}
}
