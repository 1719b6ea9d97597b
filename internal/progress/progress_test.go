package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// told returns what is said of events, one line of JSON each.
func told(t *testing.T, lines ...string) (said string, failed bool) {
	t.Helper()
	var out strings.Builder
	failed = follow(strings.NewReader(strings.Join(lines, "\n")+"\n"), newReport(&out), time.Hour)
	return out.String(), failed
}

func outputOf(test, text string) string {
	quoted, _ := json.Marshal(text)
	return fmt.Sprintf(`{"Action":"output","Package":"p","Test":%q,"Output":%s}`, test, quoted)
}

func TestWhatPassesSlowlyHasALine(t *testing.T) {
	said, failed := told(t,
		`{"Action":"start","Package":"p"}`,
		`{"Action":"run","Package":"p","Test":"TestA"}`,
		outputOf("TestA", "chatter\n"),
		`{"Action":"pass","Package":"p","Test":"TestA/sub","Elapsed":9}`,
		`{"Action":"pass","Package":"p","Test":"TestA","Elapsed":2.5}`,
		`{"Action":"pass","Package":"p","Test":"TestB","Elapsed":0.5}`,
		`{"Action":"skip","Package":"p","Test":"TestC","Elapsed":0}`,
		`{"Action":"output","Package":"p","Output":"PASS\n"}`,
		`{"Action":"pass","Package":"p","Elapsed":3.25}`,
		`{"Action":"skip","Package":"empty","Elapsed":0}`)
	want := "      p TestA (2.5s)\nok    p (3.25s, 2 tests)\n2 tests passed, 1 were skipped, in 0s\n"
	if said != want || failed {
		t.Errorf("failed: %v; got\n%swant\n%s", failed, said, want)
	}
}

func TestAFailureIsShownWithWhatItPrintedAndNothingElse(t *testing.T) {
	said, failed := told(t,
		`{"Action":"run","Package":"p","Test":"TestA"}`,
		outputOf("TestA", "=== RUN   TestA\n"),
		outputOf("TestA/good", "of the good\n"),
		`{"Action":"pass","Package":"p","Test":"TestA/good","Elapsed":0}`,
		outputOf("TestA/bad", "of the bad\n"),
		`{"Action":"fail","Package":"p","Test":"TestA/bad","Elapsed":0}`,
		outputOf("TestB", "of another\n"),
		`{"Action":"fail","Package":"p","Test":"TestA","Elapsed":0}`,
		`{"Action":"pass","Package":"p","Test":"TestB","Elapsed":0}`,
		`{"Action":"output","Package":"p","Output":"exit status 1\n"}`,
		`{"Action":"fail","Package":"p","Elapsed":0}`)
	want := "FAIL  p TestA\nof the bad\nFAIL  p\nexit status 1\n1 tests passed, 0 were skipped, in 0s\nfailed:\n  p TestA\n  p\n"
	if said != want || !failed {
		t.Errorf("failed: %v; got\n%swant\n%s", failed, said, want)
	}
}

func TestWhoRanWhenThePackageDiedIsNamed(t *testing.T) {
	said, failed := told(t,
		`{"Action":"run","Package":"p","Test":"TestA"}`,
		`{"Action":"run","Package":"p2","Test":"TestOther"}`,
		outputOf("TestA", "its last words\n"),
		`{"Action":"output","Package":"p","Output":"signal: killed\n"}`,
		`{"Action":"fail","Package":"p","Elapsed":0}`)
	if want := "FAIL  p TestA\nits last words\nFAIL  p\nsignal: killed\n"; !strings.HasPrefix(said, want) || strings.Contains(said, "Other") || !failed {
		t.Errorf("failed: %v; got\n%s", failed, said)
	}
}

func TestALongFailureIsCut(t *testing.T) {
	lines := []string{outputOf("TestA", strings.Repeat("x", 1<<20)+"\n")}
	for i := range 5000 {
		lines = append(lines, outputOf("TestA", fmt.Sprintf("line %d\n", i)))
	}
	said, _ := told(t, append(lines, `{"Action":"fail","Package":"p","Test":"TestA","Elapsed":0}`)...)
	for _, want := range []string{"x... (1048577 bytes)\n", "line 0\n", "... 4921 lines left out", "line 4999\n"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q", want)
		}
	}
	if n := strings.Count(said, "\n"); n > headLines+tailLines+10 || len(said) > 10_000 {
		t.Errorf("%d lines, %d bytes", n, len(said))
	}
}

func TestWhatIsNoEventIsPassedOn(t *testing.T) {
	said, failed := told(t, "go: downloading something", `{"no": "event"}`,
		`{"ImportPath":"p [p.test]","Action":"build-output","Output":"p.go:1: syntax error\n"}`,
		`{"ImportPath":"p [p.test]","Action":"build-fail"}`,
		`{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}`,
		`{"Action":"fail","Package":"p","Elapsed":0,"FailedBuild":"p [p.test]"}`)
	want := "go: downloading something\n{\"no\": \"event\"}\np.go:1: syntax error\nFAIL  p\nFAIL\tp [build failed]\n"
	if !strings.HasPrefix(said, want) || !failed {
		t.Errorf("failed: %v; got\n%s", failed, said)
	}
}

// transcript is what has been said so far.
type transcript struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *transcript) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

// waitFor waits until something is said.
func (s *transcript) waitFor(t *testing.T, want string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		text := s.text.String()
		s.mu.Unlock()
		if strings.Contains(text, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %q in %.2000s", want, text)
		}
	}
}

func TestInSilenceItSaysWhatIsGoingOn(t *testing.T) {
	in, events := io.Pipe()
	var out transcript
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		follow(in, newReport(&out), time.Millisecond)
	}()
	write := func(action, test string) {
		fmt.Fprintf(events, `{"Action":%q,"Package":"p","Test":%q}`+"\n", action, test)
	}
	out.waitFor(t, "0 passed: being built\n")
	for _, test := range []string{"TestPaused", "Test1", "Test2", "Test3", "Test4"} {
		write("run", test)
	}
	write("pause", "TestPaused")
	out.waitFor(t, "0 passed: p Test1 (")
	out.waitFor(t, "s), 1 more\n")
	write("pass", "Test1")
	out.waitFor(t, "1 passed: p Test2 (")
	write("cont", "TestPaused")
	write("pass", "Test2")
	write("pass", "Test3")
	write("pass", "Test4")
	out.waitFor(t, "4 passed: p TestPaused (")
	events.Close()
	<-ended
}

// TestTheExitCodeIsTheCommands runs go test itself on a module of two tests.
func TestTheExitCodeIsTheCommands(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{
		"go.mod":    "module example\n\ngo 1.26\n",
		"x_test.go": "package x\n\nimport \"testing\"\n\nfunc TestGood(*testing.T) {}\n\nfunc TestBad(t *testing.T) { t.Error(\"no good\") }\n",
	} {
		if err := os.WriteFile(filepath.Join(".", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		args string
		code int
		want string
	}{
		{"go test -json ./...", 1, "FAIL  example TestBad\n"},
		{"go test -json -run=Good ./...", 0, "ok    example"},
		{"go test -json -run=Bad -skip=Bad .", 0, "0 tests passed"},
		{"go nonsense", 2, "unknown command"},
		{"no-such-program", 1, "no-such-program"},
		{"", 2, "usage"},
	} {
		var out, errors strings.Builder // which are written at the same time
		code := run(strings.Fields(test.args), &out, &errors)
		said := out.String() + errors.String()
		if code != test.code || !strings.Contains(said, test.want) {
			t.Errorf("%s: code %d, want %d and %q in\n%s", test.args, code, test.code, test.want, said)
		}
	}
}
