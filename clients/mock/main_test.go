package main

import (
	"errors"
	"io"
	"log"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// start starts a mock and returns how to talk through it: all that is answered to a
// line and what follows it.
func start(t *testing.T, backend, fault string) (addr string, talk func(line string) (string, error)) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		(&mock{backend: backend, fault: fault, log: log.New(io.Discard, "", 0)}).serve(ln)
		close(done)
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String(), func(line string) (string, error) {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(harness.Patience))
		io.WriteString(c, line)
		c.(*net.TCPConn).CloseWrite()
		all, err := io.ReadAll(c)
		return string(all), err
	}
}

func TestAnyLineLeadsToTheBackend(t *testing.T) {
	_, talk := start(t, harness.StartGreeter(t, "welcome"), "")
	for _, line := range []string{"any\nhello", "U2Fs\r\nhello", "\nhello"} {
		if got, err := talk(line); got != "200welcomehello" || err != nil {
			t.Errorf("%q is answered by %q, %v", line, got, err)
		}
	}
}

func TestFaultsComeOnDemand(t *testing.T) {
	_, talk := start(t, harness.StartGreeter(t, "welcome"), "")
	for line, want := range map[string]string{
		"fault:status=401\nhello":         "401",
		"fault:status=504,delay=1ms\n":    "504",
		"fault:dribble\nhello":            "200welcomehello",
		"fault:status=999\n":              "400",
		"fault:unknown\n":                 "400",
		"no newline":                      "400",
		strings.Repeat("x", 2000) + "\n":  "400",
		"~1N - a request for a session\n": "401",
		"fault:silent\n":                  "",
	} {
		if got, err := talk(line); got != want || err != nil {
			t.Errorf("%.40q is answered by %q, %v, want %q", line, got, err, want)
		}
	}
	if got, err := talk("fault:cut=3\nhello"); got != "200wel" && got != "" || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a cut tunnel brings %q, %v, want a reset", got, err)
	}
}

func TestAFaultOfAllAndABackendThatIsGone(t *testing.T) {
	_, talk := start(t, harness.ClosedPort(t), "")
	if got, err := talk("any\n"); got != "502" || err != nil {
		t.Errorf("%q, %v, want 502", got, err)
	}
	_, talk = start(t, harness.ClosedPort(t), "status=401")
	if got, err := talk("any\n"); got != "401" || err != nil {
		t.Errorf("%q, %v, want 401", got, err)
	}
}

func TestWrongFlagsAreRefused(t *testing.T) {
	for _, args := range [][]string{{}, {"-backend=nowhere"}, {"-backend=a:1", "more"}, {"-backend=a:1", "-fault=what"}} {
		var errs strings.Builder
		if code := run(args, io.Discard, &errs); code != 2 || errs.Len() == 0 {
			t.Errorf("%q: code %d, %q", args, code, errs.String())
		}
	}
}
