package ask

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gateway/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

func TestTheServiceIsToldWhoAsksForWhat(t *testing.T) {
	s := startService(t, says(`{"backend": "10.0.0.7:4000", "label": "eu/room-42", "more": 1}`))
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("t0ken\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := s.client(t, Options{TokenFile: token})
	q := Question{Name: "room-42", Client: "198.51.100.7:5000", Listener: "0.0.0.0:8000", Form: "http", TLS: true, SNI: "a.example",
		Gateway: "g1", Method: "GET", Path: "/a?b", Headers: map[string]string{"Cookie": "a=b"}}
	a, err := c.Ask(t.Context(), &q)
	if err != nil || a.Backend.String() != "10.0.0.7:4000" || a.Label != "eu/room-42" || a.TTL != 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	if got := fmt.Sprintf("%+v", s.asked[0]); got != fmt.Sprintf("%+v", q) {
		t.Errorf("told %s", got)
	}
	if s.method != "POST" || s.header.Get("Authorization") != "Bearer t0ken" || s.header.Get("Content-Type") != "application/json" || s.header["X-Idempotency-Key"] != nil {
		t.Errorf("%s with %v", s.method, s.header)
	}
}

func TestAServiceOnAUnixSocketIsAsked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ask.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := startService(t, says(forAnHour))
	server := &http.Server{Handler: s}
	go server.Serve(ln)
	defer server.Close()
	for _, url := range []string{"unix:" + path, "unix://" + path} {
		if _, err := s.client(t, Options{URL: url}).Ask(t.Context(), &Question{Name: "a"}); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestWhatTheServiceSaysHasAMeaning(t *testing.T) {
	for _, tt := range []struct {
		answer func(http.ResponseWriter, *Question)
		want   error
	}{
		{fails(403), ErrDenied},
		{fails(404), ErrDenied},
		{fails(429), ErrLimited},
		{fails(500), ErrDown},
		{fails(503), ErrDown},
		{fails(401), ErrBad}, // the gateway's own token is wrong
		{fails(204), ErrBad},
		{func(w http.ResponseWriter, _ *Question) { w.Header().Set("Location", "/elsewhere"); w.WriteHeader(302) }, ErrBad},
		{func(http.ResponseWriter, *Question) { panic(http.ErrAbortHandler) }, ErrDown},
		{says(""), ErrBad},
		{says("10.0.0.7:4000"), ErrBad},
		{says(`{}`), ErrBad},
		{says(`{"backend": 7}`), ErrBad},
		{says(`{"backend": ""}`), ErrBad},
		{says(`{"backend": "nowhere"}`), ErrBad},
		{says(`{"backend": "ask:other"}`), ErrBad},
		{says(`{"backend": "10.0.0.7:4000"} {}`), ErrBad},
		{says(`{"backend": "10.0.0.7:4000", "ttl": -1}`), ErrBad},
		{says(`{"backend": "10.0.0.7:4000", "label": "two words"}`), ErrBad},
		{says(`{"backend": "10.0.0.7:4000", "label": "` + strings.Repeat("x", 65) + `"}`), ErrBad},
		{says(`{"backend": "10.0.0.7:4000", "path": "a"}`), ErrBad},
		{says(`{"backend": "10.0.0.7:4000", "path": "/a b"}`), ErrBad},
		{says(`{"backend": "10.0.0.7:4000", "host": "a\r\nb"}`), ErrBad},
		{says(`{"backend": "10.0.0.7:4000", "request_headers": {"a b": "c"}}`), ErrBad},
		{says(`{"backend": "10.0.0.7:4000", "request_headers": {"": "c"}}`), ErrBad},
		{says(`{"backend": "10.0.0.7:4000", "response_headers": {"A": "c\nd"}}`), ErrBad},
		{says(`{"backend": "10.0.0.7:4000", "response_headers": {"A": 1}}`), ErrBad},
		{says(strings.Repeat(" ", maxAnswer) + forAnHour), ErrBad},
		{says(`{"backend": "10.0.0.7:4000*3,[fd00::7]:1", "ttl": 1e9, "label": "", "path": "/a?b", "host": "a:80", "request_headers": {"A": null, "B": ""}}`), nil},
		{says(`{"backend": "srv:_game._tcp.internal"}`), nil},
	} {
		s := startService(t, tt.answer)
		for _, q := range []Question{{Name: "room"}, {Ticket: "t1cket"}} {
			a, err := s.client(t, Options{}).Ask(t.Context(), &q)
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) || (a == nil) != (err != nil) {
				t.Errorf("%+v, %v; want %v", a, err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), "10.0.0.7") || strings.Contains(err.Error(), "t1cket") || strings.ContainsAny(err.Error(), "\r\n")) {
				t.Errorf("the error repeats what was said: %v", err)
			}
		}
	}
}

func TestAnAnswerServesAllClientsForItsTime(t *testing.T) {
	s := startService(t, says(forAnHour))
	c := s.client(t, Options{})
	for range 5 {
		if _, err := c.Ask(t.Context(), &Question{Name: "room"}); err != nil {
			t.Fatal(err)
		}
	}
	if s.count() != 1 {
		t.Errorf("asked %d times", s.count())
	}
	c.expire("room")
	c.Ask(t.Context(), &Question{Name: "room"})
	c.Ask(t.Context(), &Question{Name: "other"})
	if s.count() != 3 {
		t.Errorf("asked %d times", s.count())
	}
}

func TestAnAnswerWithoutATimeIsForOneClient(t *testing.T) {
	s := startService(t, func(w http.ResponseWriter, q *Question) {
		fmt.Fprintf(w, `{"backend": "%s"}`, q.Client)
	})
	c := s.client(t, Options{})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			client := fmt.Sprintf("10.0.0.7:%d", i+1)
			a, err := c.Ask(t.Context(), &Question{Name: "room", Client: client})
			if err != nil || a.Backend.String() != client {
				t.Errorf("%v, %v for %s", a, err, client)
			}
		})
	}
	wg.Wait()
	if s.most.Load() > maxAsking {
		t.Errorf("%d questions at a time", s.most.Load())
	}
}

func TestOneAsksForAllWhoComeAtOnce(t *testing.T) {
	enough := make(chan struct{})
	s := startService(t, func(w http.ResponseWriter, q *Question) {
		<-enough
		says(forAnHour)(w, q)
	})
	c := s.client(t, Options{})
	var wg sync.WaitGroup
	leave, cancel := context.WithCancel(t.Context())
	wg.Go(func() { c.Ask(leave, &Question{Name: "room"}) })
	harness.Eventually(t, "one has asked", func() bool { return s.count() == 1 })
	for range 500 {
		wg.Go(func() {
			if _, err := c.Ask(t.Context(), &Question{Name: "room"}); err != nil {
				t.Error(err)
			}
		})
	}
	cancel() // the others do not lose their answer by it
	close(enough)
	wg.Wait()
	if s.count() != 1 {
		t.Errorf("asked %d times", s.count())
	}
}

func TestADenialOfOneClientIsNoneOfAnother(t *testing.T) {
	first := make(chan struct{})
	s := startService(t, func(w http.ResponseWriter, q *Question) {
		if q.Client == "bad" {
			<-first
			fails(403)(w, q)
			return
		}
		says(forAnHour)(w, q)
	})
	c := s.client(t, Options{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Ask(t.Context(), &Question{Name: "room", Client: "bad"}); !errors.Is(err, ErrDenied) {
			t.Error(err)
		}
	})
	harness.Eventually(t, "one has asked", func() bool { return s.count() == 1 })
	wg.Go(func() {
		if _, err := c.Ask(t.Context(), &Question{Name: "room", Client: "good"}); err != nil {
			t.Error(err)
		}
	})
	close(first)
	wg.Wait()
}

func TestTheLastGoodAnswerServesWhileTheServiceIsDown(t *testing.T) {
	s := startService(t, says(forAnHour))
	c := s.client(t, Options{Stale: time.Hour})
	c.Ask(t.Context(), &Question{Name: "room"})
	c.expire("room")
	for _, failure := range []func(http.ResponseWriter, *Question){fails(500), says("nonsense")} {
		s.answers(failure)
		if a, err := c.Ask(t.Context(), &Question{Name: "room"}); err != nil || a.Backend.String() != "10.0.0.7:4000" {
			t.Errorf("%v, %v", a, err)
		}
	}
	if _, err := c.Ask(t.Context(), &Question{Name: "new"}); !errors.Is(err, ErrBad) {
		t.Error(err)
	}
	s.answers(fails(404)) // it is no more
	if _, err := c.Ask(t.Context(), &Question{Name: "room"}); !errors.Is(err, ErrDenied) {
		t.Error(err)
	}
	s.answers(fails(500))
	if _, err := c.Ask(t.Context(), &Question{Name: "room"}); !errors.Is(err, ErrDown) {
		t.Error(err)
	}
}

func TestAnAnswerIsNoLongerStaleThanAllowed(t *testing.T) {
	s := startService(t, says(forAnHour))
	c := s.client(t, Options{Stale: time.Hour})
	c.Ask(t.Context(), &Question{Name: "room"})
	c.names.known["room"].until = time.Now().Add(-time.Hour)
	s.answers(fails(500))
	if _, err := c.Ask(t.Context(), &Question{Name: "room"}); !errors.Is(err, ErrDown) {
		t.Error(err)
	}
}

func TestATicketIsAskedForEachTimeUnlessItsAnswerSaysOtherwise(t *testing.T) {
	s := startService(t, says(forAnHour))
	c := s.client(t, Options{Stale: time.Hour})
	for range 3 {
		c.Ask(t.Context(), &Question{Ticket: "a"})
	}
	if s.count() != 3 {
		t.Errorf("asked %d times", s.count())
	}
	s.answers(says(`{"backend": "10.0.0.7:4000", "ticket_ttl": 60}`))
	for range 3 {
		c.Ask(t.Context(), &Question{Ticket: "b"})
	}
	c.Ask(t.Context(), &Question{Ticket: "c"})
	if s.count() != 5 {
		t.Errorf("asked %d times", s.count())
	}
	s.answers(fails(500))
	if _, err := c.Ask(t.Context(), &Question{Ticket: "a"}); !errors.Is(err, ErrDown) {
		t.Errorf("a ticket was good for longer than it said: %v", err)
	}
}

func TestASilentServiceCostsTheTimeOut(t *testing.T) {
	hold := make(chan struct{})
	s := startService(t, func(http.ResponseWriter, *Question) { <-hold })
	defer close(hold)
	c := s.client(t, Options{Timeout: 20 * time.Millisecond})
	if _, err := c.Ask(t.Context(), &Question{Name: "room"}); !errors.Is(err, ErrSilent) {
		t.Error(err)
	}
	if _, err := c.Ask(t.Context(), &Question{Ticket: "t"}); !errors.Is(err, ErrSilent) {
		t.Error(err)
	}
}

// On a busy machine the time that a question may wait for its place is over too, by the
// time that this is looked at.
func TestASilentServiceIsCalledSoHoweverLate(t *testing.T) {
	hold := make(chan struct{})
	s := startService(t, func(http.ResponseWriter, *Question) { <-hold })
	defer close(hold)
	const timeout = 20 * time.Millisecond
	c := s.client(t, Options{Timeout: timeout})
	c.Observe(func(time.Duration) { time.Sleep(2 * timeout) })
	if _, err := c.Ask(t.Context(), &Question{Name: "room"}); !errors.Is(err, ErrSilent) {
		t.Error(err)
	}
}

func TestAClientThatLeavesWaitsForNoAnswer(t *testing.T) {
	hold := make(chan struct{})
	s := startService(t, func(http.ResponseWriter, *Question) { <-hold })
	defer close(hold)
	c := s.client(t, Options{})
	gone := errors.New("gone")
	for _, q := range []Question{{Name: "room"}, {Name: "room"}, {Ticket: "t"}} {
		ctx, cancel := context.WithCancelCause(t.Context())
		asked := s.count()
		time.AfterFunc(10*time.Millisecond, func() { cancel(gone) })
		if _, err := c.Ask(ctx, &q); err != gone {
			t.Errorf("%v after %d questions", err, s.count()-asked)
		}
	}
}

func TestADeadServiceIsLeftAloneAndTriedNowAndThen(t *testing.T) {
	s := startService(t, fails(500))
	c := s.client(t, Options{})
	for i := range 100 {
		if _, err := c.Ask(t.Context(), &Question{Ticket: fmt.Sprint(i)}); !errors.Is(err, ErrDown) {
			t.Fatal(err)
		}
	}
	if n := s.count(); n != maxFailures {
		t.Errorf("asked %d times", n)
	}
	s.log.WaitLine(t, "-ask: the service is out of order, and is asked only now and then", 1)
	for tried := 1; tried <= 3; tried++ {
		c.reopen()
		for range 10 {
			c.Ask(t.Context(), &Question{Ticket: "t"})
		}
		if n := s.count(); n != maxFailures+tried {
			t.Errorf("asked %d times", n)
		}
	}
	s.answers(says(forAnHour))
	c.reopen()
	for range 2 {
		if _, err := c.Ask(t.Context(), &Question{Ticket: "t"}); err != nil {
			t.Error(err)
		}
	}
	s.log.WaitLine(t, "-ask: the service answers again", 1)
	if got := c.Stats().Results; got["answered"] != 2 || got["down"] != 100+30 || got["denied"] != 0 {
		t.Errorf("%v", got)
	}
}

func TestWhoLeavesWhileTheServiceIsTriedSaysNothingAboutIt(t *testing.T) {
	var c circuit
	c.log = startService(t, fails(500)).client(t, Options{}).circuit.log
	now := time.Now()
	for range maxFailures {
		if err := c.enter(now); err != nil {
			t.Fatal(err)
		}
		c.leave(now, dead, ErrDown)
	}
	if c.enter(now) == nil {
		t.Fatal("it is still asked")
	}
	now = now.Add(minPause)
	if c.enter(now) != nil || c.enter(now) == nil {
		t.Fatal("not one tries it")
	}
	c.leave(now, givenUp, nil)
	if c.enter(now) != nil {
		t.Fatal("no other tries it")
	}
	for pause := 2 * minPause; ; pause = min(2*pause, maxPause) {
		c.leave(now, dead, ErrSilent)
		if now = now.Add(pause - 1); c.enter(now) == nil {
			t.Fatalf("tried before %v", pause)
		}
		if now = now.Add(1); c.enter(now) != nil {
			t.Fatalf("not tried after %v", pause)
		}
		if pause == maxPause {
			break
		}
	}
}

func TestWhatIsKnownIsBounded(t *testing.T) {
	s := startService(t, says(`{"backend": "10.0.0.7:4000", "ttl": 3600, "ticket_ttl": 3600}`))
	c := s.client(t, Options{})
	for i := range maxNames + 100 {
		c.names.mu.Lock()
		c.names.get(fmt.Sprint("name", i), time.Now()).kept = kept{&Answer{}, time.Now().Add(time.Hour)}
		c.names.mu.Unlock()
		c.tickets.keep(ticketKey{byte(i), byte(i >> 8)}, kept{&Answer{}, time.Now().Add(time.Hour)})
	}
	if len(c.names.known) > maxNames || len(c.tickets.known) > maxTickets {
		t.Errorf("%d names, %d tickets", len(c.names.known), len(c.tickets.known))
	}
	if _, err := c.Ask(t.Context(), &Question{Name: "room"}); err != nil || s.count() != 1 {
		t.Error(err)
	}
	if _, err := c.Ask(t.Context(), &Question{Name: "room"}); err != nil || s.count() != 1 {
		t.Error(err, "and it is not kept")
	}
}

func TestAWrongURLOrFileIsTold(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{URL: ""}, "want http://HOST[:PORT]/PATH"},
		{Options{URL: "ftp://h/"}, "want http://HOST[:PORT]/PATH"},
		{Options{URL: "http://"}, "want http://HOST[:PORT]/PATH"},
		{Options{URL: "unix:"}, "want the path"},
		{Options{URL: "http://h:99999/"}, "want a port from 1 to 65535"},
		{Options{URL: "http://h:0/"}, "want a port from 1 to 65535"},
		{Options{URL: "http://[::1]:/"}, "want a port from 1 to 65535"},
		{Options{URL: "http://u:p@h/"}, "bearer token"},
		{Options{URL: "http://h/#f"}, "fragment"},
		{Options{URL: "http://h/", CAFile: empty}, "no certificate"},
		{Options{URL: "http://h/", TokenFile: empty}, "must hold a token"},
		{Options{URL: "http://h/", TokenFile: filepath.Join(dir, "missing")}, "no such file"},
	} {
		if _, err := New(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.o, err, tt.want)
		}
	}
}

func FuzzAnAnswerIsSafeToUse(f *testing.F) {
	f.Add([]byte(forAnHour))
	f.Add([]byte(`{"backend": "http://a:1,http://b:2", "label": "x", "path": "/a?b", "host": "[::1]:80", "request_headers": {"A": null, "B": "c"}, "response_headers": {}}`))
	f.Add([]byte(`{"backend": "srv:a", "ttl": 0.5, "ticket_ttl": 1e308}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := parseAnswer(text)
		if err != nil {
			if !errors.Is(err, ErrBad) || strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("%v", err)
			}
			return
		}
		if a.Backend.String() == "" || a.TTL < 0 || a.TTL > maxTTL || a.TicketTTL < 0 || a.TicketTTL > maxTTL {
			t.Errorf("%+v", a)
		}
		all := a.Label + a.Path + a.Host
		for _, h := range []map[string]*string{a.RequestHeaders, a.ResponseHeaders} {
			for name, value := range h {
				all += name
				if value != nil {
					all += *value
				}
			}
		}
		if strings.ContainsAny(all, "\r\n\x00") {
			t.Errorf("%+v splits a header", a)
		}
	})
}

func TestASuccessorGoesOnWithWhatIsKnown(t *testing.T) {
	s := startService(t, says(forAnHour))
	old := s.client(t, Options{})
	if _, err := old.Ask(t.Context(), &Question{Name: "room"}); err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	next := s.client(t, Options{TokenFile: token})
	next.Succeed(old)
	if next.Known("room") == nil {
		t.Error("an answer was forgotten")
	}
	if _, err := next.Ask(t.Context(), &Question{Name: "other"}); err != nil || s.header.Get("Authorization") != "Bearer new" {
		t.Errorf("%v, with %q", err, s.header.Get("Authorization"))
	}
	if st := next.Stats(); st.Results["answered"] != 2 || st.Hits != 1 {
		t.Errorf("%+v", st)
	}
	elsewhere := s.client(t, Options{URL: s.URL + "/elsewhere"})
	elsewhere.Succeed(next)
	if elsewhere.Known("room") != nil || elsewhere.Stats().Results["answered"] != 2 {
		t.Error("another service's answer is taken for this one's, or what was counted is lost")
	}
}

func TestAClientDoesNotWaitForTheQuestionThatTriesADeadService(t *testing.T) {
	s := startService(t, fails(500))
	c := s.client(t, Options{Stale: time.Hour})
	for range maxFailures {
		c.Ask(t.Context(), &Question{Name: "room"})
	}
	release := make(chan struct{})
	s.answers(func(w http.ResponseWriter, _ *Question) {
		<-release
		w.Write([]byte(forAnHour))
	})
	c.reopen()
	if _, err := c.Ask(t.Context(), &Question{Name: "room"}); !errors.Is(err, ErrDown) {
		t.Errorf("%v", err)
	}
	close(release)
	harness.Eventually(t, "the answer is known", func() bool { return c.Known("room") != nil })
	if c.Stats().Open {
		t.Error("the circuit is still open")
	}
}

func FuzzAnswer(f *testing.F) {
	for _, text := range []string{
		forAnHour, `{}`, `{"backend": "10.0.0.7:4000*3,[fd00::7]:1", "ttl": 1e9, "ticket_ttl": 0.5, "label": "a/b", "path": "/a?b", "host": "a:80", "request_headers": {"A": null}, "response_headers": {"B": "c"}}`,
		`{"backend": "http://a:1", "path": "/\n"}`, `{"backend":"a:1","request_headers":{"a b":"c"}}`, `[]`, `{"backend": null}`, `{"backend":"a:1","ttl":-1}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := parseAnswer(text)
		if err != nil {
			if a != nil || !errors.Is(err, ErrBad) || strings.ContainsAny(err.Error(), "\r\n") {
				t.Fatalf("%v, %v", a, err)
			}
			return
		}
		if a.Backend.String() == "" || a.Backend.IsAsked() || a.TTL < 0 || a.TTL > maxTTL || a.TicketTTL < 0 || a.TicketTTL > maxTTL ||
			len(a.Label) > maxLabel || strings.ContainsAny(a.Label+a.Path+a.Host, " \r\n\x00") || a.Path != "" && a.Path[0] != '/' {
			t.Fatalf("%q is read as %+v", text, a)
		}
		for _, h := range []map[string]*string{a.RequestHeaders, a.ResponseHeaders} {
			for name, value := range h {
				if len(h) > maxHeaders || name == "" || strings.ContainsAny(name, " :\r\n") || value != nil && strings.ContainsAny(*value, "\r\n\x00") {
					t.Fatalf("%q has the header %q", text, name)
				}
			}
		}
	})
}
