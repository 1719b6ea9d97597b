package deploy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

func TestConsulDefinitionsAreWhatConsulTakes(t *testing.T) {
	type check struct{ Name, TCP, Interval, Timeout, DeregisterCriticalServiceAfter string }
	var lobby struct {
		Name, ID, Address string
		Port              int
		Weights           struct{ Passing, Warning int }
		Check             check
	}
	var gateway struct {
		Service struct {
			Name  string `json:"name"`
			ID    string `json:"id"`
			Port  int    `json:"port"`
			Check struct {
				Name     string `json:"name"`
				TCP      string `json:"tcp"`
				Interval string `json:"interval"`
				Timeout  string `json:"timeout"`
			} `json:"check"`
		} `json:"service"`
	}
	var dns struct {
		DNS struct {
			EnableTruncate bool              `json:"enable_truncate"`
			ServiceTTL     map[string]string `json:"service_ttl"`
		} `json:"dns_config"`
	}
	for name, v := range map[string]any{"gateway.json": &gateway, "lobby.json": &lobby, "dns.json": &dns} {
		d := json.NewDecoder(strings.NewReader(readText(t, "consul/"+name)))
		d.DisallowUnknownFields()
		if err := d.Decode(v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := gateway.Service; s.Name != "gateway" || s.Check.TCP != fmt.Sprintf("127.0.0.1:%d", s.Port) {
		t.Errorf("gateway.json is %+v", s)
	}
	if lobby.Check.TCP != net.JoinHostPort(lobby.Address, strconv.Itoa(lobby.Port)) || lobby.Weights.Passing <= lobby.Weights.Warning {
		t.Errorf("lobby.json is %+v", lobby)
	}
	for _, text := range []string{
		gateway.Service.Check.Interval, gateway.Service.Check.Timeout, lobby.Check.Interval,
		lobby.Check.Timeout, lobby.Check.DeregisterCriticalServiceAfter, dns.DNS.ServiceTTL["*"],
	} {
		if d, err := time.ParseDuration(text); err != nil || d <= 0 {
			t.Errorf("%q is no time", text)
		}
	}
	if !dns.DNS.EnableTruncate {
		t.Error("without enable_truncate Consul leaves servers out and does not say so")
	}
	// Both pages start the gateway on the port that is registered, and seal the
	// name that is.
	for _, name := range consulPages {
		text := readText(t, name)
		for _, want := range []string{fmt.Sprintf("-addr=:%d ", gateway.Service.Port), "-resolver=127.0.0.1:8600", "-seal=srv:_" + lobby.Name + "._tcp.service.consul", "-seal=srv:" + lobby.Name + ".service.consul"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s has no %q", name, want)
			}
		}
	}
}

func TestTheConsulClientGoesRoundAGatewayThatIsGone(t *testing.T) {
	python := harness.LookPath(t, "python3")
	g := harness.Start(t)
	// Consul still lists one that is down. An empty address is the node's.
	answer := "["
	for i, addr := range []string{harness.ClosedPort(t), g.Addr} {
		host, port, _ := net.SplitHostPort(addr)
		if i > 0 {
			answer += ","
			answer += fmt.Sprintf(`{"Node":{"Address":%q},"Service":{"Address":"","Port":%s}}`, host, port)
		} else {
			answer += fmt.Sprintf(`{"Node":{"Address":"192.0.2.1"},"Service":{"Address":%q,"Port":%s}}`, host, port)
		}
	}
	answer += "]"
	asked := make(chan string, 100)
	consul := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.String()
		fmt.Fprint(w, answer)
	}))
	defer consul.Close()
	// The client, five times in one process, each time in an order of its own.
	const often = 5
	again := fmt.Sprintf("import runpy, sys\nsys.argv.pop(0)\nfor _ in range(%d): runpy.run_path(sys.argv[0], run_name='__main__')", often)
	out, err := exec.Command(python, "-c", again, "consul/client.py", strings.TrimSuffix(harness.Line(harness.StartEcho(t)), "\n"), consul.URL).CombinedOutput()
	if want := strings.Repeat("by "+g.Addr+": hello\n", often); err != nil || string(out) != want {
		t.Fatalf("it printed %q, %v; want %q", out, err, want)
	}
	for range often {
		if url := <-asked; url != "/v1/health/service/gateway?passing" {
			t.Fatalf("it asked for %s", url)
		}
	}
	if out, err := exec.Command(python, "consul/client.py", "nonsense", consul.URL).CombinedOutput(); err == nil || strings.Contains(string(out), "Traceback") {
		t.Errorf("a bad line: it printed %q, %v", out, err)
	}
}

func TestTheConsulDemoIsAProgramOfTheShell(t *testing.T) {
	sh := harness.LookPath(t, "sh")
	if out, err := exec.Command(sh, "-n", "consul/demo.sh").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	script := strings.NewReplacer("\\\n", " ", "$port", "8001").Replace(readText(t, "consul/demo.sh"))
	n := 0
	for _, m := range regexp.MustCompile(`"\$gateway"((?: +-[a-z][^ \n|&)]*)+)`).FindAllStringSubmatch(script, -1) {
		n++
		args := slices.DeleteFunc(strings.Fields(strings.ReplaceAll(m[1], `"`, "")), func(arg string) bool { return strings.HasPrefix(arg, "-secret-file") })
		c := command{env: []string{"GATEWAY_SECRET=" + harness.Secret}, args: args}
		if !slices.ContainsFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "-seal=") }) {
			c.check(t)
		} else if _, stderr, code := harness.Run(t, c.env, args...); code != 0 {
			t.Errorf("gateway%s: %s", m[1], stderr)
		}
	}
	if n < 2 {
		t.Errorf("it starts %d gateways", n)
	}
}

// What is missing is noticed at once, and named.
func TestTheConsulDemoSaysWhatIsMissing(t *testing.T) {
	harness.LookPath(t, "curl")
	harness.LookPath(t, "openssl")
	harness.LookPath(t, "python3")
	for _, test := range []struct{ name, consul, gateway, want string }{
		{"no Consul", "", harness.Binary(t), "consul is not installed"},
		{"a Consul that ends", "#!/bin/sh\necho no such port >&2\nexit 1\n", harness.Binary(t), "no such port"},
		{"no gateway", "#!/bin/sh\nsleep 60\n", filepath.Join(t.TempDir(), "gateway"), "make builds the gateway"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			bin := t.TempDir() // is all of PATH, so that a Consul of this machine is not found
			for _, tool := range []string{"sh", "cat", "curl", "basename", "dirname", "grep", "mktemp", "openssl", "python3", "rm", "seq", "sleep", "tr"} {
				if err := os.Symlink(harness.LookPath(t, tool), filepath.Join(bin, tool)); err != nil {
					t.Fatal(err)
				}
			}
			if test.consul != "" {
				if err := os.WriteFile(filepath.Join(bin, "consul"), []byte(test.consul), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, filepath.Join(bin, "sh"), "consul/demo.sh", test.gateway)
			cmd.Env, cmd.WaitDelay = []string{"PATH=" + bin}, time.Second
			began := time.Now()
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), test.want) {
				t.Errorf("%v, %s; want %q", err, out, test.want)
			}
			// In vain it waits for 15 s and more.
			if took := time.Since(began); took > 12*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}
