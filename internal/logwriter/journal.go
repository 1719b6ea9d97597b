package logwriter

import (
	"context"
	"io"
	"log/slog"
	"os"
)

// prefixes are what the journal of systemd reads the level of a line from: priorities of
// syslog, see sd-daemon(3).
var prefixes = []struct {
	least  slog.Level
	prefix string
}{{slog.LevelError, ErrorPrefix}, {slog.LevelWarn, "<4>"}, {slog.LevelInfo, "<6>"}, {slog.LevelDebug, "<7>"}}

// ErrorPrefix begins an error where it goes to the journal.
const ErrorPrefix = "<3>"

// journal is a handler whose lines begin with their priority: one handler for each, which
// all write to the same place.
type journal []slog.Handler

// ForJournal returns a handler for the journal. make returns one that writes each record
// to w by one call.
func ForJournal(w io.Writer, make func(w io.Writer) slog.Handler) slog.Handler {
	var j journal
	for _, p := range prefixes {
		j = append(j, make(prefixed{w, p.prefix}))
	}
	return j
}

// of returns the handler for a level.
func (j journal) of(level slog.Level) slog.Handler {
	for i, p := range prefixes {
		if level >= p.least {
			return j[i]
		}
	}
	return j[len(j)-1]
}

func (j journal) Enabled(ctx context.Context, level slog.Level) bool {
	return j.of(level).Enabled(ctx, level)
}

func (j journal) Handle(ctx context.Context, r slog.Record) error {
	return j.of(r.Level).Handle(ctx, r)
}

func (j journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	return j.each(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

func (j journal) WithGroup(name string) slog.Handler {
	return j.each(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (j journal) each(f func(slog.Handler) slog.Handler) slog.Handler {
	var list journal
	for _, h := range j {
		list = append(list, f(h))
	}
	return list
}

// prefixed writes lines with something before each.
type prefixed struct {
	w      io.Writer
	prefix string
}

func (p prefixed) Write(line []byte) (int, error) {
	_, err := p.w.Write(append([]byte(p.prefix), line...))
	return len(line), err
}

// IsJournal tells whether f is connected with systemd's journal, by the device and the
// inode that $JOURNAL_STREAM names: a child whose output goes elsewhere inherits the
// variable too (systemd.exec(5)).
func IsJournal(f *os.File) bool {
	id, ok := identity(f)
	return ok && id == os.Getenv("JOURNAL_STREAM")
}
