package process

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"gateway/internal/harness"
)

// What an operator asks a gateway that runs, from a shell.

func TestAShellSeesTheStateAndTheTunnelsAndCutsThem(t *testing.T) {
	t.Parallel()
	p, a := startAdmin(t)
	echo := harness.StartEcho(t)
	c := harness.OpenTunnel(t, p.Addr, echo)
	harness.Echo(t, c, "hello")
	ask := func(code int, args ...string) string {
		t.Helper()
		stdout, stderr, got := harness.Run(t, []string{"GATEWAY_ADMIN=unix:" + a.Socket}, args...)
		if got != code || code == 0 && stderr != "" {
			t.Errorf("%q: exit code %d, %q, %q; want %d", args, got, stdout, stderr, code)
		}
		return stdout
	}
	status := ask(0, "-status")
	for _, want := range []string{"ready", "1 accepted", "1 open", p.Addr, fmt.Sprintf("pid %d,", p.PID()), "descriptors"} {
		if !strings.Contains(status, want) {
			t.Errorf("-status does not say %q: %s", want, status)
		}
	}
	for filter, want := range map[string]bool{
		"": true, "127.0.0.1": true, "127.0.0.0/8": true, "client=127.0.0.1": true, echo: true, "backend=" + echo: true,
		"client=127.0.0.1,backend=" + echo: true, "listener=" + p.Addr: true,
		"10.0.0.0/8": false, "127.0.0.1:1": false, "x-1": false, "client=10.0.0.1,backend=" + echo: false,
	} {
		arg := "-tunnels"
		if filter != "" {
			arg += "=" + filter
		}
		if text := ask(0, arg); strings.Contains(text, c.LocalAddr().String()) != want || !strings.HasPrefix(text, "ID") {
			t.Errorf("%s: %s", arg, text)
		}
	}
	id := strings.Fields(strings.Split(ask(0, "-tunnels"), "\n")[1])[0]
	ask(1, "-cut=10.0.0.0/8")
	harness.Echo(t, c, "still here")
	if text := ask(0, "-cut="+id); text != "tunnels cut: 1\n" {
		t.Errorf("-cut says %q", text)
	}
	harness.ExpectCut(t, c)
	ask(1, "-cut="+id)
	p.End(t)
	ask(1, "-status")
	ask(1, "-tunnels")
}

func TestWatchGoesOnWhileTheGatewayIsRestarted(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("no signals here")
	}
	p, a := startAdmin(t)
	w := harness.Launch(t, harness.Command(t, nil, a.Flag, "-status", "-watch=20ms"))
	says := func(what string) {
		t.Helper()
		harness.Eventually(t, "it says "+what, func() bool { return strings.Contains(w.Stdout.String(), what) })
	}
	says(fmt.Sprintf("pid %d,", p.PID()))
	p.End(t)
	says("cannot ask")
	again := harness.Start(t, a.Flag)
	says(fmt.Sprintf("pid %d,", again.PID()))
	w.Signal(t, syscall.SIGINT)
	if code := w.Wait(t); code != 0 {
		t.Errorf("exit code %d, %s", code, w.Log.Tail())
	}
}

func TestWhatCannotBeAskedIsToldInALine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	short := filepath.Join(dir, "short")
	harness.WriteFile(t, short, "short")
	for _, tt := range []struct {
		code  int
		args  []string
		words []string
	}{
		{2, []string{"-status"}, []string{"-status", "-admin", "GATEWAY_ADMIN"}},
		{2, []string{"-admin=unix:/x", "-watch=1s"}, []string{"-watch", "-status"}},
		{2, []string{"-admin=unix:/x", "-tunnels=what=1"}, []string{"-tunnels", "what=1", "client="}},
		{2, []string{"-admin=unix:/x", "-tunnels=client=x"}, []string{"-tunnels", "client"}},
		{2, []string{"-admin=unix:/x", "-tunnels=10.0.0.0/99"}, []string{"-tunnels", "10.0.0.0/99"}},
		{2, []string{"-admin=unix:/x", "-tunnels=a:b"}, []string{"-tunnels", "backend"}},
		{2, []string{"-admin=unix:/x", "-cut="}, []string{"-cut", "id="}},
		{2, []string{"-admin=unix:/x", "-cut=client=10.0.0.1,id=1"}, []string{"-cut", "one of"}},
		{2, []string{"-admin=unix:/x", "-cut=listener=:80"}, []string{"-cut", "one of"}},
		{2, []string{"-admin=unix:/x", "-status", "-cut=x"}, []string{"one action"}},
		{2, []string{"-admin=127.0.0.1:1", "-status", "-admin-token-file=" + short}, []string{"-admin-token-file", short}},
		{1, []string{"-admin=unix:" + filepath.Join(dir, "none"), "-status"}, []string{"-status", "none"}},
		{1, []string{"-admin=" + harness.ClosedPort(t), "-tunnels"}, []string{"-tunnels", "127.0.0.1:"}},
		{1, []string{"-admin=" + harness.StartHTTP(t, notAGateway), "-cut=x"}, []string{"-cut", "127.0.0.1:"}},
	} {
		_, stderr, code := harness.Run(t, nil, tt.args...)
		wantOneLine(t, stderr, code, tt.code, tt.words...)
	}
}

func TestTheTokenIsForTheShellToo(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	harness.WriteFile(t, file, "0123456789abcdefghij\n")
	p := harness.Start(t, "-admin=127.0.0.1:0", "-admin-token-file="+file)
	url := p.Log.WaitLine(t, "admin is on", 1)["url"].(string)
	at := "-admin=" + strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/")
	c := harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))
	if _, stderr, code := harness.Run(t, nil, at, "-cut=127.0.0.1"); code != 1 || !strings.Contains(stderr, "token") {
		t.Errorf("without the token: exit code %d, %q", code, stderr)
	}
	if stdout, stderr, code := harness.Run(t, nil, at, "-admin-token-file="+file, "-cut=127.0.0.1"); code != 0 || stdout != "tunnels cut: 1\n" {
		t.Errorf("with it: exit code %d, %q, %q", code, stdout, stderr)
	}
	harness.ExpectCut(t, c)
}

// notAGateway answers with what is no answer.
func notAGateway(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }
