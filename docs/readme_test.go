package docs_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

// The README's quick start runs, and its figures are those of the benchmark.

func TestTheQuickStartRunsWhenPasted(t *testing.T) {
	for _, tool := range []string{"sh", "openssl", "python3", "nc"} {
		harness.LookPath(t, tool)
	}
	dir := t.TempDir()
	if err := os.Symlink(harness.Binary(t), filepath.Join(dir, "gateway")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "docs"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range readmes {
		d := readDocument(t, name)
		script := d.blockWith(t, "sh", "openssl rand") + d.blockWith(t, "sh", "| nc ") + d.blockWith(t, "sh", "kill ") + "wait\n"
		script = script[strings.Index(script, "\n")+1:] // without make
		backend, gateway := harness.PortOf(harness.ClosedPort(t)), harness.PortOf(harness.ClosedPort(t))
		script = strings.NewReplacer(" 4000 ", " "+backend+" ", ":4000", ":"+backend, ":8000", ":"+gateway, " 8000", " "+gateway).Replace(script)
		ctx, cancel := context.WithTimeout(t.Context(), 3*harness.Patience)
		cmd := exec.CommandContext(ctx, "sh", "-c", script)
		cmd.Dir, cmd.WaitDelay = dir, time.Second
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0"}
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		cancel()
		if err != nil || !strings.HasPrefix(string(out), "200HTTP/1.0 200 OK") {
			t.Errorf("%s: %v, %.200q\n%s\n%s", name, err, out, script, stderr.String())
		}
		if _, err := os.Stat(filepath.Join(dir, "gateway.pid")); err == nil {
			t.Errorf("%s: the gateway still runs", name)
		}
	}
}

// performance are the rows of the README's table: what of docs/bench/results.json
// each is about.
var performance = []string{"bulk-up-1", "echo-64B-64", "echo-64B-1000", "short", "idle"}

// contenders are its columns. The figures are ratios to haproxy.
var contenders = []string{"gateway", "gateway-epoll", "forward", "haproxy-splice", "nginx", "go-io.Copy"}

func TestPerformanceIsThatOfTheBenchmark(t *testing.T) {
	var results struct {
		Pinned struct {
			Results []struct {
				Workload, Contender string
				Samples             []struct{ Cost float64 }
			}
		}
	}
	if err := json.Unmarshal([]byte(readText(t, "docs/bench/results.json")), &results); err != nil {
		t.Fatal(err)
	}
	best := make(map[string]float64)
	for _, r := range results.Pinned.Results {
		for _, s := range r.Samples {
			if name := r.Workload + " " + r.Contender; best[name] == 0 || s.Cost < best[name] {
				best[name] = s.Cost
			}
		}
	}
	for _, name := range readmes {
		var rows [][]string
		for _, table := range readDocument(t, name).tables {
			if len(table[0]) == 1+len(contenders) && table[0][1] == "gateway" {
				rows = table[1:]
			}
		}
		if len(rows) != len(performance) {
			t.Fatalf("%s has %d rows of figures", name, len(rows))
		}
		for i, workload := range performance {
			var want []string
			for _, contender := range contenders {
				ratio := best[workload+" "+contender] / best[workload+" haproxy"]
				want = append(want, strings.TrimPrefix(fmt.Sprintf("%.2f", ratio), "0"))
			}
			if got := rows[i][1:]; !slices.Equal(got, want) {
				t.Errorf("%s: %s has %q; results.json has %q", name, rows[i][0], got, want)
			}
		}
	}
}
