package deploy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// The systemd unit starts this gateway, and little else.

const unitFile = "gateway.service"

// units are those that start a gateway.
var units = []string{unitFile, "gateway@.service"}

// startLine returns the arguments of the unit's gateway.
func startLine(t *testing.T, unit string) []string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^ExecStart=(\S+)(.*)$`).FindAllStringSubmatch(readText(t, unit), -1)
	if len(m) != 1 || m[0][1] != "/usr/local/bin/gateway" {
		t.Fatalf("ExecStart lines: %q", m)
	}
	return strings.Fields(m[0][2])
}

func TestTheUnitStartsTheInstalledGatewayWithoutASecretOnItsCommandLine(t *testing.T) {
	dir := t.TempDir()
	harness.WriteFile(t, filepath.Join(dir, "a.conf"), "addr=127.0.0.1:0\nretry=2\n")
	harness.WriteFile(t, filepath.Join(dir, "gateway.conf"), "retry=2\n")
	for _, unit := range units {
		args := startLine(t, unit)
		for i, arg := range args {
			args[i] = strings.NewReplacer("/etc/gateway", dir, "%i", "a").Replace(arg)
		}
		// LoadCredential is the only source of the secret.
		gateway := command{env: []string{"CREDENTIALS_DIRECTORY=" + credentials(t), "CONFIGURATION_DIRECTORY=" + dir}, args: args}
		gateway.check(t)
		p, _ := gateway.start(t)
		line := p.Log.WaitLine(t, "listening", 1)
		if line["secrets"] != 1.0 || line["from"] != "$CREDENTIALS_DIRECTORY/secret" {
			t.Errorf("%v secrets come from %q", line["secrets"], line["from"])
		}
		c := harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))
		harness.Echo(t, c, "hello")
		c.Close()
		if !strings.Contains(readText(t, unit), "\nLoadCredential=secret:") {
			t.Errorf("%s: no LoadCredential=secret:", unit)
		}
	}
}

func TestTheUnitWaitsLongerThanTheDefaultDrain(t *testing.T) {
	for _, unit := range units {
		m := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)$`).FindStringSubmatch(readText(t, unit))
		if m == nil {
			t.Fatalf("%s: no TimeoutStopSec= in seconds", unit)
		}
		drain := command{}.drain(t)
		if n, _ := strconv.Atoi(m[1]); float64(n) <= drain.Seconds() {
			t.Errorf("%s: TimeoutStopSec=%d; -drain is %v", unit, n, drain)
		}
	}
}

func TestTheUnitIsHardened(t *testing.T) {
	harness.NeedTool(t, "systemd-analyze")
	for _, unit := range units {
		// The threshold is in tenths of the scale from 0 to 10.
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", unit).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}

// The two units differ in what an instance has of its own, and in nothing else.
func TestTheUnitOfAnInstanceIsTheOther(t *testing.T) {
	lines := func(unit string) (list []string) {
		_, text, _ := strings.Cut(readText(t, unit), "[Unit]")
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "#") && strings.TrimSpace(line) != "" {
				list = append(list, line)
			}
		}
		return list
	}
	single := strings.NewReplacer(
		"TCP gateway to", "TCP gateway %i to",
		"gateway -addr=:8000", "gateway -config=/etc/gateway/%i.conf -reuse=1",
		"RuntimeDirectory=gateway", "RuntimeDirectory=gateway-%i",
		"%t/gateway", "%t/gateway-%i",
		"EnvironmentFile=-/etc/gateway/gateway.env\n", "",
	).Replace(strings.Join(lines(unitFile), ""))
	if of := strings.Join(lines("gateway@.service"), ""); of != single {
		t.Errorf("gateway@.service is\n%s\nwant\n%s", of, single)
	}
}

func TestSystemdFindsNoMistakeInTheUnit(t *testing.T) {
	harness.NeedTool(t, "systemd-analyze")
	self, err := os.Executable() // in place of the gateway, which is not installed here
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	version, _ := strconv.Atoi(strings.Fields(string(out))[1])
	dir := t.TempDir()
	for _, unit := range append(units, "gateway.socket") {
		text := strings.ReplaceAll(readText(t, unit), "/usr/local/bin/gateway", self)
		if version < 253 { // which says that it does not know this, and goes on
			text = strings.ReplaceAll(text, "Type=notify-reload\n", "")
		}
		unit = strings.Replace(unit, "@.", "@a.", 1)
		harness.WriteFile(t, filepath.Join(dir, unit), text)
	}
	for _, unit := range []string{"gateway.service", "gateway@a.service", "gateway.socket"} {
		out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", filepath.Join(dir, unit)).CombinedOutput()
		if err != nil || strings.Contains(string(out), "gateway") {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}
