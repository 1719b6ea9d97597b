package docs_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gateway/internal/harness"
	"gateway/internal/policy"
	"gateway/internal/proxyheader"
)

// What docs/backends.md says of the policy and of a backend in Go is compared
// with what those do, in both languages.

func TestDocumentedRangesAreThoseOfThePolicy(t *testing.T) {
	source := readText(t, "internal/policy/ranges.go")
	for _, name := range backends {
		for _, test := range []struct{ variable, first string }{
			{"never", "0.0.0.0/8"},
			{"sensitive", "169.254.0.0/16"},
		} {
			_, list, _ := strings.Cut(source, "\nvar "+test.variable+" = ")
			list, _, _ = strings.Cut(list, "\n}\n")
			var want, got []string
			for _, m := range regexp.MustCompile(`name\("([^"]+)"`).FindAllStringSubmatch(list, -1) {
				want = append(want, strings.TrimSuffix(strings.TrimSuffix(m[1], "/32"), "/128"))
			}
			for _, row := range readDocument(t, name).tableWith(t, test.first) {
				if strings.ContainsAny(row[0], ".:") { // not the gateway's own ports
					got = append(got, row[0])
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s lists %q; policy has %s = %q", name, got, test.variable, want)
			}
		}
	}
}

// The header that is explained byte by byte is the one that the first line of the log
// tells of.
func TestTheDocumentedHeaderIsTheGateways(t *testing.T) {
	for _, name := range backends {
		d := readDocument(t, name)
		sent, err := hex.DecodeString(strings.Join(strings.Fields(d.blockWith(t, "text", "0d 0a 0d 0a")), ""))
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`msg=tunnel id=(\S+) client=(\S+)`).FindStringSubmatch(d.blockWith(t, "text", "msg=tunnel id="))
		want, err := proxyheader.Append(nil, 2, proxyheader.Header{
			Source:      netip.MustParseAddrPort(m[2]),
			Destination: netip.MustParseAddrPort("203.0.113.10:8000"),
			UniqueID:    m[1],
			Hops:        1,
		})
		if err != nil || !bytes.Equal(sent, want) {
			t.Errorf("%s has\n% x\nthe gateway sends\n% x", name, sent, want)
		}
	}
}

func TestDocumentedRulesMeanWhatTheDocumentsSay(t *testing.T) {
	for _, name := range backends {
		d := readDocument(t, name)
		for _, row := range d.tableWith(t, "10.20.0.7:4000") {
			if said := check(t, withSecret, "-allow="+row[0]); said != "" {
				t.Errorf("%s: %s: %s", name, row[0], said)
			}
		}
		for _, row := range d.tableWith(t, "10.20.0.7/16") {
			said := check(t, withSecret, "-allow="+row[0])
			if want := firstCode(row[1]); !strings.Contains(said, want) {
				t.Errorf("%s: %s: %s; the page says %q", name, row[0], said, want)
			}
		}

		// Which rule opens which address. The first row is without a rule: it
		// shows the words for yes and no.
		var table [][]string
		for _, rows := range d.tables {
			if rows[0][1] == "10.0.0.7" {
				table = rows
			}
		}
		if len(table) < 3 {
			t.Fatalf("%s has no table of what rules open", name)
		}
		yes, no := table[1][1], table[1][2]
		for _, row := range table[1:] {
			var rules []policy.Rule
			if strings.Contains(row[0], "/") {
				rule, err := policy.ParseRule(row[0])
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				rules = append(rules, rule)
			}
			p := policy.New(rules, nil)
			for i, cell := range row[1:] {
				to, err := netip.ParseAddrPort(table[0][i+1])
				if err != nil {
					to = netip.AddrPortFrom(netip.MustParseAddr(table[0][i+1]), 4000)
				}
				want := no
				if p.Check(to) == nil {
					want = yes
				}
				if cell != want {
					t.Errorf("%s: with %s, %v: the page says %q, want %q", name, row[0], to, cell, want)
				}
			}
		}
	}
}

func TestDocumentedDenialsAreThoseOfThePolicy(t *testing.T) {
	var want []string
	for _, err := range []error{
		policy.ErrUnlisted, policy.ErrDenied, policy.ErrSensitive, policy.ErrOwn,
		policy.ErrUnknown, policy.ErrNever, policy.ErrInvalid,
	} {
		want = append(want, err.Error())
	}
	for _, name := range backends {
		var got []string
		for _, row := range readDocument(t, name).tableWith(t, policy.ErrUnlisted.Error()) {
			got = append(got, row[0])
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s explains\n%q\nwant\n%q", name, got, want)
		}
	}
}

// firstCode returns what stands first in backquotes, or the cell if it is all code.
func firstCode(cell string) string {
	if _, rest, ok := strings.Cut(cell, "`"); ok {
		cell, _, _ = strings.Cut(rest, "`")
	}
	return cell
}

func TestTheGoBackendKnowsThePlayer(t *testing.T) {
	program := "package main\n\nimport (\n\"fmt\"\n\"os\"\n)\n" + readDocument(t, backends[0]).blockWith(t, "go", "func Listen") + `
func main() {
	ln, err := Listen("127.0.0.1:0", os.Args[1])
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(ln.Addr())
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		fmt.Fprintf(c, "%v %s", c.RemoteAddr(), ID(c))
		c.Close()
	}
}
`
	binary := harness.BuildProgram(t, program)
	for _, test := range []struct {
		trusted string
		serves  bool
	}{
		{"127.0.0.1", true},
		{"192.0.2.1", false},
	} {
		backend := exec.Command(binary, test.trusted)
		out, err := backend.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := backend.Start(); err != nil {
			t.Fatal(err)
		}
		defer backend.Wait()
		defer backend.Process.Kill()
		addr, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		p := harness.Start(t, "-send-proxy=v2")
		c := harness.Connect(t, p.Addr)
		harness.Send(t, c, harness.Line(strings.TrimSpace(addr)))
		got, _ := io.ReadAll(c)
		c.Close()
		line := p.Log.WaitLine(t, "tunnel", 1)
		want := "200"
		if test.serves {
			want += fmt.Sprintf("%v %v", c.LocalAddr(), line["id"])
		}
		if string(got) != want {
			t.Errorf("a backend that trusts %s: the client got %q, want %q", test.trusted, got, want)
		}
	}
}
