package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"gateway/internal/handshake"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What the documents say is compared with what the program does, so that they
// cannot drift apart unnoticed.

// Each page in English, and the same in Chinese.
var (
	readmes   = []string{"README.md", "README.zh-CN.md"}
	pages     = []string{"docs/backends.md", "docs/backends.zh-CN.md"}
	protocols = []string{"docs/protocols.md", "docs/protocols.zh-CN.md"}
	kcpPages  = []string{"docs/kcp.md", "docs/kcp.zh-CN.md"}
)

// translated are the pages in both languages.
var translated = [][]string{readmes, pages, protocols, kcpPages, kubernetesPages, consulPages}

// documents are all of them.
var documents = append(slices.Concat(translated...), "CHANGELOG.md")

func TestTheReadmesListEveryFlagWithItsDefault(t *testing.T) {
	var want [][]string
	for _, s := range settings(defaultConfig()) {
		head, env := "-"+s.name, ""
		if s.arg != "" {
			head += "=" + s.arg
		}
		if s.group != groupActions {
			env = envName(s.name)
		}
		want = append(want, []string{head, s.value.String(), env})
	}
	for _, name := range readmes {
		var got [][]string
		for _, row := range readDocument(t, name).tableWith(t, "-secret-file=FILE") {
			if len(row) != 4 || row[3] == "" {
				t.Fatalf("%s: the flag table has a row %q; want flag, default, environment, meaning", name, row)
			}
			got = append(got, row[:3])
		}
		if !slices.EqualFunc(got, want, slices.Equal) {
			t.Errorf("%s lists the flags\n%q\nwant\n%q", name, got, want)
		}
	}
}

func TestTheReadmesListEveryStatus(t *testing.T) {
	want := []handshake.Status{handshake.OK, handshake.BadRequest, handshake.Unauthorized, handshake.BadGateway, handshake.GatewayTimeout}
	for _, name := range readmes {
		var got []handshake.Status
		for _, row := range readDocument(t, name).tableWith(t, "504") {
			got = append(got, handshake.Status(row[0]))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s lists the statuses %q, want %q", name, got, want)
		}
	}
}

func TestTheReadmesListEveryReason(t *testing.T) {
	wantReasons(t, readmes, "too_long", reasonsInSource(t))
}

// wantReasons compares the table of each page that has a row for one of the
// reasons with all of them, sorted.
func wantReasons(t *testing.T, names []string, one string, want []string) {
	t.Helper()
	if len(want) == 0 {
		t.Fatal("no reason found in the source")
	}
	for _, name := range names {
		var got []string
		for _, row := range readDocument(t, name).tableWith(t, one) {
			got = append(got, row[0])
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s lists the reasons\n%q\nwant those in the source\n%q", name, got, want)
		}
	}
}

// inspectSource shows f all that stands in the sources of a folder.
func inspectSource(t *testing.T, dir string, f func(ast.Node) bool) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, f)
	}
}

// reasonsInSource returns the words that the log may have as a reason, sorted:
// the constants of the error types and the literal reasons of dialError.
func reasonsInSource(t *testing.T) []string {
	found := make(map[string]bool)
	add := func(exprs ...ast.Expr) {
		for _, e := range exprs {
			if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				word, _ := strconv.Unquote(lit.Value)
				found[word] = true
			}
		}
	}
	isIdent := func(e ast.Expr, names ...string) bool {
		id, ok := e.(*ast.Ident)
		return ok && slices.Contains(names, id.Name)
	}
	inspectSource(t, ".", func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ValueSpec:
			if isIdent(n.Type, "requestError", "openError") {
				add(n.Values...)
			}
		case *ast.CompositeLit:
			if isIdent(n.Type, "dialError") && len(n.Elts) > 1 {
				add(n.Elts[1])
			}
		case *ast.AssignStmt:
			if isIdent(n.Lhs[0], "reason") {
				add(n.Rhs...)
			}
		}
		return true
	})
	return slices.Sorted(maps.Keys(found))
}

func TestTheLogSamplesHaveTheFieldsOfTheLog(t *testing.T) {
	g := startGateway(t, nil)
	openTunnel(t, g.addr, startEcho(t)).Close()
	for _, line := range []string{sealed(t, closedPort(t)), "nonsense\n", ""} {
		c := connect(t, g.addr)
		send(t, c, line)
		c.CloseWrite()
		io.ReadAll(c)
		c.Close()
	}
	g.log.waitLine(t, "tunnel", 1)
	g.log.waitLine(t, "refused", 2)
	g.log.waitLine(t, "no request", 1)

	// The fields of each kind of line, in their order.
	logged := make(map[string]string)
	for line := range strings.Lines(g.log.String()) {
		values, fields := loggedFields(t, line)
		logged[fmt.Sprint(values["msg"], " ", values["status"])] = fields
	}
	for _, name := range slices.Concat(readmes, pages) {
		seen := make(map[string]bool)
		for _, line := range readDocument(t, name).logSamples() {
			values, fields := sampleFields(line)
			kind := fmt.Sprint(values["msg"], " ", values["status"])
			seen[kind] = true
			if want, ok := logged[kind]; ok && fields != want {
				t.Errorf("%s: the sample\n%shas the fields %q; the log has\n%q", name, line, fields, want)
			}
		}
		for kind := range logged {
			if !seen[kind] && slices.Contains(readmes, name) {
				t.Errorf("%s has no sample of a line %q", name, kind)
			}
		}
	}
}

// logSamples are the lines of a log that the document shows.
func (d *document) logSamples() (lines []string) {
	for _, block := range d.blocks {
		for line := range strings.Lines(block.text) {
			if block.lang == "text" && strings.HasPrefix(line, "time=") {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// loggedFields returns the fields of a line of the log, and their names in
// order.
func loggedFields(t *testing.T, line string) (values map[string]any, names string) {
	t.Helper()
	if err := json.Unmarshal([]byte(line), &values); err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, f := range regexp.MustCompile(`[{,]"(\w+)":`).FindAllStringSubmatch(line, -1) {
		list = append(list, f[1])
	}
	return values, strings.Join(list, " ")
}

// sampleFields returns those of a sample, but for the names of those that only
// some lines have: for a backend's name, and for -send-proxy=v2.
func sampleFields(line string) (values map[string]any, names string) {
	values = make(map[string]any)
	var list []string
	for _, f := range regexp.MustCompile(`(\w+)=("[^"]*"|\S*)`).FindAllStringSubmatch(line, -1) {
		values[f[1]] = strings.Trim(f[2], `"`)
		if f[1] != "backend_ip" && f[1] != "id" {
			list = append(list, f[1])
		}
	}
	return values, strings.Join(list, " ")
}

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
			if _, err := os.Stat(filepath.FromSlash(file)); err != nil {
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
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(testSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	selfSigned(t, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	t.Setenv("GATEWAY_SECRET", testSecret)             // where a page leaves it out
	variables := map[string]bool{"GATEWAY_NAME": true} // NAME stands for any
	for _, s := range settings(defaultConfig()) {
		variables[envName(s.name)] = s.group != groupActions
	}
	command := regexp.MustCompile("(?m)(?:^|[/(`])gateway((?: +-[a-z][^ \\n|&)`]*)+)")
	variable := regexp.MustCompile(`\bGATEWAY_[A-Z_]+`)
	assignment := regexp.MustCompile(`(?m)^(GATEWAY_[A-Z_]+)=(.*)$`)
	for _, name := range append([]string{unitFile}, documents...) {
		text := strings.ReplaceAll(readText(t, name), "\\\n", " ")
		for _, m := range command.FindAllStringSubmatch(text, -1) {
			args := strings.Fields(strings.ReplaceAll(m[1], `"`, ""))
			for i, arg := range args {
				if head, file, _ := strings.Cut(arg, "="); slices.Contains([]string{"secret", "cert.pem", "key.pem"}, file) {
					args[i] = head + "=" + filepath.Join(dir, file)
				}
			}
			if _, err := loadConfig(args); err != nil && err != flag.ErrHelp {
				t.Errorf("%s: gateway%s: %v", name, m[1], err)
			}
		}
		for _, v := range variable.FindAllString(text, -1) {
			if !variables[v] {
				t.Errorf("%s: no setting has the variable %s", name, v)
			}
		}
		for _, m := range assignment.FindAllStringSubmatch(text, -1) {
			for _, s := range settings(defaultConfig()) {
				if envName(s.name) != m[1] {
					continue
				}
				if err := s.value.Set(strings.Trim(m[2], `"`)); err != nil {
					t.Errorf("%s: %s: %v", name, m[0], err)
				}
			}
		}
	}
}
