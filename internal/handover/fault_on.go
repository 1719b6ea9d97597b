//go:build faults && linux

package handover

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// FaultVariable in the environment names a file that says at which step of which batch
// a process dies, or stops: "STEP:BATCH:SIGNAL", with the number of the signal. It is
// removed then. Only programs with the build tag "faults" look for it.
const FaultVariable = "HANDOVER_FAULT"

func init() { at = die }

func die(step string, number uint64) {
	file := os.Getenv(FaultVariable)
	text, err := os.ReadFile(file)
	if err != nil {
		return
	}
	sig, ok := strings.CutPrefix(strings.TrimSpace(string(text)), fmt.Sprintf("%s:%d:", step, number))
	if !ok {
		return
	}
	var n int
	if _, err := fmt.Sscan(sig, &n); err != nil || os.Remove(file) != nil {
		return
	}
	fmt.Fprintf(os.Stderr, "{\"msg\":\"fault\",\"step\":%q,\"pid\":%d}\n", step, os.Getpid())
	// To this very thread: one for the process may be dealt with by another, and what
	// comes after the step would be done meanwhile.
	runtime.LockOSThread()
	unix.Tgkill(os.Getpid(), unix.Gettid(), syscall.Signal(n))
	for syscall.Signal(n) == syscall.SIGKILL {
		// It ends this process within a moment, and nothing may happen until then.
	}
}
