//go:build unix

package logwriter

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestANamedPipeThatNobodyReadsIsAnErrorAndNoWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Skip(err)
	}
	for what, open := range map[string]func() error{
		"Check": func() error { return Check(path) },
		"Open":  func() error { _, err := Open(path); return err },
	} {
		done := make(chan error, 1)
		go func() { done <- open() }()
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s waits for a reader", what)
		}
	}
	// Both ends, so that this does not wait either.
	reader, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if err := Check(path); err != nil {
		t.Error(err)
	}
	o, err := OpenOutput(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	o.Write([]byte("a line\n"))
	if line, err := bufio.NewReader(reader).ReadString('\n'); line != "a line\n" {
		t.Errorf("%q, %v", line, err)
	}
	if n := o.Close(10 * time.Second); n != 0 {
		t.Errorf("%d lines are not written", n)
	}
}

func TestALinkToAFileInNoFolderIsNotAGoodLogFile(t *testing.T) {
	dir := t.TempDir()
	for target, good := range map[string]bool{"made-later": true, "none/log": false, filepath.Join(dir, "none", "log"): false} {
		link := filepath.Join(dir, "log")
		os.Remove(link)
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		if err := Check(link); (err == nil) != good {
			t.Errorf("a link to %s: %v", target, err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("made %v", left)
		}
	}
}
