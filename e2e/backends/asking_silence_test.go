package backends

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"gateway/internal/harness"
)

// A service that takes connections and says nothing is the worst that can happen.
func TestASilentServiceCostsItsClientsLittleOnceThatIsKnown(t *testing.T) {
	t.Parallel()
	bothAtOnce(t, func(t *testing.T, way string) {
		backend := harness.StartGreeter(t, "x")
		silent := make(chan struct{})
		o := startOperator(t, leadsTo(backend, .05))
		p := harness.Start(t, way, "-ask="+o.url(), "-ask-timeout=2s", "-ask-stale=1h", "-ask-tickets=1")
		if _, err := meet("", p.Addr, harness.Line("ask:old")); err != nil {
			t.Fatal(err)
		}
		o.says(func(http.ResponseWriter, question) { <-silent })
		defer close(silent)
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if _, err := meet("", p.Addr, "?t\n"); err == nil || err.Error() != "504" {
					t.Errorf("a ticket: %v", err)
				}
			})
		}
		all.Wait()
		p.Log.WaitLine(t, "-ask: the service is out of order, and is asked only now and then", 1)
		slow := 0
		for range 100 {
			began := time.Now()
			if name, err := meet("", p.Addr, harness.Line("ask:old")); name != "x" {
				t.Fatalf("the last answer does not serve on: %v", err)
			}
			// Who has come with the question that tries waits a little.
			if took := time.Since(began); took > time.Second {
				if slow++; slow > 5 {
					t.Fatal("clients wait for a service that is silent")
				}
			}
		}
	})
}
