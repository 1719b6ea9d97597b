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
	if err := openSources(); err != nil {
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

// openSources looks at every source of the gateway. go test keeps what has passed in
// its cache until something changes that the test has looked at, and does not see
// what the build looks at, which is another process.
func openSources() error {
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			return errors.New("there is no go.mod above the tests")
		}
		root = filepath.Dir(root)
	}
	return filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && filepath.Dir(name) == root && entry.Name() != "internal":
			return filepath.SkipDir // holds none
		case filepath.Ext(name) == ".go":
			_, err = os.Stat(name)
		}
		return err
	})
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
