package admin

import (
	"net/http"
	"net/netip"
	"time"
)

// Bans are the networks whose clients are turned away. Their methods are called from
// any goroutine.
type Bans interface {
	// List returns all, by their end.
	List() []Ban
	// Add bans a network for a time, in place of an earlier ban of the same one. The
	// error says what is wrong with it.
	Add(network netip.Prefix, span time.Duration) error
	// Lift ends the ban of a network, and reports whether there was one.
	Lift(network netip.Prefix) bool
}

// Ban is a network whose clients are turned away until a time.
type Ban struct {
	Network netip.Prefix `json:"network"`
	Until   time.Time    `json:"until"`
	// By is "rule" or "admin".
	By string `json:"by"`
}

func (s *server) bans(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, struct {
		Bans []Ban `json:"bans"`
	}{append([]Ban{}, s.Bans.List()...)})
}

// network reads a network, or an address, which is one. An IPv4 address that is
// written as IPv6 is IPv4.
func network(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if a, aerr := netip.ParseAddr(text); aerr == nil {
		a = a.Unmap()
		p, err = netip.PrefixFrom(a.WithZone(""), a.BitLen()), nil
	}
	if err != nil {
		return p, badRequest("network: want an address or a network such as 192.0.2.0/24")
	}
	return p, nil
}

func (s *server) ban(r *http.Request) (any, []any, error) {
	var want struct{ Network, For string }
	if err := decode(r, &want); err != nil {
		return nil, nil, err
	}
	p, err := network(want.Network)
	if err != nil {
		return nil, nil, err
	}
	span, err := time.ParseDuration(want.For)
	if err != nil {
		return nil, nil, badRequest("for: want a duration such as 10m")
	}
	if err := s.Bans.Add(p, span); err != nil {
		return nil, nil, badRequest(err.Error())
	}
	return struct {
		Network netip.Prefix `json:"network"`
	}{p}, []any{"network", p.String(), "for", span.String()}, nil
}

func (s *server) lift(r *http.Request) (any, []any, error) {
	var want struct{ Network string }
	if err := decode(r, &want); err != nil {
		return nil, nil, err
	}
	p, err := network(want.Network)
	if err != nil {
		return nil, nil, err
	}
	lifted := s.Bans.Lift(p)
	return struct {
		Lifted bool `json:"lifted"`
	}{lifted}, []any{"network", p.String(), "lifted", lifted}, nil
}
