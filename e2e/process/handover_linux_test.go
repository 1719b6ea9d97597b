package process

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
)

// Live tunnels move to the process that replaces theirs, and nobody notices.

// startUpgradableWithin starts a gateway that may have so many descriptors.
func startUpgradableWithin(t *testing.T, limit int, args ...string) *harness.Upgraded {
	t.Helper()
	cmd := harness.Command(t, nil, append([]string{"-secret=" + harness.Secret, "-addr=127.0.0.1:0", "-log-format=json",
		"-timeout=" + harness.Patience.String()}, args...)...)
	cmd.Args = append([]string{"sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, limit), "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	return harness.Adopt(t, harness.StartCommand(t, cmd))
}

// It takes all CPUs: tests beside it would see their deadlines pass.
func TestTwentyUpgradesMoveACrowdOfTunnelsAndLoseNoByte(t *testing.T) {
	upgrades, share := 20, 1
	if testing.Short() {
		upgrades, share = 5, 10
	}
	const limit = 5000
	u := startUpgradableWithin(t, limit, "-half-close-timeout=10m")
	cr := newCrowd(t, u.Addr)
	cr.join(echo, 1000/share)
	cr.join(breaking, 50/share)
	cr.join(download, 100/share)
	cr.join(upload, 100/share)
	cr.join(stalled, 50/share)
	cr.join(half, 100/share)
	cr.start()
	for i := range upgrades {
		old := u.Main
		u.Upgrade(t)
		for _, pid := range []int{old, u.Main} {
			if n := harness.Descriptors(pid); n > limit {
				t.Errorf("upgrade %d: process %d has %d descriptors", i, pid, n)
			}
		}
		if i%2 == 0 || i == upgrades-1 { // else the next one comes while this one goes on
			harness.WaitGone(t, old)
		}
	}
	cr.end(u)
	for _, msg := range []string{"cannot accept, trying again", "panic", "tunnels stay in this process until they end"} {
		if lines := u.Log.Lines(msg); len(lines) > 0 {
			t.Errorf("logged: %v", lines[0])
		}
	}
	moved := 0
	for _, line := range u.Log.Lines("tunnels taken over") {
		moved += int(line["tunnels"].(float64))
	}
	if want := upgrades * len(cr.members); moved < want {
		t.Errorf("%d tunnels have moved, want %d", moved, want)
	}
	u.EndMain(t)
}

// faulty returns the file of a gateway that dies where a file says.
func faulty(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gateway")
	args := []string{"build", "-tags", "faults", "-o", file}
	if harness.RaceEnabled {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "gateway")...).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return file
}

// faults are the steps of a batch at which one of the two processes is killed, or
// stopped for a while.
var faults = []struct {
	step  string
	ofOld bool
	stop  bool
	lost  bool // the tunnels of that batch
}{
	{step: "received"},                          // the new one has all of it
	{step: "take"},                              // … and can read it
	{step: "taken", lost: true},                 // … and has said so: they are its own
	{step: "send", ofOld: true, lost: true},     // nobody else knows of them
	{step: "sent", ofOld: true},                 // the new one has all of it
	{step: "answered", ofOld: true},             // … and has said so
	{step: "received", stop: true},              // the old one waits in vain
	{step: "take", stop: true},                  //
	{step: "answered", ofOld: true, stop: true}, // nobody waits for it
}

func TestAProcessThatDiesDuringAHandoverLosesAtMostOneBatch(t *testing.T) {
	t.Parallel()
	harness.Long(t)
	file := faulty(t)
	const tunnels, batch = 100, 64 // two batches
	for _, f := range faults {
		name := fmt.Sprintf("the new one is killed at %s", f.step)
		if f.ofOld {
			name = fmt.Sprintf("the old one is killed at %s", f.step)
		}
		if f.stop {
			name = strings.Replace(name, "killed", "stopped", 1)
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fault := filepath.Join(t.TempDir(), "fault")
			cmd := harness.Command(t, []string{"HANDOVER_FAULT=" + fault}, "-secret="+harness.Secret, "-addr=127.0.0.1:0",
				"-log-format=json", "-loops=1", "-timeout="+harness.Patience.String())
			cmd.Path = file
			u := harness.Adopt(t, harness.StartCommand(t, cmd))
			backend := harness.StartBackend(t, func(c *net.TCPConn) {
				c.SetDeadline(time.Now().Add(longest))
				io.Copy(c, struct{ io.Reader }{c})
			})
			var clients []*net.TCPConn
			for range tunnels {
				c := harness.OpenTunnel(t, u.Addr, backend)
				c.SetDeadline(time.Now().Add(longest))
				clients = append(clients, c)
			}
			old, number, sig := u.Main, 1, syscall.SIGKILL
			if f.ofOld {
				number = 2 // what is left of its tunnels ends with it
			}
			if f.stop {
				sig = syscall.SIGSTOP
			}
			harness.WriteFile(t, fault, fmt.Sprintf("%s:%d:%d", f.step, number, sig))
			u.SignalMain(t, syscall.SIGUSR2)
			victim := int(u.Log.WaitLine(t, "fault", 1)["pid"].(float64))
			if (victim == old) != f.ofOld {
				t.Fatalf("the wrong process")
			}
			t.Cleanup(func() {
				if t.Failed() && f.stop { // it would hold on to its tunnels for ever
					syscall.Kill(victim, syscall.SIGCONT)
				}
			})
			switch {
			case f.stop && !f.ofOld:
				u.Log.WaitLine(t, "tunnels stay in this process until they end", 1)
				syscall.Kill(victim, syscall.SIGCONT)
				u.Log.WaitLine(t, "the old process keeps what tunnels it has left", 1)
			case f.stop:
				syscall.Kill(victim, syscall.SIGCONT)
			case !f.ofOld:
				u.Log.WaitLine(t, "the new process has ended: this one serves again", 1)
			}
			lost := 0
			for i, c := range clients {
				if _, err := io.WriteString(c, "still here"); err == nil {
					got := make([]byte, len("still here"))
					if n, err := io.ReadFull(c, got); err == nil && string(got) == "still here" {
						continue
					} else if n > 0 {
						t.Errorf("client %d reads %q, %v", i, got[:n], err)
					}
				}
				lost++
			}
			switch {
			case !f.lost && lost > 0, lost > batch:
				t.Errorf("%d of %d tunnels are lost", lost, tunnels)
			case f.lost && lost == 0:
				t.Error("nothing is lost: did the fault happen?")
			}
			harness.Finish(t, harness.OpenTunnel(t, u.Addr, backend))
			if !f.ofOld && !f.stop {
				u.Upgrade(t) // the next one gets what is left
				u.Log.WaitLine(t, "tunnels handed over", 1)
				harness.WaitGone(t, old)
			}
			for _, c := range clients {
				c.Close()
			}
		})
	}
}

func TestAProcessWhoseTunnelsHaveMovedIsGoneWithinASecond(t *testing.T) {
	t.Parallel()
	u := harness.StartUpgradable(t)
	backend := harness.StartEcho(t)
	c := harness.OpenTunnel(t, u.Addr, backend)
	old := u.Main
	u.Upgrade(t)
	u.Log.WaitLine(t, "stopped", 1)
	harness.WaitGone(t, old)
	line := u.Log.WaitLine(t, "handed over", 1)
	gone := u.Log.WaitLine(t, "stopped", 1)
	began, err1 := time.Parse(time.RFC3339Nano, line["time"].(string))
	ended, err2 := time.Parse(time.RFC3339Nano, gone["time"].(string))
	if err1 != nil || err2 != nil || ended.Sub(began) > time.Second && !harness.RaceEnabled {
		t.Errorf("it took %v, %v, %v", ended.Sub(began), err1, err2)
	}
	harness.Echo(t, c, "still here")
	harness.Finish(t, c)
	u.EndMain(t)
}

func TestWithoutHandoverTunnelsEndInTheOldProcess(t *testing.T) {
	t.Parallel()
	u := harness.StartUpgradable(t, "-handover=0")
	c := harness.OpenTunnel(t, u.Addr, harness.StartEcho(t))
	old := u.Main
	u.Upgrade(t)
	harness.Echo(t, c, "still here")
	if err := syscall.Kill(old, 0); err != nil {
		t.Errorf("the old process: %v", err)
	}
	harness.Finish(t, c)
	harness.WaitGone(t, old)
	if lines := u.Log.Lines("tunnels handed over"); len(lines) > 0 {
		t.Errorf("logged: %v", lines)
	}
	u.EndMain(t)
}

func TestThousandsOfIdleTunnelsMoveAndBusyOnesHardlyWait(t *testing.T) {
	harness.Long(t)
	// As many as the limit of descriptors has room for, of 20,000.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	idle := int(min(20_000, (limit.Cur-2000)/2))
	u := harness.StartUpgradable(t)
	backend := harness.StartBackendProcess(t, harness.RoleEcho)
	line := harness.Line(backend)
	var opening sync.WaitGroup
	clients := make([]*net.TCPConn, idle)
	for i := range 8 {
		opening.Go(func() {
			for j := i; j < idle; j += 8 {
				c, err := net.Dial("tcp", u.Addr)
				if err == nil {
					clients[j] = c.(*net.TCPConn)
					_, err = io.WriteString(c, line)
				}
				if err == nil {
					_, err = io.ReadFull(c, make([]byte, 3))
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	opening.Wait()
	defer func() {
		for _, c := range clients {
			if c != nil {
				harness.Reset(c)
			}
		}
	}()
	cr := newCrowd(t, u.Addr)
	cr.join(echo, 20)
	cr.start()
	for range 3 {
		old := u.Main
		u.Upgrade(t)
		harness.WaitGone(t, old)
	}
	for _, line := range u.Log.Lines("tunnels handed over") {
		if n, took := line["tunnels"].(float64), line["took_ms"].(float64); int(n) < idle || took > float64(harness.Patience.Milliseconds()) { // .3 s on a quiet machine
			t.Errorf("logged: %v", line)
		} else {
			t.Logf("%v tunnels in %v ms", n, took)
		}
	}
	cr.end(u)
}

func TestTheAdminInterfaceHasTheTunnelsThatMoved(t *testing.T) {
	t.Parallel()
	a := harness.NewAdmin(t)
	u := harness.StartUpgradable(t, a.Flag)
	backend := harness.StartEcho(t)
	c := harness.OpenTunnel(t, u.Addr, backend)
	harness.Echo(t, c, "hello")
	old := u.Main
	u.Upgrade(t)
	harness.WaitGone(t, old)
	var list struct {
		Tunnels []struct {
			Client, Backend, Listener, Form, State string
			Up, Down                               int64
		}
	}
	a.JSON(t, "GET", "/api/tunnels", "", &list)
	if len(list.Tunnels) != 1 {
		t.Fatalf("listed: %+v", list)
	}
	if got := list.Tunnels[0]; got.Client != harness.AddrPort(c.LocalAddr()).String() || got.Backend != backend || got.Listener != u.Addr ||
		got.Form != "line" || got.State != "open" || got.Up != 5 || got.Down != 5 {
		t.Errorf("listed: %+v", got)
	}
	wait(t, a, "gateway_tunnels_active", 1)
	harness.Echo(t, c, "still here")
	harness.Finish(t, c)
	wait(t, a, "gateway_tunnels_active", 0)
	u.EndMain(t)
}

// filtered copies the lines about connections of a log that grows, until it is told to
// stop.
func filtered(from *harness.Log) (to *harness.Log, stop func()) {
	to = &harness.Log{}
	at := 0
	copyNew := func() {
		text := from.String()
		for {
			line, _, whole := strings.Cut(text[at:], "\n")
			if !whole {
				return
			}
			at += len(line) + 1
			for _, msg := range []string{`"msg":"tunnel"`, `"msg":"refused"`, `"msg":"request"`} {
				if strings.Contains(line, msg) {
					io.WriteString(to, line+"\n")
				}
			}
		}
	}
	stopping := make(chan struct{})
	var copying sync.WaitGroup
	copying.Go(func() {
		for {
			copyNew()
			select {
			case <-stopping:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return to, func() { close(stopping); copying.Wait() }
}

func TestThousandsOfTunnelsLoseNothingDuringUpgrades(t *testing.T) {
	harness.Long(t)
	storm := harness.NewStorm(t, 1000, true)
	u := harness.StartUpgradable(t, "-resolver="+storm.Resolver)
	log, stop := filtered(&u.Log)
	defer stop()
	over := make(chan struct{})
	var upgrading sync.WaitGroup
	upgrades := 0
	upgrading.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(100 * time.Millisecond):
				u.Upgrade(t)
				upgrades++
			}
		}
	})
	storm.Run(t, u.Addr, log)
	close(over)
	upgrading.Wait()
	t.Logf("%d upgrades", upgrades)
	u.EndMain(t)
}
