package harness

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// insideNamespaces in the environment says that they are there.
const insideNamespaces = "TEST_INSIDE_NAMESPACES"

// InNamespaces runs the rest of a test in namespaces of its own: flags are those
// of clone(2). It tells whether this is the inside, which is to go on; outside the
// test is over. It runs the test binary again for that, because what a thread
// enters, the processes that other threads start do not.
func InNamespaces(t *testing.T, flags uintptr) (inside bool) {
	t.Helper()
	if os.Getenv(insideNamespaces) != "" {
		return true
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for name := range strings.SplitSeq(t.Name(), "/") {
		names = append(names, "^"+regexp.QuoteMeta(name)+"$")
	}
	cmd := exec.Command(self, "-test.v", "-test.run="+strings.Join(names, "/"), "-test.timeout="+(3*Patience).String())
	cmd.Env = append(os.Environ(), insideNamespaces+"=1", binaryVariable+"="+Binary(t), quickExit)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	for _, no := range []error{unix.EPERM, unix.ENOSPC, unix.ENOSYS, unix.EINVAL} {
		if errors.Is(err, no) {
			t.Skip("no namespaces of our own here: ", err)
		}
	}
	switch {
	case strings.Contains(string(out), "--- SKIP: "+t.Name()):
		t.Skipf("%s", out)
	case err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// Mount mounts something that nobody sees outside of this test's own mount
// namespace; without the right to, the test is skipped.
func Mount(t testing.TB, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Skip("no mounts of our own: ", err)
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		t.Skipf("no mount on %s: %v", target, err)
	}
}
