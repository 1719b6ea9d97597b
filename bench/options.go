package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// options is the command line.
type options struct {
	gateway  string // path of the gateway; empty: to be built
	variants []variant
	rounds   int
	time     time.Duration // of each measurement
	idle     int           // tunnels
	only     []string      // contenders; empty: all
	rows     []string      // workloads, or the beginnings of their keys
	pinned   bool
	unpinned bool
	own      bool // make a network namespace
	upgrades int  // of each contender, instead of the workloads; 0: none
	watched  bool // gateways, instead of the workloads
	json     string
	svg      string
}

// variant is another gateway to run beside the first.
type variant struct {
	name string
	path string
	args []string
}

func parseOptions(args []string, stderr io.Writer) (*options, error) {
	opt := new(options)
	var quick bool
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&opt.gateway, "gateway", "", "`PATH` of the gateway; empty: built from the tree around")
	fs.Func("variant", "`NAME=COMMAND`: one more gateway to run, with flags of its own\n"+
		"(-variant 'old=/tmp/gateway -loops=1'); as a plain port forward if NAME\n"+
		"begins with forward-; may be repeated", func(text string) error {
		v, err := parseVariant(text)
		opt.variants = append(opt.variants, v)
		return err
	})
	fs.IntVar(&opt.rounds, "rounds", 5, "how often each contender has its turn at each workload")
	fs.DurationVar(&opt.time, "time", time.Second, "of each measurement")
	fs.IntVar(&opt.idle, "idle", 2000, "`tunnels` of each idle workload")
	list := func(to *[]string, name, usage string) {
		fs.Func(name, usage, func(text string) error {
			*to = strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
			return nil
		})
	}
	list(&opt.only, "only", "`contenders`, separated by commas; all, if empty")
	list(&opt.rows, "workloads", "`workloads` or the beginnings of their names: bulk, bulk-up-1,\n"+
		"echo, echo-64B-64, ws, through, tls, short, stalled, flood, flood-tls, idle, idle-tls; all, if empty")
	fs.BoolVar(&opt.pinned, "pinned", false, "only the judged table: everything on one CPU")
	fs.BoolVar(&opt.unpinned, "unpinned", false, "only the second table: all CPUs (with neither flag or both: both tables)")
	fs.BoolVar(&opt.own, "namespace", true, "measure in a network namespace of our own, with cubic, where that is allowed")
	fs.IntVar(&opt.upgrades, "upgrades", 0, "instead of workloads: what clients notice of this many upgrades of each")
	fs.BoolVar(&opt.watched, "watched", false, "instead of workloads: what tunnels notice of who looks at the gateway by -admin")
	fs.StringVar(&opt.json, "json", "", "write everything that was measured to `FILE`")
	fs.StringVar(&opt.svg, "svg", "", "write charts to `DIRECTORY`")
	fs.BoolVar(&quick, "quick", false, "a look in about a minute: -rounds=2 -time=150ms -pinned,\nwhere these are not given")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	given := make(map[string]bool)
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if quick {
		opt.hurry(given)
	}
	if !opt.pinned && !opt.unpinned {
		opt.pinned, opt.unpinned = true, true
	}
	switch {
	case fs.NArg() > 0:
		return nil, fmt.Errorf("unknown argument %q", fs.Arg(0))
	case opt.rounds < 1 || opt.rounds > 1000:
		return nil, errors.New("-rounds: want 1 to 1000")
	case opt.time < time.Millisecond || opt.time > time.Minute:
		return nil, errors.New("-time: want 1ms to 1m")
	case opt.upgrades < 0 || opt.upgrades > 1000:
		return nil, errors.New("-upgrades: want 0 to 1000")
	case opt.watched && opt.upgrades > 0:
		return nil, errors.New("-watched and -upgrades are tables of their own: one at a time")
	case opt.idle < 1 || opt.idle > 100_000:
		return nil, errors.New("-idle: want 1 to 100000")
	case len(opt.workloads()) == 0:
		return nil, fmt.Errorf("-workloads: none is named like %s", strings.Join(opt.rows, ", "))
	}
	return opt, nil
}

// hurry sets what -quick means, except where a flag was given.
func (opt *options) hurry(given map[string]bool) {
	if !given["rounds"] {
		opt.rounds = 2
	}
	if !given["time"] {
		opt.time = 150 * time.Millisecond
	}
	if !given["pinned"] && !given["unpinned"] {
		opt.pinned = true
	}
}

func parseVariant(text string) (variant, error) {
	name, command, _ := strings.Cut(text, "=")
	words := strings.Fields(command)
	if name == "" || len(words) == 0 {
		return variant{}, errors.New("want NAME=COMMAND")
	}
	return variant{name, words[0], words[1:]}, nil
}

// absolute makes the paths of the gateways such, because each contender runs
// in a folder of its own.
func (opt *options) absolute() (err error) {
	for i, v := range opt.variants {
		if opt.variants[i].path, err = exec.LookPath(v.path); err == nil {
			opt.variants[i].path, err = filepath.Abs(opt.variants[i].path)
		}
		if err != nil {
			return fmt.Errorf("-variant: %w", err)
		}
	}
	if opt.gateway == "" {
		return nil
	}
	if opt.gateway, err = filepath.Abs(opt.gateway); err == nil {
		_, err = exec.LookPath(opt.gateway)
	}
	if err != nil {
		return fmt.Errorf("-gateway: %w", err)
	}
	return nil
}

// workloads returns those that -workloads selects.
func (opt *options) workloads() []workload {
	all := workloads(opt.idle)
	if len(opt.rows) == 0 {
		return all
	}
	return slices.DeleteFunc(all, func(w workload) bool {
		return !slices.ContainsFunc(opt.rows, func(s string) bool {
			return w.key == s || strings.HasPrefix(w.key, s+"-")
		})
	})
}

// wants reports whether -only lets a contender take part.
func (opt *options) wants(contender string) bool {
	return len(opt.only) == 0 || slices.Contains(opt.only, contender)
}
