package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestQuickGivesWayToWhatIsGiven(t *testing.T) {
	opt, err := parseOptions([]string{"-quick", "-rounds=7", "-unpinned"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if opt.rounds != 7 || opt.time != 150*time.Millisecond || opt.idle != 2000 || opt.pinned || !opt.unpinned {
		t.Errorf("got %+v", opt)
	}
}

func TestBothTablesAreTheDefault(t *testing.T) {
	opt, err := parseOptions(nil, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if !opt.pinned || !opt.unpinned || !opt.own || len(opt.workloads()) != len(workloads(1)) || !opt.wants("anything") {
		t.Errorf("got %+v", opt)
	}
}

func TestWorkloadsAreSelectedByTheBeginningOfTheirNames(t *testing.T) {
	for list, want := range map[string]int{"bulk": 4, "bulk-up": 2, "echo,short": 5, "echo-64B-1": 1, "idle": 4, "idle-ws": 1, "stalled": 1} {
		opt, err := parseOptions([]string{"-workloads=" + list}, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(opt.workloads()); got != want {
			t.Errorf("-workloads=%s selects %d, want %d", list, got, want)
		}
	}
}

func TestAVariantIsACommand(t *testing.T) {
	opt, err := parseOptions([]string{"-variant", "copy=/bin/gateway -splice=0 -loops=1"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	v := opt.variants[0]
	if v.name != "copy" || v.path != "/bin/gateway" || strings.Join(v.args, "|") != "-splice=0|-loops=1" {
		t.Errorf("got %+v", v)
	}
}

func TestAPathIsFoundFromEveryFolder(t *testing.T) {
	opt := &options{gateway: "no-such-gateway"}
	if err := opt.absolute(); err == nil || !strings.Contains(err.Error(), "-gateway") {
		t.Errorf("got %v", err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Dir(program))
	name := "." + string(filepath.Separator) + filepath.Base(program)
	opt = &options{gateway: name, variants: []variant{{"x", name, nil}}}
	if err := opt.absolute(); err != nil || !filepath.IsAbs(opt.gateway) || !filepath.IsAbs(opt.variants[0].path) {
		t.Errorf("%+v, %v", opt, err)
	}
}

func TestUsageErrors(t *testing.T) {
	for _, args := range []string{
		"-rounds=0", "-rounds=x", "-time=0s", "-time=2h", "-idle=0", "-workloads=none", "-variant=x", "-variant==", "-nonsense", "word",
	} {
		if _, err := parseOptions([]string{args}, io.Discard); err == nil {
			t.Errorf("%s is taken", args)
		}
	}
}
