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

func TestTheUnitStartsTheInstalledGatewayWithoutASecretOnItsCommandLine(t *testing.T) {
	unit := readText(t, unitFile)
	m := regexp.MustCompile(`(?m)^ExecStart=(\S+)(.*)$`).FindAllStringSubmatch(unit, -1)
	if len(m) != 1 || m[0][1] != "/usr/local/bin/gateway" {
		t.Fatalf("ExecStart lines: %q", m)
	}
	// LoadCredential is the only source of the secret.
	gateway := command{env: []string{"CREDENTIALS_DIRECTORY=" + credentials(t)}, args: strings.Fields(m[0][2])}
	gateway.check(t)
	p, _ := gateway.start(t)
	line := p.Log.WaitLine(t, "listening", 1)
	if line["secrets"] != 1.0 || line["from"] != "$CREDENTIALS_DIRECTORY/secret" {
		t.Errorf("%v secrets come from %q", line["secrets"], line["from"])
	}
	c := harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))
	harness.Echo(t, c, "hello")
	c.Close()
	if !strings.Contains(unit, "\nLoadCredential=secret:") {
		t.Error("no LoadCredential=secret:")
	}
}

func TestTheUnitWaitsLongerThanTheDefaultDrain(t *testing.T) {
	m := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)$`).FindStringSubmatch(readText(t, unitFile))
	if m == nil {
		t.Fatal("no TimeoutStopSec= in seconds")
	}
	drain := command{}.drain(t)
	if n, _ := strconv.Atoi(m[1]); float64(n) <= drain.Seconds() {
		t.Errorf("TimeoutStopSec=%d; -drain is %v", n, drain)
	}
}

func TestTheUnitIsHardened(t *testing.T) {
	harness.NeedTool(t, "systemd-analyze")
	// The threshold is in tenths of the scale from 0 to 10.
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", unitFile).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSystemdFindsNoMistakeInTheUnit(t *testing.T) {
	harness.NeedTool(t, "systemd-analyze")
	self, err := os.Executable() // in place of the gateway, which is not installed here
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "gateway.service")
	text := strings.ReplaceAll(readText(t, unitFile), "/usr/local/bin/gateway", self)
	if err := os.WriteFile(copied, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", copied).CombinedOutput()
	if err != nil || strings.Contains(string(out), "gateway.service") {
		t.Errorf("%v\n%s", err, out)
	}
}
