// Package page is the page from which one sees how a server does, and the stream of
// events that it listens to. It knows of the server what admin.Status tells.
package page

import (
	"sync"

	"gateway/internal/admin"
)

// The bounds of a history: one sample a second for a quarter of an hour, of no more
// forms and listeners than these. What comes beyond them is counted under the last.
const (
	samplesMax = 15 * 60
	keysMax    = 16
	fixed      = 5
)

// sample is what charts are drawn of: the time in milliseconds since 1970, the
// tunnels that are open, and then counts since the start: refusals, bytes up, bytes
// down, connections by form and connections by listener.
type sample struct {
	fixed     [fixed]int64
	forms     [keysMax]int64
	listeners [keysMax]int64
}

// keys are names in the order in which they came. A name keeps its place.
type keys []string

func (k *keys) place(name string) int {
	for i, have := range *k {
		if have == name {
			return i
		}
	}
	if len(*k) == keysMax-1 {
		name = "other"
	}
	if len(*k) == keysMax {
		return keysMax - 1
	}
	*k = append(*k, name)
	return len(*k) - 1
}

// history remembers the last samples. Its memory is bounded and allocated once.
type history struct {
	mu        sync.Mutex
	forms     keys
	listeners keys
	ring      [samplesMax]sample
	next, n   int
}

// add takes a sample of st.
func (h *history) add(st *admin.Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &h.ring[h.next]
	*s = sample{fixed: [fixed]int64{
		st.Time.UnixMilli(), st.Tunnels.Active, 0,
		st.Bytes.Up.Spliced + st.Bytes.Up.Copied + st.Bytes.Up.HTTP,
		st.Bytes.Down.Spliced + st.Bytes.Down.Copied + st.Bytes.Down.HTTP,
	}}
	for _, r := range st.Refusals {
		s.fixed[2] += r.Count
	}
	for _, c := range st.Connections {
		s.forms[h.forms.place(c.Form)] += c.Count
	}
	for _, l := range st.Listeners {
		s.listeners[h.listeners.place(l.Name)] += l.Accepted
	}
	h.next = (h.next + 1) % samplesMax
	h.n = min(h.n+1, samplesMax)
}

// past is samples as the page reads them. A sample is the fixed figures, then those
// of the forms, with zeros for those that have not come, so that no figure ever moves to
// another place; and those of the listeners.
type past struct {
	Forms     []string  `json:"forms"`
	Listeners []string  `json:"listeners"`
	Samples   [][]int64 `json:"samples"` // the oldest first
}

// last returns the newest n samples, or as many as there are.
func (h *history) last(n int) past {
	h.mu.Lock()
	defer h.mu.Unlock()
	n = min(n, h.n)
	p := past{append([]string{}, h.forms...), append([]string{}, h.listeners...), make([][]int64, n)}
	for i := range n {
		s := &h.ring[(h.next-n+i+samplesMax)%samplesMax]
		row := make([]int64, 0, fixed+2*keysMax)
		row = append(row, s.fixed[:]...)
		row = append(row, s.forms[:]...)
		p.Samples[i] = append(row, s.listeners[:len(h.listeners)]...)
	}
	return p
}
