package process

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"gateway/internal/harness"
)

// What an operator is told before the gateway serves.

// wantOneLine checks that the gateway ends with a code and says one line, which
// has all these words in it.
func wantOneLine(t *testing.T, stderr string, code, want int, words ...string) {
	t.Helper()
	if code != want || !strings.HasPrefix(stderr, "gateway: ") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit code %d, %q; want %d and one line", code, stderr, want)
	}
	for _, word := range words {
		if !strings.Contains(stderr, word) {
			t.Errorf("%q does not say %q", stderr, word)
		}
	}
}

func TestCheckFindsWhatTheGatewayWouldFailBy(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	datagrams, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	taken, takenUDP := ln.Addr().String(), datagrams.LocalAddr().String()
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	harness.WriteFile(t, precious, "no pid\n")
	const ok = "-addr=127.0.0.1:0"
	for _, tt := range []struct {
		args  []string
		words []string
	}{
		{[]string{ok, "-resolver=127.0.0.1:0"}, []string{"-resolver", "1 to 65535"}},
		{[]string{ok, "-resolver=127.0.0.1"}, []string{"-resolver"}},
		{[]string{"-addr=no-such-name.invalid:80"}, []string{"-addr", "no-such-name.invalid"}},
		{[]string{"-addr=203.0.113.9:80"}, []string{"-addr", "203.0.113.9", "no interface"}},
		{[]string{"-addr=" + taken}, []string{"-addr", taken, "-reuse=1"}},
		{[]string{"-addr=" + taken, "-reuse=1"}, []string{"-addr", taken}},
		{[]string{ok, "-listen=" + taken + "=sealed"}, []string{"-listen", taken}},
		{[]string{ok, "-kcp=" + takenUDP}, []string{"-kcp", takenUDP}},
		{[]string{ok, "-pprof=" + taken}, []string{"-pprof", taken}},
		{[]string{ok, "-buffer=1"}, []string{"-buffer", "64"}},
		{[]string{ok, "-ws-origins=https://game.example/path"}, []string{"-ws-origins", "https://game.example/path"}},
		{[]string{ok, "-ws-origins=ftp://game.example"}, []string{"-ws-origins"}},
		{[]string{ok, "-pidfile=" + filepath.Join(dir, "none", "pid")}, []string{"-pidfile", "none"}},
		{[]string{ok, "-pidfile=" + dir}, []string{"-pidfile", dir, "not a regular file"}},
		{[]string{ok, "-pidfile=" + precious}, []string{"-pidfile", precious, "not a pid file"}},
	} {
		_, stderr, code := harness.Run(t, nil, append(tt.args, "-secret="+harness.Secret, "-check")...)
		if runtime.GOOS == "windows" { // has other words for the same
			tt.words = tt.words[:1]
		}
		wantOneLine(t, stderr, code, harness.ExitUsage, tt.words...)
	}
	for _, args := range [][]string{
		{ok, "-ws-origins=https://game.example,*.game.example"},
		{"-addr=:0", "-kcp=:0", "-pprof=localhost:0", "-buffer=64"},
		{"-addr=[::1]:0"},
	} {
		stdout, stderr, code := harness.Run(t, nil, append(args, "-secret="+harness.Secret, "-check")...)
		if code != 0 || stderr != "" || !strings.Contains(stdout, "valid") {
			t.Errorf("%q: exit code %d, %q", args, code, stderr)
		}
	}
}

func TestCheckLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	cmd := harness.Command(t, nil, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-check")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	wantFiles(t, cmd.Dir)
}

// The check of a configuration that is in use gets none of its clients: they
// would be lost.
func TestCheckTakesNoClientFromAGatewayThatServes(t *testing.T) {
	t.Parallel()
	harness.NeedSignals(t)
	p := harness.Start(t, "-reuse=1")
	backend := harness.StartEcho(t)
	// Many addresses take their time.
	check := []string{"-secret=" + harness.Secret, "-reuse=1", "-addr=" + p.Addr, "-check"}
	for range 500 {
		check = append(check, "-listen=127.0.0.1:0=sealed")
	}
	stop, checked := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				checked <- n
				return
			default:
			}
			if _, stderr, code := harness.Run(t, nil, check...); code != 0 {
				t.Errorf("exit code %d, %s", code, stderr)
			}
		}
	}()
	line := harness.Line(backend)
	var visiting sync.WaitGroup
	for i := range 4 { // beside other tests one after the other takes long
		visiting.Go(func() {
			for j := i; j < 3000; j += 4 {
				if err := visit(p.Addr, line, fmt.Sprint("client ", j)); err != nil {
					t.Errorf("client %d: %v", j, err)
					return
				}
			}
		})
	}
	visiting.Wait()
	close(stop)
	if n := <-checked; n == 0 {
		t.Error("nothing was checked meanwhile")
	}
}

// visit opens a tunnel, says something and hears it, and leaves.
func visit(gateway, line, text string) error {
	c, err := net.Dial("tcp", gateway)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(4 * harness.Patience))
	if _, err := io.WriteString(c, line+text); err != nil {
		return err
	}
	want := "200" + text
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); string(got[:n]) != want {
		return fmt.Errorf("read %q, %v", got[:n], err)
	}
	return nil
}

func TestAMistakeOnTheCommandLineIsNamed(t *testing.T) {
	t.Parallel()
	const secret = "-secret=" + harness.Secret
	for _, tt := range []struct {
		args  []string
		words []string
	}{
		{[]string{secret, "-adr=:1"}, []string{"-adr", "did you mean -addr?"}},
		{[]string{secret, "-adress=:1"}, []string{"-adress"}},
		{[]string{secret, "-retrys=1"}, []string{"did you mean -retry?"}},
		{[]string{secret, "-trusted-proxy=10.0.0.0/8"}, []string{"did you mean -trusted-proxies?"}},
		{[]string{secret, "start"}, []string{`"start"`}},
		{[]string{secret, "-check", "now"}, []string{`"now"`}},
		{[]string{secret, "-seal", "-check"}, []string{"-seal", "host:port"}},
		{[]string{secret, "-check", "-seal=127.0.0.1:1"}, []string{"-seal", "-check", "one action"}},
		{[]string{secret, "-check=maybe"}, []string{"-check", "no value"}},
		{[]string{secret, "-seal"}, []string{"-seal"}},
	} {
		_, stderr, code := harness.Run(t, nil, tt.args...)
		wantOneLine(t, stderr, code, harness.ExitUsage, tt.words...)
		if strings.Contains(stderr, harness.Secret) || strings.Contains(stderr, "invalid boolean") {
			t.Errorf("it says %q", stderr)
		}
	}
}

func TestWhatIsNotPermittedNamesARemedy(t *testing.T) {
	t.Parallel()
	setpriv, err := exec.LookPath("setpriv")
	if os.Geteuid() != 0 || err != nil {
		t.Skip("only root can become nobody")
	}
	least, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil || strings.TrimSpace(string(least)) == "0" {
		t.Skip("anybody may have any port here")
	}
	// Where nobody may read and run it.
	binary := filepath.Join(t.TempDir(), "gateway")
	copyFile(t, harness.Binary(t), binary)
	for dir := filepath.Dir(binary); dir != os.TempDir() && len(dir) > 1; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	private := filepath.Join(dir, "private")
	if err := os.WriteFile(private, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args  []string
		code  int
		words []string
	}{
		{[]string{"-addr=127.0.0.1:0", "-secret-file=" + private, "-check"}, harness.ExitUsage, []string{"-secret-file", "permission denied", "allowed to read it"}},
		{[]string{"-addr=127.0.0.1:0", "-pidfile=", "-admin=unix:" + dir + "/admin.sock", "-check"}, harness.ExitUsage, []string{"-admin", "permission denied", "in a folder"}},
		{[]string{"-addr=127.0.0.1:80", "-pidfile="}, harness.ExitFailure, []string{"-addr", "CAP_NET_BIND_SERVICE", "ip_unprivileged_port_start"}},
		{[]string{"-addr=127.0.0.1:80", "-check"}, harness.ExitUsage, []string{"-addr", "CAP_NET_BIND_SERVICE"}},
		{[]string{"-addr=127.0.0.1:0", "-listen=127.0.0.1:81=sealed", "-check"}, harness.ExitUsage, []string{"-listen", "CAP_NET_BIND_SERVICE"}},
		{[]string{"-addr=127.0.0.1:0", "-pprof=127.0.0.1:82", "-check"}, harness.ExitUsage, []string{"-pprof", "CAP_NET_BIND_SERVICE"}},
		{[]string{"-addr=127.0.0.1:0", "-log-level=error"}, harness.ExitFailure, []string{"-pidfile", "permission denied", "-pidfile=)"}},
		{[]string{"-addr=127.0.0.1:0", "-check"}, harness.ExitUsage, []string{"-pidfile", "permission denied", "-pidfile=)"}},
	} {
		cmd := exec.Command(setpriv, append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", binary, "-secret=" + harness.Secret}, tt.args...)...)
		cmd.Dir = dir
		cmd.Env = []string{"GORACE=atexit_sleep_ms=0"}
		p := harness.Launch(t, cmd)
		code := p.Wait(t)
		wantOneLine(t, p.Log.String(), code, tt.code, tt.words...)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}
