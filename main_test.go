package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"gateway/internal/address"
)

// What an operator sees of the process: exit codes, errors, the log, signals.

// needSignals skips a test where processes cannot send each other signals.
func needSignals(t testing.TB) {
	if runtime.GOOS == "windows" {
		t.Skip("no signals on windows")
	}
}

// quickExit spares a clean exit the second that the race detector gives other
// goroutines to show their races.
const quickExit = "GORACE=atexit_sleep_ms=0"

// start is startProcess for gateways that a test lets end.
func start(t testing.TB, args ...string) *process {
	t.Helper()
	return startCommand(t, gatewayCommand(t, []string{quickExit},
		append([]string{"-secret=" + testSecret, "-addr=127.0.0.1:0", "-pidfile=", "-log-format=json"}, args...)...))
}

// launch starts a gateway and does not wait until it listens. The process is
// killed at the end of the test if it still runs.
func launch(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.stdout, &p.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-p.exited
		if t.Failed() {
			t.Logf("log of gateway %d:\n%s", cmd.Process.Pid, p.log.String())
		}
	})
	return p
}

// bothWays runs a test on the event loops, and on the goroutines that are the
// only way on systems other than Linux.
func bothWays(t *testing.T, test func(t *testing.T, way string)) {
	for _, way := range []string{"-loops=0", "-loops=-1"} {
		t.Run(way, func(t *testing.T) { test(t, way) })
	}
}

// runs reports whether the process has not ended.
func (p *process) runs() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// waitRefused waits until nobody listens on addr any more.
func waitRefused(t testing.TB, addr string) {
	t.Helper()
	eventually(t, "connects to "+addr+" are refused", func() bool {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

// finish ends a tunnel as a client does that has no more to say.
func finish(t testing.TB, c *net.TCPConn) {
	t.Helper()
	c.CloseWrite()
	expectAll(t, c, "")
	c.Close()
}

func echo(t testing.TB, c net.Conn, text string) {
	t.Helper()
	send(t, c, text)
	expect(t, c, text)
}

func TestWrongUseEndsWithItsCodeAndOneLine(t *testing.T) {
	const withSecret = "-secret=" + testSecret
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	inUse := "address already in use"
	if runtime.GOOS == "windows" {
		inUse = "-addr: "
	}
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("# nothing but a remark\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	otherLine := newKeyring([][]byte{[]byte("the secret of somebody else")}, []kdf{kdfMD5}).
		seal(address.Address{Host: "backend", Port: 1})

	for _, tt := range []struct {
		name string
		env  []string
		args []string
		code int
		says string
	}{
		{"no secret", nil, nil, 2, "-secret-file"},
		{"unknown flag", nil, []string{withSecret, "-sercet=x"}, 2, "-sercet"},
		{"flag without its value", nil, []string{withSecret, "-addr"}, 2, "-addr"},
		{"secret behind a space", nil, []string{"-check", testSecret}, 2, "-name=value"},
		{"missing -secret-file", nil, []string{withSecret, "-secret-file=" + missing}, 2, missing},
		{"newline in a file's name", nil, []string{"-secret-file=" + missing + "\n2"}, 2, missing + " 2"},
		{"folder as -secret-file", nil, []string{withSecret, "-secret-file=" + dir}, 2, dir},
		{"-secret-file without a secret", nil, []string{withSecret, "-secret-file=" + empty}, 2, empty},
		{"-retry=0", nil, []string{withSecret, "-retry=0"}, 2, "-retry"},
		{"GATEWAY_RETRY=0", []string{"GATEWAY_RETRY=0"}, []string{withSecret}, 2, "GATEWAY_RETRY"},
		{"no port in -addr", nil, []string{withSecret, "-addr=127.0.0.1"}, 2, "-addr"},
		{"no number in -addr", nil, []string{withSecret, "-addr=127.0.0.1:http"}, 2, "-addr"},
		{"wrong -log-level", []string{"GATEWAY_SECRET=" + testSecret}, []string{"-log-level=all"}, 2, "-log-level"},
		{"-check of something wrong", nil, []string{withSecret, "-check", "-timeout=soon"}, 2, "-timeout"},
		{"-seal of no address", nil, []string{withSecret, "-seal=127.1:80"}, 2, "-seal"},
		{"-seal without a secret", nil, []string{"-seal=127.0.0.1:80"}, 2, "-secret-file"},
		{"two actions", nil, []string{withSecret, "-seal=127.0.0.1:80", "-open=x"}, 2, "one action"},
		{"-open of garbage", nil, []string{withSecret, "-open=unrecognized"}, 1, "-open"},
		{"-open of another's line", nil, []string{withSecret, "-open=" + otherLine}, 1, "-open"},
		{"-open of no address", nil, []string{withSecret, "-open=" + sealedText("unrecognized words:1")}, 1, "-open"},
		{"taken port", nil, []string{withSecret, "-pidfile=", "-log-level=error", "-addr=" + taken.Addr().String()}, 1, inUse},
		{"-pidfile in no folder", nil, []string{withSecret, "-addr=127.0.0.1:0", "-log-level=error",
			"-pidfile=" + filepath.Join(missing, "gateway.pid")}, 1, "-pidfile"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stdout, stderr, code := runGateway(t, tt.env, tt.args...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if stdout != "" {
				t.Errorf("standard output: %q", stdout)
			}
			if !strings.HasPrefix(stderr, "gateway: ") || strings.Index(stderr, "\n") != len(stderr)-1 {
				t.Errorf("not one line: %q", stderr)
			}
			if !strings.Contains(stderr, tt.says) {
				t.Errorf("%q does not say %q", stderr, tt.says)
			}
			for _, s := range []string{testSecret, "unrecognized", otherLine} {
				if strings.Contains(stderr, s) {
					t.Errorf("%q repeats %q", stderr, s)
				}
			}
		})
	}
}

func TestActionsPrintToStandardOutputAndEndWithZero(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("# sealing\n"+testSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fromEnv := []string{"GATEWAY_SECRET=" + testSecret}
	for _, tt := range []struct {
		name string
		env  []string
		args []string
		says string
	}{
		{"-version", nil, []string{"-version"}, runtime.Version()},
		{"-version with a secret", fromEnv, []string{"-version"}, "commit"},
		{"-check", nil, []string{"-check", "-secret-file=" + file}, "valid"},
		{"-check of the environment", fromEnv, []string{"-check"}, "valid"},
		{"-help", nil, []string{"-help"}, "-handshake-timeout=TIME  (default 10s)"},
		{"-help with a secret", fromEnv, []string{"-secret=" + testSecret, "-h"}, "-secret=PASSPHRASE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stdout, stderr, code := runGateway(t, append(tt.env, quickExit), tt.args...)
			if code != 0 || stderr != "" {
				t.Errorf("exit code %d, standard error %q", code, stderr)
			}
			if !strings.Contains(stdout, tt.says) {
				t.Errorf("%q does not say %q", stdout, tt.says)
			}
			if strings.Contains(stdout, testSecret) {
				t.Errorf("%q holds the secret", stdout)
			}
		})
	}
}

func TestHelpListsEveryFlag(t *testing.T) {
	stdout, _, _ := runGateway(t, []string{quickExit}, "-help")
	for _, s := range settings(defaultConfig()) {
		if !strings.Contains(stdout, "\n  -"+s.name) {
			t.Errorf("-help does not list -%s", s.name)
		}
	}
}

func TestOpenReversesSeal(t *testing.T) {
	for _, kdf := range []string{"md5", "sha256", "pbkdf2"} {
		for _, addr := range []string{"127.0.0.1:62863", "[::1]:1", "game-7.internal:4000"} {
			line, stderr, code := runGateway(t, []string{"GATEWAY_KDF=" + kdf, quickExit}, "-secret="+testSecret, "-seal="+addr)
			if code != 0 || stderr != "" || !strings.HasPrefix(line, "U2FsdGVkX1") || strings.Index(line, "\n") != len(line)-1 {
				t.Fatalf("-kdf=%s -seal=%s: exit code %d, %q, %q", kdf, addr, code, line, stderr)
			}
			got, stderr, code := runGateway(t, []string{"GATEWAY_SECRET=" + testSecret, quickExit}, "-kdf="+kdf, "-open="+line)
			if code != 0 || stderr != "" || got != addr+"\n" {
				t.Errorf("-kdf=%s -open: exit code %d, %q, %q; want %s", kdf, code, got, stderr, addr)
			}
		}
	}
}

func TestTheLogNamesTheAddressThatIsBound(t *testing.T) {
	for _, tt := range []struct{ flag, host string }{
		{"-addr=127.0.0.1:0", "127.0.0.1"},
		{"", "0.0.0.0"}, // the default
		{"-addr=[::1]:0", "::1"},
	} {
		t.Run(tt.host, func(t *testing.T) {
			if tt.host == "::1" {
				ln, err := net.Listen("tcp", "[::1]:0")
				if err != nil {
					t.Skip(err)
				}
				ln.Close()
			}
			cmd := gatewayCommand(t, []string{quickExit}, "-secret="+testSecret, "-pidfile=", "-log-format=json")
			if tt.flag != "" {
				cmd.Args = append(cmd.Args, tt.flag)
			}
			p := startCommand(t, cmd)
			host, port, err := net.SplitHostPort(p.addr)
			if err != nil || host != tt.host || port == "0" {
				t.Fatalf("logged %q, want host %s and a port", p.addr, tt.host)
			}
			if host == "0.0.0.0" {
				host = "127.0.0.1"
			}
			finish(t, openTunnel(t, net.JoinHostPort(host, port), startEcho(t)))
		})
	}
}

func TestAShortSecretIsWarnedAbout(t *testing.T) {
	for secret, want := range map[string]int{"fifteen--bytes-": 1, "sixteen--bytes--": 0} {
		p := start(t, "-secret="+secret)
		warned := 0
		for line := range strings.Lines(p.log.String()) {
			if strings.Contains(line, `"level":"WARN"`) && strings.Contains(line, "secret 1 of 1 is short") {
				warned++
			}
		}
		if warned != want {
			t.Errorf("warned %d times of a secret of %d bytes, want %d", warned, len(secret), want)
		}
		if strings.Contains(p.log.String(), secret) {
			t.Error("the log holds the secret")
		}
	}
}

// startQuiet starts a gateway whose log need not be JSON, or anything at all.
func startQuiet(t testing.TB, args ...string) *process {
	t.Helper()
	addr := closedPort(t)
	cmd := gatewayCommand(t, []string{quickExit}, append([]string{"-secret=" + testSecret, "-addr=" + addr}, args...)...)
	p := launch(t, cmd)
	p.addr = addr
	eventually(t, "the gateway has its pid file", func() bool {
		if !p.runs() {
			t.Fatalf("the gateway ended: %s", p.log.String())
		}
		_, err := os.Stat(filepath.Join(cmd.Dir, "gateway.pid"))
		return err == nil
	})
	return p
}

func TestTheTextLogHasALineForEachEvent(t *testing.T) {
	needSignals(t)
	p := startQuiet(t)
	finish(t, connectAndSend(t, p.addr, "", "400")) // no bytes: not at info
	finish(t, connectAndSend(t, p.addr, "garbage\n", "401"))
	finish(t, openTunnel(t, p.addr, startEcho(t)))
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	const value = `("(\\.|[^"\\])*"|[^" =]+)`
	line := regexp.MustCompile(`^time=\S+ level=(INFO|WARN) msg=(\w+)( \w+=` + value + `)+\n$`)
	var msgs []string
	for l := range strings.Lines(p.log.String()) {
		m := line.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("not a line of text: %q", l)
		}
		msgs = append(msgs, m[2])
	}
	// The tunnel's account may come after the signal.
	got := strings.Join(msgs, " ")
	if got != "listening refused tunnel draining stopped" && got != "listening refused draining tunnel stopped" {
		t.Errorf("logged: %s", got)
	}
}

func TestLogLevelErrorIsSilent(t *testing.T) {
	needSignals(t)
	p := startQuiet(t, "-log-level=error", "-secret=short")
	finish(t, connectAndSend(t, p.addr, "", "400"))
	finish(t, connectAndSend(t, p.addr, "garbage\n", "401"))
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 || p.log.String() != "" || p.stdout.String() != "" {
		t.Errorf("exit code %d, log %q, standard output %q", code, p.log.String(), p.stdout.String())
	}
}

// connectAndSend sends text and a FIN, and reads the status.
func connectAndSend(t testing.TB, addr, text, status string) *net.TCPConn {
	t.Helper()
	c := connect(t, addr)
	send(t, c, text)
	c.CloseWrite()
	expect(t, c, status)
	return c
}

// sealedText returns the sealed line of what need not be an address: text must
// end in a port.
func sealedText(text string) string {
	host, port, _ := strings.Cut(text, ":")
	addr := address.Address{Host: host}
	fmt.Sscan(port, &addr.Port)
	return newKeyring([][]byte{[]byte(testSecret)}, []kdf{kdfSHA256}).seal(addr)
}

// badlyPadded returns a line whose padding is wrong in every derivation. A
// line of another secret is right in one of 128 all the same.
func badlyPadded(t testing.TB) string {
	t.Helper()
	keys := newKeyring([][]byte{[]byte(testSecret)}, defaultConfig().KDFs)
	others := newKeyring([][]byte{[]byte("the secret of somebody else")}, []kdf{kdfMD5})
	for {
		line := others.seal(address.Address{Host: "unrecognized", Port: 1})
		if _, err := keys.open(t.Context(), []byte(line)); err == errBadPadding {
			return line
		}
	}
}

func TestTheLogHasOneLineForEachConnection(t *testing.T) {
	needSignals(t)
	bothWays(t, func(t *testing.T, way string) {
		p := start(t, "-log-level=debug", way)
		refuses := closedPort(t)
		// The word "unrecognized" stands in all that must not be repeated.
		requests := []struct {
			text, status  string
			level, reason string
		}{
			{"", "400", "DEBUG", "empty"},
			{"unrecognized", "400", "INFO", "eof"},
			{strings.Repeat("unrecognized", 100), "400", "INFO", "too_long"},
			{"unrecognized!\n", "401", "INFO", "bad_base64"},
			{sealedText("unrecognized:1") + "\r\r\n", "401", "INFO", "bad_base64"},
			{base64.StdEncoding.EncodeToString([]byte("unrecognized")) + "\n", "401", "INFO", "bad_format"},
			{badlyPadded(t) + "\n", "401", "INFO", "bad_padding"},
			{sealedText("unrecognized words:1") + "\n", "401", "INFO", "bad_address"},
			{sealedText("unrecognized:0") + "\n", "401", "INFO", "bad_address"},
			{sealed(t, refuses), "502", "INFO", "refused"},
		}
		wanted := make(map[string]map[string]any) // by client
		for _, r := range requests {
			c := connectAndSend(t, p.addr, r.text, r.status)
			expectAll(t, c, "")
			want := map[string]any{"msg": "refused", "level": r.level, "status": r.status, "reason": r.reason}
			if r.level == "DEBUG" {
				want["msg"] = "no request"
			}
			if r.status == "502" {
				want["backend"] = refuses
			}
			wanted[c.LocalAddr().String()] = want
		}

		backend := startEcho(t)
		line := sealed(t, backend)
		c := connect(t, p.addr)
		send(t, c, line+"unrecognized")
		expect(t, c, "200unrecognized")
		finish(t, c)
		wanted[c.LocalAddr().String()] = map[string]any{"msg": "tunnel", "level": "INFO", "backend": backend,
			"up": 12.0, "down": 12.0, "ended_by": "client", "how": "fin"}

		c = openTunnel(t, p.addr, backend)
		echo(t, c, "hello")
		c.SetLinger(0)
		c.Close()
		wanted[c.LocalAddr().String()] = map[string]any{"msg": "tunnel", "level": "INFO", "backend": backend,
			"up": 5.0, "down": 5.0, "ended_by": "client", "how": "reset"}

		p.end(t)
		for client, want := range wanted {
			line := onlyLineOf(t, p, client)
			for k, v := range want {
				if line[k] != v {
					t.Errorf("%s=%v, want %v, in %v", k, line[k], v, line)
				}
			}
			if _, ok := line["duration_ms"].(float64); want["msg"] == "tunnel" && !ok {
				t.Errorf("no duration in %v", line)
			}
		}
		// Besides: listening, draining, stopped.
		if n := strings.Count(p.log.String(), "\n"); n != len(wanted)+3 {
			t.Errorf("%d lines in the log, want %d", n, len(wanted)+3)
		}

		forbidden := []string{testSecret, "unrecognized", strings.TrimSpace(line)}
		for _, r := range requests {
			if text := strings.TrimSpace(r.text); text != "" {
				forbidden = append(forbidden, text)
			}
		}
		for _, s := range forbidden {
			if strings.Contains(p.log.String(), s) {
				t.Errorf("the log holds %q", s)
			}
		}
	})
}

// onlyLineOf returns the one line that the log has for a client.
func onlyLineOf(t testing.TB, p *process, client string) map[string]any {
	t.Helper()
	var found []map[string]any
	for line := range strings.Lines(p.log.String()) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) == nil && m["client"] == client {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d lines for %s, want 1: %v", len(found), client, found)
	}
	return found[0]
}

func TestARequestThatIsTooSlowIsLogged(t *testing.T) {
	bothWays(t, func(t *testing.T, way string) {
		p := start(t, "-handshake-timeout=1s", "-log-level=debug", way)
		slow := connect(t, p.addr)
		send(t, slow, "unrecognized")
		silent := connect(t, p.addr)
		expectAll(t, slow, "400")
		expectAll(t, silent, "400")
		if last := p.log.waitLine(t, "refused", 1); last["reason"] != "too_slow" || last["client"] != slow.LocalAddr().String() {
			t.Errorf("logged: %v", last)
		}
		if last := p.log.waitLine(t, "no request", 1); last["level"] != "DEBUG" || last["client"] != silent.LocalAddr().String() {
			t.Errorf("logged: %v", last)
		}
		if strings.Contains(p.log.String(), "unrecognized") {
			t.Error("the log repeats the client")
		}
	})
}

var endSignals = []os.Signal{syscall.SIGTERM, os.Interrupt}

func TestASignalEndsListeningAtOnceAndTunnelsGoOn(t *testing.T) {
	needSignals(t)
	bothWays(t, func(t *testing.T, way string) {
		for _, sig := range endSignals {
			t.Run(sig.String(), func(t *testing.T) {
				p := start(t, "-drain=1h", way)
				c := openTunnel(t, p.addr, startEcho(t))
				p.signal(t, sig)
				waitRefused(t, p.addr)
				for range 3 {
					echo(t, c, "still here")
				}
				// More than a buffer, so that pipes are still to be had.
				bulk := strings.Repeat("bulk", 64<<10)
				go io.WriteString(c, bulk)
				expect(t, c, bulk)
				if !p.runs() {
					t.Fatal("the gateway did not wait for its tunnel")
				}
				finish(t, c)
				if code := p.wait(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
				if last := p.log.waitLine(t, "stopped", 1); last["cut"] != 0.0 {
					t.Errorf("logged: %v", last)
				}
				if last := p.log.waitLine(t, "tunnel", 1); last["how"] != "fin" {
					t.Errorf("logged: %v", last)
				}
			})
		}
	})
}

func TestTheEndOfTheDrainCutsTunnels(t *testing.T) {
	needSignals(t)
	bothWays(t, func(t *testing.T, way string) {
		for _, drain := range []time.Duration{0, 300 * time.Millisecond} {
			t.Run(drain.String(), func(t *testing.T) {
				p := start(t, "-drain="+drain.String(), way)
				backend := startEcho(t)
				const tunnels = 3
				for range tunnels {
					c := openTunnel(t, p.addr, backend)
					echo(t, c, "hello")
				}
				finish(t, openTunnel(t, p.addr, backend)) // not one of those that are cut
				p.log.waitLine(t, "tunnel", 1)
				start := time.Now()
				p.signal(t, syscall.SIGTERM)
				if code := p.wait(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
				if d := time.Since(start); d < drain {
					t.Errorf("ended after %v, before the drain of %v was over", d, drain)
				}
				for _, line := range p.log.lines("tunnel")[1:] {
					if line["ended_by"] != "gateway" || line["how"] != "shutdown" || line["up"] != 5.0 || line["down"] != 5.0 {
						t.Errorf("logged: %v", line)
					}
				}
				if n := len(p.log.lines("tunnel")); n != 1+tunnels {
					t.Errorf("%d tunnels in the log, want %d", n, 1+tunnels)
				}
				if last := p.log.waitLine(t, "stopped", 1); last["cut"] != float64(tunnels) {
					t.Errorf("logged: %v", last)
				}
			})
		}
	})
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	needSignals(t)
	for _, first := range endSignals {
		for _, second := range endSignals {
			t.Run(fmt.Sprint(first, " then ", second), func(t *testing.T) {
				cmd := gatewayCommand(t, []string{quickExit}, "-secret="+testSecret, "-addr=127.0.0.1:0", "-log-format=json", "-drain=1h")
				p := startCommand(t, cmd)
				c := openTunnel(t, p.addr, startEcho(t))
				p.signal(t, first)
				p.log.waitLine(t, "draining", 1)
				echo(t, c, "still here")
				p.signal(t, second)
				if code := p.wait(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
				if last := p.log.waitLine(t, "stopped", 1); last["cut"] != 1.0 {
					t.Errorf("logged: %v", last)
				}
				if left, err := os.ReadDir(cmd.Dir); err != nil || len(left) > 0 {
					t.Errorf("left behind: %v, %v", left, err)
				}
			})
		}
	}
}

func TestHandshakesUnderWayAtASignalAreServed(t *testing.T) {
	needSignals(t)
	bothWays(t, func(t *testing.T, way string) {
		p := start(t, "-drain=1h", way)
		backend := startEcho(t)
		line := sealed(t, backend)
		silent, half := connect(t, p.addr), connect(t, p.addr)
		send(t, half, line[:20])
		// Connections are accepted in their order.
		finish(t, openTunnel(t, p.addr, backend))

		p.signal(t, syscall.SIGTERM)
		waitRefused(t, p.addr)
		send(t, silent, line)
		send(t, half, line[20:])
		for _, c := range []*net.TCPConn{silent, half} {
			expect(t, c, "200")
			echo(t, c, "hello")
			finish(t, c)
		}
		if code := p.wait(t); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}

func TestAPortIsSharedOnlyIfBothSharersAgree(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no SO_REUSEPORT on windows")
	}
	for _, tt := range []struct {
		first, second string
		code          int
	}{
		{"0", "0", 1},
		{"0", "1", 1},
		{"1", "0", 1},
		{"1", "1", 0},
	} {
		t.Run(tt.first+" and "+tt.second, func(t *testing.T) {
			first := start(t, "-reuse="+tt.first)
			second := launch(t, gatewayCommand(t, []string{quickExit}, "-secret="+testSecret, "-log-format=json", "-pidfile=",
				"-addr="+first.addr, "-reuse="+tt.second))
			if tt.code == 0 {
				if last := second.log.waitLine(t, "listening", 1); last["addr"] != first.addr {
					t.Errorf("logged: %v", last)
				}
				second.signal(t, syscall.SIGTERM)
			}
			if code := second.wait(t); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if tt.code == 1 && !strings.Contains(second.log.String(), "address already in use") {
				t.Errorf("says: %s", second.log.String())
			}
			finish(t, openTunnel(t, first.addr, startEcho(t)))
		})
	}
}

// Go ends a program that writes to a broken pipe on its standard error.
func TestTheGatewayOutlivesTheReaderOfItsLog(t *testing.T) {
	needSignals(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := gatewayCommand(t, []string{quickExit}, "-secret="+testSecret, "-addr=127.0.0.1:0", "-log-level=debug")
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		cmd.Wait()
		close(p.exited)
	}()
	defer func() {
		cmd.Process.Kill()
		<-p.exited
	}()
	r.SetReadDeadline(time.Now().Add(patience))
	line, err := bufio.NewReader(r).ReadString('\n')
	m := regexp.MustCompile(`msg=listening addr=(\S+)`).FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("%q, %v", line, err)
	}
	p.addr = m[1]
	r.Close()

	backend := startEcho(t)
	for range 3 {
		finish(t, connectAndSend(t, p.addr, "garbage\n", "401"))
		finish(t, openTunnel(t, p.addr, backend))
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit: %v", cmd.ProcessState)
	}
	if left, err := os.ReadDir(cmd.Dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
