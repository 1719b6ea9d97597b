package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"gateway/internal/address"
	"gateway/internal/balance"
	"gateway/internal/policy"
)

// The kinds of flag values; each is a flag.Value. Set's errors say what would
// have been right; package flag names the flag and the wrong value.

type stringValue string

func (v *stringValue) String() string     { return string(*v) }
func (v *stringValue) Set(s string) error { *v = stringValue(s); return nil }

// intValue is a whole number from min to max.
type intValue struct {
	p        *int
	min, max int
}

func (v *intValue) String() string {
	if v.p == nil {
		return "" // package flag asks zero values
	}
	return strconv.Itoa(*v.p)
}

func (v *intValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < v.min || n > v.max {
		return fmt.Errorf("want a whole number from %d to %d", v.min, v.max)
	}
	*v.p = n
	return nil
}

// switchValue is 0 or 1; Go's other spellings of bools work too.
type switchValue bool

func (v *switchValue) String() string {
	if *v {
		return "1"
	}
	return "0"
}

func (v *switchValue) Set(s string) error {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return errors.New("want 0 or 1")
	}
	*v = switchValue(b)
	return nil
}

// durationValue is seconds ("3", "1.5") or a Go duration ("1500ms", "1m30s").
type durationValue struct {
	p      *time.Duration
	zeroOK bool
	most   time.Duration // zero: maxDuration
}

func (v *durationValue) String() string {
	switch {
	case v.p == nil:
		return ""
	case *v.p == 0:
		return "0"
	case *v.p < 10*time.Minute && *v.p%time.Second == 0:
		return strconv.Itoa(int(v.p.Seconds())) + "s" // 60s, not 1m0s
	}
	return v.p.String()
}

// maxDuration is a hundred years: there is no time of this century at which a
// clock of 63 bits of nanoseconds has no room for it.
const maxDuration = 100 * 365 * 24 * time.Hour

func (v *durationValue) Set(s string) error {
	text := s
	if strings.Trim(s, "0123456789.") == "" {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	if most := cmp.Or(v.most, maxDuration); err == nil && d > most {
		return fmt.Errorf("want at most %v", most)
	}
	if err != nil || d < 0 || d == 0 && !v.zeroOK {
		if v.zeroOK {
			return errors.New("want seconds (3) or a duration (1500ms, 2m), or 0")
		}
		return errors.New("want seconds (3) or a duration (1500ms, 2m), more than 0")
	}
	*v.p = d
	return nil
}

// addrValue is an address to listen on. Whether it can be bound shows later;
// this tells what is mistyped.
type addrValue struct {
	p       *string
	emptyOK bool
}

func (v *addrValue) String() string {
	if v.p == nil {
		return ""
	}
	return *v.p
}

func (v *addrValue) Set(s string) error {
	if s != "" || !v.emptyOK {
		_, port, err := net.SplitHostPort(s)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			return errors.New("want host:port or :port, with a port from 0 to 65535")
		}
	}
	*v.p = s
	return nil
}

// targetValue is a route to a backend, or to one of several.
type targetValue struct{ p **address.Route }

func (v *targetValue) String() string {
	if v.p == nil || *v.p == nil {
		return ""
	}
	return (*v.p).String()
}

func (v *targetValue) Set(s string) error {
	*v.p = nil
	if s == "" {
		return nil
	}
	var err error
	*v.p, err = parseTarget(s)
	return err
}

func parseTarget(s string) (*address.Route, error) {
	r, err := address.ParseRoute(s)
	if err != nil {
		return nil, fmt.Errorf("want host:port, several such or srv:name (%w)", err)
	}
	return &r, nil
}

// listenValue is a list of addresses to listen on.
type listenValue []listening

func (v *listenValue) String() string { return "" }

func (v *listenValue) Set(s string) error {
	for word := range strings.FieldsSeq(s) {
		addr, what, _ := strings.Cut(word, "=")
		l := listening{setting: "listen"}
		err := (&addrValue{&l.addr, false}).Set(addr)
		if err != nil {
			return fmt.Errorf("%w, before =sealed or =forward:TARGET", err)
		}
		if target, ok := strings.CutPrefix(what, "forward:"); ok {
			if l.forward, err = parseTarget(target); err != nil {
				return err
			}
		} else if what != "sealed" {
			return errors.New("want ADDRESS=sealed or ADDRESS=forward:HOST:PORT")
		}
		// Port 0 is another port each time.
		same := slices.IndexFunc(*v, func(have listening) bool {
			return have.addr == l.addr && !strings.HasSuffix(l.addr, ":0")
		})
		if same < 0 {
			*v = append(*v, l)
		} else if (&targetValue{&l.forward}).String() != (&targetValue{&(*v)[same].forward}).String() {
			return fmt.Errorf("want one use of %s", l.addr)
		}
	}
	return nil
}

// rulesValue is a list of a policy's rules.
type rulesValue []policy.Rule

func (v *rulesValue) String() string { return joined(*v) }

// joined writes a list as words reads it.
func joined[T any](list []T) string {
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = fmt.Sprint(v)
	}
	return strings.Join(texts, ",")
}

func (v *rulesValue) Set(s string) error {
	if s != "" && len(words(s)) == 0 { // no rule would mean no bounds
		return errors.New("want rules, or nothing at all")
	}
	for _, word := range words(s) {
		rule, err := policy.ParseRule(word)
		if err != nil {
			return err
		}
		if !slices.Contains(*v, rule) {
			*v = append(*v, rule)
		}
	}
	return nil
}

// prefixesValue is a list of networks, each once.
type prefixesValue []netip.Prefix

func (v *prefixesValue) String() string { return joined(*v) }

func (v *prefixesValue) Set(s string) error {
	for _, word := range words(s) {
		p, err := netip.ParsePrefix(word)
		if addr, aerr := netip.ParseAddr(word); aerr == nil && addr.Zone() == "" {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return fmt.Errorf("%q: want addresses or networks such as 10.0.0.0/8 and fd00::/8, without bits beyond the prefix", word)
		}
		if !slices.Contains(*v, p) {
			*v = append(*v, p)
		}
	}
	return nil
}

// originsValue is a list of patterns as path.Match has them.
type originsValue []string

func (v *originsValue) String() string { return strings.Join(*v, ",") }

func (v *originsValue) Set(s string) error {
	list := words(s)
	for _, pattern := range list {
		if _, err := path.Match(pattern, ""); err != nil {
			return fmt.Errorf("%q: want hosts, in which * stands for anything", pattern)
		}
	}
	if len(list) == 0 {
		return errors.New("want hosts, or * for all")
	}
	*v = list
	return nil
}

// words splits a list at commas and spaces.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

// balanceValue is the name of a balancing algorithm.
type balanceValue balance.Algorithm

func (v *balanceValue) String() string { return balance.Algorithm(*v).String() }

func (v *balanceValue) Set(s string) error {
	a, err := balance.ParseAlgorithm(s)
	*v = balanceValue(a)
	return err
}

// choiceValue is one of a few words.
type choiceValue struct {
	p       *string
	choices []string
}

func (v *choiceValue) String() string {
	if v.p == nil {
		return ""
	}
	return *v.p
}

func (v *choiceValue) Set(s string) error {
	if !slices.Contains(v.choices, s) {
		return fmt.Errorf("want %s", strings.Join(v.choices, " or "))
	}
	*v.p = s
	return nil
}

type levelValue slog.Level

func (v *levelValue) String() string { return strings.ToLower(slog.Level(*v).String()) }

func (v *levelValue) Set(s string) error {
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if strings.EqualFold(s, l.String()) {
			*v = levelValue(l)
			return nil
		}
	}
	return errors.New("want debug, info, warn or error")
}

// kdfsValue is a list of key derivations, each at most once.
type kdfsValue []kdf

func (v *kdfsValue) String() string { return joined(*v) }

func (v *kdfsValue) Set(s string) error {
	var list []kdf
	for name := range strings.SplitSeq(s, ",") {
		k := kdf(name)
		if k != kdfMD5 && k != kdfSHA256 && k != kdfPBKDF2 || slices.Contains(list, k) {
			return errors.New("want md5, sha256 and pbkdf2, each at most once, separated by commas")
		}
		list = append(list, k)
	}
	*v = list
	return nil
}

// actionValue sets the one action of the command line.
type actionValue struct {
	cfg    *Config
	action action
}

func (v *actionValue) String() string { return "" }

func (v *actionValue) Set(s string) error {
	if v.IsBoolFlag() {
		on, err := strconv.ParseBool(s)
		if err != nil {
			return errors.New("want no value")
		}
		if !on {
			return nil
		}
	}
	if v.cfg.Action != actionServe && v.cfg.Action != v.action {
		return fmt.Errorf("-%s is given too: one action at a time", v.cfg.Action)
	}
	v.cfg.Action, v.cfg.Arg = v.action, s
	return nil
}

func (v *actionValue) IsBoolFlag() bool {
	return v.action == actionCheck || v.action == actionVersion || v.action == actionKeygen
}

// printHelp writes what -help says.
func printHelp(w io.Writer) {
	fmt.Fprint(w, `gateway lets TCP clients through to the backends whose sealed addresses they
bring, and keeps the backends' own addresses out of sight.

  gateway -secret-file=secret -addr=:8000
  gateway -secret-file=secret -seal=10.0.0.7:4000
`)
	group := ""
	for _, s := range settings(defaultConfig()) {
		if s.group != group {
			group = s.group
			fmt.Fprintf(w, "\n%s\n", group)
		}
		head := "-" + s.name
		if s.arg != "" {
			head += "=" + s.arg
		}
		if def := s.value.String(); def != "" {
			head += "  (default " + def + ")"
		}
		fmt.Fprintf(w, "  %s\n      %s\n", head, strings.ReplaceAll(s.usage, "\n", "\n      "))
	}
	fmt.Fprint(w, `
Environment
  Each setting above, but no action, can also be given as GATEWAY_NAME with
  dashes as underscores: GATEWAY_SECRET_FILE=secret. A flag wins.

Exit codes
  0 ended by a signal, also when tunnels had to be cut; 1 failed while running,
  or the line of -open does not open; 2 wrong flags or environment, or a file
  named in them cannot be read
`)
}
