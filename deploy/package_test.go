package deploy_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"gateway/internal/harness"
	"gateway/internal/manual"
)

var update = flag.Bool("update", false, "write the files that are generated")

const envIntro = `Settings of the gateway's service, each with its default. Take off the # of a line to change it; systemctl restart gateway reads this file.
/etc/gateway/gateway.conf takes the same settings as NAME=value, and systemctl reload gateway reads those again. What is here wins.
The secret is better in /etc/gateway/secret, with mode 0600.`

// manualDate is that of the manual page's last large change.
const manualDate = "2026-11-27"

// generated returns the files of package/ that are made of -help.
func generated(t testing.TB) map[string]string {
	t.Helper()
	help, stderr, code := harness.Run(t, nil, "-help")
	if code != 0 || stderr != "" {
		t.Fatalf("-help: code %d, %s", code, stderr)
	}
	h, err := manual.Parse(help)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"gateway.1":    h.Page("gateway", "TCP gateway to backends with sealed addresses", manualDate),
		"gateway.bash": h.Bash("gateway"),
		"gateway.zsh":  h.Zsh("gateway"),
		"gateway.fish": h.Fish("gateway"),
		"gateway.env":  h.Variables("GATEWAY_", envIntro),
	}
}

func TestPackageFilesAreThoseOfTheHelp(t *testing.T) {
	for name, want := range generated(t) {
		name = filepath.Join("package", name)
		if *update {
			if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := readText(t, name); got != want {
			t.Errorf("%s is not what -help says (go test ./deploy -run PackageFiles -update)", name)
		}
	}
}

// tool returns the path of a program, without which the test is skipped, unless it is
// make test-packages.
func tool(t testing.TB, name string) string {
	t.Helper()
	must := os.Getenv("NEED_PACKAGES") != ""
	harness.LeaveTo(t, must, "test-packages")
	path, err := exec.LookPath(name)
	if err != nil && must {
		t.Fatalf("%v (make test-packages installs it)", err)
	} else if err != nil {
		t.Skip(err)
	}
	return path
}

// output runs a command, which must succeed.
func output(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(tool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestPackageManualHasNothingToComplainOf(t *testing.T) {
	if said := output(t, "mandoc", "-W", "warning", "-T", "lint", "package/gateway.1"); said != "" {
		t.Errorf("mandoc: %s", said)
	}
	text := output(t, "mandoc", "-T", "ascii", "package/gateway.1")
	for line := range strings.Lines(text) { // bold and underlined by backspaces
		if len(line) > 400 {
			t.Errorf("a line is as long as %q", line)
		}
	}
}

func TestPackageVariablesAreAllInComments(t *testing.T) {
	var env []string
	for line := range strings.Lines(readText(t, "package/gateway.env")) {
		line = strings.TrimSpace(line)
		if line != "" && line[0] != '#' {
			t.Errorf("%q is no comment", line)
		}
		if strings.HasPrefix(line, "#GATEWAY_") && line != "#GATEWAY_SECRET=" {
			env = append(env, line[1:])
		}
	}
	if len(env) < 40 {
		t.Fatalf("there are %d variables", len(env))
	}
	// With every default as it stands there it is a configuration.
	command{env: append(env, "GATEWAY_SECRET="+harness.Secret)}.check(t)
}

// completionsOf asks a shell what may follow a line.
var completionsOf = map[string]func(t testing.TB, line string) []string{
	"bash": func(t testing.TB, line string) []string {
		return strings.Fields(output(t, "bash", "-c", `. package/gateway.bash
IFS=' ' read -ra COMP_WORDS <<<"${1//=/ = }"; COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _gateway
printf '%s\n' "${COMPREPLY[@]}"`, "-", line))
	},
	"fish": func(t testing.TB, line string) []string {
		var words []string
		for l := range strings.Lines(output(t, "fish", "-c", `source package/gateway.fish; complete -C $argv[1]`, line)) {
			word, _, _ := strings.Cut(strings.TrimSpace(l), "\t")
			words = append(words, word)
		}
		return words
	},
}

func TestPackageCompletionsKnowFlagsAndValues(t *testing.T) {
	for shell, complete := range completionsOf {
		t.Run(shell, func(t *testing.T) {
			for line, want := range map[string]string{
				"gateway -secret-f":         "-secret-file=",
				"gateway -vers":             "-version",
				"gateway -log-format=j":     "json",
				"gateway -tls-cert=main_te": "main_test.go",
			} {
				got := complete(t, line)
				for i, word := range got {
					_, value, found := strings.Cut(word, "=")
					if found && value != "" {
						got[i] = value
					}
				}
				if !slices.Equal(got, []string{want}) {
					t.Errorf("%q is completed by %q; want %q", line, got, want)
				}
			}
		})
	}
	t.Run("zsh", func(t *testing.T) {
		output(t, "zsh", "-n", "package/gateway.zsh")
	})
}

// packages makes packages of a version for this machine in a new folder, and returns
// the paths of the deb and the rpm.
func packages(t testing.TB, version string) (deb, rpm string) {
	t.Helper()
	tool(t, "rpm")
	dir := t.TempDir()
	output(t, "sh", "packages.sh", dir, version, "HEAD", runtime.GOARCH)
	find := func(pattern string) string {
		found, _ := filepath.Glob(filepath.Join(dir, pattern))
		if len(found) != 1 {
			t.Fatalf("there are %d files %s", len(found), pattern)
		}
		return found[0]
	}
	return find("*.deb"), find("*.rpm")
}

func TestPackagesAreInstalledStartedUpgradedAndRemoved(t *testing.T) {
	if os.Getenv("NEED_PACKAGES") == "" {
		t.Skip("installs packages over a copy of this system: make test-packages")
	}
	oldDeb, oldRPM := packages(t, "v1.2.3")
	newDeb, newRPM := packages(t, "v1.3.0")
	againDeb, againRPM := packages(t, "v1.3.0")
	for _, pair := range [][2]string{{newDeb, againDeb}, {newRPM, againRPM}} {
		if readText(t, pair[0]) != readText(t, pair[1]) {
			t.Errorf("%s has other bytes the second time", filepath.Base(pair[0]))
		}
	}
	for kind, files := range map[string][2]string{"deb": {oldDeb, newDeb}, "rpm": {oldRPM, newRPM}} {
		t.Run(kind, func(t *testing.T) {
			// In a mount namespace, where the root is this system below a layer in memory.
			out, err := exec.Command(tool(t, "unshare"), "--mount", "--propagation=private", "--net",
				"sh", "package/test.sh", kind, files[0], files[1]).CombinedOutput()
			if err != nil || !strings.HasSuffix(string(out), "\nthe packages do\n") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
