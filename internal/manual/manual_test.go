package manual

import (
	"strings"
	"testing"
)

const help = `prog does this and
that.

  prog -file=x

First
  -file=FILE  (default .x)
      .reads it's
      file [or: not]
  -on=0|1  (default 1)
      switches
Second; more
  -flag
      stands alone

Actions, instead
  -act=N
      acts

Exit codes
  0 or
  1
`

func TestHelpIsParsedWhole(t *testing.T) {
	h, err := Parse(strings.Replace(help, "switches\n", "switches\n\n", 1))
	if err != nil {
		t.Fatal(err)
	}
	if h.About != "prog does this and that." || len(h.Examples) != 1 || len(h.Groups) != 4 || len(h.all()) != 4 {
		t.Errorf("parsed as %+v", h)
	}
	if got := h.Groups[0].Settings[0]; got != (Setting{"file", "FILE", ".x", ".reads it's file [or: not]"}) {
		t.Errorf("the first is %+v", got)
	}
	if h.Groups[3].Text != "0 or 1" {
		t.Errorf("the last group says %q", h.Groups[3].Text)
	}
	if got := h.Page("prog", "does", "2026-01-02"); !strings.Contains(got, "\n\\&.reads it\\(aqs file") {
		t.Errorf("the page says\n%s", got)
	}
	variables := h.Variables("P_", "Intro")
	if strings.Contains(variables, "P_ACT") || !strings.Contains(variables, "\n#P_ON=1\n") {
		t.Errorf("the variables are\n%s", variables)
	}
	if got := h.Zsh("prog"); !strings.Contains(got, `'*-file=-[.reads it'\''s file \[or\: not\]]:FILE:_files'`) {
		t.Errorf("zsh gets\n%s", got)
	}
}

func TestWhatIsNoHelpIsRefused(t *testing.T) {
	for _, text := range []string{"", "prog: unknown flag\n", "  -a\n      b\n"} {
		if h, err := Parse(text); err == nil {
			t.Errorf("%q is parsed as %+v", text, h)
		}
	}
}
