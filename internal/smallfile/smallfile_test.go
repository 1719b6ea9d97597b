package smallfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAFileIsReadUpToItsBound(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	for size, want := range map[int]bool{0: true, 1: true, 4095: true, 4096: true, 4097: false, 1 << 20: false} {
		if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		text, err := Read(name, 4096)
		if want && (err != nil || len(text) != size) {
			t.Errorf("of %d bytes %d were read, %v", size, len(text), err)
		}
		if !want && (err == nil || !strings.Contains(err.Error(), name+" is larger than 4 KiB")) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestWhatIsNoFileIsAnErrorThatNamesIt(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{dir, filepath.Join(dir, "none")} {
		if _, err := Read(name, 10); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUTF16IsAnErrorThatSaysWhatToDo(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	for text, want := range map[string]bool{
		"\xff\xfea\x00": false, "\xfe\xff\x00a": false, "\xff\xfe\n": true, "\xff\xfe": true,
		"\xff\xfe\xc6\x5b\x01\x78": false, "\xfe\xff\x5b\xc6\x78\x01": false, "\xff\xfe\x01\xd8\x02\xd8": true, "\xef\xbb\xbfa": true, "0\x82\x00\xff\xfe": true, "": true,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(name, 100); (err == nil) != want || err != nil && !strings.Contains(err.Error(), name+" is UTF-16: save it as UTF-8") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
