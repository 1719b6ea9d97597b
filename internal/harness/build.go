package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// binaryVariable in the environment names a gateway that is built already, with
// the race detector where the tests have it. It spares each test binary a build.
const binaryVariable = "TEST_GATEWAY_BINARY"

// built is the directory of what Binary has built, to be removed at the end.
var built string

// build makes a gateway and returns its file.
var build = sync.OnceValues(func() (string, error) {
	if err := readSources(); err != nil {
		return "", err
	}
	if file := os.Getenv(binaryVariable); file != "" {
		return filepath.Abs(file)
	}
	dir, err := os.MkdirTemp("", "gateway-test-")
	if err != nil {
		return "", err
	}
	built = dir
	file := filepath.Join(dir, "gateway")
	if runtime.GOOS == "windows" {
		file += ".exe"
	}
	args := []string{"build", "-o", file}
	if RaceEnabled {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, "gateway")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build gateway: %w\n%s", err, out)
	}
	return file, nil
})

// readSources reads the folders of the gateway's sources, for the go command to see
// what the tests depend on: it keeps the result of tests whose files have not changed
// since, and takes the folders that they have read for files.
func readSources() error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		parent := filepath.Dir(root)
		if parent == root {
			return errors.New("the tests run in no module")
		}
		root = parent
	}
	if _, err := os.ReadDir(root); err != nil {
		return err
	}
	return filepath.WalkDir(filepath.Join(root, "internal"), func(_ string, _ fs.DirEntry, err error) error { return err })
}

// Binary returns the file of a gateway, which is built once for each test binary:
// with the race detector where the tests have it.
func Binary(t testing.TB) string {
	t.Helper()
	file, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func removeBuilt() error {
	if built == "" {
		return nil
	}
	return os.RemoveAll(built)
}
