package deploy_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

var manifestFiles = []string{"kubernetes/gateway.yaml", "kubernetes/game.yaml", "kubernetes/autoscaling/hpa.yaml"}

// manifest is an object of Kubernetes, or a part of one.
type manifest struct{ v any }

// at returns what a path of keys, and of indexes, leads to; nil for nothing.
func (m manifest) at(path string) manifest {
	v := m.v
	for key := range strings.SplitSeq(path, "/") {
		switch of := v.(type) {
		case map[string]any:
			v = of[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(of) {
				return manifest{}
			}
			v = of[i]
		default:
			return manifest{}
		}
	}
	return manifest{v}
}

func (m manifest) String() string {
	if m.v == nil {
		return ""
	}
	return fmt.Sprint(m.v)
}

func (m manifest) list() []manifest {
	items, _ := m.v.([]any)
	var list []manifest
	for _, item := range items {
		list = append(list, manifest{item})
	}
	return list
}

func (m manifest) seconds(t *testing.T) time.Duration {
	t.Helper()
	n, err := strconv.Atoi(m.String())
	if err != nil {
		t.Fatalf("%v are not seconds", m)
	}
	return time.Duration(n) * time.Second
}

// manifests returns the objects in deploy/kubernetes by kind and name.
func manifests(t *testing.T) map[string]manifest {
	t.Helper()
	all := make(map[string]manifest)
	for _, name := range manifestFiles {
		for text := range strings.SplitSeq(readText(t, name), "\n---\n") {
			m := manifest{parseYAML(t, text)}
			all[m.at("kind").String()+" "+m.at("metadata/name").String()] = m
		}
	}
	return all
}

// parseYAML reads the little of YAML that the manifests use: blocks of mappings
// and lists, plain scalars, and literal text.
func parseYAML(t *testing.T, text string) any {
	t.Helper()
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		if trimmed := strings.TrimSpace(line); trimmed != "" && !strings.HasPrefix(trimmed, "#") {
			lines = append(lines, line)
		}
	}
	indent := func(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }
	var block func(least int) any
	// value reads what stands behind a key or a dash whose own column is given.
	value := func(rest string, column int) any {
		switch {
		case rest == "|":
			var b strings.Builder
			for margin := -1; len(lines) > 0 && indent(lines[0]) > column; lines = lines[1:] {
				if margin < 0 {
					margin = indent(lines[0])
				}
				b.WriteString(lines[0][margin:] + "\n")
			}
			return b.String()
		case rest != "":
			if strings.ContainsAny(rest[:1], `"'{[&*!>%@`) && rest[0] != '[' || strings.Contains(rest, " #") {
				t.Fatalf("%q is beyond this parser", rest)
			}
			return rest
		}
		return block(column)
	}
	block = func(least int) any {
		if len(lines) == 0 {
			return nil
		}
		column := indent(lines[0])
		isItem := func(line string) bool { return strings.HasPrefix(line[column:], "- ") }
		// A list may stand in the column of its key.
		if column < least || column == least && least > 0 && !isItem(lines[0]) {
			return nil
		}
		if isItem(lines[0]) {
			var list []any
			for len(lines) > 0 && indent(lines[0]) == column && isItem(lines[0]) {
				rest := lines[0][column+2:]
				if key, _, ok := strings.Cut(rest, ":"); ok && !strings.ContainsAny(key, "-= ") {
					lines[0] = strings.Repeat(" ", column+2) + rest // a mapping
					list = append(list, block(column+1))
					continue
				}
				lines = lines[1:]
				list = append(list, value(rest, column))
			}
			return list
		}
		m := make(map[string]any)
		for len(lines) > 0 && indent(lines[0]) == column && !isItem(lines[0]) {
			key, rest, ok := strings.Cut(lines[0][column:], ":")
			if _, twice := m[key]; !ok || twice {
				t.Fatalf("%q is no key, or a second one", lines[0])
			}
			lines = lines[1:]
			m[key] = value(strings.TrimSpace(rest), column)
		}
		return m
	}
	v := block(0)
	if len(lines) > 0 {
		t.Fatalf("%q is beyond this parser", lines[0])
	}
	return v
}
