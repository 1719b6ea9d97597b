package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

// insideVariable in the environment says that this process has a network
// namespace of its own.
const insideVariable = "BENCH_INSIDE"

// errNoNamespace is returned where the user may not make one.
var errNoNamespace = errors.New("no network namespace of its own")

// runInNamespace runs this program again in a new network namespace, with a
// new user namespace around it where the user is not root, and returns its
// exit code.
func runInNamespace(args []string, stdout, stderr io.Writer) (int, error) {
	if _, err := exec.LookPath("ip"); err != nil {
		return 0, fmt.Errorf("%w: ip(8) is missing", errNoNamespace)
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("%w: %w", errNoNamespace, err)
	}
	go func() {
		for sig := range signals {
			cmd.Process.Signal(sig) // it ends its children
		}
	}()
	err := cmd.Wait()
	if err == nil {
		return 0, nil
	}
	if exit := new(exec.ExitError); errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// furnishNamespace brings up loopback in a fresh network namespace and gives
// all of its connections cubic. Under BBR, bulk figures are bimodal. A kernel
// without cubic keeps what it has, which the report names.
//
// The routes say cubic, because a namespace may not choose a default that the
// machine does not allow to all.
func furnishNamespace(stderr io.Writer) error {
	ip := func(args string) error {
		out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
		return nil
	}
	if err := ip("link set lo up"); err != nil {
		return err
	}
	for _, to := range []string{"127.0.0.0/8", "127.0.0.1"} {
		err := ip("route replace local " + to + " dev lo table local proto kernel scope host src 127.0.0.1 congctl cubic")
		if err != nil {
			fmt.Fprintf(stderr, "bench: no cubic: %v\n", err)
		}
	}
	// Every short connection leaves two ports in TIME_WAIT. With many ports no
	// contender's time goes into the search for a free one, and with room for
	// all none gets rid of the state sooner than the others. A kernel that does
	// not allow this leaves fewer.
	for name, value := range map[string]string{
		"ip_local_port_range": "10000 65000", "tcp_max_tw_buckets": "1048576",
	} {
		os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0)
	}
	return nil
}
