package manual

import (
	"fmt"
	"strings"
)

// Page is the manual page of section 1, with the macros of man(7). about is what NAME
// says behind the program's name, date (2006-01-02) stands in the footer.
func (h Help) Page(program, about, date string) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s 1 %s\n.SH NAME\n%s \\- %s\n", strings.ToUpper(program), date, program, roff(about))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n.RI [ \\-name = value ]...\n", program)
	fmt.Fprintf(&b, ".SH DESCRIPTION\n%s\n", lines(h.About))
	if len(h.Examples) > 0 {
		b.WriteString(".PP\n.nf\n.RS\n")
		for _, e := range h.Examples {
			b.WriteString(roff(e) + "\n")
		}
		b.WriteString(".RE\n.fi\n")
	}
	inOptions := false
	for _, g := range h.Groups {
		if len(g.Settings) == 0 {
			fmt.Fprintf(&b, ".SH %s\n%s\n", strings.ToUpper(roff(g.Title)), lines(g.Text))
			continue
		}
		if !inOptions {
			inOptions = true
			b.WriteString(".SH OPTIONS\n")
		}
		fmt.Fprintf(&b, ".SS %s\n", roff(g.Title))
		for _, s := range g.Settings {
			fmt.Fprintf(&b, ".TP\n\\fB\\-%s\\fR", roff(s.Name))
			if s.Arg != "" {
				fmt.Fprintf(&b, "=\\fI%s\\fR", roff(s.Arg))
			}
			if s.Default != "" {
				fmt.Fprintf(&b, " (default %s)", roff(s.Default))
			}
			fmt.Fprintf(&b, "\n%s\n", lines(s.Usage))
		}
	}
	return b.String()
}

// lines escapes a text and breaks it, since some tools take no long lines.
func lines(text string) string {
	var b strings.Builder
	n := 0
	for word := range strings.FieldsSeq(text) {
		if n > 0 && n+1+len(word) > 60 { // escapes make it longer
			b.WriteString("\n")
			n = 0
		}
		if n > 0 {
			b.WriteString(" ")
			n++
		}
		if n == 0 {
			word = roff(word)
		} else {
			word = strings.TrimPrefix(roff(word), `\&`)
		}
		b.WriteString(word)
		n += len(word)
	}
	return b.String()
}

// roff escapes what has a meaning in a manual page. A dot or a quote does at the
// beginning of a line.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}

// Variables is a file of variables in the form of systemd's EnvironmentFile=, each in a
// comment with its default, below what it means. intro stands at the top, a comment too.
func (h Help) Variables(prefix, intro string) string {
	var b strings.Builder
	comment(&b, intro)
	for _, g := range h.Groups {
		if len(g.Settings) == 0 || g.isAction() {
			continue
		}
		fmt.Fprintf(&b, "\n# == %s\n", g.Title)
		for _, s := range g.Settings {
			b.WriteString("\n")
			comment(&b, s.head()+": "+s.Usage)
			fmt.Fprintf(&b, "#%s%s=%s\n", prefix, strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_")), s.Default)
		}
	}
	return b.String()
}

func (s Setting) head() string {
	if s.Arg == "" {
		return s.Name
	}
	return s.Arg
}

// comment writes a text in lines of at most 90 bytes, unless a word is longer.
func comment(b *strings.Builder, text string) {
	for paragraph := range strings.Lines(text) {
		line := "#"
		for _, word := range strings.Fields(paragraph) {
			if len(line)+1+len(word) > 90 {
				b.WriteString(line + "\n")
				line = "#"
			}
			line += " " + word
		}
		b.WriteString(line + "\n")
	}
}
