package page

import (
	"bufio"
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gateway/internal/admin"
)

func status() admin.Status {
	return admin.Status{Time: time.Now(), Listeners: []admin.Listener{{Name: "[::]:8000", Accepted: 3}}, Ready: true}
}

func TestHistoryKeepsTheLastQuarterOfAnHour(t *testing.T) {
	h := new(history)
	for i := range samplesMax + 7 {
		st := admin.Status{Tunnels: admin.Tunnels{Active: int64(i)}, Refusals: []admin.ReasonCount{{Reason: "a", Count: 1}, {Reason: "b", Count: 2}}}
		h.add(&st)
	}
	p := h.last(samplesMax)
	if n := len(p.Samples); n != samplesMax {
		t.Fatalf("%d samples", n)
	}
	if first, last := p.Samples[0][1], p.Samples[samplesMax-1][1]; first != 7 || last != samplesMax+6 {
		t.Errorf("samples from %d to %d", first, last)
	}
	if n := p.Samples[0][2]; n != 3 {
		t.Errorf("%d refusals", n)
	}
}

func TestHistoryAllocatesNothingAtRest(t *testing.T) {
	h, st := new(history), status()
	h.add(&st)
	if n := testing.AllocsPerRun(100, func() { h.add(&st) }); n != 0 {
		t.Errorf("%v allocations a sample", n)
	}
}

func TestFormsBeyondTheBoundAreCountedTogether(t *testing.T) {
	h, st := new(history), admin.Status{}
	for i := range 3 * keysMax {
		st.Connections = append(st.Connections, admin.ConnectionCount{Form: string(rune('A' + i)), Count: 1})
	}
	h.add(&st)
	p := h.last(1)
	if n := len(p.Forms); n != keysMax || p.Forms[n-1] != "other" {
		t.Fatal(p.Forms)
	}
	if n := p.Samples[0][fixed+keysMax-1]; n != 2*keysMax+1 {
		t.Errorf("%d others", n)
	}
}

func TestEventsBringTheHistoryAndThenASample(t *testing.T) {
	p := New(status)
	defer p.Stop()
	s := httptest.NewServer(http.HandlerFunc(p.Events))
	defer s.Close()
	r, err := http.Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b := bufio.NewReader(r.Body)
	for n := 0; n < 2; {
		line, err := b.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(line, `data: {"status":{`) && strings.Contains(line, `"listeners":["[::]:8000"]`) {
			n++
		}
	}
}

func TestASlowReaderIsDroppedAndNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(status)
		defer p.Stop()
		slow := make(chan []byte, queueMax)
		p.mu.Lock()
		p.streams[slow] = struct{}{}
		p.mu.Unlock()
		time.Sleep((queueMax + 2) * time.Second)
		synctest.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.streams) != 0 {
			t.Error("a stream that nobody reads is still there")
		}
	})
}

func TestStreamsAreBounded(t *testing.T) {
	p := New(status)
	defer p.Stop()
	for range streamsMax {
		p.streams[make(chan []byte, queueMax)] = struct{}{}
	}
	w := httptest.NewRecorder()
	p.Events(w, httptest.NewRequest("GET", "/api/events", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Error(w.Code)
	}
}

func TestThePageAllowsNothingButItself(t *testing.T) {
	p := New(status)
	defer p.Stop()
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	csp := w.Header().Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || strings.Count(csp, "'sha256-") != 2 {
		t.Error(csp)
	}
	if regexp.MustCompile(`(?:src|href)="?https?:| style="| on[a-z]+="`).Match(html) {
		t.Error("the page asks for something that its policy forbids")
	}
}

func TestEveryReasonOfTheDocsHasWordsInBothLanguages(t *testing.T) {
	docs, err := os.ReadFile("../../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := bytes.Cut(docs, []byte("\n## Reasons\n"))
	if !ok {
		t.Fatal("no section of reasons")
	}
	rest, _, _ = bytes.Cut(rest, []byte("\n## "))
	found := regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\|").FindAllSubmatch(rest, -1)
	if len(found) < 20 {
		t.Fatalf("%d reasons", len(found))
	}
	for _, m := range found {
		if !regexp.MustCompile(`(?m)^  ` + string(m[1]) + `: \["[A-Z][^"]+", "[^"]+"\],$`).Match(html) {
			t.Errorf("%s has no words", m[1])
		}
	}
}
