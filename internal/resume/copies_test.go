package resume

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTheGoClientHasTheSameSession holds the copies in clients/go equal, which is a
// module of its own, without dependencies, that anybody can import. What is only a
// gateway's is not there.
func TestTheGoClientHasTheSameSession(t *testing.T) {
	const to = "../../clients/go/internal/resume"
	for _, dir := range []string{".", "stream"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") || name == "layer.go" || name == "state.go" {
				continue
			}
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			text = bytes.ReplaceAll(text, []byte(`"gateway/internal/`), []byte(`"gateway/clients/go/internal/`))
			copied := filepath.Join(to, name)
			if *update {
				if err := os.MkdirAll(filepath.Dir(copied), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(copied, text, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if have, err := os.ReadFile(copied); err != nil || !bytes.Equal(have, text) {
				t.Errorf("%s is not a copy of %s (%v): go test ./internal/resume -update", copied, name, err)
			}
		}
	}
}
