package deploy_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

func TestTheComposeFileFitsTheImageAndTheGateway(t *testing.T) {
	file := manifest{parseYAML(t, readText(t, "compose.yaml"))}
	s := file.at("services/gateway")
	for path, want := range map[string]string{
		"build/context": "..", "build/dockerfile": "deploy/Dockerfile",
		"stop_signal": "SIGTERM", "secrets/0": "secret", "read_only": "true",
		"healthcheck/test/0": "CMD", "healthcheck/test/1": "/gateway", "healthcheck/test/2": "-probe=127.0.0.1:8000",
	} {
		if got := s.at(path).String(); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	if file.at("secrets/secret/file").String() == "" {
		t.Error("the secret is of no file")
	}
	secret := filepath.Join(t.TempDir(), "secret")
	harness.WriteFile(t, secret, harness.Secret+"\n")
	c := command{env: []string{"GATEWAY_PIDFILE="}}
	for _, arg := range s.at("command").list() {
		c.args = append(c.args, strings.Replace(arg.String(), "/run/secrets/secret", secret, 1))
	}
	if file, _ := c.value("secret-file"); file != secret {
		t.Errorf("the secret is read from %s", file)
	}
	c.check(t)

	var ports []string
	for _, p := range s.at("ports").list() {
		ports = append(ports, ":"+p.at("target").String()+"/"+p.at("protocol").String())
	}
	addr, _ := c.value("addr")
	kcp, _ := c.value("kcp")
	if want := []string{addr + "/tcp", kcp + "/udp"}; !slices.Equal(ports, want) {
		t.Errorf("ports %q, want %q", ports, want)
	}
	if expose := "\nEXPOSE " + strings.ReplaceAll(strings.Join(ports, " "), ":", "") + "\n"; !strings.Contains(readText(t, "Dockerfile"), expose) {
		t.Errorf("the image has no %q", expose)
	}
	duration := func(path string) time.Duration {
		d, err := time.ParseDuration(s.at(path).String())
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return d
	}
	if grace, drain := duration("stop_grace_period"), c.drain(t); grace < drain+5*time.Second {
		t.Errorf("killed after %v, but draining takes %v", grace, drain)
	}
	if timeout := duration("healthcheck/timeout"); timeout <= 3*time.Second {
		t.Errorf("a probe takes up to 3s, and has %v", timeout)
	}
	if n := s.at("ulimits/nofile/soft").String(); n != s.at("ulimits/nofile/hard").String() || len(n) < 6 {
		t.Errorf("%s descriptors", n)
	}
}
