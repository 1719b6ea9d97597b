package docs_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"net"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gateway/internal/admin"
	"gateway/internal/harness"
)

// What docs/operating.md says of the log, its reasons and the exit codes, and the
// README of the statuses.

func TestTheReadmesListEveryStatus(t *testing.T) {
	var want []string
	inspectSource(t, "internal/handshake", func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Status" {
				want = append(want, literals(spec.Values...)...)
			}
		}
		return true
	})
	if len(want) < 5 {
		t.Fatalf("the source has the statuses %q", want)
	}
	for _, name := range readmes {
		var got []string
		for _, row := range readDocument(t, name).tableWith(t, "504") {
			got = append(got, row[0])
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s lists the statuses %q, want %q", name, got, want)
		}
	}
}

func TestOperatingListsEveryReason(t *testing.T) {
	wantReasons(t, operating, "too_long", reasonsInSource(t))
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
	files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(dir), "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no sources in %s: %v", dir, err)
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

// literals returns those of the expressions that are literal texts.
func literals(exprs ...ast.Expr) (words []string) {
	for _, e := range exprs {
		if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			word, _ := strconv.Unquote(lit.Value)
			words = append(words, word)
		}
	}
	return words
}

// reasonsInSource returns the words that the log may have as a reason, sorted:
// those of the literal refusals, and what badRequest and unauthorized are called
// with.
func reasonsInSource(t *testing.T) []string {
	found := make(map[string]bool)
	add := func(exprs ...ast.Expr) {
		for _, word := range literals(exprs...) {
			found[word] = true
		}
	}
	isIdent := func(e ast.Expr, names ...string) bool {
		id, ok := e.(*ast.Ident)
		return ok && slices.Contains(names, id.Name)
	}
	inspectSource(t, ".", func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			if isIdent(n.Fun, "badRequest", "unauthorized") {
				add(n.Args...)
			}
		case *ast.CompositeLit:
			for _, field := range n.Elts {
				if f, ok := field.(*ast.KeyValueExpr); ok && isIdent(n.Type, "refusal") && isIdent(f.Key, "reason") {
					add(f.Value)
				}
			}
		case *ast.AssignStmt:
			if isIdent(n.Lhs[0], "reason") {
				add(n.Rhs...)
			}
		}
		return true
	})
	inspectSource(t, "internal/handshake", func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && isIdent(spec.Type, "Foreign") {
			add(spec.Values...)
		}
		return true
	})
	return slices.Sorted(maps.Keys(found))
}

func TestTheLogSamplesHaveTheFieldsOfTheLog(t *testing.T) {
	p := harness.Start(t, "-log-level=debug", "-addr=127.0.0.1:0", "-listen=127.0.0.1:0=forward:10.20.0.7:4000")
	tunnel := harness.OpenTunnel(t, p.Addr, harness.StartEcho(t))
	harness.Echo(t, tunnel, "hello")
	tunnel.Close()
	for _, line := range []string{harness.Line(harness.ClosedPort(t)), "nonsense\n", ""} {
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, line)
		c.CloseWrite()
		io.ReadAll(c)
		c.Close()
	}
	p.Log.WaitLine(t, "tunnel", 1)
	p.Log.WaitLine(t, "refused", 2)
	p.Log.WaitLine(t, "no request", 1)
	if runtime.GOOS != "windows" { // has no signals
		p.End(t)
	}

	// The fields of each kind of line, in their order.
	logged := make(map[string]string)
	for line := range strings.Lines(p.Log.String()) {
		values, fields := loggedFields(t, line)
		// The settings are those of the test, and so is what may be doubted about them.
		if values["msg"] != "settings" && values["level"] != "WARN" {
			logged[kindOfLine(values)] = fields
		}
	}
	for _, name := range slices.Concat(operating, backends) {
		seen := make(map[string]bool)
		for _, line := range readDocument(t, name).logSamples() {
			values, fields := sampleFields(line)
			kind := kindOfLine(values)
			seen[kind] = true
			if want, ok := logged[kind]; ok && fields != want {
				t.Errorf("%s: the sample\n%shas the fields %q; the log has\n%q", name, line, fields, want)
			}
		}
		for kind := range logged {
			if !seen[kind] && slices.Contains(operating, name) && !strings.HasSuffix(kind, "forward") {
				t.Errorf("%s has no sample of a line %q", name, kind)
			}
		}
	}
}

// kindOfLine tells lines with the same message apart that have other fields.
func kindOfLine(values map[string]any) string {
	kind := fmt.Sprint(values["msg"], " ", values["status"])
	for _, some := range []string{"forward", "limit"} {
		if values[some] != nil {
			kind += " " + some
		}
	}
	return kind
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
// some lines have: for a backend's name.
func sampleFields(line string) (values map[string]any, names string) {
	values = make(map[string]any)
	var list []string
	for _, f := range regexp.MustCompile(`(\w+)=("[^"]*"|\S*)`).FindAllStringSubmatch(line, -1) {
		values[f[1]] = strings.Trim(f[2], `"`)
		if f[1] != "backend_ip" {
			list = append(list, f[1])
		}
	}
	return values, strings.Join(list, " ")
}

func TestOperatingListsTheExitCodes(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	p := harness.Start(t)
	if runtime.GOOS != "windows" { // has no signals
		p.End(t) // with 0
	}
	codes := map[string][][]string{
		"1": {{"-addr=" + taken.Addr().String(), "-pidfile="}, {"-open=nonsense"}},
		"2": {{"-retry=0"}, {"-secret-file=none"}},
	}
	for want, commands := range codes {
		for _, args := range commands {
			if _, stderr, code := harness.Run(t, withSecret, args...); fmt.Sprint(code) != want || stderr == "" {
				t.Errorf("gateway %q: code %d, %s; want %s", args, code, stderr, want)
			}
		}
	}
	if _, stderr, _ := harness.Run(t, withSecret, codes["1"][0]...); !strings.Contains(stderr, "address already in use") && runtime.GOOS != "windows" {
		t.Errorf("a port that is taken: %s", stderr)
	}
	for _, name := range operating {
		var got []string
		for _, row := range readDocument(t, name).tableWith(t, "2") {
			got = append(got, row[0])
		}
		if want := []string{"0", "1", "2"}; !slices.Equal(got, want) {
			t.Errorf("%s lists the exit codes %q", name, got)
		}
	}
}

// TestOperatingListsEveryMetric holds the table of metrics against the code: their
// names, their labels, and in English what is said of them.
func TestOperatingListsEveryMetric(t *testing.T) {
	for _, name := range operating {
		got := make(map[string][]string)
		for _, row := range readDocument(t, name).tableWith(t, "gateway_ready") {
			got[row[0]] = regexp.MustCompile("[a-z]+").FindAllString(row[1], -1)
			if help := admin.Help(row[0]); name == operating[0] && !strings.EqualFold(strings.TrimPrefix(row[2], "histogram: ")+".", help) {
				t.Errorf("%s says of %s\n%s\nand the code\n%s", name, row[0], row[2], help)
			}
		}
		for _, metric := range admin.Names() {
			labels, ok := got[metric]
			if !ok {
				t.Errorf("%s lacks %s", name, metric)
			} else if !slices.Equal(labels, admin.Labels(metric)) {
				t.Errorf("%s has %s with the labels %q; the code has %q", name, metric, labels, admin.Labels(metric))
			}
			delete(got, metric)
		}
		for metric := range got {
			if strings.HasPrefix(metric, "gateway_") {
				t.Errorf("%s lists %s, which there is not", name, metric)
			}
		}
	}
}
