// Package manual turns what a program says for -help into the files that its packages
// bring: a manual page, completions for shells, and a file of variables. It knows the
// form of the help that package setting prints, and nothing of what the settings mean.
package manual

import (
	"errors"
	"regexp"
	"strings"
)

// Setting is one flag of the help.
type Setting struct {
	Name    string
	Arg     string // placeholder of the value; empty for none
	Default string // empty for none
	Usage   string // one line
}

// Group is a heading of the help with its flags, or with a text in place of flags.
type Group struct {
	Title    string
	Settings []Setting
	Text     string // one line
}

// Help is what -help says.
type Help struct {
	About    string   // what the program is, one line
	Examples []string // commands
	Groups   []Group
}

var head = regexp.MustCompile(`^  -([a-z0-9-]+)(?:=(\S+))?(?:  \(default (.*)\))?$`)

// Parse reads the help: text and examples, then groups. A group is a line without an
// indent after an empty one, a flag has two spaces before it, and its meaning six.
func Parse(text string) (Help, error) {
	var h Help
	empty := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		last := len(h.Groups) - 1
		switch m := head.FindStringSubmatch(line); {
		case line == "":
		case line[0] != ' ' && empty:
			h.Groups = append(h.Groups, Group{Title: line})
		case line[0] != ' ':
			h.About = strings.TrimSpace(h.About + " " + line)
		case last < 0:
			h.Examples = append(h.Examples, strings.TrimSpace(line))
		case m != nil:
			g := &h.Groups[last]
			g.Settings = append(g.Settings, Setting{Name: m[1], Arg: m[2], Default: m[3]})
		case len(h.Groups[last].Settings) > 0:
			s := &h.Groups[last].Settings[len(h.Groups[last].Settings)-1]
			s.Usage = strings.TrimSpace(s.Usage + " " + strings.TrimSpace(line))
		default:
			g := &h.Groups[last]
			g.Text = strings.TrimSpace(g.Text + " " + strings.TrimSpace(line))
		}
		empty = line == ""
	}
	if h.About == "" || len(h.all()) == 0 {
		return h, errors.New("no help of a program: want a text, and groups of flags")
	}
	return h, nil
}

// all returns the flags of all groups.
func (h Help) all() (list []Setting) {
	for _, g := range h.Groups {
		list = append(list, g.Settings...)
	}
	return list
}

// isAction tells a group that is for the command line alone.
func (g Group) isAction() bool { return strings.HasPrefix(g.Title, "Actions") }

// isFile tells a flag whose value is the path of a file.
func (s Setting) isFile() bool { return s.Arg == "FILE" }

var choice = regexp.MustCompile(`^[a-z0-9-]+(\|[a-z0-9-]+)+$`)

// choices returns the values that a flag can have, nil where the help does not list them.
func (s Setting) choices() []string {
	if !choice.MatchString(s.Arg) {
		return nil
	}
	return strings.Split(s.Arg, "|")
}
