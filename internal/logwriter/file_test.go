package logwriter

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// disk is a file that has room for so many bytes.
type disk struct {
	*os.File
	mu   sync.Mutex
	room int
}

func newDisk(t *testing.T, path string, room int) *disk {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return &disk{File: f.File, room: room}
}

func (d *disk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.File.Write(p[:min(len(p), d.room)])
	d.room -= n
	if n < len(p) && err == nil {
		err = syscall.ENOSPC
	}
	return n, err
}

func (d *disk) grow(room int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room = room
}

// waitText waits until a file holds what ok accepts.
func waitText(t *testing.T, path, what string, ok func(text string) bool) (text string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		b, _ := os.ReadFile(path)
		if text = string(b); ok(text) {
			return text
		}
		if time.Now().After(deadline) {
			t.Fatalf("never: %s; but %q", what, text)
		}
	}
}

// waitTaken waits until a write is over by which so many bytes were taken.
func waitTaken(t *testing.T, lw *Writer, n int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		lw.mu.Lock()
		taken := lw.taken
		lw.mu.Unlock()
		if taken == int64(n) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are written", taken)
		}
	}
}

func TestALineIsBegunAgainInAFileThatWasEmptied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	d := newDisk(t, path, len("line 0\nli"))
	lw := New(d, notice)
	for i := range 3 {
		fmt.Fprintf(lw, "line %d\n", i)
	}
	waitText(t, path, "a line and a half", func(text string) bool { return text == "line 0\nli" })
	waitTaken(t, lw, len("line 0\nli"))
	if n := lw.Close(0); n != 2 {
		t.Errorf("%d lines are not written, want 2", n)
	}
	os.Truncate(path, 0)
	d.grow(1 << 20)
	waitText(t, path, "the others", func(text string) bool { return text == "line 1\nline 2\n" })
	if n := lw.Close(20 * time.Second); n != 0 {
		t.Errorf("%d lines are not written", n)
	}
}

func TestALineIsBegunAgainBehindWhatOthersHaveWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	d := newDisk(t, path, 3)
	lw := New(d, notice)
	lw.Write([]byte("ours\n"))
	waitText(t, path, "half a line", func(text string) bool { return text == "our" })
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	waitTaken(t, lw, 3)
	f.WriteString("\ntheirs")
	d.grow(1 << 20)
	lw.Close(20 * time.Second)
	waitText(t, path, "all", func(text string) bool { return text == "our\ntheirs\nours\n" })
}

func TestAFileThatEndsWithinALineGoesOnWithANewOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for text, want := range map[string]string{"": "next\n", "whole\n": "whole\nnext\n", "whole\nhal": "whole\nhal\nnext\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		o, err := OpenOutput(path, nil, notice)
		if err != nil {
			t.Fatal(err)
		}
		o.Write([]byte("next\n"))
		o.Close(20 * time.Second)
		if got, _ := os.ReadFile(path); string(got) != want {
			t.Errorf("%q has become %q", text, got)
		}
	}
}

func TestALogFileIsCheckedAndNotMade(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	if err := Check(path); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("made %v", left)
	}
	os.WriteFile(path, []byte("text\n"), 0o600)
	if err := Check(path); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(path); !bytes.Equal(text, []byte("text\n")) {
		t.Errorf("%q is left", text)
	}
	for _, bad := range []string{dir, filepath.Join(dir, "none", "log"), filepath.Join(path, "log")} {
		if err := Check(bad); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
