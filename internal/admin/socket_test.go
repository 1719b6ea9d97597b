package admin

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gateway/internal/address"
	"gateway/internal/harness"
)

func mustBackend(t testing.TB, s string) address.Address {
	t.Helper()
	a, err := ParseBackend(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustAddress(t testing.TB, s string) address.Address {
	t.Helper()
	a, err := address.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestMain(m *testing.M) {
	if path := os.Getenv("ADMIN_SOCKET_HELPER"); path != "" {
		if _, err := ListenUnix(path); err != nil {
			os.Stderr.WriteString(err.Error())
		}
		os.Exit(0) // and leaves the socket behind
	}
	harness.Main(m)
}

func listenUnix(t testing.TB, path string) net.Listener {
	t.Helper()
	ln, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func TestAUnixSocketIsItsOwnersAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	ln := listenUnix(t, path)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	ln.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestASocketThatADeadProcessLeftIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "ADMIN_SOCKET_HELPER="+path, "GORACE=atexit_sleep_ms=0")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v, %s", err, out)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	if err := CheckUnix(path); err != nil {
		t.Errorf("CheckUnix: %v", err)
	}
	listenUnix(t, path)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestALivingSocketAndOtherFilesStay(t *testing.T) {
	dir := t.TempDir()
	living, precious := filepath.Join(dir, "living"), filepath.Join(dir, "precious")
	ln := listenUnix(t, living)
	harness.WriteFile(t, precious, "precious")
	for path, says := range map[string]string{
		living: "another process listens", precious: "is no socket", dir: "is no socket",
		filepath.Join(dir, "none", "sock"): "no such file",
	} {
		other, err := ListenUnix(path)
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), filepath.Dir(path)) {
			t.Errorf("%s: %v, want %q", path, err, says)
		}
		if err == nil {
			other.Close()
		}
		if err := CheckUnix(path); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("CheckUnix of %s: %v, want %q", path, err, says)
		}
	}
	c, err := net.Dial("unix", living)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := ln.Accept(); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(precious); string(text) != "precious" {
		t.Errorf("the file is now %q", text)
	}
}

func TestACheckSaysOfASocketWhatListeningSays(t *testing.T) {
	dir := t.TempDir()
	datagrams := filepath.Join(dir, "datagrams")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: datagrams, Net: "unixgram"})
	if err != nil {
		t.Skip(err) // not every system has them
	}
	defer c.Close()
	for _, path := range []string{datagrams, filepath.Join(dir, "none", "sock")} {
		_, listening := ListenUnix(path)
		check := CheckUnix(path)
		if listening == nil || check == nil {
			t.Fatalf("%s: %v, and the check: %v", path, listening, check)
		}
		// The one opens the folder, the other looks at it.
		_, why, _ := strings.Cut(listening.Error(), " ")
		if !strings.HasSuffix(check.Error(), why) {
			t.Errorf("%s: %v, and the check: %v", path, listening, check)
		}
	}
	if list, err := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestASuccessorsSocketOutlivesItsPredecessor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	old := listenUnix(t, path)
	if err := os.Remove(path); err != nil { // as somebody did by hand
		t.Fatal(err)
	}
	listenUnix(t, path)
	old.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
