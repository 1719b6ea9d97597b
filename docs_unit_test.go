package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// The systemd unit starts this gateway, and little else.

const unitFile = "deploy/gateway.service"

func TestTheUnitStartsTheInstalledGatewayWithoutASecretOnItsCommandLine(t *testing.T) {
	unit := readText(t, unitFile)
	m := regexp.MustCompile(`(?m)^ExecStart=(\S+)(.*)$`).FindAllStringSubmatch(unit, -1)
	if len(m) != 1 || m[0][1] != "/usr/local/bin/gateway" {
		t.Fatalf("ExecStart lines: %q", m)
	}
	// What systemd's LoadCredential leaves for the gateway.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(testSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	cfg, err := loadConfig(strings.Fields(m[0][2]))
	if err != nil {
		t.Fatal(err)
	}
	if string(cfg.Secrets[0]) != testSecret || cfg.secret != "" || cfg.secretFile != "" {
		t.Errorf("the secrets come from %q", cfg.SecretSources)
	}
	if !strings.Contains(unit, "\nLoadCredential=secret:") {
		t.Error("no LoadCredential=secret:")
	}
}

func TestTheUnitWaitsLongerThanTheDefaultDrain(t *testing.T) {
	m := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)$`).FindStringSubmatch(readText(t, unitFile))
	if m == nil {
		t.Fatal("no TimeoutStopSec= in seconds")
	}
	if n, _ := strconv.Atoi(m[1]); float64(n) <= defaultConfig().Drain.Seconds() {
		t.Errorf("TimeoutStopSec=%d; -drain is %v", n, defaultConfig().Drain)
	}
}

func TestTheUnitIsHardened(t *testing.T) {
	needTool(t, "systemd-analyze")
	// The threshold is in tenths of the scale from 0 to 10.
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", unitFile).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSystemdFindsNoMistakeInTheUnit(t *testing.T) {
	needTool(t, "systemd-analyze")
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
