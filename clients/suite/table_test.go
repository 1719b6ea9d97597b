package suite

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table into the READMEs")

const begin, end = "<!-- table -->\n", "<!-- end of the table -->\n"

var readmes = []string{"../README.md", "../README.zh-CN.md"}

// table returns what the kits have done, as Markdown.
func table(results map[string]string) string {
	var b strings.Builder
	b.WriteString("| scenario |")
	for _, k := range kits {
		b.WriteString(" " + k.name + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(kits)) + "\n")
	for _, s := range scenarios {
		b.WriteString("| " + s.name + " |")
		for _, k := range kits {
			mark := results[k.name+"/"+s.name]
			if mark == "" {
				mark = "not run"
			}
			b.WriteString(" " + mark + " |")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// checkReadme compares a README's table with the one at hand.
func checkReadme(t *testing.T, readme, table string) {
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	old, after, ok2 := strings.Cut(rest, end)
	switch {
	case !ok || !ok2:
		t.Fatalf("%s has no place for the table", readme)
	case *update && old != table:
		if err := os.WriteFile(readme, []byte(before+begin+table+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	case old != table:
		t.Errorf("the table in %s is an old one: go test ./clients/suite -update", readme)
	}
}
