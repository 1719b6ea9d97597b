// Package harness is what the tests share that drive the gateway from outside: the
// gateway as a process, backends behind it, clients in front of it, and lines sealed
// by other code than the gateway's own. Only tests import it.
//
// Whatever a test starts here ends with the test, and a TestMain of Main fails if
// anything stays.
package harness

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Patience is how long a test waits for what must come. It is long because
// machines can be slow, and costs nothing where all is well. What a client does from its
// beginning to its end has to fit in, too: see Connect.
const Patience = 60 * time.Second

// Main is a TestMain. It runs the tests without the settings of the gateway that
// stand in the caller's environment, then what is to be cleaned up, and fails if that
// does or if goroutines or descriptors are left behind.
func Main(m *testing.M, cleanUp ...func() error) {
	if role := os.Getenv(backendRole); role != "" {
		runBackend(role)
	}
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "GATEWAY_") || name == "CREDENTIALS_DIRECTORY" {
			os.Unsetenv(name)
		}
	}
	flag.Parse()
	waitTogether()
	goroutines, descriptors := runtime.NumGoroutine(), Descriptors(os.Getpid())
	code := m.Run()
	for _, f := range append(cleanUp, removeBuilt, giveBackPorts) {
		if err := f(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if code == 0 && !fuzzing() {
		code = checkLeaks(goroutines, descriptors)
	}
	os.Exit(code)
}

// waitTogether has more parallel tests run at a time than there are CPUs, unless
// the command line says how many: most of them wait for another process.
func waitTogether() {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		flag.Set("test.parallel", strconv.Itoa(4*runtime.NumCPU()))
	}
}

// fuzzing tells whether this is go test -fuzz or one of its workers, which leave a
// goroutine and pipes of their own.
func fuzzing() bool {
	return flag.Lookup("test.fuzz").Value.String() != "" || flag.Lookup("test.fuzzworker").Value.String() == "true"
}

// checkLeaks waits until there are no more goroutines and descriptors than
// before the tests, and reports those that stay. It returns the exit code.
func checkLeaks(goroutines, descriptors int) int {
	var g, d int
	for deadline := time.Now().Add(Patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		runtime.GC() // closes forgotten files, whose leak is not the subject here
		g, d = runtime.NumGoroutine(), Descriptors(os.Getpid())
		// The first network use makes the runtime's epoll descriptors.
		if g <= goroutines && d <= descriptors+3 {
			return 0
		}
	}
	buf := make([]byte, 1<<20)
	fmt.Fprintf(os.Stderr, "leaked: %d goroutines (%d at first), %d descriptors (%d at first)\n%s\n",
		g, goroutines, d, descriptors, buf[:runtime.Stack(buf, true)])
	return 1
}

// Descriptors counts those of a process, or returns 0 where the system does not
// tell.
func Descriptors(pid int) int {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0
	}
	return len(entries)
}

// Eventually waits until cond holds, which what says in words.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	pause := 20 * time.Microsecond // many a test waits for thousands of things that take no longer
	for deadline := time.Now().Add(Patience); !cond(); pause = min(2*pause, time.Millisecond) {
		time.Sleep(pause)
		if time.Now().After(deadline) {
			t.Fatalf("not after %v: %s", Patience, what)
		}
	}
}

// Long skips a test where -short asks for the edit loop: storms, crowds, floods and
// what else takes seconds of a CPU or of waiting. make test runs all.
func Long(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long")
	}
}

// NeedSignals skips a test where processes cannot send each other signals.
func NeedSignals(t testing.TB) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("no signals on windows")
	}
}

// LeaveTo skips a test for which make has a target of its own, where CI runs all targets
// (LEAVE_TO_TARGETS=1, as make unit has it): it would run twice. must says that this is
// that target.
func LeaveTo(t testing.TB, must bool, target string) {
	t.Helper()
	if !must && os.Getenv("LEAVE_TO_TARGETS") == "1" {
		t.Skipf("left to make %s", target)
	}
}

// FindServer returns where a program is that not all machines have. Where must is
// set, a test that has to do without it fails; else it is skipped, with a word on
// the target of make that installs it. See LeaveTo.
func FindServer(t testing.TB, name string, must bool, target string) string {
	t.Helper()
	LeaveTo(t, must, target)
	for _, file := range []string{name, filepath.Join("/usr/sbin", name)} { // not in everybody's PATH
		if path, err := exec.LookPath(file); err == nil {
			return path
		}
	}
	if must {
		t.Fatalf("no %s", name)
	}
	t.Skipf("no %s (make %s installs it)", name, target)
	return ""
}

// IOUring tells whether gateways use it in this run of all tests, as they do by
// default: not with TEST_IO_URING=0. Some tests ask for the one or the other.
func IOUring() bool { return os.Getenv("TEST_IO_URING") != "0" }

// BothWays runs a test on the event loops, and on the goroutines that are the
// only way on systems other than Linux. way is the gateway's flag.
func BothWays(t *testing.T, test func(t *testing.T, way string)) {
	t.Helper()
	for _, way := range []string{"-loops=0", "-loops=-1"} {
		t.Run(way, func(t *testing.T) { test(t, way) })
	}
}

// EachRelay runs a test against each way to relay, and on Linux with splicing and
// without; with -short on one loop and on goroutines only. relay is the gateway's flag.
func EachRelay(t *testing.T, test func(t *testing.T, relay string)) {
	t.Helper()
	for name, relay := range map[string]string{
		"goroutines":   "-loops=-1",
		"one loop":     "-loops=1",
		"three loops":  "-loops=3",
		"no io_uring":  "-io-uring=0",
		"only copying": "-splice=0",
		"tiny buffer":  "-buffer=100",
	} {
		if testing.Short() && relay != "-loops=-1" && relay != "-loops=1" {
			continue
		}
		t.Run(name, func(t *testing.T) { test(t, relay) })
	}
}
