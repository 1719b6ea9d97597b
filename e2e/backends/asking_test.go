package backends

import (
	"fmt"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// Names and tickets that the operator's service knows.

// wordOf is the name of a form in questions.
func wordOf(v harness.Form) string {
	if v.Via == "" {
		return "line"
	}
	return v.Via
}

// converse has a client of a form ask, and sees that it meets its backend.
func converse(t *testing.T, v harness.Form, gateway, request string) {
	t.Helper()
	c := harness.Connect(t, gateway)
	harness.Send(t, c, request+v.Say)
	v.ExpectHello(t, c)
	v.Leave(t, c)
}

func TestANameIsAskedForInEachForm(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		g := startGreeter(t)
		o := startOperator(t, nil)
		p := harness.Start(t, way, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String(), "-ask-headers=Host,X-Shoe-Size", "-send-proxy=off")
		for _, v := range harness.Forms() {
			for _, ttl := range []float64{0, 60} {
				name := fmt.Sprintf("%s/%v", strings.ReplaceAll(strings.ReplaceAll(v.Name, " ", "-"), "://", "-"), ttl)
				o.says(leadsTo(g.of(v), ttl))
				before := o.count()
				for range 3 {
					converse(t, v, p.Addr, v.Ask(harness.Sealed("ask:"+name)))
				}
				want := 3
				if ttl > 0 {
					want = 1
				}
				if n := o.count() - before; n != want {
					t.Errorf("%s was asked for %d times", name, n)
				}
				q := o.last()
				if q.text("name") != name || q["ticket"] != nil || q.text("form") != wordOf(v) || q.text("listener") != p.Addr ||
					!strings.HasPrefix(q.text("client"), "127.0.0.1:") || q["tls"] != false || q["kcp"] != false || q.text("gateway") == "" {
					t.Errorf("%s: asked %v", v.Name, q)
				}
				if h, _ := q["headers"].(map[string]any); (v.HTTP || v.IsWebSocket()) != (q.text("method") != "" && strings.HasPrefix(q.text("path"), "/") && h["Host"] == "game.test") ||
					strings.Contains(fmt.Sprint(q), "cipher") {
					t.Errorf("%s: asked %v", v.Name, q)
				}
			}
		}
	})
}

func TestATicketIsTakenInEachForm(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		g := startGreeter(t)
		o := startOperator(t, nil)
		p := harness.Start(t, way, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String(), "-ask-tickets=1", "-log-level=debug")
		off := harness.Start(t, way, "-ask="+o.url(), "-ask-timeout="+harness.Patience.String(), "-log-level=debug")
		long := strings.Repeat("T", 240)
		for _, v := range harness.Forms() {
			for _, ticket := range []string{"v1ctory", `{"a":1}`, long} {
				o.says(leadsTo(g.of(v), 60)) // ttl is for names
				before := o.count()
				for range 2 {
					converse(t, v, p.Addr, ticketIn(v, "?"+ticket))
				}
				if n := o.count() - before; n != 2 {
					t.Errorf("%s: %s was asked for %d times", v.Name, ticket, n)
				}
				if q := o.last(); q.text("ticket") != ticket || q["name"] != nil || q.text("form") != wordOf(v) || strings.Contains(q.text("path"), ticket) {
					t.Errorf("%s: asked %v", v.Name, q)
				}
				for _, addr := range []string{off.Addr} {
					c := harness.Connect(t, addr)
					harness.Send(t, c, ticketIn(v, "?"+ticket))
					harness.ExpectAnswer(t, c, v.Refusal("401"))
				}
			}
			before := o.count()
			for _, ticket := range []string{"?", "?a\x01b", "?\xff"} {
				if (v.HTTP || v.IsWebSocket()) && v.Name != "WebSocket message" {
					continue // such headers are none
				}
				c := harness.Connect(t, p.Addr)
				harness.Send(t, c, ticketIn(v, ticket))
				harness.ExpectAnswer(t, c, v.Refusal("401"))
			}
			if n := o.count() - before; n != 0 {
				t.Errorf("%s: the service was asked for what is no ticket", v.Name)
			}
		}
		for _, log := range []string{p.Log.String(), off.Log.String()} {
			if strings.Contains(log, "v1ctory") || strings.Contains(log, long[:20]) {
				t.Error("a ticket is in the log")
			}
		}
	})
}
