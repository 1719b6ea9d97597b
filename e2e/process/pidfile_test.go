package process

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

// commandIn returns a command for a gateway whose working folder is dir, and
// whose pid file is the default one.
func commandIn(t testing.TB, dir string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := harness.Command(t, nil, append([]string{"-secret=" + harness.Secret, "-addr=127.0.0.1:0", "-log-format=json"}, args...)...)
	cmd.Dir = dir
	return cmd
}

func startIn(t testing.TB, dir string, args ...string) *harness.Process {
	t.Helper()
	return harness.StartCommand(t, commandIn(t, dir, args...))
}

// wantLines checks that the pid file in dir has exactly the lines of these
// gateways.
func wantLines(t testing.TB, dir string, gateways ...*harness.Process) {
	t.Helper()
	var want strings.Builder
	for _, p := range gateways {
		fmt.Fprintln(&want, p.PID())
	}
	got, err := os.ReadFile(filepath.Join(dir, "gateway.pid"))
	if string(got) != want.String() || err != nil {
		t.Fatalf("gateway.pid: %q, %v; want %q", got, err, want.String())
	}
}

// wantFiles checks that there is nothing in dir but these files.
func wantFiles(t testing.TB, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, want) {
		t.Fatalf("files: %q, want %q", names, want)
	}
}

// awaitPIDFile launches a gateway in dir and waits, at full speed, for its pid
// file.
func awaitPIDFile(t testing.TB, dir string, args ...string) (p *harness.Process, text string) {
	t.Helper()
	p = harness.Launch(t, commandIn(t, dir, args...))
	for deadline := time.Now().Add(harness.Patience); ; {
		text, err := os.ReadFile(filepath.Join(dir, "gateway.pid"))
		if err == nil {
			return p, string(text)
		}
		if time.Now().After(deadline) || !p.Runs() {
			t.Fatal(err)
		}
	}
}

// Whoever starts a gateway waits for its pid file, then connects to it or ends
// it.
func TestThePIDFileAppearsOnceTheGatewayAccepts(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	for range 5 {
		dir := t.TempDir()
		addr := harness.ClosedPort(t)
		p, text := awaitPIDFile(t, dir, "-addr="+addr)
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if want := fmt.Sprintln(p.PID()); text != want {
			t.Errorf("at first sight: %q, want %q", text, want)
		}
		p.End(t)
		wantFiles(t, dir)
	}
}

func TestSignalsAreHandledBeforeThePIDFileAppears(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	for range 10 {
		dir := t.TempDir()
		p, _ := awaitPIDFile(t, dir)
		p.End(t)
		wantFiles(t, dir)
	}
}

func TestGatewaysOfOneFolderHaveALineEachInTheirOrder(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	dir := t.TempDir()
	a := startIn(t, dir, "-reuse=1")
	wantLines(t, dir, a)
	b := startIn(t, dir, "-reuse=1", "-addr="+a.Addr)
	wantLines(t, dir, a, b)
	c := startIn(t, dir, "-reuse=1", "-addr="+a.Addr)
	wantLines(t, dir, a, b, c)
	wantFiles(t, dir, "gateway.pid", "gateway.pid.lock")

	b.End(t)
	wantLines(t, dir, a, c)
	d := startIn(t, dir, "-reuse=1", "-addr="+a.Addr)
	wantLines(t, dir, a, c, d)
	a.End(t)
	d.End(t)
	wantLines(t, dir, c)
	harness.Finish(t, harness.OpenTunnel(t, c.Addr, harness.StartEcho(t)))
	c.End(t)
	wantFiles(t, dir)
}

func TestKillCatGatewayPIDEndsAllGateways(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	dir := t.TempDir()
	gateways := []*harness.Process{startIn(t, dir), startIn(t, dir), startIn(t, dir)}
	wantLines(t, dir, gateways...) // else somebody else would be killed
	sh := exec.Command("sh", "-c", "kill `cat gateway.pid`")
	sh.Dir = dir
	if out, err := sh.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
	for _, p := range gateways {
		if code := p.Wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
	wantFiles(t, dir)
}

func TestAKilledGatewaysLineIsDroppedByTheNextThatComesOrGoes(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	dir := t.TempDir()
	a, b := startIn(t, dir), startIn(t, dir)
	a.Kill()
	wantLines(t, dir, a, b) // nobody has looked yet
	c := startIn(t, dir)
	wantLines(t, dir, b, c)
	b.Kill()
	d := startIn(t, dir)
	e := startIn(t, dir)
	wantLines(t, dir, c, d, e)
	d.Kill()
	c.End(t)
	wantLines(t, dir, e)
	e.Kill()
	f := startIn(t, dir)
	wantLines(t, dir, f)
	f.End(t)
	wantFiles(t, dir)
}

// Somebody may tidy up. The new lock file knows nothing of the old gateway, and
// the old gateway must not take the new one for dead.
func TestALockFileThatIsDeletedCostsNobodyElsesLine(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	dir := t.TempDir()
	a := startIn(t, dir)
	if err := os.Remove(filepath.Join(dir, "gateway.pid.lock")); err != nil {
		t.Fatal(err)
	}
	b := startIn(t, dir)
	wantLines(t, dir, b)
	a.End(t)
	wantLines(t, dir, b)
	b.End(t)
	wantFiles(t, dir)
}

// After a reboot, say. kill(pid, 0) would take them for gateways.
func TestPIDsOfStrangersAreDropped(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	elsewhere := startIn(t, t.TempDir()) // a gateway, but with another pid file
	dir := t.TempDir()
	file := filepath.Join(dir, "gateway.pid")
	strangers := fmt.Sprintf("%d\n%d\n%d\n", os.Getpid(), os.Getppid(), elsewhere.PID())

	harness.WriteFile(t, file, strangers)
	a := startIn(t, dir)
	wantLines(t, dir, a)
	b := startIn(t, dir)
	harness.WriteFile(t, file, fmt.Sprintf("%d\n%s%d\n", a.PID(), strangers, b.PID()))
	a.End(t)
	wantLines(t, dir, b)
	harness.WriteFile(t, file, strangers)
	b.End(t)
	wantFiles(t, dir)
	if !elsewhere.Runs() {
		t.Error("a stranger was ended")
	}
}

func TestWhatIsNoPIDFileIsRefusedAndLeftAlone(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"a secret":          "p0S8rX680*48\n",
		"a remark":          "# 1234\n",
		"a pid and a word":  "1234 gateway\n",
		"zero":              "0\n",
		"a process group":   "-1234\n",
		"no number of ours": "99999999999999999999\n",
		"half a number":     "12x4\n",
		"bytes":             "\x00\x01\x02",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "precious")
			harness.WriteFile(t, file, text)
			_, stderr, code := harness.Run(t, nil, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-log-level=error", "-pidfile="+file)
			if code != 1 || !strings.HasPrefix(stderr, "gateway: -pidfile: "+file) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit code %d, %q", code, stderr)
			}
			if got, err := os.ReadFile(file); string(got) != text || err != nil {
				t.Errorf("now holds %q, %v", got, err)
			}
		})
	}
}

func TestAFolderOrADeviceIsNoPIDFile(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	dir := t.TempDir()
	folder := filepath.Join(dir, "folder")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(os.DevNull, link); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{folder, link} {
		before, err := os.Lstat(file)
		if err != nil {
			t.Fatal(err)
		}
		_, stderr, code := harness.Run(t, nil, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-log-level=error", "-pidfile="+file)
		if code != 1 || !strings.HasPrefix(stderr, "gateway: -pidfile: ") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, %q", file, code, stderr)
		}
		if after, err := os.Lstat(file); err != nil || !os.SameFile(before, after) || after.Mode() != before.Mode() {
			t.Errorf("%s is now %v, %v", file, after, err)
		}
	}
	wantFiles(t, dir, "folder", "link") // and no lock beside them: /dev is no place for one
}

func TestAnEmptyPIDFileFlagWritesNone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startIn(t, dir, "-pidfile=")
	harness.Finish(t, harness.OpenTunnel(t, p.Addr, harness.StartEcho(t)))
	wantFiles(t, dir)
}

func TestThePIDFileMayBeReadByAll(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	dir := t.TempDir()
	cmd := commandIn(t, dir)
	cmd.Args = append([]string{"sh", "-c", `umask 077; exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
	var err error
	if cmd.Path, err = exec.LookPath("sh"); err != nil {
		t.Fatal(err)
	}
	harness.StartCommand(t, cmd)
	info, err := os.Stat(filepath.Join(dir, "gateway.pid"))
	if err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestThePIDFileIsCleanedUpAlthoughSomebodyHasBeenThere(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	for name, meddle := range map[string]func(t *testing.T, file string){
		"nobody":                func(t *testing.T, file string) {},
		"deleted the pid file":  func(t *testing.T, file string) { os.Remove(file) },
		"deleted the lock file": func(t *testing.T, file string) { os.Remove(file + ".lock") },
		"deleted both":          func(t *testing.T, file string) { os.Remove(file); os.Remove(file + ".lock") },
		"emptied the pid file":  func(t *testing.T, file string) { harness.WriteFile(t, file, "") },
		"added a stranger's line": func(t *testing.T, file string) {
			harness.WriteFile(t, file, fmt.Sprintf("%d %d", os.Getppid(), os.Getpid()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p := startIn(t, dir)
			meddle(t, filepath.Join(dir, "gateway.pid"))
			p.End(t)
			wantFiles(t, dir)
		})
	}
}

func TestAnEmptyPIDFileIsTaken(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	dir := t.TempDir()
	harness.WriteFile(t, filepath.Join(dir, "gateway.pid"), "")
	p := startIn(t, dir)
	wantLines(t, dir, p)
	p.End(t)
	wantFiles(t, dir)
}
