package docs_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// docs/flags.md is what -help says. A new flag needs its row in the settings table
// of flags.go, its meaning in docs/flags.zh-CN.md, and
//
//	go test ./docs -run Flags -update

var update = flag.Bool("update", false, "write the documents that are generated")

// more are the places where documents say more of a flag.
var more = map[string]string{
	"secret":           "[secrets](sealing.md#secrets)",
	"kdf":              "[key derivations](sealing.md#key-derivations)",
	"token-keys":       "[tokens](issuing.md#tokens)",
	"forward":          "[plain forwarding](backends.md#plain-forwarding)",
	"listen":           "[several ports in one process](backends.md#several-ports-in-one-process)",
	"max-conns":        "[limits](hardening.md#limits)",
	"drain-delay":      "[leaving](hardening.md#leaving)",
	"health-path":      "[leaving](hardening.md#leaving)",
	"mptcp":            "[MPTCP](roaming.md#mptcp)",
	"reuse":            "[several processes on one port](operating.md#several-processes-on-one-port)",
	"trusted-proxies":  "[behind another proxy](protocols.md#behind-another-proxy)",
	"tls-cert":         "[TLS](protocols.md#tls)",
	"http-host":        "[changing requests and answers](protocols.md#changing-requests-and-answers)",
	"ws-origins":       "[pages from elsewhere](protocols.md#pages-from-elsewhere)",
	"balance":          "[which one a client gets](backends.md#which-one-a-client-gets)",
	"resolver":         "[name servers](backends.md#name-servers)",
	"allow-backends":   "[policy](backends.md#policy)",
	"send-proxy":       "[the client's address](backends.md#the-clients-address)",
	"kcp":              "[KCP](kcp.md)",
	"ask":              "[asking](asking.md)",
	"ask-tickets":      "[tickets](asking.md#tickets)",
	"kcp-idle-timeout": "[how a session ends](kcp.md#how-a-session-ends)",
	"io-uring":         "[io_uring](operating.md#io_uring)",
	"resume":           "[roaming](roaming.md)",
	"resume-hold":      "[what a tunnel is held for](roaming.md#what-a-tunnel-is-held-for)",
	"resume-peer":      "[several gateways](roaming.md#several-gateways)",
	"pidfile":          "[the pid file](operating.md#the-pid-file)",
	"drain":            "[signals](operating.md#signals)",
	"log-file":         "[the log file](operating.md#the-log-file)",
	"log-level":        "[the log](operating.md#the-log)",
	"ttl":              "[tokens](issuing.md#tokens)",
}

const flagsIntro = `# Flags

English | [中文](flags.zh-CN.md)

Flags are written ` + "`-name=value`" + `; this page has them as ` + "`gateway -help`" + ` does. Each but the
actions has a twin in the environment; a flag wins. Times are seconds (` + "`3`" + `) or durations
(` + "`1500ms`, `2m`" + `).
`

// flagsPage is docs/flags.md as it has to be.
func flagsPage(all []setting) string {
	var b strings.Builder
	b.WriteString(flagsIntro)
	group := ""
	for _, s := range all {
		if s.group != group {
			group = s.group
			fmt.Fprintf(&b, "\n## %s\n\n| flag | default | environment | meaning |\n|---|---|---|---|\n", group)
		}
		meaning := inMarkdown(s.usage)
		if link := more[s.name]; link != "" {
			meaning += ". See " + link
		}
		fmt.Fprintf(&b, "%s %s |\n", rowBeginning(s), meaning)
	}
	return b.String()
}

// rowBeginning is a flag's row of the table up to its meaning.
func rowBeginning(s setting) string {
	row := "|"
	for _, cell := range []string{s.head(), s.def, s.env()} {
		if cell != "" {
			row += " `" + strings.ReplaceAll(cell, "|", `\|`) + "`"
		}
		row += " |"
	}
	return row
}

// inMarkdown puts words of -help that are code into backquotes: flags, variables,
// addresses and patterns.
func inMarkdown(text string) string {
	word := regexp.MustCompile(`^(\(?)(.*?)([),.;:]*)$`)
	words := strings.Split(text, " ")
	for i, w := range words {
		m := word.FindStringSubmatch(w)
		if isFlag := len(m[2]) > 1 && m[2][0] == '-' && unicode.IsLetter(rune(m[2][1])); isFlag || strings.ContainsAny(m[2], "_=*:/") {
			words[i] = m[1] + "`" + m[2] + "`" + m[3]
		}
	}
	return strings.ReplaceAll(strings.Join(words, " "), "|", `\|`)
}

func TestFlagsAreThoseOfTheHelp(t *testing.T) {
	want := flagsPage(settings(t))
	if *update {
		if err := os.WriteFile(filepath.Join(root, flagPages[0]), []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := readText(t, flagPages[0]); got != want {
		t.Errorf("%s is not what -help says (go test ./docs -run Flags -update)", flagPages[0])
	}
	for name := range more {
		settingOf(t, name)
	}
}

func TestFlagsInChineseAreThoseOfTheHelp(t *testing.T) {
	d := readDocument(t, flagPages[1])
	all := settings(t)
	var groups, got []string
	for _, s := range all {
		if !slices.Contains(groups, s.group) {
			groups = append(groups, s.group)
		}
	}
	if len(d.tables) != len(groups) {
		t.Fatalf("%s has %d tables for the groups %q", flagPages[1], len(d.tables), groups)
	}
	meanings := make(map[string]string)
	for i, table := range d.tables {
		for _, row := range table[1:] {
			if len(row) != 4 {
				t.Fatalf("%s has a row %q; want flag, default, environment, meaning", flagPages[1], row)
			}
			beginning := groups[i] + strings.Join(row[:3], " ")
			got = append(got, beginning)
			meanings[beginning] = row[3]
		}
	}
	var want []string
	for _, s := range all {
		beginning := s.group + strings.Join([]string{s.head(), s.def, s.env()}, " ")
		want = append(want, beginning)
		if meaning, found := meanings[beginning]; !found {
			t.Errorf("%s lacks, under %q:\n%s", flagPages[1], s.group, rowBeginning(s))
		} else if !strings.ContainsFunc(meaning, func(r rune) bool { return unicode.Is(unicode.Han, r) }) {
			t.Errorf("%s: the meaning of -%s is %q", flagPages[1], s.name, meaning)
		}
	}
	if !t.Failed() && !slices.Equal(got, want) {
		t.Errorf("%s lists\n%q\nwant\n%q", flagPages[1], got, want)
	}
}

// What the pages say of the environment holds for the gateway.
func TestFlagsHaveTheirTwinsInTheEnvironment(t *testing.T) {
	env := slices.Clone(withSecret)
	actions := slices.Clone(withSecret)
	for _, s := range settings(t) {
		switch {
		case s.isAction():
			actions = append(actions, "GATEWAY_"+strings.ToUpper(s.name)+"=10.0.0.7:4000")
		case s.name != "secret":
			env = append(env, s.env()+"="+s.def)
		}
	}
	if said := check(t, env); said != "" {
		t.Errorf("with every default in the environment: %s", said)
	}
	said := check(t, actions)
	for _, variable := range actions[1:] {
		name, _, _ := strings.Cut(variable, "=")
		if !strings.Contains(said, name+" is in the environment but is no setting") {
			t.Errorf("nothing is said of %s: %s", name, said)
		}
	}
	said = check(t, append(env, "GATEWAY_RETRY=0"), "-retry=2")
	if want := "GATEWAY_RETRY has no effect: -retry is given"; strings.Count(said, "\n") > 1 || !strings.Contains(said, want) {
		t.Errorf("the flag does not win: %s", said)
	}
}
