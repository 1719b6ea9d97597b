package setting

import (
	"fmt"
	"strings"

	"gateway/internal/flagvalue"
	"gateway/internal/smallfile"
)

// maxFile bounds the file of settings, in bytes.
const maxFile = 1 << 20

// File sets what neither the command line nor the environment has, from a file of
// lines NAME=VALUE. self is the name of the setting that names the file, which cannot
// stand in it.
func (r *Reader) File(name, self string) error {
	text, err := smallfile.Read(name, maxFile)
	if err != nil {
		return fmt.Errorf("%s: %w", r.Sources[self], err)
	}
	known := make(map[string]Setting)
	for _, s := range r.All {
		known[s.Name] = s
	}
	seen := make(map[string]bool)
	number := 0
	for line := range strings.Lines(strings.TrimPrefix(string(text), "\ufeff")) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		at := fmt.Sprintf("%s: line %d of %s", r.Sources[self], number, name)
		key, value, ok := strings.Cut(line, "=")
		if !ok { // perhaps a secret that stands alone: not repeated
			return fmt.Errorf("%s: want NAME=VALUE", at)
		}
		key, value = r.nameIn(strings.TrimSpace(key)), unquote(strings.TrimSpace(value))
		s, ok := known[key]
		switch near := flagvalue.Nearest(key, r.names()); {
		case !ok && near != "":
			return fmt.Errorf("%s: there is no setting %q: did you mean %q?", at, key, near)
		case !ok:
			return fmt.Errorf("%s: there is no setting of that name (-help lists all)", at)
		case s.Group == r.Actions || key == self:
			return fmt.Errorf("%s: %s is for the command line", at, key)
		case seen[key] && !r.Sums[key]:
			return fmt.Errorf("%s: %s is there twice", at, key)
		}
		seen[key] = true
		r.InFile++
		if first := r.Sources[key]; first != "" && first != name {
			r.doubt("%s in %s has no effect: %s is given", key, name, first)
			continue
		}
		if err := s.Value.Set(value); err != nil {
			return fmt.Errorf("%s: %w", at, r.invalid(key, value, key, err))
		}
		r.Sources[key] = name
	}
	return nil
}

// nameIn returns the name of a setting that is perhaps written as a variable or a flag.
func (r *Reader) nameIn(text string) string {
	if rest, ok := strings.CutPrefix(text, r.Prefix); ok {
		return strings.ToLower(strings.ReplaceAll(rest, "_", "-"))
	}
	return strings.TrimPrefix(strings.TrimPrefix(text, "-"), "-")
}

// unquote takes the quotes off a value that has some, as systemd and shells do.
func unquote(text string) string {
	if n := len(text); n >= 2 && (text[0] == '"' || text[0] == '\'') && text[n-1] == text[0] {
		return text[1 : n-1]
	}
	return text
}
