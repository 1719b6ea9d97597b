package backends

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"

	"gateway/internal/harness"
)

// operator is a service of the operator's that gateways ask. It can die, and come back
// where it was.
type operator struct {
	addr string

	mu     sync.Mutex
	answer func(w http.ResponseWriter, q question)
	asked  []question
	bearer string // of the last question
	server *http.Server
}

// question is what a gateway asks, as JSON has it.
type question map[string]any

func (q question) text(field string) string { s, _ := q[field].(string); return s }

func startOperator(t testing.TB, answer func(w http.ResponseWriter, q question)) *operator {
	t.Helper()
	o := &operator{addr: harness.ClosedPort(t), answer: answer}
	o.comeBack(t)
	t.Cleanup(o.kill)
	return o
}

func (o *operator) url() string { return "http://" + o.addr + "/where" }

func (o *operator) comeBack(t testing.TB) {
	t.Helper()
	var ln net.Listener
	harness.Eventually(t, "the service's port is free", func() (ok bool) {
		var err error
		ln, err = net.Listen("tcp", o.addr)
		return err == nil
	})
	o.mu.Lock()
	defer o.mu.Unlock()
	o.server = &http.Server{Handler: o}
	go o.server.Serve(ln)
}

// kill ends the service with all its connections.
func (o *operator) kill() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.server != nil {
		o.server.Close()
		o.server = nil
	}
}

func (o *operator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var q question
	if err != nil || r.Method != http.MethodPost || json.Unmarshal(body, &q) != nil {
		http.Error(w, "this is no question", http.StatusBadRequest)
		return
	}
	o.mu.Lock()
	o.asked, o.bearer = append(o.asked, q), r.Header.Get("Authorization")
	answer := o.answer
	o.mu.Unlock()
	answer(w, q)
}

func (o *operator) says(answer func(w http.ResponseWriter, q question)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = answer
}

// count returns how often the service was asked.
func (o *operator) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.asked)
}

// last returns the last question.
func (o *operator) last() question {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.asked) == 0 {
		return nil
	}
	return o.asked[len(o.asked)-1]
}

func text(s string) func(http.ResponseWriter, question) {
	return func(w http.ResponseWriter, _ question) { io.WriteString(w, s) }
}

func status(code int) func(http.ResponseWriter, question) {
	return func(w http.ResponseWriter, _ question) { http.Error(w, "", code) }
}

// leadsTo answers with a backend, for a time in seconds.
func leadsTo(backend string, ttl float64) func(http.ResponseWriter, question) {
	return text(fmt.Sprintf(`{"backend": %q, "ttl": %v}`, backend, ttl))
}

// greeter is a backend that answers hello with hello, whatever the form.
type greeter struct{ echo, http string }

func startGreeter(t testing.TB) greeter {
	return greeter{harness.StartEcho(t), harness.StartHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header()["Content-Type"] = nil
		w.Header().Set("X-Backend", "game")
		w.Write(body)
	})}
}

// of returns the backend for a form.
func (g greeter) of(v harness.Form) string {
	if v.HTTP {
		return g.http
	}
	return v.Scheme + g.echo
}

// ticketIn returns the request with a ticket, question mark and all.
func ticketIn(v harness.Form, ticket string) string {
	if v.Name == "binary" { // raw, as tokens are
		return string([]byte{0, byte(len(ticket))}) + ticket
	}
	return v.Ask(ticket)
}
