package process

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf16"

	"gateway/internal/harness"
)

// Files that flags name and that are not what was meant.

// inUTF16 is a text as Notepad saves it as "Unicode".
func inUTF16(text string) string {
	b := []byte{0xff, 0xfe}
	for _, unit := range utf16.Encode([]rune(text)) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	return string(b)
}

// badFiles are files that hold nothing of use, by what they are.
func badFiles(t *testing.T, good string) map[string]string {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	harness.WriteFile(t, file("many lines"), strings.Repeat("one of very many lines\n", 200_000))
	harness.WriteFile(t, file("UTF-16"), inUTF16(string(text)))
	for _, pipe := range []string{"pipe", "slow"} {
		if err := syscall.Mkfifo(file(pipe), 0o600); err != nil {
			t.Skip(err)
		}
	}
	slow, err := os.OpenFile(file("slow"), os.O_RDWR, 0) // does not wait for the other end
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slow.Close() })
	slow.WriteString("#") // and then nothing
	return map[string]string{
		"a device without end":         "/dev/zero",
		"a pipe that nobody writes to": file("pipe"),
		"a pipe that does not end":     file("slow"),
		"a folder":                     dir,
		"200,000 lines":                file("many lines"),
		"UTF-16":                       file("UTF-16"),
	}
}

// peakMemory returns the most resident memory of a process until it has ended, in
// KiB. What wait4(2) tells is that of the process which made it, if that had more.
func peakMemory(pid int, ended <-chan struct{}) (most int) {
	for {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if _, peak, ok := strings.Cut(string(status), "VmHWM:"); ok {
			fmt.Sscan(peak, &most)
		}
		select {
		case <-ended:
			return most
		case <-time.After(time.Millisecond):
		}
	}
}

func TestAFileThatIsNotWhatWasMeantIsToldSoonAndInOneLine(t *testing.T) {
	t.Parallel()
	const mostKiB = 64 << 10
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	keys, _, _ := harness.Run(t, nil, "-keygen")
	harness.WriteFile(t, file("keys"), keys)
	harness.WriteFile(t, file("secret"), harness.Secret+"\n")
	harness.WriteCertificate(t, file("cert"), file("key"), "gateway.test")

	for _, tt := range []struct {
		flag, good string
		args       []string
	}{
		{"-secret-file", file("secret"), nil},
		{"-token-keys", file("keys"), []string{"-legacy=0"}},
		{"-tls-cert", file("cert"), []string{"-secret=" + harness.Secret, "-tls-key=" + file("key")}},
		{"-tls-key", file("key"), []string{"-secret=" + harness.Secret, "-tls-cert=" + file("cert")}},
		{"$CREDENTIALS_DIRECTORY", file("secret"), nil},
	} {
		for kind, bad := range badFiles(t, tt.good) {
			t.Run(tt.flag+" is "+kind, func(t *testing.T) {
				t.Parallel()
				args := append([]string{"-addr=127.0.0.1:0", "-pidfile="}, tt.args...)
				var env []string
				named := bad
				if strings.HasPrefix(tt.flag, "-") {
					args = append(args, tt.flag+"="+bad)
				} else {
					credentials := t.TempDir()
					named = filepath.Join(credentials, "secret")
					if err := os.Symlink(bad, named); err != nil {
						t.Fatal(err)
					}
					env = []string{"CREDENTIALS_DIRECTORY=" + credentials}
				}
				cmd := harness.Command(t, env, args...)
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				timer := time.AfterFunc(harness.Patience, func() { cmd.Process.Kill() })
				defer timer.Stop()
				ended := make(chan struct{})
				go func() {
					cmd.Wait()
					close(ended)
				}()
				most := peakMemory(cmd.Process.Pid, ended)
				says, code := stderr.String(), cmd.ProcessState.ExitCode()
				if code != harness.ExitUsage || strings.Count(says, "\n") != 1 || len(says) > 400 ||
					!strings.HasPrefix(says, "gateway: ") || !strings.Contains(says, tt.flag) || !strings.Contains(says, named) {
					t.Errorf("exit code %d, %.600q; want %d and one line with %s and %s", code, says, harness.ExitUsage, tt.flag, named)
				}
				if kind == "UTF-16" && !strings.Contains(says, "UTF-8") {
					t.Errorf("%q does not say what to do", says)
				}
				if most > mostKiB && !harness.RaceEnabled {
					t.Errorf("it took %d KiB", most)
				}
			})
		}
	}
}
