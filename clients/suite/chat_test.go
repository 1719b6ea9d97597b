package suite

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

// An example is the chat client of a kit's README. It is built as by a stranger, who has
// copied the kit's folder and the page's code.
type example struct {
	kit   string // folder
	lang  string // of the code block
	file  string // what the code is saved as
	build func(t *testing.T, dir string, found map[string]string) []string
	waits bool // for the end of all that is said, before it says it
}

var examples = map[string]example{
	"typescript": {"typescript", "js", "chat.js", func(t *testing.T, dir string, found map[string]string) []string {
		kit := filepath.Join(dir, "node_modules", "gateway-client")
		copyTree(t, filepath.Join(dir, "kit"), kit)
		compile(t, kit, "sh", "build.sh")
		return []string{found["node"], "chat.js"}
	}, false},
	"csharp": {"csharp", "csharp", "Chat.cs", func(t *testing.T, dir string, found map[string]string) []string {
		compile(t, dir, found["mcs"], "-langversion:7.2", "-out:chat.exe", "Chat.cs", "-recurse:kit/Runtime/*.cs")
		return []string{found["mono"], "chat.exe"}
	}, false},
	"cpp": {"cpp", "cpp", "chat.cpp", func(t *testing.T, dir string, found map[string]string) []string {
		compile(t, dir, found["g++"], "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", "kit/include", "-o", "chat", "chat.cpp", "-pthread")
		return []string{filepath.Join(dir, "chat")}
	}, false},
	"go": {"go", "go", "chat.go", func(t *testing.T, dir string, found map[string]string) []string {
		// By the name that the module has here.
		module, err := os.ReadFile(filepath.Join(dir, "kit", "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		name := strings.Fields(string(module))[1]
		harness.WriteFile(t, filepath.Join(dir, "go.mod"), "module chat\n\ngo 1.26.0\n\nrequire "+name+" v0.0.0\n\nreplace "+name+" => ./kit\n")
		compile(t, dir, found["go"], "build", "-o", "chat.exe", "chat.go")
		return []string{filepath.Join(dir, "chat.exe")}
	}, false},
	"java": {"java", "java", "Chat.java", func(t *testing.T, dir string, found map[string]string) []string {
		compile(t, dir, found["javac"], "-d", "classes", "-sourcepath", "kit/src/main/java", "Chat.java")
		return []string{found["java"], "-cp", "classes", "Chat"}
	}, false},
	"gdscript": {"gdscript", "gdscript", "chat.gd", func(t *testing.T, dir string, found map[string]string) []string {
		return godot(t, dir, found["godot3-server"], filepath.Join(dir, "kit", "gateway"), abs(t, "suite", "drivers", "scene.gd"))
	}, true},
	"lua 5.4": luaExample("lua5.4"),
	"lua 5.1": luaExample("lua5.1"),
	"luajit":  luaExample("luajit"),
	"python": {"python", "python", "chat.py", func(t *testing.T, dir string, found map[string]string) []string {
		copyTree(t, filepath.Join(dir, "kit", "gateway_client"), filepath.Join(dir, "gateway_client"))
		return []string{found["python3"], "chat.py"}
	}, false},
}

func luaExample(program string) example {
	return example{"lua", "lua", "chat.lua", func(t *testing.T, dir string, found map[string]string) []string {
		copyTree(t, filepath.Join(dir, "kit", "gateway"), filepath.Join(dir, "gateway"))
		// Lua 5.1 looks for no gateway/init.lua in the folder it is started in.
		return []string{"env", "LUA_PATH=./?.lua;./?/init.lua;;", found[program], "chat.lua"}
	}, false}
}

// testExample has the README's chat client talk through the mock gateway. Its code is
// what stands there, but for the gateways' addresses.
func testExample(t *testing.T, k *kit, _ []string) {
	e, dir := examples[k.name], t.TempDir()
	copyTree(t, abs(t, e.kit), filepath.Join(dir, "kit"))
	page, err := os.ReadFile(filepath.Join(dir, "kit", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^```" + e.lang + "\n(.*?)^```$").FindSubmatch(page)
	if block == nil {
		t.Fatalf("the README has no %s block", e.lang)
	}
	heard := make(chan struct{}, 1000)
	backend := harness.StartBackend(t, func(c *net.TCPConn) {
		for lines := bufio.NewReader(c); ; heard <- struct{}{} {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			if _, err := io.WriteString(c, "you said "+line); err != nil {
				return
			}
		}
	})
	code := string(block[1])
	for name, addr := range map[string]string{"play1": harness.ClosedPort(t), "play2": startMock(t, backend)} {
		if !strings.Contains(code, name+".example.com:8000") {
			t.Errorf("the example dials no %s", name)
		}
		code = strings.ReplaceAll(code, name+".example.com:8000", addr)
	}
	if err := os.WriteFile(filepath.Join(dir, e.file), []byte(code), 0o644); err != nil {
		t.Fatal(err)
	}
	found := make(map[string]string)
	for _, name := range k.needs {
		if found[name], err = exec.LookPath(name); err != nil {
			t.Fatal(err)
		}
	}
	command := e.build(t, dir, found)

	said := chat(t, dir, append(command, "any line"), func(in io.Writer) {
		for range 20 { // some wait for an answer a little, others read in a thread
			if _, err := io.WriteString(in, "hello\n"); err != nil {
				return // the test fails for want of the answer
			}
			if e.waits {
				continue
			}
			select {
			case <-heard:
			case <-time.After(harness.Patience):
				return
			}
		}
	})
	if !strings.Contains(said, "you said hello\n") {
		t.Errorf("the chat client says %q", said)
	}
	if said := chat(t, dir, append(command, "fault:status=502"), func(io.Writer) {}); !strings.Contains(said, "what to do: ") {
		t.Errorf("of 502 the chat client says %q", said)
	}
}

// chat runs a program with what feed writes and returns all that it prints.
func chat(t *testing.T, dir string, command []string, feed func(in io.Writer)) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*harness.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	feed(in)
	in.Close()
	if err := cmd.Wait(); ctx.Err() != nil {
		t.Errorf("the chat client does not end: %v", err)
	}
	return strings.ReplaceAll(out.String(), "\r\n", "\n")
}

// startMock starts clients/mock in front of a backend.
func startMock(t *testing.T, backend string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "mock.exe")
	compile(t, abs(t, "mock"), "go", "build", "-o", program, ".")
	cmd := exec.Command(program, "-addr=127.0.0.1:0", "-backend="+backend)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(addr)
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}
