// Package setting reads a program's settings from its command line, its environment
// and a file, of which the first that has one wins, and prints them for -help.
package setting

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"gateway/internal/flagvalue"
)

// Setting is one flag, its variable, and its line in a file.
type Setting struct {
	Group string
	Name  string
	Arg   string // placeholder of its value in the help; empty for none
	Value flag.Value
	Usage string
}

// Reader reads settings. Its errors name the flag, the variable or the line at fault.
type Reader struct {
	All     []Setting
	Prefix  string          // of variables
	Actions string          // the group that is for the command line alone
	Sums    map[string]bool // by name: each line of a file adds to the value
	Secret  map[string]bool // by name: no error holds a value

	// Sources tells by name where a setting was found: -NAME, PREFIX_NAME or the
	// path of a file. What has its default is not there.
	Sources map[string]string
	InFile  int // settings that the file holds

	// Doubts are what is allowed and hardly meant: a value that another hides.
	Doubts []string
}

// counted counts how often a flag is given.
type counted struct {
	flag.Value
	times *int
}

func (c counted) Set(s string) error {
	*c.times++
	return c.Value.Set(s)
}

// IsBoolFlag is for package flag.
func (c counted) IsBoolFlag() bool {
	b, ok := c.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// Flags reads the command line. The error is flag.ErrHelp where the help is asked for.
func (r *Reader) Flags(args []string) error {
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are the caller's to print
	times := make([]int, len(r.All))
	for i, s := range r.All {
		fs.Var(counted{s.Value, &times[i]}, s.Name, s.Usage)
	}
	if err := fs.Parse(args); err != nil {
		return r.explain(err)
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("flags are written -name=value; %s stands without a flag", stray(args, fs.Args()))
	}
	r.Sources = make(map[string]string)
	fs.Visit(func(f *flag.Flag) { r.Sources[f.Name] = "-" + f.Name })
	for i, s := range r.All {
		if times[i] > 1 && !r.Sums[s.Name] && s.Group != r.Actions {
			r.doubt("-%s is given %d times: only the last one counts", s.Name, times[i])
		}
	}
	return nil
}

func (r *Reader) doubt(format string, args ...any) {
	r.Doubts = append(r.Doubts, fmt.Sprintf(format, args...))
}

// explain says of package flag's errors what to do, and nothing that may be a secret.
func (r *Reader) explain(err error) error {
	text := err.Error()
	if strings.HasPrefix(text, "bad flag syntax") { // repeats the value too
		return errors.New("flags are written -name=value; one has a wrong beginning")
	}
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		if near := flagvalue.Nearest(name, r.names()); near != "" {
			return fmt.Errorf("there is no flag -%s: did you mean -%s?", name, near)
		}
		return fmt.Errorf("there is no flag -%s", name)
	}
	if rest, ok := strings.CutPrefix(text, "invalid boolean flag "); ok {
		return errors.New("-" + rest)
	}
	if rest, ok := strings.CutPrefix(text, "invalid boolean value "); ok {
		return errors.New("invalid value " + rest)
	}
	return err
}

func (r *Reader) names() []string {
	names := make([]string, len(r.All))
	for i, s := range r.All {
		names[i] = s.Name
	}
	return names
}

// stray names the first argument that is no flag's: by its place, unless it is a plain
// word. Anything else may be a secret that lost its flag.
func stray(args, rest []string) string {
	word := rest[0]
	if len(word) <= 10 && strings.Trim(word, "abcdefghijklmnopqrstuvwxyz") == "" {
		return strconv.Quote(word)
	}
	return fmt.Sprintf("argument %d of %d", len(args)-len(rest)+1, len(args))
}

// Environment sets what the command line has not.
func (r *Reader) Environment() error {
	for _, s := range r.All {
		name := r.Variable(s.Name)
		text, ok := os.LookupEnv(name)
		if !ok || s.Group == r.Actions {
			continue
		}
		if flag := r.Sources[s.Name]; flag != "" {
			r.doubt("%s has no effect: %s is given", name, flag)
			continue
		}
		if err := s.Value.Set(text); err != nil {
			return r.invalid(s.Name, text, name, err)
		}
		r.Sources[s.Name] = name
	}
	return nil
}

// invalid is why a value cannot be taken. where names its variable or setting.
func (r *Reader) invalid(name, text, where string, err error) error {
	if r.Secret[name] {
		return fmt.Errorf("invalid value for %s: %w", where, err)
	}
	return fmt.Errorf("invalid value %q for %s: %w", text, where, err)
}

// Variable returns the environment twin of a flag.
func (r *Reader) Variable(name string) string {
	return r.Prefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// Unknown returns those names in an environment, pairs as of os.Environ, that look like
// settings and are none, a misspelt one for instance. What Kubernetes sets for a service
// whose name begins as the prefix does is no mistake: PREFIX_PORT, PREFIX_SERVICE_HOST,
// PREFIX_WEB_PORT_80_TCP and the like.
func (r *Reader) Unknown(environ []string) []string {
	known := make(map[string]bool)
	for _, s := range r.All {
		known[r.Variable(s.Name)] = s.Group != r.Actions
	}
	var list []string
	for _, pair := range environ {
		name, _, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, r.Prefix) || known[name] ||
			strings.Contains(name, "_PORT") || strings.Contains(name, "_SERVICE_") {
			continue
		}
		list = append(list, name)
	}
	return list
}

// PrintHelp prints all settings with their defaults, which are their values now.
func PrintHelp(w io.Writer, all []Setting) {
	group := ""
	for _, s := range all {
		if s.Group != group {
			group = s.Group
			fmt.Fprintf(w, "\n%s\n", group)
		}
		head := "-" + s.Name
		if s.Arg != "" {
			head += "=" + s.Arg
		}
		if def := s.Value.String(); def != "" {
			head += "  (default " + def + ")"
		}
		fmt.Fprintf(w, "  %s\n      %s\n", head, strings.ReplaceAll(s.Usage, "\n", "\n      "))
	}
}
