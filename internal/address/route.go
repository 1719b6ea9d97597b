package address

import (
	"errors"
	"slices"
	"strings"
)

// A route is where a connection may go: one address, several of which one is
// picked, a name under which DNS lists them, or one for which a service of the
// operator's is asked.
//
//	route   = target *15( "," target ) | "srv:" name | "ask:" word
//	target  = address [ "*" weight ]
//	weight  = 1–256, decimal, no sign, no leading zero
//	name    = host name
//	word    = 1–253 letters, digits and "-_.~:/@+"
//
// Either all targets have the scheme http or none has: the gateway speaks HTTP
// with such a target and carries bytes to others, and a client can bring only
// one of both. A target that is written twice is two targets.
//
// The two readings of "srv:80" do not collide. A host name never ends in a
// number, so this is port 80 of the host srv, as it is in an address. So is
// "ask:80" port 80 of the host ask: a word of up to five digits is better "n80".

// MaxTargets is how many targets a route may have.
const MaxTargets = 16

// maxWeight is the greatest weight that may be written; 1 is the least, and
// what stands for none.
const maxWeight = 256

const (
	servicePrefix = "srv:"
	askPrefix     = "ask:"
)

// The ways in which a text fails to be a route, besides those of an address.
var (
	ErrWeight  = errors.New("a weight after '*' must be a whole number from 1 to 256")
	ErrTargets = errors.New("want at most 16 targets between commas")
	ErrMixed   = errors.New("either all targets have http:// or none has")
	ErrService = errors.New("srv: with a name for DNS must stand alone, with no scheme, port or weight")
	ErrAsk     = errors.New("ask: must stand alone, before 1 to 253 letters, digits and -_.~:/@+")
)

// Route is a parsed route. The zero value is no route. It never changes, so
// copies may be used concurrently.
type Route struct {
	text    string
	addr    Address  // of the only target
	targets []Target // nil if text is an address or a name
	name    string
	kind    kind // of name
}

// kind is who knows where a name leads.
type kind uint8

const (
	known   kind = iota // nobody need be asked
	service             // DNS
	asked               // the operator's service
	ticket              // the same; it is no name but the client's ticket
)

// Target is one of the addresses of a route.
type Target struct {
	Addr Address
	// Weight is from 1 to 256: the target's share next to those of the others.
	Weight uint16
}

// String returns the text that was parsed.
func (r Route) String() string { return r.text }

// Single returns the address of a route with one target. Its weight means
// nothing.
func (r Route) Single() (Address, bool) { return r.addr, r.addr.Port != 0 }

// Service returns the name under which DNS lists the targets (RFC 2782), or "".
func (r Route) Service() string { return r.nameOf(service) }

// IsAsked tells whether the operator's service has to be asked where the route leads.
func (r Route) IsAsked() bool { return r.kind == asked || r.kind == ticket }

// Asked returns the name for which the operator's service is asked, or "".
func (r Route) Asked() string { return r.nameOf(asked) }

// Ticket returns the ticket for which the operator's service is asked, or "". It
// is a secret of the client's; String does not hold it.
func (r Route) Ticket() string { return r.nameOf(ticket) }

func (r Route) nameOf(k kind) string {
	if r.kind != k {
		return ""
	}
	return r.name
}

// ByTicket returns the route that only the operator's service knows. text must
// not be empty.
func ByTicket(text string) Route { return Route{text: "?", name: text, kind: ticket} }

// Len returns the number of targets in the text: none for a name.
func (r Route) Len() int {
	if r.addr.Port != 0 {
		return 1
	}
	return len(r.targets)
}

// Target returns a target by its place in the text, which is less than Len.
func (r Route) Target(i int) Target {
	if r.targets == nil && i == 0 {
		return Target{r.addr, 1}
	}
	return r.targets[i]
}

// Has tells whether any target has this scheme. If one has http, all have.
func (r Route) Has(scheme string) bool {
	if r.targets == nil {
		return r.addr.Scheme == scheme && r.addr.Port != 0
	}
	return slices.ContainsFunc(r.targets, func(t Target) bool { return t.Addr.Scheme == scheme })
}

// ParseRoute reads a route. An address costs what Parse costs, and no
// allocation; only several targets take one. Its errors are the package's Err
// values: they never repeat the text, which may be a secret or garbage.
func ParseRoute(s string) (Route, error) {
	addr, err := Parse(s)
	switch {
	case err == nil:
		return Route{text: s, addr: addr}, nil
	case strings.HasPrefix(s, servicePrefix) && !isAddress(s):
		return parseService(s)
	case strings.HasPrefix(s, askPrefix) && !isAddress(s):
		return parseAsk(s)
	case !strings.ContainsAny(s, ",*"):
		return Route{}, err
	}
	return parseTargets(s)
}

// isAddress tells "srv:80*2,…" and "ask:80,…" from names.
func isAddress(s string) bool {
	s, _, _ = strings.Cut(s, ",")
	s, _, _ = strings.Cut(s, "*")
	_, err := Parse(s)
	return err == nil
}

func parseService(s string) (Route, error) {
	name := s[len(servicePrefix):]
	if strings.ContainsAny(name, ",*:") {
		return Route{}, ErrService
	}
	name, ip, err := parseHost(name)
	if err != nil {
		return Route{}, err
	}
	if ip.IsValid() {
		return Route{}, ErrName
	}
	return Route{text: s, name: name, kind: service}, nil
}

func parseAsk(s string) (Route, error) {
	word := s[len(askPrefix):]
	if len(word) < 1 || len(word) > maxName {
		return Route{}, ErrAsk
	}
	for i := range len(word) {
		if !isNameByte(word[i]) && strings.IndexByte(".~:/@+", word[i]) < 0 {
			return Route{}, ErrAsk
		}
	}
	return Route{text: s, name: word, kind: asked}, nil
}

func parseTargets(s string) (Route, error) {
	n := 1 + strings.Count(s, ",")
	if n > MaxTargets {
		return Route{}, ErrTargets
	}
	r := Route{text: s, targets: make([]Target, 0, n)}
	for word := range strings.SplitSeq(s, ",") {
		t, err := parseTarget(word)
		if err != nil {
			return Route{}, err
		}
		if len(r.targets) > 0 && (t.Addr.Scheme == "http") != (r.targets[0].Addr.Scheme == "http") {
			return Route{}, ErrMixed
		}
		r.targets = append(r.targets, t)
	}
	if n == 1 {
		r.addr = r.targets[0].Addr
	}
	return r, nil
}

func parseTarget(s string) (Target, error) {
	text, weight, weighted := strings.Cut(s, "*")
	t := Target{Weight: 1}
	var err error
	if t.Addr, err = Parse(text); err != nil {
		switch {
		case strings.HasPrefix(text, servicePrefix):
			err = ErrService
		case strings.HasPrefix(text, askPrefix):
			err = ErrAsk
		}
		return Target{}, err
	}
	if weighted {
		n, ok := parseNumber(weight, maxWeight)
		if !ok {
			return Target{}, ErrWeight
		}
		t.Weight = uint16(n)
	}
	return t, nil
}
