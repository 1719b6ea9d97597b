package deploy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gateway/internal/harness"
)

// TestTheImageIsBuiltAndRuns builds the last stage of the Dockerfile, with a binary that
// is there already instead of the first stage, which would need a network.
func TestTheImageIsBuiltAndRuns(t *testing.T) {
	tool := harness.FindServer(t, "buildah", os.Getenv("NEED_IMAGE") != "", "test-image")
	if os.Getuid() != 0 && os.Getenv("NEED_IMAGE") == "" {
		t.Skip("buildah chroots only for root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dir := t.TempDir()
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, "gateway"), "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, stage, _ := strings.Cut(readText(t, "Dockerfile"), "\nFROM scratch\n")
	const copies = "COPY --from=build /gateway /gateway\n"
	if !strings.Contains(stage, copies) {
		t.Fatalf("the last stage has no %q", copies)
	}
	harness.WriteFile(t, filepath.Join(dir, "Dockerfile"), "FROM scratch\n"+strings.Replace(stage, copies, "COPY gateway /gateway\n", 1))

	store := t.TempDir()
	buildah := func(args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, tool, append([]string{"--root", filepath.Join(store, "root"), "--runroot", filepath.Join(store, "run"), "--storage-driver", "vfs"}, args...)...)
	}
	do := func(args ...string) string {
		t.Helper()
		cmd := buildah(args...)
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("buildah %q: %v\n%s%s", args, err, out, errs.String())
		}
		return string(out)
	}
	do("build", "--isolation", "chroot", "--format", "docker", "--tag", "gateway", dir)

	var image struct {
		Docker struct {
			Config struct {
				User, StopSignal     string
				Entrypoint, Cmd, Env []string
				ExposedPorts         map[string]any
				Healthcheck          struct{ Test []string }
			} `json:"config"`
			RootFS struct {
				Layers []string `json:"diff_ids"`
			} `json:"rootfs"`
		}
	}
	if err := json.Unmarshal([]byte(do("inspect", "--type", "image", "gateway")), &image); err != nil {
		t.Fatal(err)
	}
	c := image.Docker.Config
	got := fmt.Sprint(c.User, c.StopSignal, c.Entrypoint, c.Cmd, c.Healthcheck.Test, len(c.ExposedPorts), c.ExposedPorts["8000/tcp"] != nil, c.ExposedPorts["8000/udp"] != nil)
	if want := "65532:65532SIGTERM[/gateway][-addr=:8000][CMD /gateway -probe=127.0.0.1:8000]2truetrue"; strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
		t.Errorf("the image is %s, want %s", got, want)
	}
	if len(image.Docker.RootFS.Layers) != 1 || !slices.Contains(c.Env, "GATEWAY_PIDFILE=") {
		t.Errorf("layers %q, environment %q", image.Docker.RootFS.Layers, c.Env)
	}

	container := strings.TrimSpace(do("from", "--pull-never", "gateway"))
	mounted := strings.TrimSpace(do("mount", container))
	entries, err := os.ReadDir(mounted)
	if err != nil || len(entries) != 1 || entries[0].Name() != "gateway" {
		t.Errorf("the image holds %v, %v", entries, err)
	}
	do("umount", container)

	// Run as it says, but for an address of the test's own: the network is the host's.
	run := func(more []string, args ...string) *exec.Cmd {
		all := append([]string{"run", "--isolation", "chroot"}, more...)
		return buildah(append(append(all, container, "--"), args...)...)
	}
	cmd := run([]string{"--env", "GATEWAY_SECRET=" + harness.Secret}, append(c.Entrypoint, "-addr=127.0.0.1:0", "-log-format=json")...)
	log := new(harness.Log)
	cmd.Stdout, cmd.Stderr = io.Discard, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listening := log.WaitLine(t, "listening", 1)
	addr, pid := listening["addr"].(string), int(listening["pid"].(float64))
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || !strings.Contains(string(status), "\nUid:\t65532\t65532\t") {
		t.Errorf("it runs as somebody else, %v: %s", err, status)
	}
	probe := c.Healthcheck.Test[1:]
	probe[1] = "-probe=" + addr
	if out, err := run(nil, probe...).CombinedOutput(); err != nil {
		t.Errorf("the health check: %v, %s", err, out)
	}
	harness.Echo(t, harness.OpenTunnel(t, addr, harness.StartEcho(t)), "hello")
	// Its own process, not buildah, which would kill it.
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	log.WaitLine(t, "draining", 1)
	if out, err := run(nil, probe...).CombinedOutput(); err == nil {
		t.Errorf("the health check is content with a port that is closed: %s", out)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil { // and no more patience
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ends with %v: %s", err, log.Tail())
	}
}
