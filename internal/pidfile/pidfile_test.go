package pidfile

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gateway/internal/harness"
)

// Gateways that change one pid file at a time, many times over. What an operator sees
// of the file is tested in e2e/process.

func TestMain(m *testing.M) { harness.Main(m) }

// helper in the environment makes the test binary one of the processes below,
// which the tests start to have somebody to share a pid file with.
const helper = "PIDFILE_HELPER"

// startHelper runs the test of a helper's name in another process. It ends
// when the returned function is called, which returns what it printed.
func startHelper(t testing.TB, name, args string) (out *harness.Log, wait func() string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^"+name+"$")
	cmd.Env = append(os.Environ(), helper+"="+args, "GORACE=atexit_sleep_ms=0")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out = &harness.Log{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait = sync.OnceValue(func() string {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		return out.String()
	})
	t.Cleanup(func() { wait() })
	return out, wait
}

// helperArgs returns what startHelper was given.
func helperArgs(t *testing.T) string {
	args, ok := os.LookupEnv(helper)
	if !ok {
		t.Skip("other tests start this one")
	}
	return args
}

func TestHelperComesAndGoes(t *testing.T) {
	file := helperArgs(t)
	for range 50 {
		// The others try the lock every few milliseconds and are to find it free.
		time.Sleep(rand.N(20 * time.Millisecond))
		p, err := Create(file)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil || !slices.Contains(strings.Fields(string(text)), fmt.Sprint(os.Getpid())) {
			t.Errorf("%d is not in %q, %v", os.Getpid(), text, err)
		}
		if err := p.Remove(); err != nil {
			t.Error(err)
		}
	}
}

// Here the last goes while the first comes many times over.
func TestPIDFilesOfManyThatComeAndGo(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	dir := t.TempDir()
	var waits []func() string
	for range 4 {
		_, wait := startHelper(t, "TestHelperComesAndGoes", filepath.Join(dir, "gateway.pid"))
		waits = append(waits, wait)
	}
	for _, wait := range waits {
		wait()
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
