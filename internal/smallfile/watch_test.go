package smallfile

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// look is Changed without its rest between two looks.
func look(w *Watch) bool {
	w.looked.Store(-int64(interval))
	return w.Changed()
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAWatchTellsEachChangeOnce(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, "1")
	w := NewWatch(100, a, b)
	for _, step := range []struct {
		what string
		do   func()
		want bool
	}{
		{"nothing", func() {}, false},
		{"the same text again", func() { write(t, a, "1") }, false},
		{"another text of the same size", func() { write(t, a, "2") }, true},
		{"nothing", func() {}, false},
		{"a file that was missing", func() { write(t, b, "1") }, true},
		{"both", func() { write(t, a, "3"); write(t, b, "3") }, true},
		{"nothing", func() {}, false},
		{"another file renamed over it", func() {
			write(t, b+".new", "4")
			if err := os.Rename(b+".new", b); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"an older text with its old time", func() {
			write(t, a, "5")
			old := time.Now().Add(-time.Hour)
			if err := os.Chtimes(a, old, old); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"the same size and time, renamed over it", func() {
			info, err := os.Stat(a)
			if err != nil {
				t.Fatal(err)
			}
			write(t, a+".new", "6")
			if err := os.Chtimes(a+".new", info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(a+".new", a); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"gone", func() { os.Remove(b) }, true},
		{"still gone", func() {}, false},
		{"too large", func() { write(t, b, string(make([]byte, 101))) }, true},
		{"still too large", func() {}, false},
		{"right again", func() { write(t, b, "4") }, true},
	} {
		step.do()
		if got := look(w); got != step.want {
			t.Errorf("%s: changed is %v", step.what, got)
		}
	}
}

func TestAWatchLooksOnceInASecond(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a")
	write(t, name, "1")
	w := NewWatch(100, name)
	w.start = w.start.Add(-time.Hour)
	w.Changed()
	write(t, name, "2")
	w.start = w.start.Add(-interval / 2)
	if w.Changed() {
		t.Error("it has looked after half a second")
	}
	w.start = w.start.Add(-interval)
	if !w.Changed() {
		t.Error("it has not looked after a second and a half")
	}
	var none *Watch
	if none.Changed() {
		t.Error("nothing has changed")
	}
}
