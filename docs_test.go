package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// What the documents and the systemd unit say is compared with what the
// program does, so that they cannot drift apart unnoticed.

const unitFile = "deploy/gateway.service"

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
	want := []status{statusOK, statusBadRequest, statusUnauthorized, statusBadGateway, statusGatewayTimeout}
	for _, name := range readmes {
		var got []status
		for _, row := range readDocument(t, name).tableWith(t, "504") {
			got = append(got, status(row[0]))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s lists the statuses %q, want %q", name, got, want)
		}
	}
}

func TestTheReadmesListEveryReason(t *testing.T) {
	want := reasonsInSource(t)
	for _, name := range readmes {
		var got []string
		for _, row := range readDocument(t, name).tableWith(t, "too_long") {
			got = append(got, row[0])
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s lists the reasons\n%q\nwant those in the source\n%q", name, got, want)
		}
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
	files, err := filepath.Glob("*.go")
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
		ast.Inspect(file, func(n ast.Node) bool {
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
	}
	if len(found) == 0 {
		t.Fatal("no reason found in the source")
	}
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
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		fields := regexp.MustCompile(`[{,]"(\w+)":`).FindAllStringSubmatch(line, -1)
		var names []string
		for _, f := range fields {
			names = append(names, f[1])
		}
		logged[fmt.Sprint(m["msg"], " ", m["status"])] = strings.Join(names, " ")
	}
	for _, name := range slices.Concat(readmes, pages) {
		seen := make(map[string]bool)
		for _, block := range readDocument(t, name).blocks {
			for line := range strings.Lines(block.text) {
				if block.lang != "text" || !strings.HasPrefix(line, "time=") {
					continue
				}
				values := make(map[string]any)
				var names []string
				for _, f := range regexp.MustCompile(`(\w+)=("[^"]*"|\S*)`).FindAllStringSubmatch(line, -1) {
					values[f[1]] = strings.Trim(f[2], `"`)
					if f[1] != "backend_ip" && f[1] != "id" { // for names, and for -send-proxy=v2
						names = append(names, f[1])
					}
				}
				kind := fmt.Sprint(values["msg"], " ", values["status"])
				seen[kind] = true
				if want, ok := logged[kind]; ok && strings.Join(names, " ") != want {
					t.Errorf("%s: the sample\n%shas the fields %q; the log has\n%q", name, line, names, want)
				}
			}
		}
		for kind := range logged {
			if !seen[kind] && slices.Contains(readmes, name) {
				t.Errorf("%s has no sample of a line %q", name, kind)
			}
		}
	}
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
			if _, err := parseConfig(args); err != nil && err != flag.ErrHelp {
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

func TestTheUnitStartsTheInstalledGatewayWithoutASecretOnItsCommandLine(t *testing.T) {
	unit := readText(t, unitFile)
	m := regexp.MustCompile(`(?m)^ExecStart=(\S+)(.*)$`).FindAllStringSubmatch(unit, -1)
	if len(m) != 1 || m[0][1] != "/usr/local/bin/gateway" {
		t.Fatalf("ExecStart lines: %q", m)
	}
	// What systemd's LoadCredential leaves for the gateway.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(testSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	cfg, err := parseConfig(strings.Fields(m[0][2]))
	if err != nil {
		t.Fatal(err)
	}
	if string(cfg.Secrets[0]) != testSecret || cfg.secret != "" || cfg.secretFile != "" {
		t.Errorf("the secrets come from %q", cfg.SecretSources)
	}
	if !strings.Contains(unit, "\nLoadCredential=secret:") {
		t.Error("no LoadCredential=secret:")
	}
}

func TestTheUnitWaitsLongerThanTheDefaultDrain(t *testing.T) {
	m := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)$`).FindStringSubmatch(readText(t, unitFile))
	if m == nil {
		t.Fatal("no TimeoutStopSec= in seconds")
	}
	if n, _ := strconv.Atoi(m[1]); float64(n) <= defaultConfig().Drain.Seconds() {
		t.Errorf("TimeoutStopSec=%d; -drain is %v", n, defaultConfig().Drain)
	}
}

func TestTheUnitIsHardened(t *testing.T) {
	needTool(t, "systemd-analyze")
	// The threshold is in tenths of the scale from 0 to 10.
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", unitFile).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSystemdFindsNoMistakeInTheUnit(t *testing.T) {
	needTool(t, "systemd-analyze")
	self, err := os.Executable() // in place of the gateway, which is not installed here
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "gateway.service")
	text := strings.ReplaceAll(readText(t, unitFile), "/usr/local/bin/gateway", self)
	if err := os.WriteFile(copied, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", copied).CombinedOutput()
	if err != nil || strings.Contains(string(out), "gateway.service") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestTheDocumentedOpensslCommandSealsAnAddress(t *testing.T) {
	needTool(t, "openssl")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(testSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", readDocument(t, readmes[0]).blockWith(t, "sh", "openssl enc"))
	cmd.Dir = dir
	line, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	addr, err := newKeyring([][]byte{[]byte(testSecret)}, defaultConfig().KDFs).open(context.Background(), line)
	if err != nil || addr.String() != "10.0.0.7:4000" {
		t.Errorf("%q opens to %v, %v", line, addr, err)
	}
}

func TestThePythonClientTalksThroughTheGateway(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip(err)
	}
	program := readDocument(t, readmes[0]).blockWith(t, "python", "def connect") + `
import sys
host, port = sys.argv[1].rsplit(":", 1)
try:
    s = connect((host, int(port)), sys.argv[2])
    s.sendall(b"hello")
    print(s.makefile("rb").read(len("welcome" + "hello")).decode())
except Exception as e:
    print(e)
`
	talkThroughTheGateway(t, "python3", "-c", program)
}

func TestTheGoClientTalksThroughTheGateway(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip(err)
	}
	program := "package main\n\nimport \"os\"\n" + readDocument(t, readmes[0]).blockWith(t, "go", "func Connect") + `
func main() {
	c, err := Connect(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Println(err)
		return
	}
	io.WriteString(c, "hello")
	b := make([]byte, len("welcome"+"hello"))
	io.ReadFull(c, b)
	fmt.Printf("%s\n", b)
}
`
	talkThroughTheGateway(t, buildProgram(t, program))
}

// buildProgram builds a documented program with the module's dependencies, and
// returns the binary.
func buildProgram(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	source, binary := filepath.Join(dir, "program.go"), filepath.Join(dir, "program.exe")
	if err := os.WriteFile(source, []byte(program), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", binary, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// talkThroughTheGateway runs a client with the gateway's address and a line as
// its last arguments. It is to connect, send "hello", and print the 12 bytes it
// gets; or the error.
func talkThroughTheGateway(t *testing.T, client ...string) {
	t.Helper()
	g := startGateway(t, nil)
	// Backends that speak first show that the client keeps its hands off the
	// bytes behind the status.
	backend := startBackend(t, func(c *net.TCPConn) {
		io.WriteString(c, "welcome")
		io.Copy(c, struct{ io.Reader }{c})
	})
	// What a gateway does that happens to send both in one segment.
	together := startBackend(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, len("any line\n")))
		io.WriteString(c, "200welcome")
		io.Copy(c, struct{ io.Reader }{c})
	})
	for _, test := range []struct{ gateway, line, want string }{
		{g.addr, sealed(t, backend), "welcomehello"},
		{together, "any line", "welcomehello"},
		{g.addr, sealed(t, closedPort(t)), "the gateway answered 502"},
		{g.addr, "nonsense", "the gateway answered 401"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		args := append(client[1:len(client):len(client)], test.gateway, strings.TrimSuffix(test.line, "\n"))
		out, err := exec.CommandContext(ctx, client[0], args...).CombinedOutput()
		cancel()
		if got := strings.TrimSpace(string(out)); err != nil || got != test.want {
			t.Errorf("%.10q…: the client printed %q, %v; want %q", test.line, got, err, test.want)
		}
	}
}

// needTool skips a test for want of a program that only some machines have; in
// CI, which installs it (make test-deps), that is a failure.
func needTool(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); errors.Is(err, exec.ErrNotFound) {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
}

func readText(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")))
}

// document is a Markdown file in its parts.
type document struct {
	name     string
	headings []heading
	blocks   []codeBlock
	tables   [][][]string // rows of cells, the head included
	text     string       // all but the code blocks
}

type heading struct {
	level int
	text  string
}

// anchor is what a link within the page names, as GitHub makes it.
func (h heading) anchor() string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, h.text)
}

type codeBlock struct{ lang, text string }

// withoutComments returns the block without the comments that may be
// translated, and the space before them.
func (b codeBlock) withoutComments() string {
	comment := regexp.MustCompile(`(?m)(^|[ \t]+)# .*$`)
	if b.lang == "go" || b.lang == "js" {
		comment = regexp.MustCompile(`(?m)(^|[ \t]+)// .*$`)
	}
	return b.lang + "\n" + comment.ReplaceAllString(b.text, "")
}

func readDocument(t *testing.T, name string) *document {
	t.Helper()
	d := &document{name: name}
	var text strings.Builder
	var block *codeBlock
	inTable := false
	for line := range strings.Lines(readText(t, name)) {
		trimmed := strings.TrimRight(line, "\n")
		switch {
		case block != nil && trimmed == "```":
			d.blocks = append(d.blocks, *block)
			block = nil
			continue
		case block != nil:
			block.text += line
			continue
		case strings.HasPrefix(trimmed, "```"):
			block = &codeBlock{lang: trimmed[3:]}
			continue
		}
		text.WriteString(line)
		if hashes := len(trimmed) - len(strings.TrimLeft(trimmed, "#")); hashes > 0 {
			d.headings = append(d.headings, heading{hashes, strings.TrimSpace(trimmed[hashes:])})
		}
		isRow := strings.HasPrefix(trimmed, "|")
		switch {
		case isRow && !inTable:
			d.tables = append(d.tables, [][]string{cells(trimmed)})
		case isRow && !strings.HasPrefix(trimmed, "|---"):
			last := &d.tables[len(d.tables)-1]
			*last = append(*last, cells(trimmed))
		}
		inTable = isRow
	}
	if block != nil {
		t.Fatalf("%s: a code block does not end", name)
	}
	d.text = text.String()
	return d
}

// cells splits a row of a table. A cell that is all code comes without its
// backquotes, and an escaped bar as a bar.
func cells(row string) []string {
	row = strings.ReplaceAll(row, `\|`, "\x00")
	list := strings.Split(strings.Trim(row, "|"), "|")
	for i, c := range list {
		c = strings.TrimSpace(strings.ReplaceAll(c, "\x00", "|"))
		if code := strings.Trim(c, "`"); len(code) == len(c)-2 && !strings.Contains(code, "`") {
			c = code
		}
		list[i] = c
	}
	return list
}

// tableWith returns the rows below the head of the first table that has a row
// with the given first cell.
func (d *document) tableWith(t *testing.T, first string) [][]string {
	t.Helper()
	for _, table := range d.tables {
		if slices.ContainsFunc(table, func(row []string) bool { return row[0] == first }) {
			return table[1:]
		}
	}
	t.Fatalf("%s has no table with a row for %s", d.name, first)
	return nil
}

// blockWith returns the first code block in a language that holds a text.
func (d *document) blockWith(t *testing.T, lang, text string) string {
	t.Helper()
	for _, b := range d.blocks {
		if b.lang == lang && strings.Contains(b.text, text) {
			return b.text
		}
	}
	t.Fatalf("%s has no %s block with %q", d.name, lang, text)
	return ""
}
