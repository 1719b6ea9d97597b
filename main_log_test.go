package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"gateway/internal/address"
)

// What an operator reads in the log: a line for each connection, and nothing that
// a client sent.

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
			cmd := gatewayCommand(t, nil, "-secret="+testSecret, "-pidfile=", "-log-format=json")
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
		p := startProcess(t, "-secret="+secret)
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
	cmd := gatewayCommand(t, nil, append([]string{"-secret=" + testSecret, "-addr=" + addr}, args...)...)
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
		p := startProcess(t, "-log-level=debug", way)
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
		p := startProcess(t, "-handshake-timeout=1s", "-log-level=debug", way)
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

// Go ends a program that writes to a broken pipe on its standard error.
func TestTheGatewayOutlivesTheReaderOfItsLog(t *testing.T) {
	needSignals(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := gatewayCommand(t, nil, "-secret="+testSecret, "-addr=127.0.0.1:0", "-log-level=debug")
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

func TestTheLogHoldsNothingThatABackendSaysOutOfTurn(t *testing.T) {
	p := startProcess(t, "-log-level=debug")
	backend := startBackend(t, func(c *net.TCPConn) {
		request := make([]byte, 4096)
		n, _ := c.Read(request)
		// The first answer is whole, and what follows belongs to no request.
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"+string(request[:n]))
	})
	c := connect(t, p.addr)
	send(t, c, "GET / HTTP/1.1\r\nHost: game.test\r\nConnection: close\r\nAuthorization: Bearer of-a-player\r\nX-Cipher-Origin: "+sealed(t, backend)+"\r\n")
	io.ReadAll(c)
	eventually(t, "net/http complains", func() bool { return strings.Contains(p.log.String(), "Unsolicited response") })
	if strings.Contains(p.log.String(), "of-a-player") {
		t.Error("the log holds a header of the client")
	}
}
