package ask

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/harness"
)

// service is a fake of the operator's. It answers what answer says.
type service struct {
	*httptest.Server
	log harness.Log

	mu     sync.Mutex
	answer func(w http.ResponseWriter, q *Question)
	asked  []Question
	header http.Header // of the last
	method string
	inside atomic.Int64
	most   atomic.Int64 // inside at a time
}

func startService(t *testing.T, answer func(w http.ResponseWriter, q *Question)) *service {
	s := &service{answer: answer}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if n := s.inside.Add(1); n > s.most.Load() {
		s.most.Store(n)
	}
	defer s.inside.Add(-1)
	var q Question
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	s.asked = append(s.asked, q)
	s.header, s.method = r.Header, r.Method
	answer := s.answer
	s.mu.Unlock()
	answer(w, &q)
}

func (s *service) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

func (s *service) answers(answer func(w http.ResponseWriter, q *Question)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// client returns a Service that asks s.
func (s *service) client(t *testing.T, o Options) *Service {
	t.Helper()
	if o.URL == "" {
		o.URL = s.URL
	}
	if o.Timeout == 0 {
		o.Timeout = harness.Patience
	}
	o.Log = slog.New(slog.NewJSONHandler(&s.log, nil))
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func says(text string) func(http.ResponseWriter, *Question) {
	return func(w http.ResponseWriter, _ *Question) { w.Write([]byte(text)) }
}

func fails(code int) func(http.ResponseWriter, *Question) {
	return func(w http.ResponseWriter, _ *Question) { http.Error(w, "no", code) }
}

const forAnHour = `{"backend": "10.0.0.7:4000", "ttl": 3600}`

// expire makes what is known of a name as old as it says.
func (s *Service) expire(of string) {
	s.names.mu.Lock()
	defer s.names.mu.Unlock()
	s.names.known[of].until = time.Now()
}

// reopen lets the circuit try again now.
func (s *Service) reopen() {
	s.circuit.mu.Lock()
	defer s.circuit.mu.Unlock()
	if !s.circuit.until.IsZero() {
		s.circuit.until = time.Unix(1, 0)
	}
}
