package logwriter

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// gate is a writer that can be stuck.
type gate struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	writes int
	stuck  chan struct{} // nil: not stuck
}

func (g *gate) Write(p []byte) (int, error) {
	if g.stuck != nil {
		<-g.stuck
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.writes++
	return g.buf.Write(p)
}

func notice(dropped int) []byte { return fmt.Appendf(nil, "dropped %d\n", dropped) }

func TestManyLinesArriveWholeInOrderAndInFewWrites(t *testing.T) {
	g := &gate{}
	lw := New(g, notice)
	var want strings.Builder
	for i := range 10000 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		lw.Write([]byte(line))
	}
	lw.Close(20 * time.Second)
	if g.buf.String() != want.String() {
		t.Error("other lines came out than went in")
	}
	if g.writes > 100 {
		t.Errorf("10000 lines took %d writes", g.writes)
	}
}

func TestAFirstLineDoesNotWaitForTheNext(t *testing.T) {
	g := &gate{}
	lw := New(g, notice)
	lw.Write([]byte("listening\n"))
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		g.mu.Lock()
		got := g.buf.String()
		g.mu.Unlock()
		if got != "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it never came")
		}
	}
	lw.Close(20 * time.Second)
}

func TestAStuckReaderHoldsNobodyUpAndLinesAreDroppedWhole(t *testing.T) {
	g := &gate{stuck: make(chan struct{})}
	lw := New(g, notice)
	line := bytes.Repeat([]byte("x"), 1023)
	line = append(line, '\n')
	for range 2*Limit/len(line) + 100 {
		lw.Write(line)
	}
	lw.Close(time.Millisecond) // returns
	close(g.stuck)
	lw.Close(20 * time.Second)
	whole := bytes.Count(g.buf.Bytes(), line)
	var dropped, rest int
	for l := range strings.Lines(g.buf.String()) {
		if n, _ := fmt.Sscanf(l, "dropped %d", &rest); n == 1 {
			dropped += rest
		} else if l != string(line) {
			t.Fatalf("a broken line: %.20q", l)
		}
	}
	if n := lw.Dropped(); n != int64(dropped) {
		t.Errorf("%d lines are counted as dropped, %d are said to be", n, dropped)
	}
	if all := 2*Limit/len(line) + 100; dropped == 0 || whole+dropped != all {
		t.Errorf("%d lines came out and %d are said to be dropped, of %d", whole, dropped, all)
	}
}

// fussy takes so many bytes a write, and then fails with what is next in errs.
type fussy struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	most int
	errs []error
}

func (f *fussy) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.errs) == 0 {
		return f.buf.Write(p)
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	n, _ := f.buf.Write(p[:min(f.most, len(p))])
	return n, err
}

// patient returns a writer that takes some lines before it writes the first.
func patient(w io.Writer) *Writer {
	lw := New(w, notice)
	lw.last = time.Now()
	return lw
}

func (f *fussy) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.buf.String()
}

func (f *fussy) Close() error { return nil }

func TestWhatMayPassIsWrittenLaterAndOnce(t *testing.T) {
	for _, err := range []error{nil, syscall.EAGAIN, syscall.EINTR, &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}} {
		f := &fussy{most: 7, errs: []error{err, err, err}}
		lw := patient(f)
		for i := range 5 {
			fmt.Fprintf(lw, "line %d\n", i)
		}
		if n := lw.Close(20 * time.Second); n != 0 {
			t.Errorf("%v: %d lines are not written", err, n)
		}
		if got, want := f.String(), "line 0\nline 1\nline 2\nline 3\nline 4\n"; got != want || lw.Dropped() != 0 {
			t.Errorf("%v: got %q and %d dropped", err, got, lw.Dropped())
		}
	}
}

func TestWhatIsLostIsToldAndNoTwoLinesAreGlued(t *testing.T) {
	for most, want := range map[int]string{
		0:  "line 5\ndropped 5\n",
		7:  "line 0\nline 5\ndropped 4\n",
		10: "line 0\nlin\nline 5\ndropped 4\n", // the second one is torn
	} {
		f := &fussy{most: most, errs: []error{syscall.EIO}}
		lw := patient(f)
		for i := range 5 {
			fmt.Fprintf(lw, "line %d\n", i)
		}
		lw.Close(20 * time.Second)
		fmt.Fprintf(lw, "line 5\n")
		lw.Close(20 * time.Second)
		if got := f.String(); got != want {
			t.Errorf("after %d bytes: got %q, want %q", most, got, want)
		}
		if n, want := lw.Dropped(), int64(strings.Count(want, "dropped 5")*5+strings.Count(want, "dropped 4")*4); n != want {
			t.Errorf("after %d bytes: %d lines are counted as dropped, want %d", most, n, want)
		}
	}
}

func TestANoticeThatIsLostIsMadeAgain(t *testing.T) {
	f := &fussy{errs: []error{syscall.EIO, syscall.EIO}}
	lw := patient(f)
	for i := range 3 {
		fmt.Fprintf(lw, "line %d\n", i)
		lw.Close(20 * time.Second)
	}
	if got, want := f.String(), "line 2\ndropped 2\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestClosingTellsWhatIsNotWritten(t *testing.T) {
	full := make([]error, 1000)
	for i := range full {
		full[i] = syscall.ENOSPC
	}
	f := &fussy{most: 0, errs: full}
	lw := patient(f)
	for i := range 3 {
		fmt.Fprintf(lw, "line %d\n", i)
	}
	if n := lw.Close(time.Millisecond); n != 3 {
		t.Errorf("%d lines are not written, want 3", n)
	}
	f.mu.Lock()
	f.errs = nil // there is room again
	f.mu.Unlock()
	lw.Close(20 * time.Second)
}

func TestALineGoesWholeToTheFileThatTookThePlace(t *testing.T) {
	full := &fussy{most: 10, errs: []error{syscall.ENOSPC, syscall.ENOSPC}}
	lw := patient(full)
	for i := range 3 {
		fmt.Fprintf(lw, "line %d\n", i)
	}
	for full.String() == "" {
		time.Sleep(time.Millisecond)
	}
	fresh := &fussy{}
	lw.Replace(fresh)
	lw.Close(20 * time.Second)
	if got, want := fresh.String(), "line 1\nline 2\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAFileThatWasMovedIsKnown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Moved() {
		t.Error("it was not moved")
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if !f.Moved() {
		t.Error("it was moved")
	}
	again, err := f.Again()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if !f.Moved() || again.Moved() {
		t.Error("another file has its name")
	}
}

func TestLinesForTheJournalBeginWithTheirPriority(t *testing.T) {
	var b bytes.Buffer
	opts := &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}
	log := slog.New(ForJournal(&b, func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, opts) })).With("a", 1).WithGroup("g")
	log.Debug("d")
	log.Info("i", "b", 2)
	log.Warn("w")
	log.Error("e")
	want := "<7>level=DEBUG msg=d a=1\n<6>level=INFO msg=i a=1 g.b=2\n<4>level=WARN msg=w a=1\n<3>level=ERROR msg=e a=1\n"
	if b.String() != want {
		t.Errorf("got %q, want %q", &b, want)
	}
}

func TestTheJournalIsKnownByItsInode(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	id, ok := identity(w)
	if !ok {
		t.Skip("files have no identity here")
	}
	t.Setenv("JOURNAL_STREAM", id)
	if !IsJournal(w) {
		t.Error("it is the journal")
	}
	other, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if IsJournal(other) {
		t.Error("it is not the journal")
	}
}
