package suite

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"gateway/internal/harness"
)

// needKits makes a kit whose runtime is missing a failure: in CI, which installs them
// (make test-clients).
var needKits = os.Getenv("NEED_KITS") == "1"

// A kit is a client in one language, with a driver: a program that takes a MODE,
// GATEWAYS and LINES, each several by commas, MILLISECONDS and a TEXT, and prints one
// line.
//
//	talk     sends the text by a plain tunnel, finishes writing, and prints
//	         "ok plain " and all it reads
//	resume   the same by a resumable one, if the gateway has it: "ok resumable "
//	bulk     sends that many bytes through an echo and checks them: "ok N resumed"
//	again    the same, and calls reconnect: behind dial, in the events, and
//	         meanwhile, where the kit can do two things at a time
//	told     writes that many bytes to an echo at once, calls reconnect when that is
//	         stuck, and checks what it reads: "ok N resumed"; a kit for one thread, whose
//	         reconnect nobody can call, is given short times as by silent
//	silent   the same without a call, with 500 ms each for silence and patience
//	leave    the same, and closes what is stuck: "closed in time", a second; a kit for
//	         one thread in the event that tells of the loss
//	vectors  answers the requests of vectors_test.go on its standard input
//
// Of a GatewayError it prints "error STATUS ADVICE". The first line is given to dial,
// the others come by the callback for new lines.
type kit struct {
	name    string
	needs   []string // programs that have to be there
	command func(t *testing.T, dir string, found map[string]string) []string
	without []string // scenarios that do not fit
	slow    bool     // its numbers are: of storms a smaller one does

	miniGame bool // gateways may be wx://
	kcp      bool // gateways may be kcp://
}

// driver returns how a driver is run that needs no building.
func driver(program, file string, more ...string) func(*testing.T, string, map[string]string) []string {
	return func(t *testing.T, _ string, found map[string]string) []string {
		path, err := filepath.Abs(filepath.Join("drivers", file))
		if err != nil {
			t.Fatal(err)
		}
		return append([]string{found[program], path}, more...)
	}
}

var kits = []kit{
	{name: "typescript", needs: []string{"node", "tsc"}, command: buildTypeScript, miniGame: true},
	{name: "csharp", needs: []string{"mcs", "mono"}, command: buildCSharp, without: []string{"WebSocket"}, slow: true},
	{name: "cpp", needs: []string{"g++"}, command: buildCPP, without: []string{"WebSocket", "TLS"}, kcp: true},
	{name: "java", needs: []string{"javac", "java"}, command: buildJava, without: []string{"WebSocket"}, slow: true},
	{name: "lua 5.4", needs: []string{"lua5.4"}, command: driver("lua5.4", "driver.lua"), without: []string{"WebSocket", "TLS"}, slow: true},
	{name: "lua 5.1", needs: []string{"lua5.1"}, command: driver("lua5.1", "driver.lua"), without: []string{"WebSocket", "TLS"}, slow: true},
	{name: "luajit", needs: []string{"luajit"}, command: driver("luajit", "driver.lua"), without: []string{"WebSocket", "TLS"}},
	{name: "python", needs: []string{"python3"}, command: driver("python3", "driver.py")},
	{name: "python asyncio", needs: []string{"python3"}, command: driver("python3", "driver.py", "aio"),
		without: []string{"vectors", "README", "WebSocket"}},
	{name: "go", needs: []string{"go"}, command: buildGo, without: []string{"WebSocket"}},
	// Godot's sockets cannot finish writing.
	{name: "gdscript", needs: []string{"godot3-server"}, command: buildGDScript, without: []string{"half-close"}, slow: true},
}

// buildGDScript makes a project of Godot's. What the engine prints is taken away.
func buildGDScript(t *testing.T, dir string, found map[string]string) []string {
	return godot(t, dir, found["godot3-server"], abs(t, "gdscript", "gateway"), abs(t, "suite", "drivers", "driver.gd"))
}

func godot(t *testing.T, dir, engine, kit, script string) []string {
	copyTree(t, kit, filepath.Join(dir, "gateway"))
	text, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(script)
	for file, text := range map[string]string{
		"project.godot": "config_version=4\n",
		name:            string(text),
		"run.sh": `cd "$(dirname "$0")" && export HOME="$PWD" IN="$(mktemp in.XXXXXX)" && cat >"$IN" && export IN="$PWD/$IN"
` + engine + ` -s ` + name + ` "$@" >out.$$ 2>errors.$$
sed -n 's/^> //p' out.$$
if grep -q 'SCRIPT ERROR' errors.$$; then cat errors.$$ >&2; exit 1; fi
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return []string{"sh", filepath.Join(dir, "run.sh")}
}

// buildGo builds the driver inside a copy of the kit, whose session it takes apart.
func buildGo(t *testing.T, dir string, found map[string]string) []string {
	copyTree(t, abs(t, "go"), dir)
	text, err := os.ReadFile(filepath.Join("drivers", "driver.go"))
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "driver", "main.go")
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	text = bytes.TrimPrefix(text, []byte("//go:build ignore\n"))
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
	compile(t, dir, found["go"], "build", "-o", "driver.exe", "./driver")
	return []string{filepath.Join(dir, "driver.exe")}
}

func buildTypeScript(t *testing.T, dir string, found map[string]string) []string {
	compile(t, abs(t, "typescript"), "sh", "build.sh", dir)
	compile(t, dir, found["node"], "--input-type=module", "-e", "import { Dialer } from '"+dir+"/esm/index.js'; if (!Dialer) throw 1")
	return []string{found["node"], abs(t, "suite", "drivers", "driver.js"), dir}
}

// ikcp is the folder of ikcp.c and ikcp.h, which the C++ kit takes from the game.
var ikcp = os.Getenv("IKCP")

func buildCPP(t *testing.T, dir string, found map[string]string) []string {
	flags := []string{"-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"}
	args := append(flags, "-std=c++17", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-I", abs(t, "cpp", "include"),
		"-o", filepath.Join(dir, "driver"), "driver.cpp", "-pthread")
	if ikcp != "" { // somebody else's, with their warnings
		compile(t, dir, found["g++"], append(flags, "-x", "c++", "-c", filepath.Join(ikcp, "ikcp.c"), "-o", "ikcp.o")...)
		args = append(args, "-DWITH_KCP", "-isystem", ikcp, filepath.Join(dir, "ikcp.o"))
	} else if needKits {
		t.Fatal("IKCP names no folder with ikcp.c (make test-clients)")
	}
	compile(t, abs(t, "suite", "drivers"), found["g++"], args...)
	return []string{filepath.Join(dir, "driver")}
}

func buildCSharp(t *testing.T, dir string, found map[string]string) []string {
	sources, err := filepath.Glob(abs(t, "csharp", "Runtime", "*.cs"))
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "driver.exe")
	compile(t, dir, found["mcs"], append([]string{"-langversion:7.2", "-out:" + program, abs(t, "suite", "drivers", "Driver.cs")}, sources...)...)
	return []string{found["mono"], program}
}

func buildJava(t *testing.T, dir string, found map[string]string) []string {
	sources, err := filepath.Glob(abs(t, "java", "src", "main", "java", "io", "gateway", "client", "*.java"))
	if err != nil {
		t.Fatal(err)
	}
	compile(t, dir, found["javac"], append([]string{"--release", "8", "-Xlint:all,-options", "-Werror", "-d", dir,
		abs(t, "suite", "drivers", "java", "Driver.java")}, sources...)...)
	return []string{found["java"], "-cp", dir, "io.gateway.client.Driver"}
}

// build returns the command that runs a kit's driver.
func (k *kit) build(t *testing.T) []string {
	t.Helper()
	if k.needs[0] != "go" {
		harness.LeaveTo(t, needKits, "test-clients")
	}
	found := make(map[string]string)
	for _, name := range k.needs {
		path, err := exec.LookPath(name)
		if err != nil {
			if needKits {
				t.Fatal(err)
			}
			t.Skipf("%v (make test-clients installs it)", err)
		}
		found[name] = path
	}
	return k.command(t, t.TempDir(), found)
}

// compile runs a compiler.
func compile(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// abs returns the absolute path of a file of the clients'.
func abs(t *testing.T, parts ...string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(append([]string{".."}, parts...)...))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a driver to its end, with what it reads, and returns what it prints.
func run(t *testing.T, input string, command []string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*harness.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], append(command[1:len(command):len(command)], args...)...)
	cmd.WaitDelay = time.Second
	return output(t, cmd, input)
}
