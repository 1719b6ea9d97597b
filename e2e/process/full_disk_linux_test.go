package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
)

// A disk that is full, for the pid file.

// fill leaves no room in dir, and returns what to remove to make some again.
func fill(t testing.TB, dir string) (file string) {
	t.Helper()
	file = filepath.Join(dir, "filler")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for page := make([]byte, 4096); err == nil; {
		_, err = f.Write(page)
	}
	return file
}

func TestCheckFindsThatADiskIsFull(t *testing.T) {
	if !harness.InNamespaces(t, unix.CLONE_NEWNS) {
		return
	}
	dir := t.TempDir()
	harness.Mount(t, "none", dir, "tmpfs", 0, "size=64k")
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	fill(t, dir)
	for _, setting := range []string{"-pidfile", "-log-file"} {
		p := harness.Launch(t, harness.Command(t, nil, "-check", "-secret=x", "-addr=127.0.0.1:0", "-pidfile=", setting+"="+filepath.Join(dir, "file")))
		if code := p.Wait(t); code != harness.ExitUsage || !strings.Contains(p.Log.String(), setting+": ") || !strings.Contains(p.Log.String(), "no space left on device") {
			t.Errorf("%s: exit code %d, and it says %q", setting, code, p.Log.String())
		}
	}
	wantFiles(t, dir, "filler")
}

func TestOnAFullDiskNobodyLosesItsLine(t *testing.T) {
	if !harness.InNamespaces(t, unix.CLONE_NEWNS) {
		return
	}
	dir := t.TempDir()
	harness.Mount(t, "none", dir, "tmpfs", 0, "size=64k")
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })

	a, b := startIn(t, dir), startIn(t, dir)
	wantLines(t, dir, a, b)
	filler := fill(t, dir)

	// Who comes is told, and takes nobody's place.
	c := harness.Launch(t, commandIn(t, dir))
	if code := c.Wait(t); code != harness.ExitFailure {
		t.Errorf("exit code %d, want %d", code, harness.ExitFailure)
	}
	lines := strings.Split(strings.TrimSpace(c.Log.String()), "\n")
	if last := lines[len(lines)-1]; !strings.HasPrefix(last, "gateway: -pidfile: ") || !strings.Contains(last, "no space left on device") {
		t.Errorf("it says %q", last)
	}
	wantLines(t, dir, a, b)
	wantFiles(t, dir, "filler", "gateway.pid", "gateway.pid.lock")

	// Who goes says so, and leaves the others' lines: its own is dropped later.
	a.End(t)
	a.Log.WaitLine(t, "cannot clean up the pid file", 1)
	wantLines(t, dir, a, b)
	harness.Finish(t, harness.OpenTunnel(t, b.Addr, harness.StartEcho(t)))
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	d := startIn(t, dir)
	wantLines(t, dir, b, d)

	// The last takes the file with it, for which there is always room.
	fill(t, dir)
	d.Kill()
	b.End(t)
	wantFiles(t, dir, "filler")
}
