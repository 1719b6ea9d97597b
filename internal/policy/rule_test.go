package policy

import (
	"net/netip"
	"strings"
	"testing"
)

// rule parses a rule that must be right.
func rule(t testing.TB, s string) Rule {
	t.Helper()
	r, err := ParseRule(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func rules(t testing.TB, list ...string) []Rule {
	t.Helper()
	var rs []Rule
	for _, s := range list {
		rs = append(rs, rule(t, s))
	}
	return rs
}

func TestParseRuleTakesEveryFormOfTheGrammar(t *testing.T) {
	for _, tt := range []struct {
		in       string
		prefix   string
		from, to uint16
		out      string
	}{
		{"10.0.0.0/8", "10.0.0.0/8", 1, 65535, "10.0.0.0/8"},
		{"10.0.0.0/8:4000", "10.0.0.0/8", 4000, 4000, "10.0.0.0/8:4000"},
		{"10.0.0.0/8:4000-4999", "10.0.0.0/8", 4000, 4999, "10.0.0.0/8:4000-4999"},
		{"10.0.0.0/8:4000-4000", "10.0.0.0/8", 4000, 4000, "10.0.0.0/8:4000"},
		{"10.0.0.0/8:1-65535", "10.0.0.0/8", 1, 65535, "10.0.0.0/8"},
		{"10.0.0.0/8:65535", "10.0.0.0/8", 65535, 65535, "10.0.0.0/8:65535"},
		{"10.0.0.7", "10.0.0.7/32", 1, 65535, "10.0.0.7"},
		{"10.0.0.7/32", "10.0.0.7/32", 1, 65535, "10.0.0.7"},
		{"10.0.0.7:4000", "10.0.0.7/32", 4000, 4000, "10.0.0.7:4000"},
		{"10.0.0.7:1-2", "10.0.0.7/32", 1, 2, "10.0.0.7:1-2"},
		{"0.0.0.0/0", "0.0.0.0/0", 1, 65535, "0.0.0.0/0"},
		{"0.0.0.0/0:443", "0.0.0.0/0", 443, 443, "0.0.0.0/0:443"},
		{"fd00::1", "fd00::1/128", 1, 65535, "fd00::1"},
		{"FD00:0::1", "fd00::1/128", 1, 65535, "fd00::1"},
		{"fd00::1/128", "fd00::1/128", 1, 65535, "fd00::1"},
		{"fd00::1:4000", "fd00::1:4000/128", 1, 65535, "fd00::1:4000"}, // an address
		{"[fd00::1]", "fd00::1/128", 1, 65535, "fd00::1"},
		{"[fd00::1]:4000", "fd00::1/128", 4000, 4000, "[fd00::1]:4000"},
		{"[fd00::1]/128:4000", "fd00::1/128", 4000, 4000, "[fd00::1]:4000"},
		{"fd00::/8", "fd00::/8", 1, 65535, "fd00::/8"},
		{"fd00::/8:4000", "fd00::/8", 4000, 4000, "[fd00::/8]:4000"},
		{"[fd00::/8]", "fd00::/8", 1, 65535, "fd00::/8"},
		{"[fd00::/8]:4000-4999", "fd00::/8", 4000, 4999, "[fd00::/8]:4000-4999"},
		{"[fd00::]/8", "fd00::/8", 1, 65535, "fd00::/8"},
		{"[fd00::]/8:4000", "fd00::/8", 4000, 4000, "[fd00::/8]:4000"},
		{"::/0", "::/0", 1, 65535, "::/0"},
		{"::1", "::1/128", 1, 65535, "::1"},
		{"[::1]:80", "::1/128", 80, 80, "[::1]:80"},
		{"64:ff9b::10.0.0.0/104", "64:ff9b::a00:0/104", 1, 65535, "64:ff9b::a00:0/104"},
		{"::ffff:10.0.0.7", "10.0.0.7/32", 1, 65535, "10.0.0.7"},
		{"[::ffff:10.0.0.7]:4000", "10.0.0.7/32", 4000, 4000, "10.0.0.7:4000"},
		{"[::ffff:a00:7]:4000", "10.0.0.7/32", 4000, 4000, "10.0.0.7:4000"},
		{"::ffff:10.0.0.0/104", "10.0.0.0/8", 1, 65535, "10.0.0.0/8"},
		{"::ffff:10.0.0.0/104:4000", "10.0.0.0/8", 4000, 4000, "10.0.0.0/8:4000"},
		{"[::ffff:0:0]/96", "0.0.0.0/0", 1, 65535, "0.0.0.0/0"},
	} {
		r, err := ParseRule(tt.in)
		if err != nil {
			t.Errorf("ParseRule: %v", err)
			continue
		}
		if want := (Rule{netip.MustParsePrefix(tt.prefix), tt.from, tt.to}); r != want {
			t.Errorf("ParseRule(%q) = %+v, want %+v", tt.in, r, want)
		}
		if r.String() != tt.out {
			t.Errorf("ParseRule(%q).String() = %q, want %q", tt.in, r, tt.out)
		}
	}
}

func TestParseRuleTellsWhatWouldBeRight(t *testing.T) {
	const (
		address  = "want an IP address or a prefix"
		brackets = "in the brackets"
		colons   = "in brackets if a port follows"
		ports    = "want a port from 1 to 65535"
		mapped   = "at least 96 bits"
	)
	for in, want := range map[string]string{
		"":                        address,
		" ":                       address,
		"*":                       address,
		"/8":                      address,
		":4000":                   address,
		"backend":                 address,
		"backend:4000":            address,
		"backend/8":               address,
		"10":                      address,
		"10/8":                    address,
		"10.0.0/8":                address,
		"0x0a000007":              address,
		"10.0.0.07":               address,
		"010.0.0.0/8":             address,
		"10.0.0.256":              address,
		"10.0.0.0.0":              address,
		" 10.0.0.0/8":             address,
		"10.0.0.0 /8":             address,
		"10.0.0.7\n":              address,
		"10.0.0.0\x00/8":          address,
		"10.0.0.*":                address,
		"10.0.0.1-10.0.0.9":       address,
		"10.0.0.7,10.0.0.8":       address,
		"!10.0.0.7":               address,
		"10.0.0.0/":               "from 0 to 32 bits",
		"10.0.0.0/33":             "from 0 to 32 bits",
		"10.0.0.0/08":             "from 0 to 32 bits",
		"10.0.0.0/+8":             "from 0 to 32 bits",
		"10.0.0.0/-8":             "from 0 to 32 bits",
		"10.0.0.0/8 ":             "from 0 to 32 bits",
		"10.0.0.0/8/8":            "from 0 to 32 bits",
		"10.0.0.0/255.0.0.0":      "from 0 to 32 bits",
		"10.0.0.0/8-4000":         "from 0 to 32 bits",
		"fd00::/129":              "from 0 to 128 bits",
		"fd00::/99999":            "from 0 to 128 bits",
		"fd00::/":                 "from 0 to 128 bits",
		"[fd00::]/8 ":             "from 0 to 128 bits",
		"[fd00::]/8/8":            "from 0 to 128 bits",
		"10.0.0.7/8":              "want 10.0.0.0/8 for the network or 10.0.0.7/32 for the address",
		"10.0.0.7/8:4000":         "want 10.0.0.0/8 for the network or 10.0.0.7/32 for the address",
		"10.0.0.7/0":              "want 0.0.0.0/0 for the network or 10.0.0.7/32 for the address",
		"fd00::1/8":               "want fd00::/8 for the network or fd00::1/128 for the address",
		"::ffff:10.0.0.7/104":     "want 10.0.0.0/8 for the network or 10.0.0.7/32 for the address",
		"::ffff:10.0.0.0/95":      mapped,
		"::ffff:10.0.0.0/8":       mapped,
		"::ffff:0:0/0":            mapped,
		"10.0.0.7:":               ports,
		"10.0.0.7:0":              ports,
		"10.0.0.7:00":             ports,
		"10.0.0.7:080":            ports,
		"10.0.0.7:+80":            ports,
		"10.0.0.7:-80":            ports,
		"10.0.0.7:80-":            ports,
		"10.0.0.7:0-80":           ports,
		"10.0.0.7:80-090":         ports,
		"10.0.0.7:80-+90":         ports,
		"10.0.0.7:80--90":         ports,
		"10.0.0.7:80-90-99":       ports,
		"10.0.0.7: 80":            ports,
		"10.0.0.7:80 ":            ports,
		"10.0.0.7:http":           ports,
		"10.0.0.7:*":              ports,
		"10.0.0.7:65536":          ports,
		"10.0.0.7:1-65536":        ports,
		"10.0.0.7:99999999999999": ports,
		"10.0.0.7:8_0":            ports,
		"10.0.0.0/8:":             ports,
		"10.0.0.0/8:4000:4999":    ports,
		"[fd00::1]:":              ports,
		"[fd00::1]:0":             ports,
		"[fd00::/8]:1:2":          ports,
		"10.0.0.7:90-80":          "want the lower port first: 80-90",
		"10.0.0.7:4000:5000":      colons,
		"fd00::1:4000-4999":       colons,
		"::ffff:10.0.0.7:4000":    colons,
		"fd00:::1":                colons,
		"fd00::1]:80":             colons,
		"[":                       brackets,
		"[]":                      brackets,
		"[]:80":                   brackets,
		"[fd00::1":                brackets,
		"[fd00::1:80":             brackets,
		"[fd00::1]80":             brackets,
		"[fd00::1] :80":           brackets,
		"[fd00::/8]/8":            brackets,
		"[10.0.0.7]:80":           brackets,
		"[10.0.0.0/8]":            brackets,
		"[[fd00::1]]:80":          brackets,
		"[fd00::1]]:80":           brackets,
		"[ fd00::1]:80":           colons,
		"fe80::1%eth0":            "without a zone",
		"[fe80::1%eth0]:80":       "without a zone",
		"fe80::%eth0/64":          "without a zone",
		"[fe80::%25eth0]/64:80":   "without a zone",
	} {
		r, err := ParseRule(in)
		if err == nil {
			t.Errorf("ParseRule(%q) = %+v, want an error", in, r)
			continue
		}
		if r != (Rule{}) {
			t.Errorf("ParseRule(%q) failed but returned %+v", in, r)
		}
		if !strings.Contains(err.Error(), want) || strings.ContainsAny(err.Error(), "\r\n\x00") {
			t.Errorf("ParseRule(%q): %v; want one line with %q", in, err, want)
		}
	}
}

func TestTheZeroRuleCoversNothing(t *testing.T) {
	p := New(nil, make([]Rule, 1))
	if err := p.Check(netip.MustParseAddrPort("10.0.0.7:80")); err != nil {
		t.Errorf("denied by no rule: %v", err)
	}
	p = New(make([]Rule, 1), nil)
	if err := p.Check(netip.MustParseAddrPort("10.0.0.7:80")); err == nil {
		t.Error("allowed by no rule")
	}
	if _, err := ParseRule(Rule{}.String()); err == nil {
		t.Error("the zero rule's text is a rule")
	}
}

func FuzzARulesTextIsTheSameRule(f *testing.F) {
	for _, s := range []string{
		"10.0.0.0/8", "10.0.0.0/8:4000-4999", "10.0.0.7:1-65535", "fd00::1", "[fd00::1]:4000", "fd00::/8:4000",
		"[fd00::/8]:1-2", "[fd00::]/8:4000", "::ffff:10.0.0.0/104", "10.0.0.7/8", "0.0.0.0/0", "::/0", "fe80::1%1", "[::]:0",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRule(s)
		if err != nil {
			if r != (Rule{}) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("ParseRule(%q) = %+v, %v", s, r, err)
			}
			return
		}
		if again, err := ParseRule(r.String()); err != nil || again != r {
			t.Fatalf("ParseRule(%q) = %+v, whose text %q is %+v, %v", s, r, r, again, err)
		}
		first := r.prefix.Addr()
		if !r.prefix.IsValid() || r.prefix.Masked() != r.prefix || first.Is4In6() || first.Zone() != "" {
			t.Fatalf("ParseRule(%q) has the prefix %v", s, r.prefix)
		}
		if r.from < 1 || r.from > r.to || !r.covers(first, r.from) || !r.covers(first, r.to) {
			t.Fatalf("ParseRule(%q) = %+v covers not even its first address", s, r)
		}
		if r.to < 65535 && r.covers(first, r.to+1) || r.covers(first, r.from-1) {
			t.Fatalf("ParseRule(%q) = %+v covers ports around its own", s, r)
		}
	})
}
