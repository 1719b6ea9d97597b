package listen

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"gateway/internal/address"
	"gateway/internal/flagvalue"
)

// Address is an address to listen on.
type Address struct {
	Addr    string
	Forward *address.Route // where every client goes; nil: to its sealed address
	Options []Option       // that it has for itself
	KCP     bool           // by KCP, on UDP
	Peer    bool           // for other gateways, whose clients resume tunnels of this one
	Setting string         // the flag that said so
	Given   string         // by systemd, under this name; empty: not

	ln      net.Listener // given; nil: not, or
	packets *net.UDPConn // for KCP
}

// Option is a setting of one listener.
type Option struct{ Name, Value string }

// Value is the value of -listen: addresses, what clients get there, and the limits
// of each.
type Value struct {
	List  *[]Address
	Check func(Option) error // whether there is such a limit
}

func (v Value) String() string {
	if v.List == nil {
		return "" // the zero value, which package flag makes
	}
	var words []string
	for _, l := range *v.List {
		switch {
		case l.Setting != "listen":
		case l.Forward != nil:
			words = append(words, l.Addr+"=forward:"+l.Forward.String()+OptionsText(l.Options))
		default:
			words = append(words, l.Addr+"=sealed"+OptionsText(l.Options))
		}
	}
	return strings.Join(words, " ")
}

func (v Value) Set(s string) error {
	for word := range strings.FieldsSeq(s) {
		addr, what, _ := strings.Cut(word, "=")
		l := Address{Setting: "listen"}
		err := flagvalue.Address(&l.Addr, false).Set(addr)
		if err != nil {
			return fmt.Errorf("%w, before =sealed or =forward:TARGET", err)
		}
		what, limits, limited := strings.Cut(what, ";")
		if limited {
			if l.Options, err = v.parseOptions(limits); err != nil {
				return err
			}
		}
		if target, ok := strings.CutPrefix(what, "forward:"); ok {
			if l.Forward, err = ParseTarget(target); err != nil {
				return err
			}
		} else if what != "sealed" {
			return errors.New("want ADDRESS=sealed or ADDRESS=forward:HOST:PORT, and limits behind ; or none")
		}
		// Port 0 is another port each time.
		same := slices.IndexFunc(*v.List, func(have Address) bool {
			return have.Addr == l.Addr && !strings.HasSuffix(l.Addr, ":0")
		})
		if same < 0 {
			*v.List = append(*v.List, l)
		} else if TargetText(l.Forward) != TargetText((*v.List)[same].Forward) || !slices.Equal(l.Options, (*v.List)[same].Options) {
			return fmt.Errorf("want one use of %s", l.Addr)
		}
	}
	return nil
}

// OptionsText is what parseOptions reads, with a semicolon before it.
func OptionsText(list []Option) string {
	var b strings.Builder
	for _, o := range list {
		b.WriteString(";" + o.Name + "=" + o.Value)
	}
	return b.String()
}

// parseOptions reads the limits of one listener, name=value with semicolons between.
func (v Value) parseOptions(s string) (list []Option, err error) {
	for word := range strings.SplitSeq(s, ";") {
		name, value, _ := strings.Cut(word, "=")
		o := Option{name, value}
		if slices.ContainsFunc(list, func(have Option) bool { return have.Name == name }) {
			return nil, fmt.Errorf("want %s once", name)
		}
		if err := v.Check(o); err != nil {
			return nil, fmt.Errorf("%s: %w", word, err)
		}
		list = append(list, o)
	}
	return list, nil
}

// ParseForward is ParseTarget, or nil for nothing.
func ParseForward(s string) (*address.Route, error) {
	if s == "" {
		return nil, nil
	}
	return ParseTarget(s)
}

// ParseTarget reads a route to a backend, or to one of several.
func ParseTarget(s string) (*address.Route, error) {
	r, err := address.ParseRoute(s)
	if err != nil {
		return nil, fmt.Errorf("want host:port, several such, srv:name or ask:name (%w)", err)
	}
	return &r, nil
}

func TargetText(r *address.Route) string {
	if r == nil {
		return ""
	}
	return r.String()
}
