package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Upgraded is a gateway that was started as one process and is another by now. Their
// lines are all in Log.
type Upgraded struct {
	*Process
	PIDFile string
	Main    int // the process id, as of the last upgrade
}

// StartUpgradable starts a gateway with Secret on a free port of 127.0.0.1, with a pid
// file.
func StartUpgradable(t testing.TB, args ...string) *Upgraded {
	t.Helper()
	cmd := Command(t, nil, append([]string{"-secret=" + Secret, "-addr=127.0.0.1:0", "-log-format=json",
		"-timeout=" + Patience.String()}, args...)...)
	return Adopt(t, StartCommand(t, cmd))
}

// Adopt watches over a process and its successors, which end with the test.
func Adopt(t testing.TB, p *Process) *Upgraded {
	t.Helper()
	u := &Upgraded{p, filepath.Join(p.Cmd.Dir, "gateway.pid"), p.PID()}
	t.Cleanup(func() {
		// A process that is killed may not have told the log of its successor, which
		// holds on to its standard error.
		all, _ := filepath.Glob("/proc/[0-9]*/cwd")
		for _, link := range all {
			dir, err := os.Readlink(link)
			if err != nil || dir != u.Cmd.Dir && !strings.HasPrefix(dir, u.Cmd.Dir+" (deleted)") {
				continue
			}
			if pid, err := strconv.Atoi(strings.Split(link, "/")[2]); err == nil && pid != os.Getpid() {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	return u
}

// InFile returns the process that the pid file names.
func (u *Upgraded) InFile(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile(u.PIDFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatalf("%s: %q", u.PIDFile, text)
	}
	return pid
}

// SignalMain sends a signal to the process that serves now.
func (u *Upgraded) SignalMain(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(u.Main, sig); err != nil {
		t.Fatal(err)
	}
}

// Upgrade asks for an upgrade and waits until the pid file has changed hands.
func (u *Upgraded) Upgrade(t testing.TB) {
	t.Helper()
	old := u.Main
	u.SignalMain(t, syscall.SIGUSR2)
	Eventually(t, "the pid file changes hands", func() bool {
		u.Main = u.InFile(t)
		return u.Main != old
	})
}

// EndMain ends the gateway.
func (u *Upgraded) EndMain(t testing.TB) {
	t.Helper()
	u.SignalMain(t, syscall.SIGTERM)
	Eventually(t, "the pid file is gone", func() bool {
		_, err := os.Stat(u.PIDFile)
		return os.IsNotExist(err)
	})
	WaitRefused(t, u.Addr)
}

// WaitGone waits until a process has ended.
func WaitGone(t testing.TB, pid int) {
	t.Helper()
	Eventually(t, fmt.Sprintf("process %d ends", pid), func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(text), ") Z ")
	})
}
