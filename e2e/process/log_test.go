package process

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

	"gateway/internal/harness"
)

// What an operator reads in the log: a line for each connection, and nothing that
// a client sent.

func TestTheLogNamesTheAddressThatIsBound(t *testing.T) {
	t.Parallel()
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
			cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-pidfile=", "-log-format=json")
			if tt.flag != "" {
				cmd.Args = append(cmd.Args, tt.flag)
			}
			p := harness.StartCommand(t, cmd)
			host, port, err := net.SplitHostPort(p.Addr)
			if err != nil || host != tt.host || port == "0" {
				t.Fatalf("logged %q, want host %s and a port", p.Addr, tt.host)
			}
			if host == "0.0.0.0" {
				host = "127.0.0.1"
			}
			harness.Finish(t, harness.OpenTunnel(t, net.JoinHostPort(host, port), harness.StartEcho(t)))
		})
	}
}

func TestAShortSecretIsWarnedAbout(t *testing.T) {
	t.Parallel()
	for secret, want := range map[string]int{"fifteen--bytes-": 1, "sixteen--bytes--": 0} {
		p := harness.Start(t, "-secret="+secret)
		warned := 0
		for line := range strings.Lines(p.Log.String()) {
			if strings.Contains(line, `"level":"WARN"`) && strings.Contains(line, "secret 1 of 1 is short") {
				warned++
			}
		}
		if warned != want {
			t.Errorf("warned %d times of a secret of %d bytes, want %d", warned, len(secret), want)
		}
		if strings.Contains(p.Log.String(), secret) {
			t.Error("the log holds the secret")
		}
	}
}

// startQuiet starts a gateway whose log need not be JSON, or anything at all.
func startQuiet(t testing.TB, args ...string) *harness.Process {
	t.Helper()
	addr := harness.ClosedPort(t)
	cmd := harness.Command(t, nil, append([]string{"-secret=" + harness.Secret, "-addr=" + addr}, args...)...)
	p := harness.Launch(t, cmd)
	p.Addr = addr
	harness.Eventually(t, "the gateway has its pid file", func() bool {
		if !p.Runs() {
			t.Fatalf("the gateway ended: %s", p.Log.String())
		}
		_, err := os.Stat(filepath.Join(cmd.Dir, "gateway.pid"))
		return err == nil
	})
	return p
}

func TestTheTextLogHasALineForEachEvent(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	p := startQuiet(t)
	harness.Eventually(t, "it has said how it is set", func() bool { return strings.Contains(p.Log.String(), "msg=settings ") })
	harness.Finish(t, connectAndSend(t, p.Addr, "", "400")) // no bytes: not at info
	harness.Finish(t, connectAndSend(t, p.Addr, "garbage\n", "401"))
	harness.Finish(t, harness.OpenTunnel(t, p.Addr, harness.StartEcho(t)))
	p.Signal(t, syscall.SIGTERM)
	if code := p.Wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	const value = `("(\\.|[^"\\])*"|[^" =]+)`
	line := regexp.MustCompile(`^time=\S+ level=(INFO|WARN) msg=(\w+)( [\w.-]+=` + value + `)+\n$`)
	var msgs []string
	for l := range strings.Lines(p.Log.String()) {
		m := line.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("not a line of text: %q", l)
		}
		msgs = append(msgs, m[2])
	}
	// The tunnel's account may come after the signal.
	got := strings.Join(msgs, " ")
	if got != "listening settings refused tunnel draining stopped" && got != "listening settings refused draining tunnel stopped" {
		t.Errorf("logged: %s", got)
	}
}

func TestLogLevelErrorIsSilent(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	p := startQuiet(t, "-log-level=error", "-secret=short")
	harness.Finish(t, connectAndSend(t, p.Addr, "", "400"))
	harness.Finish(t, connectAndSend(t, p.Addr, "garbage\n", "401"))
	p.Signal(t, syscall.SIGTERM)
	if code := p.Wait(t); code != 0 || p.Log.String() != "" || p.Stdout.String() != "" {
		t.Errorf("exit code %d, log %q, standard output %q", code, p.Log.String(), p.Stdout.String())
	}
}

// connectAndSend sends text and a FIN, and reads the status.
func connectAndSend(t testing.TB, addr, text, status string) *net.TCPConn {
	t.Helper()
	c := harness.Connect(t, addr)
	harness.Send(t, c, text)
	c.CloseWrite()
	harness.Expect(t, c, status)
	return c
}

func TestTheLogHasOneLineForEachConnection(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-log-level=debug", way)
		refuses := harness.ClosedPort(t)
		// The word "unrecognized" stands in all that must not be repeated.
		requests := []struct {
			text, status  string
			level, reason string
		}{
			{"", "400", "DEBUG", "empty"},
			{"unrecognized", "400", "INFO", "eof"},
			{strings.Repeat("unrecognized", 100), "400", "INFO", "too_long"},
			{"unrecognized!\n", "401", "INFO", "bad_base64"},
			{harness.Sealed("unrecognized:1") + "\r\r\n", "401", "INFO", "bad_base64"},
			{base64.StdEncoding.EncodeToString([]byte("unrecognized")) + "\n", "401", "INFO", "bad_format"},
			{harness.BadlyPadded() + "\n", "401", "INFO", "bad_padding"},
			{harness.Sealed("unrecognized words:1") + "\n", "401", "INFO", "bad_address"},
			{harness.Sealed("unrecognized:0") + "\n", "401", "INFO", "bad_address"},
			{harness.Line(refuses), "502", "INFO", "refused"},
		}
		wanted := make(map[string]map[string]any) // by client
		for _, r := range requests {
			c := connectAndSend(t, p.Addr, r.text, r.status)
			harness.ExpectAll(t, c, "")
			want := map[string]any{"msg": "refused", "level": r.level, "status": r.status, "reason": r.reason}
			if r.level == "DEBUG" {
				want["msg"] = "no request"
			}
			if r.status == "502" {
				want["backend"] = refuses
			}
			wanted[c.LocalAddr().String()] = want
		}

		backend := harness.StartEcho(t)
		line := harness.Line(backend)
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, line+"unrecognized")
		harness.Expect(t, c, "200unrecognized")
		harness.Finish(t, c)
		wanted[c.LocalAddr().String()] = map[string]any{"msg": "tunnel", "level": "INFO", "backend": backend,
			"up": 12.0, "down": 12.0, "ended_by": "client", "how": "fin"}

		c = harness.OpenTunnel(t, p.Addr, backend)
		harness.Echo(t, c, "hello")
		c.SetLinger(0)
		c.Close()
		wanted[c.LocalAddr().String()] = map[string]any{"msg": "tunnel", "level": "INFO", "backend": backend,
			"up": 5.0, "down": 5.0, "ended_by": "client", "how": "reset"}

		p.End(t)
		for client, want := range wanted {
			line := onlyLineOf(t, p, client)
			for k, v := range want {
				got := line[k]
				if k == "status" {
					got = harness.Status(line)
				}
				if got != v {
					t.Errorf("%s=%v, want %v, in %v", k, got, v, line)
				}
			}
			if _, ok := line["duration_ms"].(float64); want["msg"] == "tunnel" && !ok {
				t.Errorf("no duration in %v", line)
			}
		}
		// Besides: listening, settings, two connected, draining, stopped.
		if n := strings.Count(p.Log.String(), "\n"); n != len(wanted)+6 {
			t.Errorf("%d lines in the log, want %d", n, len(wanted)+6)
		}

		forbidden := []string{harness.Secret, "unrecognized", strings.TrimSpace(line)}
		for _, r := range requests {
			if text := strings.TrimSpace(r.text); text != "" {
				forbidden = append(forbidden, text)
			}
		}
		for _, s := range forbidden {
			if strings.Contains(p.Log.String(), s) {
				t.Errorf("the log holds %q", s)
			}
		}
	})
}

// onlyLineOf returns the one line that the log has for a client.
func onlyLineOf(t testing.TB, p *harness.Process, client string) map[string]any {
	t.Helper()
	var found []map[string]any
	for line := range strings.Lines(p.Log.String()) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) == nil && m["client"] == client && m["msg"] != "connected" {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d lines for %s, want 1: %v", len(found), client, found)
	}
	return found[0]
}

func TestARequestThatIsTooSlowIsLogged(t *testing.T) {
	t.Parallel()
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, "-handshake-timeout=3s", "-log-level=debug", way)
		slow := harness.Connect(t, p.Addr)
		harness.Send(t, slow, "unrecognized")
		silent := harness.Connect(t, p.Addr)
		harness.ExpectAll(t, slow, "400")
		harness.ExpectAll(t, silent, "400")
		if last := p.Log.WaitLine(t, "refused", 1); last["reason"] != "too_slow" || last["client"] != slow.LocalAddr().String() {
			t.Errorf("logged: %v", last)
		}
		if last := p.Log.WaitLine(t, "no request", 1); last["level"] != "DEBUG" || last["client"] != silent.LocalAddr().String() {
			t.Errorf("logged: %v", last)
		}
		if strings.Contains(p.Log.String(), "unrecognized") {
			t.Error("the log repeats the client")
		}
	})
}

// Go ends a program that writes to a broken pipe on its standard error.
func TestTheGatewayOutlivesTheReaderOfItsLog(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-log-level=debug")
	cmd.Stdout, cmd.Stderr = w, w
	p := harness.Launch(t, cmd)
	w.Close()
	r.SetReadDeadline(time.Now().Add(harness.Patience))
	line, err := bufio.NewReader(r).ReadString('\n')
	m := regexp.MustCompile(`msg=listening addr=(\S+)`).FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("%q, %v", line, err)
	}
	p.Addr = m[1]
	r.Close()

	backend := harness.StartEcho(t)
	for range 3 {
		harness.Finish(t, connectAndSend(t, p.Addr, "garbage\n", "401"))
		harness.Finish(t, harness.OpenTunnel(t, p.Addr, backend))
	}
	p.Signal(t, syscall.SIGTERM)
	if code := p.Wait(t); code != 0 {
		t.Errorf("exit: %v", cmd.ProcessState)
	}
	if left, err := os.ReadDir(cmd.Dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A supervisor may have lost its logger before it starts the gateway.
func TestTheGatewayStartsWithoutAReaderOfItsLog(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	addr := harness.ClosedPort(t)
	cmd := harness.Command(t, nil, "-secret=short", "-addr="+addr, "-pprof=0.0.0.0:0") // two warnings are due
	cmd.Stdout, cmd.Stderr = w, w
	p := harness.Launch(t, cmd)
	harness.Eventually(t, "the gateway listens", func() bool {
		if !p.Runs() {
			t.Fatalf("it ended: %v", cmd.ProcessState)
		}
		return harness.IsListening(addr)
	})
	c := harness.Connect(t, addr)
	harness.Send(t, c, harness.Seal("sha256", "short", harness.StartEcho(t))+"\n")
	harness.Expect(t, c, "200")
	harness.Echo(t, c, "hello")
	harness.Finish(t, c)
	harness.Finish(t, connectAndSend(t, addr, "garbage\n", "401"))
	p.Signal(t, syscall.SIGTERM)
	if code := p.Wait(t); code != 0 {
		t.Errorf("exit: %v", cmd.ProcessState)
	}
}

func TestTheLogHoldsNothingThatABackendSaysOutOfTurn(t *testing.T) {
	t.Parallel()
	p := harness.Start(t, "-log-level=debug")
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		request := make([]byte, 4096)
		n, _ := c.Read(request)
		// The first answer is whole, and what follows belongs to no request.
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"+string(request[:n]))
	})
	c := harness.Connect(t, p.Addr)
	harness.Send(t, c, "GET / HTTP/1.1\r\nHost: game.test\r\nConnection: close\r\nAuthorization: Bearer of-a-player\r\nX-Cipher-Origin: "+harness.Line(backend)+"\r\n")
	io.ReadAll(c)
	harness.Eventually(t, "net/http complains", func() bool { return strings.Contains(p.Log.String(), "Unsolicited response") })
	if strings.Contains(p.Log.String(), "of-a-player") {
		t.Error("the log holds a header of the client")
	}
}

func TestTheFirstLineHasTheSettingsAndWhereTheyAreFrom(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	conf := filepath.Join(dir, "gateway.conf")
	if err := os.WriteFile(conf, []byte("timeout=7s\nretry=3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := harness.StartBare(t, []string{"GATEWAY_SECRET=" + harness.Secret, "GATEWAY_RETRY=4", "GATEWAY_DRAIN=9s"},
		"-addr=127.0.0.1:1", "-addr=127.0.0.1:0", "-drain=8s", "-config="+conf, "-kcp-key=hidden", "-kcp-crypt=aes")
	line := p.Log.WaitLine(t, "settings", 1)
	for name, want := range map[string]string{
		"addr":    "127.0.0.1:0 of -addr",
		"drain":   "8s of -drain",
		"retry":   "4 of GATEWAY_RETRY",
		"timeout": "7s of " + conf,
		"secret":  "(hidden) of GATEWAY_SECRET",
		"kcp-key": "(hidden) of -kcp-key",
	} {
		set, _ := line["set"].(map[string]any)
		s, _ := set[name].(map[string]any)
		if got := fmt.Sprint(s["value"], " of ", s["from"]); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if line["set"].(map[string]any)["buffer"] != nil || line["others"] != "default" {
		t.Errorf("%v", line)
	}
	text := p.Log.String()
	if strings.Contains(text, harness.Secret) || strings.Contains(text, `"hidden"`) {
		t.Error("the log holds a secret")
	}
	for _, want := range []string{"-addr is given 2 times: only the last one counts", "GATEWAY_DRAIN has no effect: -drain is given",
		"retry in " + conf + " has no effect: GATEWAY_RETRY is given"} {
		if strings.Count(text, want) != 1 {
			t.Errorf("the log does not say %q once", want)
		}
	}
}

func TestEachLineOfAConnectionHasItsIDAndListenerAndAFieldHasOneType(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-send-proxy=off"}, {"-send-proxy=v2"}, {"-loops=-1"}} {
		t.Run(args[0], func(t *testing.T) {
			t.Parallel()
			p := harness.Start(t, append(args, "-log-tunnels=open", "-log-level=debug", "-half-close-timeout=100ms")...)
			echo := harness.StartBackend(t, func(c *net.TCPConn) {
				io.Copy(io.Discard, c) // the half-closed tunnel rests
				<-t.Context().Done()
			})
			dead := harness.ClosedPort(t)
			for _, text := range []string{harness.Line(echo), harness.Line(dead), harness.Line(dead + "," + echo), "garbage\n", "",
				"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"} {
				c := harness.Connect(t, p.Addr)
				harness.Send(t, c, text)
				c.CloseWrite()
				io.Copy(io.Discard, c)
				c.Close()
			}
			p.Log.WaitLine(t, "tunnel", 2)
			p.Log.WaitLine(t, "refused", 2)
			p.Log.WaitLine(t, "no request", 1)
			p.Log.WaitLine(t, "request", 1)
			types := make(map[string]string)
			lines := make(map[any][]string) // by id
			for text := range strings.Lines(p.Log.String()) {
				var l map[string]any
				if err := json.Unmarshal([]byte(text), &l); err != nil {
					t.Fatal(err)
				}
				if l["msg"] == "settings" {
					continue
				}
				for name, v := range l {
					if had, is := types[name], fmt.Sprintf("%T", v); had != "" && had != is {
						t.Errorf("%s is a %s and a %s", name, had, is)
					} else {
						types[name] = is
					}
				}
				if l["client"] == nil {
					continue
				}
				if id, _ := l["id"].(string); id == "" || l["listener"] != p.Addr {
					t.Errorf("id or listener is missing: %s", text)
				}
				lines[l["id"]] = append(lines[l["id"]], l["msg"].(string))
			}
			opened := 0
			for id, msgs := range lines {
				switch got := strings.Join(msgs, " "); got {
				case "connected tunnel":
					opened++
				case "refused", "no request", "request":
				default:
					t.Errorf("%v has the lines %s", id, got)
				}
			}
			if opened != 2 || len(lines) != 6 {
				t.Errorf("%d connections, %d of them tunnels", len(lines), opened)
			}
			for _, l := range p.Log.Lines("tunnel") {
				if l["limit"] != "half_close" || l["idle_ms"].(float64) < 50 || l["attempts"].(float64) < 1 || l["dial_ms"] == nil {
					t.Errorf("%v", l)
				}
				if failed, _ := l["failed"].(string); (l["attempts"] == 2.) != (failed == dead) {
					t.Errorf("%v", l)
				}
			}
		})
	}
}

func TestNeighboursThatSpeakSomethingElseHaveTheirOwnReasons(t *testing.T) {
	t.Parallel()
	p := harness.Start(t, "-handshake-timeout=300ms")
	slow := harness.Start(t, "-handshake-timeout=300ms", "-loops=-1")
	for _, tt := range []struct{ text, reason string }{
		{"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + harness.Line("127.0.0.1:1"), "proxy_header"},
		{"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + strings.Repeat("\x01", 12) + harness.Line("127.0.0.1:1"), "proxy_header"},
		{"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "tls"}, // and it waits for an answer
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http2"},
		{"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "ssh"},
		{"SSH-2.0", "ssh"}, // and no more
		{"nonsense\n", "bad_format"},
	} {
		for _, p := range []*harness.Process{p, slow} {
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, tt.text)
			io.Copy(io.Discard, c)
			line := p.Log.WaitClient(t, "refused", c.LocalAddr().String())
			if line["reason"] != tt.reason || line["status"] != 400. && line["status"] != 401. {
				t.Errorf("%q: %v", tt.text, line)
			}
			c.Close()
		}
	}
}
