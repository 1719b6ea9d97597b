//go:build unix

package smallfile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestADeviceWithoutAnEndIsTooLarge(t *testing.T) {
	if _, err := Read("/dev/zero", 1<<20); err == nil || !strings.Contains(err.Error(), "/dev/zero is larger than 1024 KiB") {
		t.Error(err)
	}
}

func TestAPipeThatNobodyWritesToIsEmpty(t *testing.T) {
	name := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Skip("no pipes here: ", err)
	}
	start := time.Now()
	text, err := Read(name, 10)
	if err != nil || len(text) > 0 || time.Since(start) > patience {
		t.Errorf("%q, %v after %v", text, err, time.Since(start))
	}
}

// A shell's <(command) is a pipe that is written to while it is read.
func TestAPipeIsReadToItsEnd(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		w.WriteString("first ")
		time.Sleep(50 * time.Millisecond) // the reader is to come first
		w.WriteString("last")
		w.Close()
	}()
	name := fmt.Sprintf("/dev/fd/%d", r.Fd())
	if _, err := os.Stat(name); err != nil {
		t.Skip(err)
	}
	if text, err := Read(name, 100); string(text) != "first last" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}
