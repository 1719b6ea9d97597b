package memlimit

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"
)

func TestTheLimitsOfEveryGroupAboveAreRead(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  []int64
	}{
		{"nothing is known", nil, nil},
		{"the machine alone", map[string]string{"proc/meminfo": "MemTotal:       1024 kB\nMemFree: 1 kB\n"}, []int64{1 << 20}},
		{"version 2", map[string]string{
			"proc/self/cgroup":                            "0::/game.slice/gateway\n",
			"sys/fs/cgroup/game.slice/memory.max":         "5000\n",
			"sys/fs/cgroup/game.slice/gateway/memory.max": "max\n",
		}, []int64{5000}},
		{"version 2 in a container", map[string]string{
			"proc/self/cgroup":         "0::/../../kubepods/pod1\n",
			"sys/fs/cgroup/memory.max": "268435456\n",
		}, []int64{268435456}},
		{"version 1", map[string]string{
			"proc/self/cgroup": "5:cpu:/a\n4:memory:/docker/1\n",
			"sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "7000\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":          "9223372036854771712\n",
		}, []int64{7000, 9223372036854771712}},
	} {
		root := t.TempDir()
		for name, text := range tt.files {
			file := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := system(root); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestGOMEMLIMITCountsToo(t *testing.T) {
	old := debug.SetMemoryLimit(64 << 20)
	defer debug.SetMemoryLimit(old)
	if got := Limit(); got > 64<<20 || got <= 0 {
		t.Errorf("%d, want at most %d", got, 64<<20)
	}
}
