package docs_test

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// setting is one flag as -help shows it.
type setting struct {
	group string // its heading
	name  string
	arg   string // placeholder of its value; empty for none
	def   string // empty for none
	usage string // one line
}

// isAction tells a flag that does something other than serve: it has no twin in the
// environment.
func (s setting) isAction() bool { return strings.HasPrefix(s.group, "Actions") }

// head is the flag with its argument.
func (s setting) head() string {
	if s.arg == "" {
		return "-" + s.name
	}
	return "-" + s.name + "=" + s.arg
}

// env is the flag's twin in the environment, empty for none.
func (s setting) env() string {
	if s.isAction() {
		return ""
	}
	return "GATEWAY_" + strings.ToUpper(strings.ReplaceAll(s.name, "-", "_"))
}

// settings reads -help: a group is a line without an indent, a flag has two spaces
// before it, and its meaning six.
func settings(t testing.TB) []setting {
	t.Helper()
	if helped != nil {
		return helped
	}
	help, stderr, code := harness.Run(t, nil, "-help")
	if code != 0 || stderr != "" {
		t.Fatalf("-help: code %d, %s", code, stderr)
	}
	head := regexp.MustCompile(`^  -([a-z0-9-]+)(?:=(\S+))?(?:  \(default (.*)\))?$`)
	var list []setting
	group := ""
	for line := range strings.Lines(help) {
		line = strings.TrimSuffix(line, "\n")
		switch m := head.FindStringSubmatch(line); {
		case m != nil:
			list = append(list, setting{group: group, name: m[1], arg: m[2], def: m[3]})
		case strings.HasPrefix(line, "      ") && len(list) > 0:
			last := &list[len(list)-1]
			last.usage = strings.TrimSpace(last.usage + " " + strings.TrimSpace(line))
		case line != "" && line[0] != ' ':
			group = line
		}
	}
	if len(list) < 40 {
		t.Fatalf("-help lists %d flags:\n%s", len(list), help)
	}
	helped = list
	return list
}

var helped []setting // what settings has read

// settingOf returns what -help says of one flag.
func settingOf(t testing.TB, name string) setting {
	t.Helper()
	for _, s := range settings(t) {
		if s.name == name {
			return s
		}
	}
	t.Fatalf("-help has no -%s", name)
	return setting{}
}

// check has the gateway judge a configuration, and returns the words of the mistake
// or of the warnings: empty for neither.
func check(t testing.TB, env []string, args ...string) string {
	t.Helper()
	question := fmt.Sprintf("%q %q", env, args)
	if answer, asked := checked[question]; asked { // by the page in the other language
		return answer
	}
	stdout, stderr, code := harness.Run(t, env, append([]string{"-check"}, args...)...)
	if (code == 0) != (stdout == "the configuration is valid\n") || code != 0 && code != 2 {
		t.Errorf("-check %q: code %d, %q, %s", args, code, stdout, stderr)
	}
	answer := strings.TrimSpace(stderr)
	if strings.Contains(answer, "address already in use") {
		answer, code = "", 0 // by whom is no matter of the documents
	}
	if code != 0 {
		answer = cmp.Or(answer, "no word of what is wrong")
	}
	checked[question] = answer
	return answer
}

var checked = make(map[string]string) // what check has answered

// withSecret is the environment of a gateway that has one.
var withSecret = []string{"GATEWAY_SECRET=" + harness.Secret}
