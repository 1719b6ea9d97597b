package ask

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
)

// Services that speak HTTP badly, or something else.

// writes answers with bytes that nothing has looked at, and closes, or waits for end.
func writes(text string, end <-chan struct{}) func(http.ResponseWriter, *Question) {
	return func(w http.ResponseWriter, _ *Question) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		c.Write([]byte(text))
		if end != nil {
			<-end
		}
	}
}

func TestAServiceThatSpeaksBadlyEndsAQuestion(t *testing.T) {
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	const whole = "HTTP/1.1 200 OK\r\nContent-Length: 57\r\n\r\n"
	for _, tt := range []struct {
		name   string
		answer func(http.ResponseWriter, *Question)
		want   error
	}{
		{"it goes over to another protocol", writes("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: game\r\n\r\n", end), ErrBad},
		{"early hints", writes("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"+forAnHour, nil), nil},
		{"early hints without an end", writes(strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", 1<<14), nil), ErrDown},
		{"HTTP/1.0", writes("HTTP/1.0 200 OK\r\n\r\n"+forAnHour, nil), nil},
		{"no HTTP", writes("t1cket is good: "+forAnHour, nil), ErrDown},
		{"a header that is none", writes("HTTP/1.1 200 OK\r\nt1cket is good\r\n\r\n", nil), ErrDown},
		{"a status that is none", writes("HTTP/1.1 t1cket OK\r\n\r\n", nil), ErrDown},
		{"a length that is none", writes("HTTP/1.1 200 OK\r\nContent-Length: t1cket\r\n\r\n", nil), ErrDown},
		{"two lengths", writes("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"+forAnHour, nil), ErrDown},
		{"a chunk that is none", writes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nt1cket\r\n", nil), ErrDown},
		{"less than was said", writes(whole+"{", nil), ErrDown},
		{"a head that breaks off", writes("HTTP/1.1 200 OK\r\nt1", nil), ErrDown},
		{"headers without an end", writes("HTTP/1.1 200 OK\r\n"+strings.Repeat("A: b\r\n", 1<<15), end), ErrDown},
		{"a body without an end", writes("HTTP/1.1 200 OK\r\n\r\n"+strings.Repeat(" ", 1<<17), end), ErrBad},
		{"compressed", writes("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08", nil), ErrBad},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := startService(t, tt.answer)
			c := s.client(t, Options{})
			for _, q := range []Question{{Name: "room"}, {Ticket: "t1cket"}} {
				within, cancel := context.WithTimeout(t.Context(), harness.Patience/2)
				defer cancel()
				_, err := c.Ask(within, &q)
				if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
					t.Errorf("%v; want %v", err, tt.want)
				}
				if err != nil && (strings.Contains(err.Error(), "t1") || strings.ContainsAny(err.Error(), "\r\n")) {
					t.Errorf("the error repeats what was said: %v", err)
				}
			}
			harness.Eventually(t, "no question is left", func() bool { return c.Stats().Asking == 0 })
		})
	}
}

// TestAVerdictNeedsNoBody: the status says it, and a body that does not end changes nothing.
func TestAVerdictNeedsNoBody(t *testing.T) {
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	for code, want := range map[int]error{403: ErrDenied, 404: ErrDenied, 429: ErrLimited, 302: ErrBad, 500: ErrDown} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			s := startService(t, writes(fmt.Sprintf("HTTP/1.1 %d Status\r\nContent-Length: 10\r\n\r\nabc", code), end))
			c := s.client(t, Options{Timeout: 3 * time.Second})
			if _, err := c.Ask(t.Context(), &Question{Name: "room"}); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		})
	}
}

func TestAServiceThatSpeaksNoTLSIsNamedSo(t *testing.T) {
	noise := harness.StartGreeter(t, "t1cket and t1cket and t1cket")
	s := startService(t, says(forAnHour))
	for url, want := range map[string]string{
		"https://" + noise: "first record does not look like a TLS handshake",
		strings.Replace(s.URL, "http://", "https://", 1): "server gave HTTP response to HTTPS client",
	} {
		_, err := s.client(t, Options{URL: url}).Ask(t.Context(), &Question{Ticket: "t1cket"})
		if !errors.Is(err, ErrDown) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "t1cket") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// TestWhatIsSaidTwiceIsNoAnswer: of two values one is somebody else's, whose name the
// service has put into its JSON as it was.
func TestWhatIsSaidTwiceIsNoAnswer(t *testing.T) {
	for text, want := range map[string]error{
		`{"backend": "10.0.0.7:4000", "backend": "10.0.0.8:4000"}`:                                ErrBad,
		`{"backend": "10.0.0.7:4000", "ttl": 1, "ttl": 1}`:                                        ErrBad,
		`{"backend": "10.0.0.7:4000", "\u0062ackend": "10.0.0.8:4000"}`:                           ErrBad,
		`{"backend": "10.0.0.7:4000", "Backend": "10.0.0.8:4000"}`:                                nil, // another field
		`{"Backend": "10.0.0.7:4000"}`:                                                            ErrBad,
		`{"backend": "10.0.0.7:4000", "request_headers": {"A": "1", "A": "2"}}`:                   ErrBad,
		`{"backend": "10.0.0.7:4000", "response_headers": {"A": "1", "A": null}}`:                 ErrBad,
		`{"backend": "10.0.0.7:4000", "request_headers": {"A": "1"}, "request_headers": null}`:    ErrBad,
		`{"backend": "10.0.0.7:4000", "request_headers": {"A": "1"}, "response_headers": null}`:   nil,
		`{"backend": "10.0.0.7:4000", "other": 1, "other": {"a": 1, "a": [2]}, "label": "eu"}`:    ErrBad,
		`{"backend": "10.0.0.7:4000", "other": {"a": 1, "b": [{"backend": "x"}]}, "label": "eu"}`: nil,
		`{"backend": "10.0.0.7:4000", "ttl": null, "label": null, "host": null}`:                  nil,
		`{"backend": "10.0.0.7:4000",}`:                                                           ErrBad,
		`{"backend": "10.0.0.7:4000"`:                                                             ErrBad,
		`{"backend": "10.0.0.7:4000", "request_headers": []}`:                                     ErrBad,
		`[]`:   ErrBad,
		`null`: ErrBad,
		``:     ErrBad,
		`{"backend": "10.0.0.7:4000", "x": ` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`: ErrBad,
	} {
		a, err := parseAnswer([]byte(text))
		if !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%.80s: %v, want %v", text, err, want)
		}
		if err == nil && a.Backend.String() != "10.0.0.7:4000" {
			t.Errorf("%.80s leads to %s", text, a.Backend)
		}
	}
}
