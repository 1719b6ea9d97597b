package main

import (
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// imports returns what the files of a directory import, tests left out.
func imports(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s: %v", dir, err)
	}
	found := make(map[string]string)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range file.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			found[path] = name
		}
	}
	return found
}

func TestTheRootImportsOnlyTheStandardLibrarySysAndRooms(t *testing.T) {
	for path, name := range imports(t, ".") {
		first, _, _ := strings.Cut(path, "/")
		standard := !strings.Contains(first, ".") && first != "gateway"
		if !standard && !strings.HasPrefix(path, "gateway/internal/") && path != "golang.org/x/sys/unix" && path != "golang.org/x/sys/windows" {
			t.Errorf("%s imports %s: that belongs into a room", name, path)
		}
	}
}

// floor are the rooms whose words the others may use: the addresses of backends,
// values of flags, connections of every kind, WebSocket frames, files and their locks,
// system calls.
var floor = []string{"gateway/internal/address", "gateway/internal/filelock", "gateway/internal/flagvalue", "gateway/internal/layer", "gateway/internal/smallfile", "gateway/internal/sockopt", "gateway/internal/sys", "gateway/internal/websocket"}

func TestRoomsShareOnlyTheFloor(t *testing.T) {
	rooms, err := filepath.Glob("internal/*")
	if err != nil || len(rooms) == 0 {
		t.Fatal(rooms, err)
	}
	for _, room := range rooms {
		for path, name := range imports(t, room) {
			if strings.HasPrefix(path, "gateway") && !slices.Contains(floor, path) {
				t.Errorf("%s imports %s: rooms share only %v", name, path, floor)
			}
		}
	}
}

// mutual lists the pairs of files that may use each other's names, with the
// reason. The fewer the better: a reader of one has to know the other.
var mutual = map[[2]string]string{}

// usesOfFiles returns which file of the root uses a name, a method or a field
// that is declared in which other one, and an example of each. Tests are left out.
func usesOfFiles(t *testing.T) map[string]map[string]string {
	t.Helper()
	list := func(args ...string) []string {
		out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
		if err != nil {
			t.Fatalf("go list %q: %v", args, err)
		}
		return strings.Fields(string(out))
	}
	exports := make(map[string]string)
	for _, pair := range list("-export", "-deps", "-f", "{{.ImportPath}}={{.Export}}", ".") {
		path, file, _ := strings.Cut(pair, "=")
		exports[path] = file
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range list("-f", `{{join .GoFiles " "}}`, ".") {
		file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	conf := types.Config{Importer: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})}
	info := &types.Info{Uses: make(map[*ast.Ident]types.Object)}
	pkg, err := conf.Check("main", fset, files, info)
	if err != nil {
		t.Fatal(err)
	}
	uses := make(map[string]map[string]string)
	for id, obj := range info.Uses {
		if obj.Pkg() != pkg {
			continue
		}
		from, to := fset.Position(id.Pos()).Filename, fset.Position(obj.Pos()).Filename
		if from == to {
			continue
		}
		if uses[from] == nil {
			uses[from] = make(map[string]string)
		}
		uses[from][to] = id.Name
	}
	return uses
}

// TestTheFilesOfTheRootUseEachOtherInOneDirection keeps the root readable from
// its top: who follows the names of a file never comes back to it.
func TestTheFilesOfTheRootUseEachOtherInOneDirection(t *testing.T) {
	t.Parallel()
	uses := usesOfFiles(t)
	if os.Getenv("SHOW_GRAPH") != "" {
		for _, from := range slices.Sorted(maps.Keys(uses)) {
			t.Logf("%s → %s", from, strings.Join(slices.Sorted(maps.Keys(uses[from])), " "))
		}
	}
	for pair := range mutual {
		if uses[pair[0]][pair[1]] == "" || uses[pair[1]][pair[0]] == "" {
			t.Errorf("%v is listed as mutual and no longer is", pair)
			continue
		}
		delete(uses[pair[1]], pair[0])
	}
	// Depth first; a file on the path that is met again closes a circle.
	const onPath, left = 1, 2
	state := make(map[string]int)
	var path []string
	var visit func(string)
	visit = func(file string) {
		state[file] = onPath
		path = append(path, file)
		for _, next := range slices.Sorted(maps.Keys(uses[file])) {
			switch state[next] {
			case 0:
				visit(next)
			case onPath:
				circle := append(slices.Clone(path[slices.Index(path, next):]), next)
				var names []string
				for i := range circle[1:] {
					names = append(names, uses[circle[i]][circle[i+1]])
				}
				t.Errorf("%s use each other in a circle, by %s", strings.Join(circle, " → "), strings.Join(names, ", "))
			}
		}
		state[file] = left
		path = path[:len(path)-1]
	}
	for _, file := range slices.Sorted(maps.Keys(uses)) {
		if state[file] == 0 {
			visit(file)
		}
	}
}
