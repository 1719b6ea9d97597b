package setting

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gateway/internal/flagvalue"
)

type values struct {
	name, file string
	count      int
	act        bool
}

func reader(v *values) *Reader {
	return &Reader{
		All: []Setting{
			{"Things", "name", "NAME", flagvalue.String(&v.name), "of it"},
			{"Things", "the-count", "COUNT", flagvalue.Int(&v.count, 0, 9), "of them,\nall"},
			{"Things", "secret", "TEXT", flagvalue.Int(new(int), 0, 9), "never shown"},
			{"Things", "file", "FILE", flagvalue.String(&v.file), "of settings"},
			{"Actions", "act", "", flagvalue.Switch(&v.act), "do it"},
		},
		Prefix: "THING_", Actions: "Actions", Secret: map[string]bool{"secret": true},
		Sums: map[string]bool{"name": true},
	}
}

// read reads from all three places.
func (r *Reader) read(t *testing.T, args []string, lines string) error {
	if err := r.Flags(args); err != nil {
		return err
	}
	if err := r.Environment(); err != nil {
		return err
	}
	path := filepath.Join(t.TempDir(), "conf")
	if err := os.WriteFile(path, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Sources["file"] = "-file"
	err := r.File(path, "file")
	if err != nil {
		err = errors.New(strings.ReplaceAll(err.Error(), path, "PATH"))
	}
	return err
}

func TestAFlagWinsOverAVariableAndBothOverTheFile(t *testing.T) {
	for _, c := range []struct {
		args   []string
		env    string
		file   string
		want   string
		source string
	}{
		{[]string{"-name=flag"}, "variable", "name=file", "flag", "-name"},
		{nil, "variable", "name=file", "variable", "THING_NAME"},
		{nil, "", "name = 'file'\n# name=comment\n\n; nothing", "file", "conf"},
		{nil, "", "THING_NAME=\"file\"", "file", "conf"},
		{nil, "", "\ufeff-name=file", "file", "conf"},
		{nil, "", "", "", ""},
	} {
		if c.env != "" {
			t.Setenv("THING_NAME", c.env)
		} else {
			os.Unsetenv("THING_NAME")
		}
		var v values
		r := reader(&v)
		if err := r.read(t, c.args, c.file); err != nil {
			t.Fatal(err)
		}
		if v.name != c.want || filepath.Base("/"+r.Sources["name"]) != filepath.Base("/"+c.source) {
			t.Errorf("%q, %q, %q: got %q of %q", c.args, c.env, c.file, v.name, r.Sources["name"])
		}
	}
}

func TestErrorsNameThePlaceAndNoSecret(t *testing.T) {
	for _, c := range []struct {
		args []string
		env  string // of the secret
		file string
		want string
	}{
		{[]string{"-nam=x"}, "", "", "there is no flag -nam: did you mean -name?"},
		{[]string{"-=x"}, "", "", "flags are written -name=value; one has a wrong beginning"},
		{[]string{"-zzzzzzzz"}, "", "", "there is no flag -zzzzzzzz"},
		{[]string{"serve"}, "", "", `flags are written -name=value; "serve" stands without a flag`},
		{[]string{"-name=x", "S3cret-of-mine"}, "", "", "flags are written -name=value; argument 2 of 2 stands without a flag"},
		{nil, "hidden", "", "invalid value for THING_SECRET: want a whole number from 0 to 9"},
		{nil, "", "secret=hidden", "-file: line 1 of PATH: invalid value for secret: want a whole number from 0 to 9"},
		{nil, "", "\nthe-count=ten", `-file: line 2 of PATH: invalid value "ten" for the-count: want a whole number from 0 to 9`},
		{nil, "", "hidden", "-file: line 1 of PATH: want NAME=VALUE"},
		{nil, "", "nmae=1", `-file: line 1 of PATH: there is no setting "nmae": did you mean "name"?`},
		{nil, "", "zzzzzzzz=1", "-file: line 1 of PATH: there is no setting of that name (-help lists all)"},
		{nil, "", "act=1", "-file: line 1 of PATH: act is for the command line"},
		{nil, "", "file=other", "-file: line 1 of PATH: file is for the command line"},
		{nil, "", "the-count=1\nTHING_THE_COUNT=1", "-file: line 2 of PATH: the-count is there twice"},
		{nil, "", "name=1\nname=2", ""},
	} {
		if c.env != "" {
			t.Setenv("THING_SECRET", c.env)
		} else {
			os.Unsetenv("THING_SECRET")
		}
		err := reader(new(values)).read(t, c.args, c.file)
		if got := text(err); got != c.want {
			t.Errorf("%q, %q:\n got %s\nwant %s", c.args, c.file, got, c.want)
		}
	}
	if err := reader(new(values)).Flags([]string{"-help"}); err != flag.ErrHelp {
		t.Errorf("-help is %v", err)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestTheHelpHasDefaultsAndGroups(t *testing.T) {
	var b bytes.Buffer
	PrintHelp(&b, reader(&values{count: 7}).All)
	for _, want := range []string{"\nThings\n", "  -name=NAME\n      of it\n", "  -the-count=COUNT  (default 7)\n      of them,\n      all\n", "\nActions\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, &b)
		}
	}
}

func TestWhatIsHiddenIsDoubted(t *testing.T) {
	t.Setenv("THING_THE_COUNT", "3")
	r := reader(new(values))
	r.All = append(r.All, Setting{"Things", "once", "", flagvalue.Switch(new(bool)), "is a switch"})
	err := r.read(t, []string{"-the-count=1", "-the-count=2", "-name=a", "-name=b", "-once=1"}, "the-count=4\nonce=1\nsecret=1")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(r.Doubts, "\n")
	for _, want := range []string{"-the-count is given 2 times: only the last one counts",
		"THING_THE_COUNT has no effect: -the-count is given", "has no effect: -once is given", "the-count in "} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if len(r.Doubts) != 4 {
		t.Errorf("too much is doubted:\n%s", got)
	}
}
