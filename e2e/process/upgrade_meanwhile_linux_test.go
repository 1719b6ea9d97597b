package process

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
)

// What else happens while a process takes another's place.

// A process in the middle of a row ends before the first: its tunnels have moved.
func TestTheEndOfTheLastProcessIsThatOfAllBeforeIt(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	u := harness.StartUpgradable(t, append(flags, "-drain=1s")...)
	first := u.Main
	c := harness.ConnectWith(t, u.Addr, trusting) // stays where its keys are
	harness.Send(t, c, harness.Line(harness.StartEcho(t)))
	harness.Expect(t, c, "200")
	for range 3 {
		old := u.Main
		u.Upgrade(t)
		if old != first {
			harness.WaitGone(t, old)
		}
	}
	harness.Echo(t, c, "still here")
	u.EndMain(t)
	harness.WaitGone(t, first)
	harness.ExpectCut(t, c)
}

// A process that has tunnels left may have sockets that those after it have given up.
func TestAnAddressThatIsGivenUpIsRefusedWhateverOldProcessLives(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	config := filepath.Join(t.TempDir(), "config")
	one, two := harness.ClosedPort(t), harness.ClosedPort(t)
	harness.WriteFile(t, config, fmt.Sprintf("handover=0\nlisten=%s=forward:%s %s=forward:%s\n", one, backend, two, backend))
	u := harness.StartUpgradable(t, "-config="+config)
	first := u.Main
	c := harness.Connect(t, two)
	harness.Echo(t, c, "before")
	u.Upgrade(t)
	second := u.Main
	harness.WriteFile(t, config, fmt.Sprintf("listen=%s=forward:%s\n", one, backend))
	u.Upgrade(t)
	harness.WaitGone(t, second)
	harness.WaitRefused(t, two)
	harness.Echo(t, c, "after")
	harness.Finish(t, c)
	harness.WaitGone(t, first)
	u.EndMain(t)
}

func TestAProcessThatServesAgainHasItsAdminInterfaceAgain(t *testing.T) {
	t.Parallel()
	u := harness.StartUpgradable(t, "-admin=127.0.0.1:0", "-pprof=127.0.0.1:0", "-handover=0")
	url := u.Log.WaitLine(t, "admin is on", 1)["url"].(string)
	backend := harness.StartEcho(t)
	first := u.Main
	stays := harness.OpenTunnel(t, u.Addr, backend) // which keeps the process until the next has been killed
	for n := range 2 {
		harness.Finish(t, harness.OpenTunnel(t, u.Addr, backend))
		u.Upgrade(t)
		u.SignalMain(t, syscall.SIGKILL)
		u.Log.WaitLine(t, "the new process has ended: this one serves again", n+1)
		harness.Eventually(t, "the pid file names the first process", func() bool { u.Main = u.InFile(t); return u.Main == first })
		answer, err := (&http.Client{Timeout: harness.Patience}).Get(url + "metrics")
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			t.Errorf("/metrics: %s", answer.Status)
		}
	}
	harness.Finish(t, harness.OpenTunnel(t, u.Addr, backend))
	harness.Finish(t, stays)
	u.EndMain(t)
}

// halfway starts an upgrade and stops the old process in it, when the new one has read its
// settings and opened its log, which says then that pprof is on.
func halfway(t *testing.T, u *harness.Upgraded, program string, logged func(msg string) int) {
	t.Helper()
	start := filepath.Join(t.TempDir(), "start")
	script := fmt.Sprintf("#!/bin/sh\nwhile [ ! -e %s ]; do sleep .02; done\nexec %s \"$@\"\n", start, harness.Binary(t))
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	u.SignalMain(t, syscall.SIGUSR2)
	harness.Eventually(t, "the new process is there", func() bool { return logged("upgrading") == 1 })
	u.SignalMain(t, syscall.SIGSTOP)
	harness.WriteFile(t, start, "")
	harness.Eventually(t, "the new process has read all", func() bool { return logged("pprof is on") == 2 })
}

func TestAReloadDuringAnUpgradeIsTheNewProcesssToo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config, program := filepath.Join(dir, "config"), filepath.Join(dir, "new")
	harness.WriteFile(t, config, "health-path=/before\n")
	u := harness.StartUpgradable(t, "-config="+config, "-upgrade-exec="+program, "-pprof=127.0.0.1:0")
	old := u.Main
	halfway(t, u, program, func(msg string) int { return len(u.Log.Lines(msg)) })
	harness.WriteFile(t, config, "health-path=/after\n")
	u.SignalMain(t, syscall.SIGHUP)
	u.SignalMain(t, syscall.SIGCONT)
	harness.WaitGone(t, old)
	u.Main = u.InFile(t)
	client := &http.Client{Timeout: harness.Patience, Transport: &http.Transport{DisableKeepAlives: true}}
	harness.Eventually(t, "the new process follows the settings that have changed", func() bool {
		answer, err := client.Get("http://" + u.Addr + "/after")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
	u.EndMain(t)
}

func TestALogThatIsRotatedDuringAnUpgradeIsTheNewProcesssToo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name, program := filepath.Join(dir, "gateway.log"), filepath.Join(dir, "new")
	addr := harness.ClosedPort(t)
	cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-addr="+addr, "-log-format=json", "-log-file="+name,
		"-upgrade-exec="+program, "-pprof=127.0.0.1:0")
	u := harness.Adopt(t, launchAt(t, cmd, addr))
	harness.Eventually(t, "the gateway has its pid file", func() bool { return readLog(t, u.PIDFile) != "" })
	old := u.Main
	halfway(t, u, program, func(msg string) int { return strings.Count(readLog(t, name), strconv.Quote(msg)) })
	if err := os.Rename(name, name+".1"); err != nil {
		t.Fatal(err)
	}
	u.SignalMain(t, syscall.SIGUSR1)
	u.SignalMain(t, syscall.SIGCONT)
	harness.WaitGone(t, old)
	u.Main = u.InFile(t)
	refuse(t, addr, 1)
	harness.Eventually(t, "the new process logs to the new file", func() bool { return strings.Contains(readLog(t, name), `"refused"`) })
	if strings.Contains(readLog(t, name+".1"), `"refused"`) {
		t.Error("a line is in the old file")
	}
	u.SignalMain(t, syscall.SIGTERM)
	harness.WaitGone(t, u.Main)
}

// The channel of signals has room for so many.
func TestAFloodOfReloadsDoesNotHideASignalThatEndsTheGateway(t *testing.T) {
	t.Parallel()
	u := harness.StartUpgradable(t, "-pprof=127.0.0.1:0", "-handover=0")
	stays := harness.OpenTunnel(t, u.Addr, harness.StartEcho(t)) // and the old process with it
	url := u.Log.WaitLine(t, "pprof is on", 1)["url"].(string)
	// Whom pprof serves has a second to finish, for which the old process waits.
	c := harness.Connect(t, strings.Split(url, "/")[2])
	harness.Send(t, c, "GET /debug/pprof/profile?seconds=30 HTTP/1.1\r\nHost: gateway\r\n\r\n")
	old := u.Main
	u.SignalMain(t, syscall.SIGUSR2)
	u.Log.WaitLine(t, "the new process is ready", 1)
	for range 40 {
		if err := syscall.Kill(old, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond) // or the kernel makes one of them
	}
	if err := syscall.Kill(old, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	u.Log.WaitLine(t, "draining", 1)
	harness.Finish(t, stays)
	harness.WaitGone(t, old)
	c.Close()
	harness.Eventually(t, "the pid file changes hands", func() bool { u.Main = u.InFile(t); return u.Main != old })
	u.EndMain(t)
}

// A script may start the gateway and wait. The gateway outlives it then.
func TestAGatewayThatComesTooLateDoesNotServe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program, there, start, result := filepath.Join(dir, "new"), filepath.Join(dir, "there"), filepath.Join(dir, "start"), filepath.Join(dir, "result")
	script := fmt.Sprintf("#!/bin/sh\n(: >%s; while [ ! -e %s ]; do sleep .02; done; %s \"$@\"; echo $? >%s) &\nwait\n", there, start, harness.Binary(t), result)
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	u := harness.StartUpgradable(t, "-upgrade-exec="+program, "-upgrade-timeout=100ms")
	tries := 0
	harness.Eventually(t, "there is one that comes too late", func() bool {
		u.SignalMain(t, syscall.SIGUSR2)
		tries++
		u.Log.WaitLine(t, "the upgrade failed: this process goes on serving", tries)
		_, err := os.Stat(there)
		return err == nil
	})
	harness.WriteFile(t, start, "")
	harness.Eventually(t, "the latecomer ends", func() bool {
		text, err := os.ReadFile(result)
		return err == nil && strings.TrimSpace(string(text)) == "1"
	})
	if n := len(u.Log.Lines("listening")); n != 1 {
		t.Errorf("%d processes listen", n)
	}
	if u.InFile(t) != u.Main {
		t.Error("the pid file names another process")
	}
	harness.Finish(t, harness.OpenTunnel(t, u.Addr, harness.StartEcho(t)))
	u.EndMain(t)
}

// What is relative in the settings cannot be found then, but there may be nothing.
func TestAnUpgradeDoesNotNeedTheFolderThatTheGatewayWasStartedIn(t *testing.T) {
	t.Parallel()
	cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-log-format=json", "-pidfile=")
	p := harness.StartCommand(t, cmd)
	u := harness.Adopt(t, p)
	if err := os.RemoveAll(cmd.Dir); err != nil {
		t.Fatal(err)
	}
	u.SignalMain(t, syscall.SIGUSR2)
	u.Log.WaitLine(t, "handed over", 1)
	harness.WaitGone(t, u.Main)
	u.Main = int(u.Log.WaitLine(t, "listening", 2)["pid"].(float64))
	harness.Finish(t, harness.OpenTunnel(t, u.Addr, harness.StartEcho(t)))
	u.SignalMain(t, syscall.SIGTERM)
	harness.WaitGone(t, u.Main)
}

func TestAnUpgradeDoesNotNeedProc(t *testing.T) {
	if !harness.InNamespaces(t, unix.CLONE_NEWNS) {
		return
	}
	binary := harness.Binary(t)
	harness.Mount(t, "none", "/proc", "tmpfs", 0, "size=64k")
	t.Cleanup(func() { unix.Unmount("/proc", unix.MNT_DETACH) })
	cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-log-format=json")
	cmd.Path, cmd.Args[0] = binary, binary
	u := harness.Adopt(t, harness.StartCommand(t, cmd))
	u.Upgrade(t)
	harness.Finish(t, harness.OpenTunnel(t, u.Addr, harness.StartEcho(t)))
	u.EndMain(t)
}

// It is who listens that removes the file of a Unix socket, in the end.
func TestTheFileOfTheAdminSocketIsThereAsLongAsSomebodyListens(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config, one, two := filepath.Join(dir, "config"), filepath.Join(dir, "one"), filepath.Join(dir, "two")
	exists := func(name string) bool { _, err := os.Stat(name); return err == nil }
	harness.WriteFile(t, config, "admin=unix:"+one+"\n")
	u := harness.StartUpgradable(t, "-config="+config)
	u.Upgrade(t)
	if !exists(one) {
		t.Error("the new process cannot be found where the old one was")
	}
	harness.WriteFile(t, config, "admin=unix:"+two+"\n")
	u.Upgrade(t)
	if exists(one) || !exists(two) {
		t.Errorf("the file of the old process is there: %v, of the new one: %v", exists(one), exists(two))
	}
	harness.WriteFile(t, config, "retry=1\n")
	u.Upgrade(t)
	if exists(two) {
		t.Error("a file is left to which nobody listens")
	}
	u.EndMain(t)
}

// A disk may be slow, or another gateway change the file.
func TestThePIDFileIsThereAllTheTimeHoweverSlowTheNewProcessIs(t *testing.T) {
	t.Parallel()
	u := harness.StartUpgradable(t)
	for n := range 3 {
		old := u.Main
		release := holdLock(t, u.PIDFile+".lock", 0)
		u.SignalMain(t, syscall.SIGUSR2)
		u.Log.WaitLine(t, "handed over", n+1)
		time.Sleep(time.Second) // the old process has nothing to wait for by then
		release()
		harness.Eventually(t, "the pid file changes hands", func() bool {
			u.Main = u.InFile(t) // which fails where there is none
			return u.Main != old
		})
		harness.WaitGone(t, old)
	}
	u.EndMain(t)
}
