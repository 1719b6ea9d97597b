package protocols

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// The forms in which clients ask, byte for byte.

// backends are what the forms' addresses lead to.
type backends struct{ echo, http, refusing string }

func startBackends(t testing.TB) backends {
	return backends{harness.StartEcho(t), harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header()["Content-Type"] = nil
		w.Header().Set("X-Backend", "game")
		w.Write(body)
	}), harness.ClosedPort(t)}
}

// of returns the backend for a form.
func (b backends) of(v harness.Form) string {
	if v.HTTP {
		return b.http
	}
	return b.echo
}

// dribble sends a text a byte at a time.
func dribble(t testing.TB, c net.Conn, text string) {
	t.Helper()
	for i := range len(text) {
		harness.Send(t, c, text[i:i+1])
		if i < 10 && runtime.GOOS == "linux" { // what tells the forms apart
			harness.Delivered(t, harness.Socket(c))
		}
	}
}

// deliveries are how a request's bytes may come.
var deliveries = map[string]func(testing.TB, net.Conn, string){"in one segment": harness.Send, "a byte at a time": dribble}

// inEachForm runs a test for each form, outside of TLS and inside.
func inEachForm(t *testing.T, trusting *tls.Config, test func(t *testing.T, v harness.Form, config *tls.Config)) {
	inForms(t, trusting, func(harness.Form) bool { return true }, test)
}

func inForms(t *testing.T, trusting *tls.Config, wanted func(harness.Form) bool, test func(t *testing.T, v harness.Form, config *tls.Config)) {
	for _, v := range harness.Forms() {
		if !wanted(v) {
			continue
		}
		for suffix, config := range map[string]*tls.Config{"": nil, " inside TLS": trusting} {
			t.Run(v.Name+suffix, func(t *testing.T) {
				t.Parallel()
				test(t, v, config)
			})
		}
	}
}

// wantNoErrors sees at the end of a test that a gateway has logged no error.
func wantNoErrors(t testing.TB, p *harness.Process) {
	t.Cleanup(func() {
		if strings.Contains(p.Log.String(), `"level":"ERROR"`) {
			t.Error("there are errors in the log")
		}
	})
}
