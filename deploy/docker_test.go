package deploy_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gateway/internal/harness"
)

func TestTheDockerfileBuildsFromWhatItCopies(t *testing.T) {
	harness.LookPath(t, "go")
	text := strings.ReplaceAll(readText(t, "Dockerfile"), "\\\n", " ")
	ignored := readText(t, "Dockerfile.dockerignore")
	dir := t.TempDir()
	for _, m := range regexp.MustCompile(`(?m)^COPY ([^-].*) (\S+)$`).FindAllStringSubmatch(text, -1) {
		for pattern := range strings.FieldsSeq(m[1]) {
			if !strings.Contains(ignored, "\n!"+pattern+"\n") {
				t.Errorf("Dockerfile.dockerignore hides %s", pattern)
			}
			names, err := filepath.Glob(filepath.Join("..", pattern))
			if err != nil || len(names) == 0 {
				t.Fatalf("COPY %s: nothing there, %v", pattern, err)
			}
			for _, name := range names {
				info, err := os.Stat(name)
				if err == nil && info.IsDir() {
					err = os.CopyFS(filepath.Join(dir, m[2]), os.DirFS(name))
				} else if err == nil {
					var b []byte
					if b, err = os.ReadFile(name); err == nil {
						err = os.MkdirAll(filepath.Join(dir, m[2]), 0o755)
					}
					if err == nil {
						err = os.WriteFile(filepath.Join(dir, m[2], filepath.Base(name)), b, 0o644)
					}
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "out.exe"), ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	_, goVersion, _ := strings.Cut(readText(t, "../go.mod"), "\ngo ")
	goVersion = regexp.MustCompile(`^\d+\.\d+`).FindString(goVersion)
	user := manifests(t)["Deployment gateway"].at("spec/template/spec/securityContext/runAsUser").String()
	for _, want := range []string{
		"FROM --platform=$BUILDPLATFORM golang:" + goVersion + " AS build\n", "GOOS=$TARGETOS GOARCH=$TARGETARCH ", "CGO_ENABLED=0 go build -trimpath ",
		"-X main.version=$VERSION -X main.commit=$COMMIT", "\nFROM scratch\n",
		"\nUSER " + user + ":" + user + "\n", `ENTRYPOINT ["/gateway"]`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the Dockerfile has no %q", want)
		}
	}

	// What it runs without the manifests.
	image := command{env: []string{"GATEWAY_SECRET=" + harness.Secret}}
	for _, m := range regexp.MustCompile(`(?m)^ENV (GATEWAY_\w+)=(.*)$`).FindAllStringSubmatch(text, -1) {
		image.env = append(image.env, m[1]+"="+m[2])
	}
	if m := regexp.MustCompile(`(?m)^CMD (.*)$`).FindStringSubmatch(text); m == nil || json.Unmarshal([]byte(m[1]), &image.args) != nil {
		t.Fatal("no CMD")
	}
	image.check(t)
	if addr, _ := image.value("addr"); addr != ":"+regexp.MustCompile(`(?m)^EXPOSE (\d+)/tcp `).FindStringSubmatch(text)[1] {
		t.Errorf("it listens on %s", addr)
	}
	if _, written := image.start(t); len(written) != 0 {
		t.Errorf("it writes %q, and nothing can be written", written)
	}
}
