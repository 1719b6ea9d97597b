package harness

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Log collects what a process writes, and can be searched while it grows. The zero
// value is empty and ready to use; it is safe for concurrent use.
type Log struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	parsed int                         // bytes of buf that are in byMsg, whole lines
	byMsg  map[string][]map[string]any // JSON lines by their msg, in order
}

// Write is io.Writer's.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// String returns all of it.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Tail returns the last lines, enough to see why a test failed and no more.
func (l *Log) Tail() string {
	const most = 8 << 10
	text := l.String()
	if len(text) <= most {
		return text
	}
	_, tail, _ := strings.Cut(text[len(text)-most:], "\n")
	return fmt.Sprintf("(%d bytes before)\n%s", len(text)-len(tail), tail)
}

// Lines returns the JSON lines with the given message. They are the caller's to
// read and nobody's to change.
func (l *Log) Lines(msg string) []map[string]any {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parse()
	return append([]map[string]any(nil), l.byMsg[msg]...)
}

// each calls look for each JSON line.
func (l *Log) each(look func(line map[string]any)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parse()
	for _, lines := range l.byMsg {
		for _, m := range lines {
			look(m)
		}
	}
}

// parse reads the whole lines that have come. mu is held.
func (l *Log) parse() {
	if l.byMsg == nil {
		l.byMsg = make(map[string][]map[string]any)
	}
	for {
		line, _, whole := bytes.Cut(l.buf.Bytes()[l.parsed:], []byte("\n"))
		if !whole {
			break
		}
		l.parsed += len(line) + 1
		var m map[string]any
		if json.Unmarshal(line, &m) == nil {
			key, _ := m["msg"].(string)
			l.byMsg[key] = append(l.byMsg[key], m)
		}
	}
}

// WaitLine waits for n lines with a message and returns the nth.
func (l *Log) WaitLine(t testing.TB, msg string, n int) map[string]any {
	t.Helper()
	var found []map[string]any
	Eventually(t, fmt.Sprintf("%d log lines %q", n, msg), func() bool {
		found = l.Lines(msg)
		return len(found) >= n
	})
	return found[n-1]
}

// WaitClient waits for the first line with a message about a client, whose address
// is as the log has it.
func (l *Log) WaitClient(t testing.TB, msg, client string) (line map[string]any) {
	t.Helper()
	Eventually(t, fmt.Sprintf("a log line %q of client %s", msg, client), func() bool {
		for _, m := range l.Lines(msg) {
			if m["client"] == client {
				line = m
				return true
			}
		}
		return false
	})
	return line
}

// Status returns the status in a line, as text; empty for 0, where nobody was told one.
func Status(line map[string]any) string {
	if n, ok := line["status"].(float64); ok && n != 0 {
		return strconv.FormatFloat(n, 'f', -1, 64)
	}
	return ""
}
