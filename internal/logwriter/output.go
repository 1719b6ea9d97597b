package logwriter

import (
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

// Output is where a log goes: a file, or what is there already.
type Output struct {
	*Writer
	journal bool

	mu   sync.Mutex
	file *File         // nil: what is there already
	done chan struct{} // closed at the end; nil: nobody follows
}

// OpenOutput opens the log at path, or takes w where that is empty. notice is as for New.
// It must be closed.
func OpenOutput(path string, w io.Writer, notice func(dropped int) []byte) (*Output, error) {
	o := new(Output)
	if path != "" {
		var err error
		if o.file, err = Open(path); err != nil {
			return nil, err
		}
		w = o.file
	} else if f, ok := w.(*os.File); ok {
		o.journal = IsJournal(f)
	}
	o.Writer = New(w, notice)
	if o.file != nil {
		o.torn = o.file.torn()
	}
	return o, nil
}

// Handler returns a handler that writes to w, the output or what becomes a line of it, in
// the form text or json.
func (o *Output) Handler(w io.Writer, form string, level slog.Leveler) slog.Handler {
	if o != nil && o.journal {
		return ForJournal(w, func(w io.Writer) slog.Handler { return Handler(w, form, level) })
	}
	return Handler(w, form, level)
}

// Handler returns a handler that writes lines of the form text or json.
func Handler(w io.Writer, form string, level slog.Leveler) slog.Handler {
	opts := &slog.HandlerOptions{Level: level}
	if form == "json" {
		return slog.NewJSONHandler(w, opts)
	}
	return slog.NewTextHandler(w, opts)
}

// Reopen opens the file of the same name once more, since what is written to was moved
// away. It reports whether there is a file. What fails leaves all as it was.
func (o *Output) Reopen() (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file == nil {
		return false, nil
	}
	again, err := o.file.Again()
	if err != nil {
		return true, err
	}
	o.file = again
	o.Replace(again)
	return true, nil
}

// followInterval is how often Follow looks.
const followInterval = time.Second

// Follow has the file opened once more whenever it was moved away, without being told:
// whoever rotates logs tells only the process that serves.
func (o *Output) Follow() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file == nil || o.done != nil {
		return
	}
	o.done = make(chan struct{})
	go func(done chan struct{}) {
		for {
			select {
			case <-time.After(followInterval):
			case <-done:
				return
			}
			o.CatchUp() // and again in a while, if that fails
		}
	}(o.done)
}

// CatchUp opens the file once more if it was moved away.
func (o *Output) CatchUp() {
	o.mu.Lock()
	moved := o.file != nil && o.file.Moved()
	o.mu.Unlock()
	if moved {
		o.Reopen()
	}
}

// Unfollow ends Follow.
func (o *Output) Unfollow() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.done != nil {
		close(o.done)
		o.done = nil
	}
}

// Close is Writer.Close; the file stays open for who may still log.
func (o *Output) Close(patience time.Duration) (unwritten int) {
	o.Unfollow()
	return o.Writer.Close(patience)
}

// Library takes what the standard library logs. Of a backend that speaks out of turn
// net/http quotes up to 4 KiB: that is no business of the log.
type Library struct{ Log *slog.Logger }

func (l Library) Write(line []byte) (int, error) {
	text, _, _ := strings.Cut(strings.TrimSpace(string(line)), " starting with ")
	l.Log.Info("standard library", "text", text)
	return len(line), nil
}
