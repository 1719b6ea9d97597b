package docs_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// Markdown files in their parts, as far as the tests compare them.

// document is a Markdown file in its parts.
type document struct {
	name     string
	headings []heading
	blocks   []codeBlock
	tables   [][][]string // rows of cells, the head included
	text     string       // all but the code blocks
}

type heading struct {
	level int
	text  string
}

// anchor is what a link within the page names, as GitHub makes it.
func (h heading) anchor() string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, h.text)
}

type codeBlock struct{ lang, text string }

// withoutComments returns the block without the comments that may be
// translated, and the space before them.
func (b codeBlock) withoutComments() string {
	comment := regexp.MustCompile(`(?m)(^|[ \t]+)# .*$`)
	if b.lang == "go" || b.lang == "js" {
		comment = regexp.MustCompile(`(?m)(^|[ \t]+)// .*$`)
	}
	return b.lang + "\n" + comment.ReplaceAllString(b.text, "")
}

func readDocument(t *testing.T, name string) *document {
	t.Helper()
	d := &document{name: name}
	var text strings.Builder
	var block *codeBlock
	inTable := false
	for line := range strings.Lines(readText(t, name)) {
		trimmed := strings.TrimRight(line, "\n")
		switch {
		case block != nil && trimmed == "```":
			d.blocks = append(d.blocks, *block)
			block = nil
			continue
		case block != nil:
			block.text += line
			continue
		case strings.HasPrefix(trimmed, "```"):
			block = &codeBlock{lang: trimmed[3:]}
			continue
		}
		text.WriteString(line)
		if hashes := len(trimmed) - len(strings.TrimLeft(trimmed, "#")); hashes > 0 {
			d.headings = append(d.headings, heading{hashes, strings.TrimSpace(trimmed[hashes:])})
		}
		isRow := strings.HasPrefix(trimmed, "|")
		switch {
		case isRow && !inTable:
			d.tables = append(d.tables, [][]string{cells(trimmed)})
		case isRow && !strings.HasPrefix(trimmed, "|---"):
			last := &d.tables[len(d.tables)-1]
			*last = append(*last, cells(trimmed))
		}
		inTable = isRow
	}
	if block != nil {
		t.Fatalf("%s: a code block does not end", name)
	}
	d.text = text.String()
	return d
}

// cells splits a row of a table. A cell that is all code comes without its
// backquotes, and an escaped bar as a bar.
func cells(row string) []string {
	row = strings.ReplaceAll(row, `\|`, "\x00")
	list := strings.Split(strings.Trim(row, "|"), "|")
	for i, c := range list {
		c = strings.TrimSpace(strings.ReplaceAll(c, "\x00", "|"))
		if code := strings.Trim(c, "`"); len(code) == len(c)-2 && !strings.Contains(code, "`") {
			c = code
		}
		list[i] = c
	}
	return list
}

// tableWith returns the rows below the head of the first table that has a row
// with the given first cell.
func (d *document) tableWith(t *testing.T, first string) [][]string {
	t.Helper()
	for _, table := range d.tables {
		if slices.ContainsFunc(table, func(row []string) bool { return row[0] == first }) {
			return table[1:]
		}
	}
	t.Fatalf("%s has no table with a row for %s", d.name, first)
	return nil
}

// blockWith returns the first code block in a language that holds a text.
func (d *document) blockWith(t *testing.T, lang, text string) string {
	t.Helper()
	for _, b := range d.blocks {
		if b.lang == lang && strings.Contains(b.text, text) {
			return b.text
		}
	}
	t.Fatalf("%s has no %s block with %q", d.name, lang, text)
	return ""
}
