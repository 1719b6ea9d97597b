package page

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"gateway/internal/admin"
)

//go:embed status.html
var html []byte

// policy lets the page run its own style and script, and listen to its own server.
var policy = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'; img-src data:" +
	"; style-src " + hash("style") + "; script-src " + hash("script")

// hash returns the hash of what stands in the page's only element of a name.
func hash(element string) string {
	_, rest, _ := bytes.Cut(html, []byte("<"+element+">"))
	inside, _, _ := bytes.Cut(rest, []byte("</"+element+">"))
	sum := sha256.Sum256(inside)
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// The bounds of streams. Who reads less than a stream brings is cut off.
const (
	streamsMax   = 32
	queueMax     = 4 // events
	writeTimeout = 5 * time.Second
)

// Page serves the page. Its history begins when it is made.
type Page struct {
	history history
	status  func() admin.Status
	done    chan struct{}
	stopped sync.Once

	mu      sync.Mutex
	streams map[chan []byte]struct{}
}

// New returns a page of what status tells, which is asked once a second until Stop.
func New(status func() admin.Status) *Page {
	p := &Page{status: status, done: make(chan struct{}), streams: map[chan []byte]struct{}{}}
	p.tick()
	go p.run()
	return p
}

// Stop ends all streams, and asks for no further status.
func (p *Page) Stop() { p.stopped.Do(func() { close(p.done) }) }

func (p *Page) run() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.tick()
		case <-p.done:
			return
		}
	}
}

// tick takes a sample and tells all streams of it. A stream whose queue is full is
// closed: its browser connects again, and gets the history anew.
func (p *Page) tick() {
	st := p.status()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.history.add(&st)
	if len(p.streams) == 0 {
		return
	}
	e := event(&st, p.history.last(1))
	for s := range p.streams {
		select {
		case s <- e:
		default:
			delete(p.streams, s)
			close(s)
		}
	}
}

// event is a status and samples as one server-sent event.
func event(st *admin.Status, h past) []byte {
	b, err := json.Marshal(struct {
		Status  *admin.Status `json:"status"`
		History past          `json:"history"`
	}{st, h})
	if err != nil {
		panic(err) // a Status has nothing that JSON has not
	}
	return fmt.Appendf(nil, "data: %s\n\n", b)
}

// ServeHTTP serves the page itself.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", policy)
	w.Header().Set("Referrer-Policy", "no-referrer")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(html))
}

// Events serves the history, and then a status and a sample each second.
func (p *Page) Events(w http.ResponseWriter, r *http.Request) {
	st := p.status()
	s := make(chan []byte, queueMax)
	p.mu.Lock()
	full := len(p.streams) >= streamsMax
	if !full {
		p.streams[s] = struct{}{}
		s <- event(&st, p.history.last(samplesMax))
	}
	p.mu.Unlock()
	if full {
		http.Error(w, "too many pages are open", http.StatusServiceUnavailable)
		return
	}
	defer func() {
		p.mu.Lock()
		delete(p.streams, s)
		p.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	rc := http.NewResponseController(w)
	for {
		select {
		case e, ok := <-s:
			if !ok {
				return
			}
			rc.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := w.Write(e); err != nil {
				return
			}
			if rc.Flush() != nil {
				return
			}
		case <-r.Context().Done():
			return
		case <-p.done:
			return
		}
	}
}
