package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
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
		d := json.NewDecoder(strings.NewReader(readText(t, "deploy/consul/"+name)))
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
	python := lookPath(t, "python3")
	g := startGateway(t, nil)
	// Consul still lists one that is down. An empty address is the node's.
	answer := "["
	for i, addr := range []string{closedPort(t), g.addr} {
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
	for range 5 { // in an order of its own each time
		out, err := exec.Command(python, "deploy/consul/client.py", strings.TrimSuffix(sealed(t, startEcho(t)), "\n"), consul.URL).CombinedOutput()
		if want := "by " + g.addr + ": hello\n"; err != nil || string(out) != want {
			t.Fatalf("it printed %q, %v; want %q", out, err, want)
		}
		if url := <-asked; url != "/v1/health/service/gateway?passing" {
			t.Fatalf("it asked for %s", url)
		}
	}
	if out, err := exec.Command(python, "deploy/consul/client.py", "nonsense", consul.URL).CombinedOutput(); err == nil || strings.Contains(string(out), "Traceback") {
		t.Errorf("a bad line: it printed %q, %v", out, err)
	}
}

func TestTheConsulDemoIsAProgramOfTheShell(t *testing.T) {
	sh := lookPath(t, "sh")
	if out, err := exec.Command(sh, "-n", "deploy/consul/demo.sh").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Setenv("GATEWAY_SECRET", testSecret)
	script := strings.NewReplacer("\\\n", " ", "$port", "8001").Replace(readText(t, "deploy/consul/demo.sh"))
	n := 0
	for _, m := range regexp.MustCompile(`"\$gateway"((?: +-[a-z][^ \n|&)]*)+)`).FindAllStringSubmatch(script, -1) {
		n++
		args := slices.DeleteFunc(strings.Fields(strings.ReplaceAll(m[1], `"`, "")), func(arg string) bool { return strings.HasPrefix(arg, "-secret-file") })
		if _, err := loadConfig(args); err != nil {
			t.Errorf("gateway%s: %v", m[1], err)
		}
	}
	if n < 2 {
		t.Errorf("it starts %d gateways", n)
	}
}
