package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// commandIn returns a command for a gateway whose working folder is dir, and
// whose pid file is the default one.
func commandIn(t testing.TB, dir string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := gatewayCommand(t, nil, append([]string{"-secret=" + testSecret, "-addr=127.0.0.1:0", "-log-format=json"}, args...)...)
	cmd.Dir = dir
	return cmd
}

func startIn(t testing.TB, dir string, args ...string) *process {
	t.Helper()
	return startCommand(t, commandIn(t, dir, args...))
}

// wantLines checks that the pid file in dir has exactly the lines of these
// gateways.
func wantLines(t testing.TB, dir string, gateways ...*process) {
	t.Helper()
	var want strings.Builder
	for _, p := range gateways {
		fmt.Fprintln(&want, p.pid())
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

func writeFile(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// awaitPIDFile launches a gateway in dir and waits, at full speed, for its pid
// file.
func awaitPIDFile(t testing.TB, dir string, args ...string) (p *process, text string) {
	t.Helper()
	p = launch(t, commandIn(t, dir, args...))
	for deadline := time.Now().Add(patience); ; {
		text, err := os.ReadFile(filepath.Join(dir, "gateway.pid"))
		if err == nil {
			return p, string(text)
		}
		if time.Now().After(deadline) || !p.runs() {
			t.Fatal(err)
		}
	}
}

// Whoever starts a gateway waits for its pid file, then connects to it or ends
// it.
func TestThePIDFileAppearsOnceTheGatewayAccepts(t *testing.T) {
	needSignals(t)
	for range 5 {
		dir := t.TempDir()
		addr := closedPort(t)
		p, text := awaitPIDFile(t, dir, "-addr="+addr)
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if want := fmt.Sprintln(p.pid()); text != want {
			t.Errorf("at first sight: %q, want %q", text, want)
		}
		p.end(t)
		wantFiles(t, dir)
	}
}

func TestSignalsAreHandledBeforeThePIDFileAppears(t *testing.T) {
	needSignals(t)
	for range 10 {
		dir := t.TempDir()
		p, _ := awaitPIDFile(t, dir)
		p.end(t)
		wantFiles(t, dir)
	}
}

func TestGatewaysOfOneFolderHaveALineEachInTheirOrder(t *testing.T) {
	needSignals(t)
	dir := t.TempDir()
	a := startIn(t, dir, "-reuse=1")
	wantLines(t, dir, a)
	b := startIn(t, dir, "-reuse=1", "-addr="+a.addr)
	wantLines(t, dir, a, b)
	c := startIn(t, dir, "-reuse=1", "-addr="+a.addr)
	wantLines(t, dir, a, b, c)
	wantFiles(t, dir, "gateway.pid", "gateway.pid.lock")

	b.end(t)
	wantLines(t, dir, a, c)
	d := startIn(t, dir, "-reuse=1", "-addr="+a.addr)
	wantLines(t, dir, a, c, d)
	a.end(t)
	d.end(t)
	wantLines(t, dir, c)
	finish(t, openTunnel(t, c.addr, startEcho(t)))
	c.end(t)
	wantFiles(t, dir)
}

func TestKillCatGatewayPIDEndsAllGateways(t *testing.T) {
	needSignals(t)
	dir := t.TempDir()
	gateways := []*process{startIn(t, dir), startIn(t, dir), startIn(t, dir)}
	wantLines(t, dir, gateways...) // else somebody else would be killed
	sh := exec.Command("sh", "-c", "kill `cat gateway.pid`")
	sh.Dir = dir
	if out, err := sh.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
	for _, p := range gateways {
		if code := p.wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
	wantFiles(t, dir)
}

func TestAKilledGatewaysLineIsDroppedByTheNextThatComesOrGoes(t *testing.T) {
	needSignals(t)
	dir := t.TempDir()
	a, b := startIn(t, dir), startIn(t, dir)
	a.kill()
	wantLines(t, dir, a, b) // nobody has looked yet
	c := startIn(t, dir)
	wantLines(t, dir, b, c)
	b.kill()
	d := startIn(t, dir)
	e := startIn(t, dir)
	wantLines(t, dir, c, d, e)
	d.kill()
	c.end(t)
	wantLines(t, dir, e)
	e.kill()
	f := startIn(t, dir)
	wantLines(t, dir, f)
	f.end(t)
	wantFiles(t, dir)
}

// Somebody may tidy up. The new lock file knows nothing of the old gateway, and
// the old gateway must not take the new one for dead.
func TestALockFileThatIsDeletedCostsNobodyElsesLine(t *testing.T) {
	needSignals(t)
	dir := t.TempDir()
	a := startIn(t, dir)
	if err := os.Remove(filepath.Join(dir, "gateway.pid.lock")); err != nil {
		t.Fatal(err)
	}
	b := startIn(t, dir)
	wantLines(t, dir, b)
	a.end(t)
	wantLines(t, dir, b)
	b.end(t)
	wantFiles(t, dir)
}

// After a reboot, say. kill(pid, 0) would take them for gateways.
func TestPIDsOfStrangersAreDropped(t *testing.T) {
	needSignals(t)
	elsewhere := startIn(t, t.TempDir()) // a gateway, but with another pid file
	dir := t.TempDir()
	file := filepath.Join(dir, "gateway.pid")
	strangers := fmt.Sprintf("%d\n%d\n%d\n", os.Getpid(), os.Getppid(), elsewhere.pid())

	writeFile(t, file, strangers)
	a := startIn(t, dir)
	wantLines(t, dir, a)
	b := startIn(t, dir)
	writeFile(t, file, fmt.Sprintf("%d\n%s%d\n", a.pid(), strangers, b.pid()))
	a.end(t)
	wantLines(t, dir, b)
	writeFile(t, file, strangers)
	b.end(t)
	wantFiles(t, dir)
	if !elsewhere.runs() {
		t.Error("a stranger was ended")
	}
}

func TestWhatIsNoPIDFileIsRefusedAndLeftAlone(t *testing.T) {
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
			writeFile(t, file, text)
			_, stderr, code := runGateway(t, nil, "-secret="+testSecret, "-addr=127.0.0.1:0", "-log-level=error", "-pidfile="+file)
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
	needSignals(t)
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
		_, stderr, code := runGateway(t, nil, "-secret="+testSecret, "-addr=127.0.0.1:0", "-log-level=error", "-pidfile="+file)
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
	dir := t.TempDir()
	p := startIn(t, dir, "-pidfile=")
	finish(t, openTunnel(t, p.addr, startEcho(t)))
	wantFiles(t, dir)
}

func TestThePIDFileMayBeReadByAll(t *testing.T) {
	needSignals(t)
	dir := t.TempDir()
	cmd := commandIn(t, dir)
	cmd.Args = append([]string{"sh", "-c", `umask 077; exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
	var err error
	if cmd.Path, err = exec.LookPath("sh"); err != nil {
		t.Fatal(err)
	}
	startCommand(t, cmd)
	info, err := os.Stat(filepath.Join(dir, "gateway.pid"))
	if err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestThePIDFileIsCleanedUpAlthoughSomebodyHasBeenThere(t *testing.T) {
	for name, meddle := range map[string]func(t *testing.T, file string){
		"nobody":                  func(t *testing.T, file string) {},
		"deleted the pid file":    func(t *testing.T, file string) { os.Remove(file) },
		"deleted the lock file":   func(t *testing.T, file string) { os.Remove(file + ".lock") },
		"deleted both":            func(t *testing.T, file string) { os.Remove(file); os.Remove(file + ".lock") },
		"emptied the pid file":    func(t *testing.T, file string) { writeFile(t, file, "") },
		"added a stranger's line": func(t *testing.T, file string) { writeFile(t, file, fmt.Sprintf("%d %d", os.Getppid(), os.Getpid())) },
	} {
		t.Run(name, func(t *testing.T) {
			if runtime.GOOS == "windows" {
				t.Skip("open files cannot be deleted on windows")
			}
			dir := t.TempDir()
			file := filepath.Join(dir, "gateway.pid")
			p, err := createPIDFile(file)
			if err != nil {
				t.Fatal(err)
			}
			meddle(t, file)
			if err := p.remove(); err != nil {
				t.Error(err)
			}
			wantFiles(t, dir)
		})
	}
}

func TestAnEmptyPIDFileIsTaken(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "gateway.pid")
	writeFile(t, file, "")
	p, err := createPIDFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(file); string(text) != fmt.Sprintln(os.Getpid()) {
		t.Errorf("holds %q", text)
	}
	if err := p.remove(); err != nil {
		t.Error(err)
	}
	wantFiles(t, dir)
}
