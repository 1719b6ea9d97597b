package filelock

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// lockFor in the environment names a file, and makes the test binary lock and
// unlock its bytes as standard input says. Locks exclude processes, so a test
// needs two.
const lockFor = "LOCK_FOR"

func TestMain(m *testing.M) {
	if name := os.Getenv(lockFor); name != "" {
		obey(name)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// obey answers each line "lock N" or "unlock N" with a line.
func obey(name string) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	var verb string
	var offset int64
	for {
		if _, err := fmt.Scanln(&verb, &offset); err != nil {
			return
		}
		ok, err := true, error(nil)
		if verb == "lock" {
			ok, err = TryLock(f, offset)
		} else {
			err = Unlock(f, offset)
		}
		fmt.Println(ok, err)
	}
}

// other is another process.
type other struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startOther(t *testing.T, name string) *other {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), lockFor+"="+name)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	o := &other{t, cmd, in, bufio.NewScanner(out)}
	t.Cleanup(o.kill)
	return o
}

func (o *other) kill() {
	o.cmd.Process.Kill()
	o.cmd.Wait()
}

// do tells the process what to do and returns its answer.
func (o *other) do(verb string, offset int64) string {
	o.t.Helper()
	fmt.Fprintln(o.in, verb, offset)
	if !o.out.Scan() {
		o.t.Fatalf("the other process ended: %v", o.out.Err())
	}
	return o.out.Text()
}

func (o *other) wants(verb string, offset int64, want string) {
	o.t.Helper()
	if got := o.do(verb, offset); got != want {
		o.t.Errorf("another process: %s %d: %s; want %s", verb, offset, got, want)
	}
}

const (
	done = "true <nil>"
	busy = "false <nil>"
)

func lockFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func tryLock(t *testing.T, f *os.File, offset int64, want bool) {
	t.Helper()
	if ok, err := TryLock(f, offset); ok != want || err != nil {
		t.Errorf("TryLock(%d) = %v, %v; want %v", offset, ok, err, want)
	}
}

func unlock(t *testing.T, f *os.File, offset int64) {
	t.Helper()
	if err := Unlock(f, offset); err != nil {
		t.Errorf("Unlock(%d): %v", offset, err)
	}
}

func TestALockIsSeenByAnotherProcessUntilItIsGivenUp(t *testing.T) {
	f := lockFile(t)
	o := startOther(t, f.Name())
	tryLock(t, f, 5, true)
	o.wants("lock", 5, busy)
	unlock(t, f, 5)
	o.wants("lock", 5, done)
	tryLock(t, f, 5, false)
	o.wants("unlock", 5, done)
	tryLock(t, f, 5, true)
}

func TestBytesAreLockedApart(t *testing.T) {
	f := lockFile(t)
	a, b := startOther(t, f.Name()), startOther(t, f.Name())
	// Byte 0, neighbours, and a pid as large as they get; the file is empty.
	for _, n := range []int64{0, 1, 2, 1 << 22, 1 << 40} {
		a.wants("lock", n, done)
		b.wants("lock", n, busy)
	}
	a.wants("unlock", 1, done)
	b.wants("lock", 1, done)
	a.wants("lock", 1, busy)
	for _, n := range []int64{0, 1, 2, 1 << 22, 1 << 40} {
		tryLock(t, f, n, false)
	}
	tryLock(t, f, 3, true)
}

func TestAProcessThatDiesGivesUpItsLocks(t *testing.T) {
	f := lockFile(t)
	o := startOther(t, f.Name())
	o.wants("lock", 7, done)
	tryLock(t, f, 7, false)
	o.kill()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if ok, err := TryLock(f, 7); err != nil {
			t.Fatal(err)
		} else if ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the lock outlives its process")
		}
	}
}

func TestLocksAreGivenUpWhenTheFileIsClosed(t *testing.T) {
	f := lockFile(t)
	o := startOther(t, f.Name())
	tryLock(t, f, 0, true)
	tryLock(t, f, 9, true)
	o.wants("lock", 9, busy)
	f.Close()
	o.wants("lock", 0, done)
	o.wants("lock", 9, done)
}

func TestAFailureIsNotALockOfSomebodyElse(t *testing.T) {
	f := lockFile(t)
	f.Close()
	if ok, err := TryLock(f, 1); ok || err == nil {
		t.Errorf("TryLock of a closed file = %v, %v", ok, err)
	}
	if err := Unlock(f, 1); err == nil {
		t.Error("Unlock of a closed file: no error")
	}
}
