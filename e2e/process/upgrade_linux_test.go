package process

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
)

// SIGUSR2: another process takes the gateway's place, and nobody notices.

func TestAnUpgradeReplacesTheProcessAndTunnelsGoOn(t *testing.T) {
	t.Parallel()
	harness.BothWays(t, func(t *testing.T, way string) {
		backend := harness.StartEcho(t)
		admin := harness.NewAdmin(t)
		u := harness.StartUpgradable(t, way, admin.Flag)
		old := u.Main
		c := harness.OpenTunnel(t, u.Addr, backend)
		harness.Echo(t, c, "before")
		for range 3 {
			u.Upgrade(t)
			harness.Echo(t, c, "still here")
			if n := admin.Metrics(t).Unaccounted(); n != 0 {
				t.Errorf("%v connections are in none of the sums", n)
			}
			after := harness.OpenTunnel(t, u.Addr, backend)
			harness.Echo(t, after, "hello")
			harness.Finish(t, after)
		}
		harness.Finish(t, c)
		harness.WaitGone(t, old) // not Wait: others have its standard error
		u.EndMain(t)
		u.Wait(t) // for the last that has the log
		if n := len(u.Log.Lines("tunnel")); n != 4 {
			t.Errorf("%d tunnels in the log, want 4", n)
		}
	})
}

// connectStorm connects, without a rest, until stop is closed, and returns how many
// connects there were. Each has to be answered.
func connectStorm(t *testing.T, addr string, stop <-chan struct{}) int64 {
	t.Helper()
	var connects atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			b := make([]byte, 3)
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.DialTimeout("tcp", addr, harness.Patience)
				if err != nil {
					t.Errorf("connect %d: %v", connects.Load(), err)
					return
				}
				c.SetDeadline(time.Now().Add(harness.Patience))
				io.WriteString(c, "no sealed line\n")
				if _, err := io.ReadFull(c, b); err != nil || string(b) != "401" {
					t.Errorf("connect %d: %q, %v", connects.Load(), b, err)
				}
				// Without a TIME_WAIT, of which there would be too many.
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
				connects.Add(1)
			}
		})
	}
	all.Wait()
	return connects.Load()
}

func TestNoConnectIsRefusedOrResetDuringUpgrades(t *testing.T) {
	t.Parallel()
	upgrades, connects := 20, int64(10_000)
	if testing.Short() {
		upgrades, connects = 5, 1000
	}
	harness.BothWays(t, func(t *testing.T, way string) {
		u := harness.StartUpgradable(t, way)
		stop := make(chan struct{})
		var n int64
		var storm sync.WaitGroup
		storm.Go(func() { n += connectStorm(t, u.Addr, stop) })
		for range upgrades {
			u.Upgrade(t)
		}
		close(stop)
		storm.Wait()
		if n < connects {
			stop = make(chan struct{})
			time.AfterFunc(time.Second, func() { close(stop) })
			n += connectStorm(t, u.Addr, stop)
		}
		t.Logf("%d connects during %d upgrades", n, upgrades)
		u.EndMain(t)
	})
}

// What is started in the gateway's place, and is none or does not last.
var badPrograms = []struct {
	name string
	text string // of the program, which is executable; empty: see make
	make func(t *testing.T, file string)
	says string // the log
	last bool   // it comes so far that this process has to take everything back
	hang bool   // nothing but -upgrade-timeout ends it
}{
	{name: "nothing there", make: func(*testing.T, string) {}, says: "no such file"},
	{name: "a folder", make: func(t *testing.T, file string) {
		if err := os.Mkdir(file, 0o755); err != nil {
			t.Fatal(err)
		}
	}, says: "permission denied"},
	{name: "a file that may not run", make: func(t *testing.T, file string) { harness.WriteFile(t, file, "#!/bin/sh\n") }, says: "permission denied"},
	{name: "a text", text: "hello\n", says: "exec format error"},
	{name: "an interpreter that is missing", text: "#!/no/such/interpreter\n", says: "no such file"},
	{name: "a program that ends", text: "#!/bin/sh\nexit 0\n", says: "exit status 0"},
	{name: "a program that fails", text: "#!/bin/sh\nexit 3\n", says: "exit status 3"},
	{name: "a program that crashes", text: "#!/bin/sh\nkill -SEGV $$\n", says: "segmentation fault"},
	{name: "a program that hangs", text: "#!/bin/sh\nexec sleep 1000\n", says: "-upgrade-timeout", hang: true},
	{name: "a program that knows no end", text: "#!/bin/sh\ntrap '' TERM INT HUP\nwhile :; do sleep 1; done\n", says: "-upgrade-timeout", hang: true},
	{name: "a program that says what it should not", text: "#!/bin/sh\necho hello >&3\nexec sleep 1000\n", says: "closed its socket"},
	{name: "a gateway with wrong flags", text: "#!/bin/sh\nexec GATEWAY \"$@\" -retry=0\n", says: "exit status 2"},
	{name: "a gateway that cannot listen", text: "#!/bin/sh\nexec GATEWAY \"$@\" -listen=192.0.2.1:1=forward:127.0.0.1:1\n", says: "exit status 1"},
	{name: "a gateway of long ago", text: "#!/bin/sh\nunset UPGRADE_OF_GATEWAY\nexec GATEWAY \"$@\" -addr=ADDR\n", says: "exit status 1"},
	{name: "a gateway of another age", text: "#!/bin/sh\nUPGRADE_OF_GATEWAY=999 exec GATEWAY \"$@\"\n", says: "exit status"},
	{name: "one that talks without an end", text: "#!/bin/sh\nread -r line <&3\n(printf '{\"Word\": \"'; yes | tr -d '\\n') >&3 2>/dev/null\nexec sleep 1000\n", says: "closed its socket"},
	{name: "one that is no process", text: "#!/bin/sh\nread -r line <&3\necho '{\"Word\": \"ready\", \"Version\": 1, \"PID\": -1}' >&3\nexec sleep 1000\n", says: "process -1"},
	{name: "one that refuses", text: says("refuse") + "exec sleep 1000\n", says: "refuses: no"},
	{name: "one that is ready and ends", text: says("ready") + "exit 4\n", says: "exit status 4"},
	{name: "one that is ready and hangs", text: says("ready") + "exec sleep 1000\n", says: "-upgrade-timeout", hang: true},
	{name: "one that serves before it is ready", text: says("serving") + "exec sleep 1000\n", says: "instead of"},
	{name: "one that serves and ends", text: says("ready") + "read -r line <&3\n" + answers("serving") + "exit 5\n", says: "exit status 5", last: true},
	{name: "one that serves and hangs", text: says("ready") + "read -r line <&3\n" + answers("serving") + "exec sleep 1000\n", says: "killed", last: true, hang: true},
	{name: "one that serves and crashes a moment later", text: says("ready") + "read -r line <&3\n" + answers("serving") + "sleep .2\nkill -9 $$\n", says: "killed", last: true},
}

// says is the beginning of a program that answers to the offer with a word.
func says(word string) string { return "#!/bin/sh\nread -r line <&3\n" + answers(word) }

func answers(word string) string {
	return fmt.Sprintf("echo '{\"Word\": %q, \"Version\": 1, \"PID\": '$$', \"Why\": \"no\"}' >&3\n", word)
}

func TestABadProgramLeavesTheGatewayAsItWas(t *testing.T) {
	t.Parallel()
	for hang, timeout := range map[bool]time.Duration{true: time.Second, false: harness.Patience} {
		t.Run(map[bool]string{true: "where they hang", false: "where they do not"}[hang], func(t *testing.T) {
			t.Parallel()
			testBadPrograms(t, hang, timeout)
		})
	}
}

// testBadPrograms has a gateway with this -upgrade-timeout try all that hang, or all others.
func testBadPrograms(t *testing.T, hang bool, timeout time.Duration) {
	backend := harness.StartEcho(t)
	program := filepath.Join(t.TempDir(), "new gateway")
	u := harness.StartUpgradable(t, "-upgrade-exec="+program, "-upgrade-timeout="+timeout.String())
	c := harness.OpenTunnel(t, u.Addr, backend)
	failures, returns := 0, 0
	for _, bad := range badPrograms {
		if bad.hang != hang {
			continue
		}
		t.Run(bad.name, func(t *testing.T) {
			defer os.RemoveAll(program)
			if bad.make != nil {
				bad.make(t, program)
			} else {
				text := strings.NewReplacer("GATEWAY", harness.Binary(t), "UPGRADE_OF_GATEWAY", "UPGRADE_OF_GATEWAY", "ADDR", u.Addr).Replace(bad.text)
				if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			u.SignalMain(t, syscall.SIGUSR2)
			var line map[string]any
			if bad.last {
				returns++
				line = u.Log.WaitLine(t, "the new process has ended: this one serves again", returns)
			} else {
				failures++
				line = u.Log.WaitLine(t, "the upgrade failed: this process goes on serving", failures)
			}
			if text := fmt.Sprint(line["err"], line["how"]); !strings.Contains(text, bad.says) {
				t.Errorf("logged: %v, want %q", line, bad.says)
			}
			harness.Eventually(t, "the pid file names the old process", func() bool { return u.InFile(t) == u.Main })
			harness.Echo(t, c, "still here")
			after := harness.OpenTunnel(t, u.Addr, backend)
			harness.Echo(t, after, "hello")
			harness.Finish(t, after)
			for _, line := range u.Log.Lines("upgrading") {
				harness.WaitGone(t, int(line["new_pid"].(float64)))
			}
		})
	}
	if !hang { // a good one may take longer than that
		if err := os.Symlink(harness.Binary(t), program); err != nil {
			t.Fatal(err)
		}
		u.Upgrade(t)
		after := harness.OpenTunnel(t, u.Addr, backend)
		harness.Echo(t, after, "hello")
		harness.Finish(t, after)
	}
	harness.Echo(t, c, "still here")
	harness.Finish(t, c)
	u.EndMain(t)
}

func TestHardStopAfterBoundsTheOldProcess(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	u := harness.StartUpgradable(t, append(flags, "-hard-stop-after=1s")...)
	old := u.Main
	c := harness.ConnectWith(t, u.Addr, trusting) // TLS stays where its keys are
	harness.Send(t, c, harness.Line(harness.StartEcho(t)))
	harness.Expect(t, c, "200")
	harness.Echo(t, c, "before")
	u.Upgrade(t)
	harness.Echo(t, c, "after")
	start := time.Now()
	harness.WaitGone(t, old)
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("the old process ended after %v", d)
	}
	harness.ExpectCut(t, c)
	if line := u.Log.WaitLine(t, "tunnel", 1); line["how"] != "shutdown" {
		t.Errorf("logged: %v", line)
	}
	u.EndMain(t)
}

// Each process of a port is upgraded by itself, and has its line in the pid file.
func TestProcessesThatShareAPortAreUpgradedOneByOne(t *testing.T) {
	t.Parallel()
	a := harness.StartUpgradable(t, "-reuse=1")
	cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-reuse=1", "-addr="+a.Addr, "-log-format=json")
	cmd.Dir = a.Cmd.Dir
	b := harness.StartCommand(t, cmd)
	pids := func() string {
		text, err := os.ReadFile(a.PIDFile)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(string(text)), " ")
	}
	if want := fmt.Sprint(a.Main, " ", b.PID()); pids() != want {
		t.Fatalf("pids %s, want %s", pids(), want)
	}
	stop := make(chan struct{})
	var storm sync.WaitGroup
	storm.Go(func() { connectStorm(t, a.Addr, stop) })
	old := a.Main
	a.SignalMain(t, syscall.SIGUSR2)
	line := a.Log.WaitLine(t, "handed over", 1)
	a.Main = int(line["new_pid"].(float64))
	harness.Eventually(t, "the new process has its line", func() bool { return pids() == fmt.Sprint(b.PID(), " ", a.Main) })
	harness.WaitGone(t, old)
	close(stop)
	storm.Wait()
	if len(b.Log.Lines("upgrading")) > 0 {
		t.Error("the other process was upgraded too")
	}
	a.SignalMain(t, syscall.SIGTERM)
	harness.WaitGone(t, a.Main)
	b.End(t)
}

func TestASignalThatEndsTheGatewayEndsAnUpgradeToo(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "new")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	u := harness.StartUpgradable(t, "-upgrade-exec="+program)
	u.SignalMain(t, syscall.SIGUSR2)
	pid := int(u.Log.WaitLine(t, "upgrading", 1)["new_pid"].(float64))
	u.SignalMain(t, syscall.SIGUSR2)
	u.Log.WaitLine(t, "an upgrade is under way: asked for one more", 1)
	u.SignalMain(t, syscall.SIGTERM)
	harness.WaitGone(t, pid)
	if code := u.Wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Stat(u.PIDFile); !os.IsNotExist(err) {
		t.Errorf("the pid file: %v", err)
	}
}

// A link that leads to another version by now is the usual way to install one.
func TestAnUpgradeFollowsALink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(dir, "gateway")
	if err := os.Symlink(harness.Binary(t), link); err != nil {
		t.Fatal(err)
	}
	cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-log-format=json")
	cmd.Path, cmd.Args[0] = link, link
	u := harness.Adopt(t, harness.StartCommand(t, cmd))
	old := u.Main
	mark := filepath.Join(dir, "mark")
	script := fmt.Sprintf("#!/bin/sh\ntouch %s\nexec %s \"$@\"\n", mark, harness.Binary(t))
	if err := os.WriteFile(filepath.Join(dir, "version 2"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("version 2", link); err != nil {
		t.Fatal(err)
	}
	u.Upgrade(t)
	if _, err := os.Stat(mark); err != nil {
		t.Error("the new version was not started")
	}
	harness.WaitGone(t, old)
	u.EndMain(t)
}

func TestPprofAndItsPortGoAlong(t *testing.T) {
	t.Parallel()
	u := harness.StartUpgradable(t, "-pprof=127.0.0.1:0")
	url := u.Log.WaitLine(t, "pprof is on", 1)["url"]
	for n := range 2 {
		u.Upgrade(t)
		if got := u.Log.WaitLine(t, "pprof is on", n+2)["url"]; got != url {
			t.Errorf("pprof is at %v, and was at %v", got, url)
		}
	}
	u.EndMain(t)
}

func TestTheNewProcessServesWhereTheOldOneIsKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program, mark := filepath.Join(dir, "new"), filepath.Join(dir, "mark")
	script := fmt.Sprintf("#!/bin/sh\nwhile [ ! -e %s ]; do sleep .05; done\nexec %s \"$@\"\n", mark, harness.Binary(t))
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	u := harness.StartUpgradable(t, "-upgrade-exec="+program)
	old := u.Main
	u.SignalMain(t, syscall.SIGUSR2)
	u.Log.WaitLine(t, "upgrading", 1)
	u.SignalMain(t, syscall.SIGKILL)
	harness.WaitGone(t, old)
	queued := harness.Connect(t, u.Addr) // the queue is still there
	harness.WriteFile(t, mark, "")
	harness.Send(t, queued, "no sealed line\n")
	harness.Expect(t, queued, "401")
	harness.Eventually(t, "the pid file names the new process", func() bool {
		u.Main = u.InFile(t)
		return u.Main != old
	})
	u.EndMain(t)
}

// Two processes that die and one that is left: whoever has the sockets serves.
func TestAProcessThatIsKilledAfterItsUpgradeIsReplacedByTheOneBefore(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	u := harness.StartUpgradable(t, flags...)
	backend := harness.StartEcho(t)
	first := u.Main
	c := harness.ConnectWith(t, u.Addr, trusting) // so that the old process stays
	harness.Send(t, c, harness.Line(backend))
	harness.Expect(t, c, "200")
	for n := range 3 {
		u.Upgrade(t)
		u.SignalMain(t, syscall.SIGKILL)
		u.Log.WaitLine(t, "the new process has ended: this one serves again", n+1)
		harness.Eventually(t, "the pid file names the first process", func() bool { u.Main = u.InFile(t); return u.Main == first })
		harness.Echo(t, c, "still here")
		after := harness.OpenTunnel(t, u.Addr, backend)
		harness.Echo(t, after, "hello")
		harness.Finish(t, after)
	}
	u.Upgrade(t)
	c.Close()
	harness.WaitGone(t, first)
	u.EndMain(t)
}

func TestAnUpgradeTakesUpWhatAReloadCannot(t *testing.T) {
	t.Parallel()
	backend := harness.StartEcho(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "config")
	one, two, three := harness.ClosedPort(t), harness.ClosedPort(t), harness.ClosedPort(t)
	harness.WriteFile(t, config, fmt.Sprintf("listen=%s=forward:%s %s=forward:%s\n", one, backend, two, backend))
	u := harness.StartUpgradable(t, "-config="+config)
	talk := func(addr string) {
		t.Helper()
		c := harness.Connect(t, addr)
		harness.Echo(t, c, "hello")
		harness.Finish(t, c)
	}
	talk(one)
	talk(two)
	stays := harness.Connect(t, two)
	harness.Echo(t, stays, "before")
	harness.WriteFile(t, config, fmt.Sprintf("listen=%s=forward:%s %s=forward:%s\nbuffer=1000\n", one, backend, three, backend))
	old := u.Main
	u.Upgrade(t)
	talk(one)
	talk(three)
	harness.WaitRefused(t, two)
	harness.Echo(t, stays, "after")
	harness.Finish(t, stays)
	harness.WaitGone(t, old)
	u.EndMain(t)
}

func TestTheAdminSocketGoesAlong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config, socket := filepath.Join(dir, "config"), filepath.Join(dir, "admin.sock")
	harness.WriteFile(t, config, "retry=1\n")
	u := harness.StartUpgradable(t, "-admin=unix:"+socket, "-config="+config)
	client := http.Client{Timeout: harness.Patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
	ask := func(method, path string) (int, string) {
		r, err := http.NewRequest(method, "http://gateway"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Gateway-Admin", "1")
		answer, err := client.Do(r)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return 0, ""
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Error(err)
		}
		return answer.StatusCode, string(text)
	}
	// Whoever asks all the time, as a balancer does, notices nothing.
	stop := make(chan struct{})
	var asking sync.WaitGroup
	asking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if code, text := ask("GET", "/readyz"); code != 200 {
				t.Errorf("/readyz: %d %s", code, text)
			}
		}
	})
	for range 3 {
		old := u.Main
		u.Upgrade(t)
		harness.WaitGone(t, old)
		if _, text := ask("GET", "/api/status"); !strings.Contains(text, fmt.Sprintf(`"pid":%d,`, u.Main)) {
			t.Errorf("the status is not that of process %d: %.200s", u.Main, text)
		}
	}
	close(stop)
	asking.Wait()
	harness.WriteFile(t, config, "retry=2\n")
	if code, text := ask("POST", "/api/reload"); code != 200 {
		t.Errorf("/api/reload: %d %s", code, text)
	}
	u.Log.WaitLine(t, "reloaded", 1)
	harness.WriteFile(t, config, "retry=0\n")
	if code, text := ask("POST", "/api/reload"); code != 422 || !strings.Contains(text, "line 1 of "+config) {
		t.Errorf("/api/reload: %d %s", code, text)
	}
	_, metrics := ask("GET", "/metrics")
	for _, want := range []string{`gateway_reloads_total{result="ok",what="settings"} 1`, `gateway_reloads_total{result="failed",what="settings"} 1`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s among the metrics", want)
		}
	}
	if code, _ := ask("GET", "/api/reload"); code != 405 {
		t.Errorf("GET /api/reload: %d", code)
	}
	u.EndMain(t)
	harness.WaitGone(t, u.Main)
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}
