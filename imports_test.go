package main

import (
	"go/parser"
	"go/token"
	"path/filepath"
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

func TestRoomsShareOnlyTheAddress(t *testing.T) {
	rooms, err := filepath.Glob("internal/*")
	if err != nil || len(rooms) == 0 {
		t.Fatal(rooms, err)
	}
	for _, room := range rooms {
		for path, name := range imports(t, room) {
			if strings.HasPrefix(path, "gateway") && path != "gateway/internal/address" {
				t.Errorf("%s imports %s: rooms share only the address", name, path)
			}
		}
	}
}
