package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// -watched: what tunnels that talk notice of an operator who looks at the gateway by
// -admin, while many other tunnels rest. It is a table of its own: nobody else has all of
// what is looked at.

// watchedTunnels are how many tunnels talk. Few wait for a pause of the gateway at once, and
// show how long it was; many keep the gateway busy, so that it has no time to spare.
var watchedTunnels = []int{8, 1000}

// watchedPage is a page of the list of tunnels, the least that is asked for.
const watchedPage = 1000

// look is a way of looking at a gateway.
type look struct {
	name  string
	every time.Duration // 0: without a pause
	once  func(ctx context.Context, w *watched) error
}

var looks = []look{
	{name: "nobody looks"},
	{name: "`/metrics` each second", every: time.Second, once: func(ctx context.Context, w *watched) error {
		return w.get(ctx, "/metrics", func(body io.Reader) error {
			_, err := io.Copy(io.Discard, body)
			return err
		})
	}},
	{name: "`/api/tunnels`, page by page", once: func(ctx context.Context, w *watched) error { return w.list(ctx, watchedPage) }},
	{name: "`/api/tunnels`, all in a page", once: func(ctx context.Context, w *watched) error { return w.list(ctx, 100_000) }},
}

// watched is a gateway that is looked at.
type watched struct {
	*entrant
	admin   http.Client
	tunnels int       // that it has
	answers int64     // that it has given
	talking []*helper // the load generators of those that talk, as watchedTunnels
}

// watchedRow is a row of the table.
type watchedRow struct {
	delays  histogram
	units   int64
	elapsed time.Duration
	answers int64         // to who looks
	longest time.Duration // turn of a loop
	raised  bool          // it was one of these; else they were no longer than that
}

// measureWatched prints a table.
func measureWatched(opt *options, f *fleet, threads, files int, out io.Writer, say func(string, ...any)) error {
	defer f.sink()
	if files < leastFiles {
		return fmt.Errorf("a limit of %d descriptors is too low; ulimit -Hn should say %d or more", files, leastFiles)
	}
	var all []*contender
	sockets := make(map[string]string)
	for _, v := range append([]variant{{name: gatewayName, path: opt.gateway}}, opt.variants...) {
		if opt.wants(v.name) {
			c := gatewayContender(v.name, v.path, nil)
			c.command = watchedCommand(v, sockets)
			all = append(all, c)
		}
	}
	s, err := newSuite(opt, all, f, threads, files, f.cpu != nil, say)
	if err != nil {
		return err
	}
	if len(s.entrants) < len(all) {
		return fmt.Errorf("not all have started: %v", s.table.failures())
	}
	resting := opt.idle
	for _, n := range watchedTunnels {
		resting = max(1, min(resting, (files-1500)/2-n))
	}
	fmt.Fprintf(out, "\n## %s. %d tunnels rest while others talk\n\n", heading(f.cpu != nil, threads), resting)
	fmt.Fprintln(out, "| | tunnels that talk | who looks | 64 B echoes a second | p50 | p99 | p99.9 | max | p99 to that of nobody | answers to who looks | longest turn of a loop |")
	fmt.Fprintln(out, "|---|---|---|---|---|---|---|---|---|---|---|")
	for _, e := range s.entrants {
		rows, err := s.watch(e, sockets[e.name], resting, say)
		if err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		for i, n := range watchedTunnels {
			for j, l := range looks {
				r, alone := &rows[i][j], &rows[i][0]
				ms := func(p float64) string { return fmt.Sprintf("%.2f ms", float64(r.delays.percentile(p))/1e6) }
				bound := "≤ "
				if r.raised {
					bound = ""
				}
				fmt.Fprintf(out, "| %s | %d | %s | %.0f | %s | %s | %s | %s | %.2f | %d | %s%.2f ms |\n", e.name, n, l.name,
					float64(r.units)/r.elapsed.Seconds(), ms(50), ms(99), ms(99.9), ms(100),
					float64(r.delays.percentile(99))/float64(alone.delays.percentile(99)), r.answers, bound, r.longest.Seconds()*1e3)
			}
		}
	}
	return nil
}

// watchedCommand runs a gateway with -admin in its own directory, and tells sockets where.
func watchedCommand(v variant, sockets map[string]string) func(site) (*exec.Cmd, error) {
	return func(s site) (*exec.Cmd, error) {
		// Tunnels that rest are not asked for signs of life meanwhile.
		cmd := exec.Command(s.path, append([]string{"-addr=" + s.listen, "-log-level=warn", "-pidfile=", "-keepalive=10m", "-admin=unix:admin.sock"}, v.args...)...)
		cmd.Env = gatewayEnvironment()
		sockets[v.name] = filepath.Join(s.dir, "admin.sock")
		return cmd, nil
	}
}

// watch opens tunnels through e, and has some of them talk beside each way of looking in
// turn, so that what disturbs the machine hits all.
func (s *suite) watch(e *entrant, socket string, resting int, say func(string, ...any)) ([][]watchedRow, error) {
	w := &watched{entrant: e}
	e.awake()
	defer e.rest()
	w.admin = http.Client{Timeout: patience, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	defer w.admin.CloseIdleConnections()
	open := func(n int) (*helper, error) {
		h, err := startHelper(s.fleet, roleLoad)
		if err != nil {
			return nil, err
		}
		_, _, err = perform([]*helper{h}, loadRequest{Op: opOpen, Targets: e.targets, Lines: e.lines, Tunnels: n, Mode: modeEcho, Size: 64})
		w.tunnels += n
		return h, err
	}
	idle, err := open(resting)
	if err != nil {
		return nil, err
	}
	// Not its process alone: it ends when the collector closes the pipe to it.
	defer func() { idle.kill() }()
	rows := make([][]watchedRow, len(watchedTunnels))
	for i, n := range watchedTunnels {
		h, err := open(n)
		if err != nil {
			return nil, err
		}
		defer h.kill()
		w.talking = append(w.talking, h)
		rows[i] = make([]watchedRow, len(looks))
	}
	for round := range s.opt.rounds {
		for i := range watchedTunnels {
			for j := range looks {
				k := (j + round) % len(looks) // nobody is always behind the same other
				say("%s, round %d: %d tunnels, %s", e.name, round+1, watchedTunnels[i], looks[k].name)
				if err := w.measure(&rows[i][k], &looks[k], w.talking[i], s.opt.time); err != nil {
					return nil, fmt.Errorf("%s: %w", looks[k].name, err)
				}
			}
		}
	}
	return rows, nil
}

// measure has the tunnels of talking talk while somebody looks.
func (w *watched) measure(r *watchedRow, l *look, talking *helper, length time.Duration) error {
	before, err := w.longestTurn()
	if err != nil {
		return err
	}
	answers := w.answers
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	looked := make(chan error, 1)
	go func() { looked <- w.lookOn(ctx, l) }()
	got, delays, err := perform([]*helper{talking}, loadRequest{Op: opEcho, Time: length})
	cancel()
	if failure := <-looked; err == nil {
		err = failure
	}
	if err != nil {
		return err
	}
	r.answers += w.answers - answers
	after, err := w.longestTurn()
	if err != nil {
		return err
	}
	r.delays.addPairs(delays.pairs())
	r.units += got.Units
	r.elapsed += got.Elapsed
	if after > r.longest {
		r.longest, r.raised = after, after > before
	}
	return nil
}

// lookOn looks until ctx ends.
func (w *watched) lookOn(ctx context.Context, l *look) error {
	for l.once != nil && ctx.Err() == nil {
		next := time.After(l.every)
		if err := l.once(ctx, w); err != nil {
			if ctx.Err() != nil {
				return nil // in the middle of it
			}
			return err
		}
		select {
		case <-next:
		case <-ctx.Done():
		}
	}
	return nil
}

// get fetches something of -admin.
func (w *watched) get(ctx context.Context, path string, read func(io.Reader) error) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://gateway"+path, nil)
	if err != nil {
		return err
	}
	resp, err := w.admin.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	if err := read(resp.Body); err != nil {
		return err
	}
	w.answers++
	return nil
}

// list lists all tunnels by pages of a size, and sees that none is missing. To parse the list
// would take the looker longer than the gateway to write it.
func (w *watched) list(ctx context.Context, page int) error {
	query := url.Values{"limit": {strconv.Itoa(page)}}
	for n := 0; ; {
		var text strings.Builder
		if err := w.get(ctx, "/api/tunnels?"+query.Encode(), func(body io.Reader) error {
			_, err := io.Copy(&text, body)
			return err
		}); err != nil {
			return err
		}
		list, tail := text.String(), ""
		if i := strings.LastIndexByte(list, ']'); i >= 0 {
			list, tail = list[:i], list[i+1:]
		}
		n += strings.Count(list, `{"id":`)
		_, next, more := strings.Cut(tail, `"next":"`)
		if !more {
			if n != w.tunnels {
				return fmt.Errorf("%d tunnels are listed, want %d", n, w.tunnels)
			}
			return nil
		}
		next, _, _ = strings.Cut(next, `"`)
		query.Set("after", next)
	}
}

// longestTurn asks for the longest turn of any loop, in this minute and the last.
func (w *watched) longestTurn() (longest time.Duration, err error) {
	var status struct {
		Loops []struct {
			Seconds float64 `json:"longest_turn_seconds"`
		}
	}
	err = w.get(context.Background(), "/api/status", func(body io.Reader) error { return json.NewDecoder(body).Decode(&status) })
	for _, l := range status.Loops {
		longest = max(longest, time.Duration(l.Seconds*float64(time.Second)))
	}
	return longest, err
}
