package admin

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

type fakeBans struct{ list []Ban }

func (f *fakeBans) List() []Ban { return f.list }

func (f *fakeBans) Add(p netip.Prefix, span time.Duration) error {
	if span <= 0 {
		return errors.New("too short")
	}
	f.list = append(f.list, Ban{p, time.Unix(0, 0).Add(span).UTC(), "admin"})
	return nil
}

func (f *fakeBans) Lift(p netip.Prefix) bool {
	found := len(f.list) > 0 && f.list[0].Network == p
	if found {
		f.list = f.list[1:]
	}
	return found
}

func TestBansAreListedAddedAndLifted(t *testing.T) {
	s := serveUnix(t, Options{Bans: new(fakeBans)})
	s.want(200, `{"bans":[]}`, "GET", "/api/bans", "")
	s.want(403, Header, "POST", "/api/bans", `{"network":"192.0.2.0/24","for":"10m"}`)
	for _, body := range []string{"", "{}", `{"network":"x","for":"10m"}`, `{"network":"192.0.2.1","for":"x"}`, `{"network":"192.0.2.1","for":"0s"}`,
		`{"network":"192.0.2.1","for":"1m","why":"x"}`} {
		s.want(400, "error", "POST", "/api/bans", body, Header, "1")
	}
	s.want(200, `"192.0.2.0/24"`, "POST", "/api/bans", `{"network":"192.0.2.0/24","for":"10m"}`, Header, "1")
	s.want(200, `{"bans":[{"network":"192.0.2.0/24","until":"1970-01-01T00:10:00Z","by":"admin"}]}`, "GET", "/api/bans", "")
	s.want(200, `false`, "POST", "/api/bans/lift", `{"network":"192.0.2.1"}`, Header, "1")
	s.want(200, `true`, "POST", "/api/bans/lift", `{"network":"192.0.2.0/24"}`, Header, "1")
	s.want(200, `"192.0.2.1/32"`, "POST", "/api/bans", `{"network":"::ffff:192.0.2.1","for":"1h"}`, Header, "1")
	s.want(405, "", "DELETE", "/api/bans", "", Header, "1")
	s.want(405, "", "GET", "/api/bans/lift", "")
}
