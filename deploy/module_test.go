package deploy_test

import (
	"archive/zip"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// sources copies the tree without what is built there.
func sources(t *testing.T, to string) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch d.Name() {
		case ".git", "bin", "dist", "node_modules":
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		name := filepath.Join(to, strings.TrimPrefix(path, ".."))
		if d.IsDir() {
			return os.MkdirAll(name, 0o755)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(name, text, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// publish puts a module into a folder that is a module proxy, as proxies do: without the
// modules inside of it.
func publish(t *testing.T, proxy, module, version, dir string) {
	t.Helper()
	to := filepath.Join(proxy, filepath.FromSlash(module), "@v")
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(to, version+".zip"))
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if d.IsDir() {
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && rel != "." {
				return fs.SkipDir
			}
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		w, err := z.Create(module + "@" + version + "/" + filepath.ToSlash(rel))
		if err == nil {
			_, err = w.Write(text)
		}
		return err
	})
	if err == nil {
		err = z.Close()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"list":            version + "\n",
		version + ".info": fmt.Sprintf("{%q: %q}", "Version", version),
		version + ".mod":  readText(t, filepath.Join(dir, "go.mod")),
	} {
		if err := os.WriteFile(filepath.Join(to, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPackagesAreNotNeededWhereTheModuleIsPublished(t *testing.T) {
	if os.Getenv("NEED_PACKAGES") == "" {
		t.Skip("builds all under another name: make test-packages")
	}
	const module = "example.com/gateway" // RFC 2606: nobody's
	dir, proxy, bin := t.TempDir(), t.TempDir(), t.TempDir()
	sources(t, dir)
	output(t, "sh", filepath.Join(dir, "deploy", "module.sh"), module)
	version := "v" + releases(t)[0].version
	publish(t, proxy, module, version, dir)
	publish(t, proxy, module+"/clients/go", version, filepath.Join(dir, "clients", "go"))

	// Of the rest, what has been downloaded does; nothing of this is kept.
	modules := strings.TrimSpace(output(t, "go", "env", "GOMODCACHE"))
	upstream := strings.TrimSpace(output(t, "go", "env", "GOPROXY"))
	env := append(os.Environ(), "GOBIN="+bin, "GOMODCACHE="+t.TempDir(), "GOFLAGS=-modcacherw", "GOSUMDB=off", "GOWORK=off",
		"GOPROXY=file://"+proxy+",file://"+filepath.Join(modules, "cache", "download")+","+upstream)
	do := func(in string, args ...string) string {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir, cmd.Env = in, env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	do(bin, "go", "install", module+"@"+version)
	program := filepath.Join(bin, "gateway")
	if runtime.GOOS == "windows" {
		program += ".exe"
	}
	if got := do(bin, program, "-version"); !strings.HasPrefix(got, "gateway "+version+" go1.") {
		t.Errorf("it says it is %s", got)
	}

	// A bot takes the client's module.
	bot := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":  "module bot\n\ngo 1.26.0\n",
		"main.go": "package main\n\nimport \"" + module + "/clients/go/tunnel\"\n\nfunc main() { _ = tunnel.Dialer{} }\n",
	} {
		if err := os.WriteFile(filepath.Join(bot, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	do(bot, "go", "get", module+"/clients/go@"+version)
	do(bot, "go", "build", "-o", "bot.exe", ".")

	// What is in the tree still fits together: tests are built by vet.
	env = append(env, "GOMODCACHE="+modules, "GOWORK=")
	do(dir, "go", "vet", "./e2e/roaming", "./demo/...", "./clients/...", "./internal/resume/...")
}
