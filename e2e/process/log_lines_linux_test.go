package process

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gateway/internal/harness"
	"gateway/internal/twopaths"
)

// No line of the log is lost without a word, wherever it goes.

// refuse brings n bad lines, one after the other.
func refuse(t testing.TB, addr string, n int) {
	t.Helper()
	for range n {
		c := harness.Connect(t, addr)
		harness.Send(t, c, "garbage\n")
		harness.Expect(t, c, "401")
		c.Close()
	}
}

// wholeLines returns the lines of a log, each of which has to be JSON.
func wholeLines(t testing.TB, text string) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(text) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("not a line: %q: %v", line, err)
		}
		lines = append(lines, m)
	}
	return lines
}

// countOf counts those with a message, and fails if an id of them comes twice.
func countOf(t testing.TB, lines []map[string]any, msg string) (n int) {
	t.Helper()
	ids := make(map[any]bool)
	for _, l := range lines {
		if l["msg"] != msg {
			continue
		}
		if n++; ids[l["id"]] {
			t.Errorf("the line of %v came twice", l["id"])
		}
		ids[l["id"]] = true
	}
	return n
}

func readLog(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

// startWithLog starts a gateway that logs to a file.
func startWithLog(t testing.TB, name string, args ...string) *harness.Process {
	t.Helper()
	p := startQuiet(t, append([]string{"-log-format=json", "-log-file=" + name}, args...)...)
	harness.Eventually(t, "the gateway says that it listens", func() bool { return strings.Contains(readLog(t, name), `"listening"`) })
	return p
}

func TestTheLogFileGoesOnInAnotherAfterSIGUSR1(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "gateway.log")
	p := startWithLog(t, name)
	var refusing sync.WaitGroup
	refusing.Go(func() { refuse(t, p.Addr, 200) })
	for i := range 5 {
		if err := os.Rename(name, fmt.Sprint(name, ".", i)); err != nil {
			t.Fatal(err)
		}
		p.Signal(t, syscall.SIGUSR1)
		harness.Eventually(t, "the log goes on in another file", func() bool { return strings.Contains(readLog(t, name), "the log file was opened again") })
	}
	refusing.Wait()
	p.End(t)
	var all string
	for i := range 5 {
		all += readLog(t, fmt.Sprint(name, ".", i))
	}
	lines := wholeLines(t, all+readLog(t, name))
	if n := countOf(t, lines, "refused"); n != 200 {
		t.Errorf("%d lines of 200", n)
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("the file is readable by everybody: %v, %v", info.Mode(), err)
	}
	if s := p.Log.String(); s != "" {
		t.Errorf("standard error has %q", s)
	}
}

func TestALogFileThatCannotBeOpenedIsNamed(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "none", "gateway.log")
	p := harness.Launch(t, harness.Command(t, nil, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-log-file="+name))
	if code, said := p.Wait(t), p.Log.String(); code != harness.ExitUsage || !strings.HasPrefix(said, "gateway: -log-file: open "+name) || strings.Count(said, "\n") != 1 {
		t.Errorf("exit code %d, %q", code, said)
	}
}

func TestWhatAFullDiskDoesNotTakeIsWrittenLater(t *testing.T) {
	if !harness.InNamespaces(t, unix.CLONE_NEWNS) {
		return
	}
	dir := t.TempDir()
	harness.Mount(t, "none", dir, "tmpfs", 0, "size=256k")
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	name := filepath.Join(dir, "gateway.log")
	p := startWithLog(t, name)
	filler := fill(t, dir)
	refuse(t, p.Addr, 300)
	if strings.Count(readLog(t, name), `"refused"`) >= 300 {
		t.Fatal("the disk was not full")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "all lines are there", func() bool {
		return countOf(t, wholeLines(t, whole(readLog(t, name))), "refused") == 300
	})
	p.End(t)
	if s := readLog(t, name); strings.Contains(s, "log lines were dropped") {
		t.Error("lines were dropped")
	}
}

// whole cuts off a last line that has not been written to its end.
func whole(text string) string { return text[:strings.LastIndexByte(text, '\n')+1] }

func TestALogThatTakesNothingIsToldOfAtTheEnd(t *testing.T) {
	t.Parallel()
	p := startQuiet(t, "-log-file=/dev/full")
	refuse(t, p.Addr, 10)
	p.Signal(t, syscall.SIGTERM)
	if code, said := p.Wait(t), p.Log.String(); code != 0 || !strings.HasPrefix(said, "gateway: the last ") || !strings.Contains(said, " lines of the log could not be written") {
		t.Errorf("exit code %d, %q", code, said)
	}
}

func TestAPipeThatANeighbourMadeNonBlockingLosesNoLine(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096)
	cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-addr="+harness.ClosedPort(t), "-log-format=json")
	cmd.Stderr = w
	p := harness.Launch(t, cmd)
	p.Addr = strings.TrimPrefix(cmd.Args[len(cmd.Args)-2], "-addr=")
	harness.Eventually(t, "the gateway has its pid file", func() bool {
		_, err := os.Stat(filepath.Join(cmd.Dir, "gateway.pid"))
		return err == nil
	})
	unix.SetNonblock(int(w.Fd()), true) // the open file is the gateway's too
	refuse(t, p.Addr, 300)              // more than a pipe of a page holds
	w.Close()
	var log bytes.Buffer
	read := make(chan error, 1)
	go func() { _, err := io.Copy(&log, r); read <- err }()
	p.Signal(t, syscall.SIGTERM)
	if code := p.Wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	if n := countOf(t, wholeLines(t, log.String()), "refused"); n != 300 {
		t.Errorf("%d lines of 300", n)
	}
}

func TestInTheJournalLinesBeginWithTheirLevel(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(w.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	cmd := harness.Command(t, []string{fmt.Sprintf("JOURNAL_STREAM=%d:%d", st.Dev, st.Ino)}, "-secret=short", "-addr=127.0.0.1:0", "-log-level=debug")
	cmd.Stderr = w
	p := harness.Launch(t, cmd)
	w.Close()
	lines := bufio.NewScanner(r)
	level := map[string]string{"ERROR": "<3>", "WARN": "<4>", "INFO": "<6>", "DEBUG": "<7>"}
	seen := make(map[string]bool)
	for lines.Scan() {
		_, rest, _ := strings.Cut(lines.Text(), " level=")
		word, _, _ := strings.Cut(rest, " ")
		if !strings.HasPrefix(lines.Text(), level[word]+"time=") || level[word] == "" {
			t.Errorf("%q", lines.Text())
		}
		if seen[word] = true; strings.Contains(rest, "msg=listening") {
			p.Signal(t, syscall.SIGTERM)
		}
	}
	p.Wait(t)
	if !seen["WARN"] || !seen["INFO"] {
		t.Errorf("it has lines of %v", seen)
	}
}

func TestRefusalsBeyondTheRateAreCounted(t *testing.T) {
	t.Parallel()
	p := harness.Start(t, "-log-refused-rate=5")
	refuse(t, p.Addr, 60)
	p.End(t)
	lines := wholeLines(t, p.Log.String())
	n, sum := countOf(t, lines, "refused"), 0
	for _, l := range lines {
		if l["msg"] == "more were refused" {
			if l["reason"] != "bad_format" && l["reason"] != "bad_base64" || l["clients"] != "127.0.0.0/24" {
				t.Errorf("%v", l)
			}
			sum += int(l["count"].(float64))
		}
	}
	if n+sum != 60 || sum == 0 {
		t.Errorf("%d lines, and %d counted, of 60", n, sum)
	}
}

func TestDrainingTellsHowManyAreLeft(t *testing.T) {
	t.Parallel()
	p := harness.Start(t, "-drain=60s")
	c := harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))
	p.Signal(t, syscall.SIGTERM)
	if line := p.Log.WaitLine(t, "draining", 1); line["tunnels"] != 1. {
		t.Errorf("%v", line)
	}
	if line := p.Log.WaitLine(t, "still draining", 1); line["tunnels"] != 1. || line["left_ms"].(float64) > 60_000 {
		t.Errorf("%v", line)
	}
	harness.Finish(t, c)
	if code := p.Wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestThePeerThatTheKernelGaveUpOnHasItsLimit silences the path of a client.
func TestThePeerThatTheKernelGaveUpOnHasItsLimit(t *testing.T) {
	t.Parallel()
	if !harness.InNamespaces(t, unix.CLONE_NEWNET) {
		return
	}
	n, err := twopaths.New()
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(n.Close)
	for _, relay := range []string{"-loops=0", "-loops=-1"} {
		for limit, args := range map[string][]string{
			"keepalive":    {"-keepalive=1"},
			"user_timeout": {"-keepalive=0", "-tcp-user-timeout=1s"},
		} {
			t.Run(relay+" "+limit, func(t *testing.T) {
				greet := make(chan struct{}, 1)
				backend := harness.StartBackend(t, func(c *net.TCPConn) {
					select {
					case <-greet:
						c.Write([]byte("hello"))
					case <-t.Context().Done():
					}
					io.Copy(io.Discard, c)
				})
				p := harness.Start(t, append(args, "-addr="+twopaths.Server(0)+":0", "-half-close-timeout=2s", relay)...)
				c, err := n.Dial(t.Context(), "tcp", p.Addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(harness.Patience))
				harness.Send(t, c, harness.Sealed(backend)+"\n")
				harness.Expect(t, c, "200")
				// The options that find a peer gone come with the first sweep, which nobody
				// can see from outside.
				time.Sleep(2500 * time.Millisecond)
				if err := n.Silence(0); err != nil {
					t.Fatal(err)
				}
				defer n.Speak(0)
				if limit == "user_timeout" {
					greet <- struct{}{} // something that the client is to acknowledge
				}
				line := p.Log.WaitLine(t, "tunnel", 1)
				if line["limit"] != limit || line["how"] != "timeout" || line["ended_by"] != "client" {
					t.Errorf("%v", line)
				}
			})
		}
	}
}
