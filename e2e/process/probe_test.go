package process

import (
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// What a health check of a container asks, by the binary that is there already.

// probe runs the binary as a health check and returns its line: of standard output if
// all is well, else of standard error.
func probe(t *testing.T, want int, addr string, env ...string) string {
	t.Helper()
	stdout, stderr, code := harness.Run(t, env, "-probe="+addr)
	if code != want || (stdout == "") != (want != 0) || (stderr == "") != (want == 0) || strings.Count(stdout+stderr, "\n") != 1 {
		t.Errorf("-probe=%s: exit code %d, %q, %q; want %d and one line", addr, code, stdout, stderr, want)
	}
	return stdout + stderr
}

func TestAProbeOfTheGamePortIsNeitherLoggedNorBanned(t *testing.T) {
	t.Parallel()
	certFile, keyFile, _ := harness.TLSFiles(t)
	echo := harness.StartEcho(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		for _, more := range [][]string{nil, {"-tls-cert=" + certFile, "-tls-key=" + keyFile}, {"-trusted-proxies=10.0.0.1,127.0.0.1"}} {
			p := harness.Start(t, append(more, way, "-log-level=debug", "-ban=2/1m:1h")...)
			const probes = 5
			for range probes {
				if says := probe(t, 0, p.Addr); !strings.Contains(says, p.Addr) {
					t.Errorf("it says %q", says)
				}
			}
			p.Log.WaitLine(t, "no request", probes)
			for _, line := range p.Log.Lines("no request") {
				if line["level"] != "DEBUG" || line["reason"] != "empty" {
					t.Errorf("the log says %v", line)
				}
			}
			if n := strings.Count(p.Log.String(), `"client":`); n != probes {
				t.Errorf("%d lines are about clients, want %d: %s", n, probes, p.Log.Tail())
			}
			if len(more) == 1 { // a trusted proxy says first who its client is
				continue
			}
			harness.Echo(t, harness.OpenTunnel(t, p.Addr, echo), "hello") // nobody was banned
		}
	})
}

func TestAProbeOfThePortFailsOnceNobodyListens(t *testing.T) {
	t.Parallel()
	p := harness.Start(t)
	probe(t, 0, p.Addr)
	p.End(t)
	if says := probe(t, 1, p.Addr); !strings.Contains(says, "-probe") || !strings.Contains(says, p.Addr) {
		t.Errorf("it says %q", says)
	}
}

func TestAProbeOfAdminSaysWhyAGatewayIsNotReady(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	harness.WriteFile(t, file, "0123456789abcdefghij\n")
	tcp := harness.Start(t, "-admin=127.0.0.1:0", "-admin-token-file="+file)
	url := tcp.Log.WaitLine(t, "admin is on", 1)["url"].(string)
	probe(t, 0, "admin:"+strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/")) // to look needs no token

	_, a := startAdmin(t)
	if says := probe(t, 0, "unix:"+a.Socket); says != "ready\n" {
		t.Errorf("it says %q", says)
	}
	a.Do(t, "POST", "/api/drain", "")
	if says := probe(t, 1, "unix:"+a.Socket); !strings.Contains(says, "lame duck") {
		t.Errorf("it says %q", says)
	}
	a.Do(t, "POST", "/api/undrain", "")
	probe(t, 0, "unix:"+a.Socket)
}

func TestAProbeNeedsNothingElse(t *testing.T) {
	t.Parallel()
	p := harness.Start(t)
	probe(t, 0, p.Addr, "GATEWAY_SECRET_FILE=/nowhere", "GATEWAY_ADDR=nonsense", "GATEWAY_CONFIG=/nowhere")
}

func TestWhatCannotBeProbedIsToldInALine(t *testing.T) {
	t.Parallel()
	closed := harness.ClosedPort(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	teapot := func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		io.WriteString(w, "one\ntwo\x1b[31m")
	}
	for _, tt := range []struct {
		code  int
		addr  string
		words []string
	}{
		{1, closed, []string{"-probe", closed}},
		{1, "admin:" + closed, []string{"-probe", closed}},
		{1, "unix:" + filepath.Join(t.TempDir(), "none"), []string{"-probe", "none"}},
		{1, "admin:" + silent.Addr().String(), []string{"-probe", silent.Addr().String()}},
		{1, "admin:" + harness.StartHTTP(t, notAGateway), []string{"not a gateway"}},
		{1, "admin:" + harness.StartHTTP(t, teapot), []string{"not a gateway", "503"}},
		{2, "", []string{"-probe", "HOST:PORT"}},
		{2, "nonsense", []string{"-probe", "nonsense", "HOST:PORT"}},
		{2, "127.0.0.1:0", []string{"-probe", "65535"}},
		{2, "127.0.0.1:65536", []string{"-probe", "65535"}},
		{2, "admin:127.0.0.1:http", []string{"-probe", "65535"}},
		{2, "unix:", []string{"-probe", "path"}},
	} {
		_, stderr, code := harness.Run(t, nil, "-probe="+tt.addr)
		wantOneLine(t, stderr, code, tt.code, tt.words...)
	}
	_, stderr, code := harness.Run(t, nil, "-probe="+closed, "-status")
	wantOneLine(t, stderr, code, 2, "one action")
}
