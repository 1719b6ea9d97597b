package process

import (
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// page fetches a page of the gateway's pprof. Compressed profiles are
// unpacked.
func page(t testing.TB, url string) (status int, body string) {
	t.Helper()
	client := http.Client{Timeout: harness.Patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	body = string(b)
	if z, err := gzip.NewReader(strings.NewReader(body)); err == nil {
		b, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		body = string(b)
	}
	return resp.StatusCode, body
}

func TestPprofShowsProfilesAndNoSecret(t *testing.T) {
	t.Parallel()
	p := harness.Start(t, "-pprof=127.0.0.1:0")
	base, _ := p.Log.WaitLine(t, "pprof is on", 1)["url"].(string)
	harness.Finish(t, harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))) // the secret has been in use

	for _, tt := range []struct {
		path   string
		status int
		says   string
	}{
		{"", 200, "goroutine"},
		{"heap", 200, ""},
		{"heap?debug=1", 200, "heap profile"},
		{"goroutine?debug=2", 200, "Serve("},
		{"allocs?debug=1", 200, ""},
		{"block?debug=1", 200, ""},
		{"mutex?debug=1", 200, ""},
		{"threadcreate?debug=1", 200, ""},
		{"symbol", 200, "num_symbols"},
		{"trace?seconds=0.01", 200, ""},
		{"profile?seconds=1", 200, ""},
		{"cmdline", 404, ""},
		{"cmdline?debug=1", 404, ""},
		{"../../debug/vars", 404, ""},
		{"../../", 404, ""},
	} {
		status, body := page(t, base+tt.path)
		if status != tt.status || !strings.Contains(body, tt.says) || body == "" {
			t.Errorf("%s: status %d, %d bytes, want status %d and %q", tt.path, status, len(body), tt.status, tt.says)
		}
		for _, secret := range []string{harness.Secret, "-secret="} {
			if strings.Contains(body, secret) {
				t.Errorf("%s shows %q", tt.path, secret)
			}
		}
	}
}

func TestPprofIsOffByDefault(t *testing.T) {
	t.Parallel()
	p := harness.Start(t)
	if strings.Contains(p.Log.String(), "pprof") {
		t.Error("the log has a line on pprof")
	}
	c := harness.Connect(t, p.Addr)
	fmt.Fprint(c, "GET /debug/pprof/ HTTP/1.0\r\n\r\n")
	harness.Expect(t, c, "HTTP/1.0 400 Bad Request\r\n")
}

func TestATakenPprofPortEndsTheGateway(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, stderr, code := harness.Run(t, nil, "-secret="+harness.Secret, "-addr=127.0.0.1:0", "-pidfile=", "-pprof="+taken.Addr().String())
	if code != 1 || !strings.HasPrefix(stderr, "gateway: -pprof: ") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

func TestAPublicPprofIsWarnedAbout(t *testing.T) {
	t.Parallel()
	for addr, public := range map[string]bool{
		"127.0.0.1:0": false, "[::1]:0": false, "localhost:0": false, ":0": true, "0.0.0.0:0": true, "[::]:0": true,
	} {
		stdout, stderr, code := harness.Run(t, nil, "-secret="+harness.Secret, "-check", "-pprof="+addr)
		if code != 0 || stdout == "" || strings.Contains(stderr, "level=WARN") != public || strings.Contains(stderr, "-pprof") != public {
			t.Errorf("-pprof=%s: exit code %d, %q", addr, code, stderr)
		}
	}
}
