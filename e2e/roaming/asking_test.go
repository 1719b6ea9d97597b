package roaming

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"gateway/clients/go/tunnel"
	"gateway/internal/harness"
)

// Resumable tunnels to what only the operator's service knows, by each way in.
func TestAResumableTunnelIsAskedForOnce(t *testing.T) {
	harness.BothWays(t, func(t *testing.T, way string) {
		flags, trusting := harness.TLSFlags(t)
		b := startCounted(t, echo)
		var mu sync.Mutex
		var asked []map[string]any
		service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var q map[string]any
			if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
				t.Error(err)
			}
			mu.Lock()
			asked = append(asked, q)
			mu.Unlock()
			fmt.Fprintf(w, `{"backend": %q, "label": "a"}`, b.addr)
		}))
		defer service.Close()
		addr := harness.ClosedPort(t)
		g := harness.Start(t, append(flags, "-resume=1", "-kcp="+addr, "-addr="+addr, "-ask="+service.URL, "-ask-tickets=1", way)...)
		for form, dial := range map[string]func(ctx context.Context) (net.Conn, error){
			"line": overTCP(addr), "websocket": overWebSocket("wss://"+addr, trusting), "line+kcp": overKCP(addr),
		} {
			for _, what := range []string{harness.Sealed("ask:room"), "?t1cket"} {
				w := &ways{dials: []func(ctx context.Context) (net.Conn, error){dial}}
				d := &tunnel.Dialer{Gateways: []string{addr}, DialContext: w.dial, Silence: -1}
				ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
				c, err := d.Dial(ctx, what)
				cancel()
				if err != nil {
					t.Fatalf("%s: %v", form, err)
				}
				both(t, c, 1, 100_000)
				reconnect(t, c)
				both(t, c, 2, 100_000)
				c.CloseWrite()
				harness.ExpectAll(t, c, "")
				<-c.Done()
				mu.Lock()
				if q := asked[len(asked)-1]; len(asked) != 1 || (q["kcp"] == true) != (form == "line+kcp") || q["form"] != "line" && q["form"] != form || (q["tls"] == true) != (form == "websocket") {
					t.Errorf("%s: asked %v", form, asked)
				}
				asked = nil
				mu.Unlock()
			}
		}
		if line := g.Log.WaitLine(t, "tunnel", 6); line["label"] != "a" {
			t.Errorf("logged as %v", line)
		}
	})
}
