package deploy_test

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

// release is a section of the CHANGELOG.
type release struct {
	version string // without v
	date    time.Time
}

var (
	section = regexp.MustCompile(`(?m)^## (.*)$`)
	// Semantic Versioning without build metadata, which tags have none of.
	numbered = regexp.MustCompile(`^\[((0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-rc\.[1-9]\d*)?)\] - (\d{4}-\d\d-\d\d)$`)
)

// releases returns those of the CHANGELOG, the newest first.
func releases(t *testing.T) (all []release) {
	t.Helper()
	for i, m := range section.FindAllStringSubmatch(readText(t, "../CHANGELOG.md"), -1) {
		if i == 0 && m[1] == "[Unreleased]" {
			continue
		}
		v := numbered.FindStringSubmatch(m[1])
		if v == nil {
			t.Fatalf("the CHANGELOG has %q, which is no [VERSION] - DATE", m[0])
		}
		date, err := time.Parse(time.DateOnly, v[6])
		if err != nil {
			t.Fatalf("%s: %v", m[0], err)
		}
		all = append(all, release{v[1], date})
	}
	if len(all) == 0 {
		t.Fatal("the CHANGELOG has no release")
	}
	return all
}

// compareVersions orders by the three numbers; what has -rc.N comes before them.
func compareVersions(a, b string) int {
	parts := func(v string) (n [4]int) {
		v, candidate, found := strings.Cut(v, "-rc.")
		if !found {
			candidate = strconv.Itoa(math.MaxInt)
		}
		for i, p := range strings.Split(v+"."+candidate, ".") {
			n[i], _ = strconv.Atoi(p)
		}
		return n
	}
	x, y := parts(a), parts(b)
	return slices.Compare(x[:], y[:])
}

func TestReleasesStandInTheChangelogNewestFirst(t *testing.T) {
	all := releases(t)
	for i, r := range all[1:] {
		if before := all[i]; compareVersions(before.version, r.version) <= 0 || before.date.Before(r.date) {
			t.Errorf("%s of %s stands above %s of %s", before.version, before.date.Format(time.DateOnly), r.version, r.date.Format(time.DateOnly))
		}
	}
	// Its tag is what packages and kits call it.
	newest := all[0].version
	if got := strings.TrimSpace(output(t, "sh", "version.sh", "v"+newest)); got != strings.Replace(newest, "-", "~", 1) {
		t.Errorf("packages call %s %s", newest, got)
	}
	for file, pattern := range map[string]string{
		"csharp/package.json":          `"version": "(.*)"`,
		"csharp/Gateway.Client.csproj": `<Version>(.*)</Version>`,
		"java/build.gradle":            `(?m)^version = '(.*)'`,
		"python/pyproject.toml":        `(?m)^version = "(.*)"`,
		"typescript/package.json":      `"version": "(.*)"`,
	} {
		if m := regexp.MustCompile(pattern).FindStringSubmatch(readText(t, "../clients/"+file)); m == nil || m[1] != newest {
			t.Errorf("clients/%s has the version %q, the CHANGELOG %s", file, m, newest)
		}
	}
	// Where this very commit has the tag of a version, the CHANGELOG has its section.
	tags, err := exec.Command("git", "tag", "--points-at", "HEAD", "v*").Output()
	if err != nil {
		t.Skip(err) // an archive of the sources
	}
	for tag := range strings.FieldsSeq(string(tags)) {
		if tag != "v"+newest {
			t.Errorf("this is %s, and the CHANGELOG's newest is %s", tag, newest)
		}
	}
}

func TestTheVersionOfAReleaseIsItsTag(t *testing.T) {
	maker, git := harness.LookPath(t, "make"), harness.LookPath(t, "git")
	dir := t.TempDir()
	// Nothing of the make that runs this test.
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "MAKE") || strings.HasPrefix(v, "MFLAGS=") || strings.HasPrefix(v, "VERSION=") || strings.HasPrefix(v, "COMMIT=")
	})
	do := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(env[:len(env):len(env)], "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	harness.WriteFile(t, filepath.Join(dir, "Makefile"), readText(t, "../Makefile"))
	do(git, "init", "--quiet")
	do(git, "add", "Makefile")
	commit := func() string {
		do(git, "commit", "--quiet", "--allow-empty", "-m", "Change something")
		return strings.TrimSpace(do(git, "rev-parse", "--short", "HEAD"))
	}
	says := func(built, packaged string) {
		t.Helper()
		if out := do(maker, "-n", "gateway"); !strings.Contains(out, "-X main.version="+built+" ") {
			t.Errorf("a build is not %s: %s", built, out)
		}
		if out := do(maker, "-n", "dist", "packages"); strings.Count(out, " '"+built+"' ") != 2 {
			t.Errorf("a release is not %s: %s", built, out)
		}
		if got := strings.TrimSpace(output(t, "sh", "version.sh", built)); got != packaged {
			t.Errorf("%s is packaged as %s, want %s", built, got, packaged)
		}
	}
	hash := commit()
	says(hash, "0~"+hash)
	do(git, "tag", "-a", "v1.2.3", "-m", "Release 1.2.3")
	do(git, "tag", "-a", "clients/go/v1.2.3", "-m", "Release 1.2.3") // that of a module inside
	says("v1.2.3", "1.2.3")
	hash = commit()
	says("v1.2.3-1-g"+hash, "1.2.3+1.g"+hash)
	harness.WriteFile(t, filepath.Join(dir, "Makefile"), readText(t, "../Makefile")+"\n# changed\n")
	says("v1.2.3-1-g"+hash+"-dirty", "1.2.3+1.g"+hash+".dirty")
	commit()
	do(git, "add", "Makefile")
	commit()
	do(git, "tag", "-a", "v1.3.0-rc.1", "-m", "Release 1.3.0-rc.1")
	says("v1.3.0-rc.1", "1.3.0~rc.1")
	hash = commit()
	says("v1.3.0-rc.1-1-g"+hash, "1.3.0~rc.1+1.g"+hash)
}
