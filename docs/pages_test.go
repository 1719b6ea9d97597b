package docs_test

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// What all documents have in common: both languages say the same, links lead
// somewhere, commands are such that the gateway and make take.

func TestDocumentsHaveTheSameStructureInBothLanguages(t *testing.T) {
	for _, names := range translated {
		t.Run(names[0], func(t *testing.T) {
			compareStructure(t, readDocument(t, names[0]), readDocument(t, names[1]))
		})
	}
}

func compareStructure(t *testing.T, en, zh *document) {
	var levels [2][]int
	for i, d := range []*document{en, zh} {
		for _, h := range d.headings {
			levels[i] = append(levels[i], h.level)
		}
	}
	if !slices.Equal(levels[0], levels[1]) {
		t.Errorf("the levels of the headings are %v in English and %v in Chinese", levels[0], levels[1])
	}

	if len(en.blocks) != len(zh.blocks) {
		t.Fatalf("%d code blocks in English, %d in Chinese", len(en.blocks), len(zh.blocks))
	}
	for i := range en.blocks {
		if a, b := en.blocks[i].withoutComments(), zh.blocks[i].withoutComments(); a != b {
			t.Errorf("code block %d is\n%s\nin English and\n%s\nin Chinese", i+1, a, b)
		}
	}

	if len(en.tables) != len(zh.tables) {
		t.Fatalf("%d tables in English, %d in Chinese", len(en.tables), len(zh.tables))
	}
	for i := range en.tables {
		a, b := en.tables[i], zh.tables[i]
		if len(a) != len(b) {
			t.Errorf("table %d has %d rows in English, %d in Chinese", i+1, len(a), len(b))
			continue
		}
		for j := range a {
			if len(a[j]) != len(a[0]) || len(b[j]) != len(a[0]) {
				t.Errorf("row %d of table %d has %d cells in English, %d in Chinese, its head %d", j+1, i+1, len(a[j]), len(b[j]), len(a[0]))
			}
		}
	}
}

func TestDocumentedLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, name := range documents {
		for _, m := range link.FindAllStringSubmatch(readDocument(t, name).text, -1) {
			target, anchor, hasAnchor := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") { // the network is not asked
				continue
			}
			file := name
			if target != "" {
				file = path.Join(path.Dir(name), target)
			}
			if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(file))); err != nil {
				t.Errorf("%s: %v", name, err)
			} else if hasAnchor && !slices.ContainsFunc(readDocument(t, file).headings, func(h heading) bool { return h.anchor() == anchor }) {
				t.Errorf("%s: %s has no heading with the anchor %q", name, file, anchor)
			}
		}
	}
	for _, names := range translated {
		for i, name := range names {
			if other := path.Base(names[1-i]); !strings.Contains(readDocument(t, name).text, "]("+other+")") {
				t.Errorf("%s does not link to %s", name, other)
			}
		}
	}
}

func TestDocumentedMakeTargetsExist(t *testing.T) {
	makefile := readText(t, "Makefile")
	used := regexp.MustCompile("(?m)(?:^|`)make((?: [a-z-]+)+)")
	for _, name := range readmes {
		n := 0
		for _, m := range used.FindAllStringSubmatch(readText(t, name), -1) {
			for _, target := range strings.Fields(m[1]) {
				n++
				if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(target) + `:`).MatchString(makefile) {
					t.Errorf("%s: the Makefile has no target %q", name, target)
				}
			}
		}
		if n < 2 {
			t.Errorf("%s names %d make targets", name, n)
		}
	}
}

func TestDocumentedCommandsUseRealFlagsAndVariables(t *testing.T) {
	dir := t.TempDir()
	keys, _, code := harness.Run(t, nil, "-keygen")
	if code != 0 {
		t.Fatalf("-keygen: code %d", code)
	}
	for name, text := range map[string]string{"secret": harness.Secret + "\n", "keys.json": keys, "gateway.conf": "retry=2\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	harness.WriteCertificate(t, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), "gateway.test")
	files := []string{"secret", "keys.json", "cert.pem", "key.pem", "gateway.conf"}
	variables := map[string]bool{"GATEWAY_NAME": true} // NAME stands for any
	for _, s := range settings(t) {
		variables[s.env()] = true
	}
	command := regexp.MustCompile("(?m)(?:^|[/(`])gateway((?: +-[a-z][^ \\n|&)'`]*)+)")
	variable := regexp.MustCompile(`\bGATEWAY_[A-Z_0-9]+`)
	assignment := regexp.MustCompile(`(?m)^(GATEWAY_[A-Z_0-9]+)=(.*)$`)
	for _, name := range append([]string{"deploy/gateway.service"}, documents...) {
		text := strings.ReplaceAll(readText(t, name), "\\\n", " ")
		for _, m := range command.FindAllStringSubmatch(text, -1) {
			args := strings.Fields(strings.NewReplacer(`"`, "", "$line", "U2FsdGVkX1", "$token", "eyJ").Replace(m[1]))
			for i, arg := range args {
				if head, file, _ := strings.Cut(arg, "="); slices.Contains(files, file) {
					args[i] = head + "=" + filepath.Join(dir, file)
				}
			}
			if said := mistakeIn(t, args); said != "" {
				t.Errorf("%s: gateway%s: %s", name, m[1], said)
			}
		}
		for _, v := range variable.FindAllString(text, -1) {
			if !variables[v] {
				t.Errorf("%s: no setting has the variable %s", name, v)
			}
		}
		for _, m := range assignment.FindAllStringSubmatch(text, -1) {
			if said := check(t, append(withSecret, m[1]+"="+strings.Trim(m[2], `"`))); said != "" {
				t.Errorf("%s: %s: %s", name, m[0], said)
			}
		}
	}
}

// mistakeIn returns what the gateway finds wrong with a command line of the
// documents, in which the secret may be left out. Of an action that does its work
// only a wrong usage counts.
func mistakeIn(t *testing.T, args []string) string {
	t.Helper()
	for _, arg := range args {
		switch head, _, _ := strings.Cut(arg, "="); head {
		case "-seal", "-open", "-keygen", "-version", "-help", "-check", "-status", "-tunnels", "-cut":
			if _, stderr, code := harness.Run(t, append(slices.Clip(withSecret), "GATEWAY_ADMIN=unix:none"), args...); code == 2 {
				return stderr
			}
			return ""
		}
	}
	return check(t, withSecret, args...)
}

// A pasted command that makes a secret must not replace the one in use.
func TestDocumentedCommandsReplaceNoSecret(t *testing.T) {
	made := regexp.MustCompile(`(?:openssl rand|-keygen|"k":).*> *([^ )|;]+)\)`)
	n := 0
	for _, name := range documents {
		for _, block := range readDocument(t, name).blocks {
			for line := range strings.Lines(block.text) {
				m := made.FindStringSubmatch(line)
				if m == nil || block.lang != "sh" {
					continue
				}
				n++
				if guard := fmt.Sprintf("[ -e %s ] || ", m[1]); !strings.HasPrefix(line, guard) && !strings.Contains(line, "fresh.json") {
					t.Errorf("%s: %s replaces %s; begin with %q", name, strings.TrimSpace(line), m[1], guard)
				}
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d commands make secrets", n)
	}
}

// notFlags are the words in the form of a flag that are none of the gateway's.
var notFlags = []string{
	"a", "md", "pass", "k", "pbkdf2", // openssl's
	"help", "name", // which -help leaves out, and any
	"ws-frame", // which is said not to be there
}

func TestDocumentedFlagsExist(t *testing.T) {
	known := make(map[string]bool)
	for _, name := range notFlags {
		known[name] = true
	}
	for _, s := range settings(t) {
		known[s.name] = true
	}
	mention := regexp.MustCompile("`-([a-z][a-z0-9-]*)")
	for _, name := range documents {
		if name == "bench/README.md" { // has flags of its own
			continue
		}
		n := 0
		for _, m := range mention.FindAllStringSubmatch(readDocument(t, name).text, -1) {
			if n++; !known[m[1]] {
				t.Errorf("%s names -%s, which is no flag", name, m[1])
			}
		}
		if n == 0 && strings.HasPrefix(name, "docs/") {
			t.Errorf("%s names no flag", name)
		}
	}
}
