package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Admin is a client of a gateway's -admin.
type Admin struct {
	Flag   string // for the gateway's command line
	Socket string
	client http.Client
}

// NewAdmin returns a client of the -admin of a gateway that is yet to be started, with
// Flag.
func NewAdmin(t testing.TB) *Admin {
	t.Helper()
	dir, err := os.MkdirTemp("", "admin") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	a := &Admin{Socket: filepath.Join(dir, "s")}
	a.Flag = "-admin=unix:" + a.Socket
	a.client = http.Client{Timeout: Patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", a.Socket)
		},
	}}
	t.Cleanup(func() {
		a.client.CloseIdleConnections()
		os.RemoveAll(dir)
	})
	return a
}

// Do sends a request, as the only one who may change things does.
func (a *Admin) Do(t testing.TB, method, path, body string) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequest(method, "http://gateway"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Gateway-Admin", "1")
	resp, err := a.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// JSON sends a request and reads the answer, which must be 200, into v.
func (a *Admin) JSON(t testing.TB, method, path, body string, v any) {
	t.Helper()
	status, text := a.Do(t, method, path, body)
	if status != http.StatusOK {
		t.Fatalf("%s %s %s: status %d, %s", method, path, body, status, text)
	}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%s %s: %v in %s", method, path, err, text)
	}
}

// Metrics are the values of /metrics at one time, by name and labels as they stand
// there: name{a="1",b="2"}.
type Metrics map[string]float64

// Metrics fetches all metrics.
func (a *Admin) Metrics(t testing.TB) Metrics {
	t.Helper()
	status, text := a.Do(t, "GET", "/metrics", "")
	if status != http.StatusOK {
		t.Fatalf("/metrics: status %d, %s", status, text)
	}
	m, err := ParseMetrics(text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// ParseMetrics reads what /metrics says.
func ParseMetrics(text string) (Metrics, error) {
	m := make(Metrics)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		m[line[:i]] = v
	}
	return m, nil
}

// Unaccounted returns how many connections are not in what docs/operating.md says that
// all are in.
func (m Metrics) Unaccounted() float64 {
	return m.Sum("gateway_accepted_total") + m["gateway_tunnels_moved"] - m["gateway_tunnels_active"] -
		m.Sum("gateway_tunnels_ended_total") - m.Sum("gateway_refusals_total") - m["gateway_connections_pending"] -
		m.Sum("gateway_connections_total", `form="http"`) - m.Sum("gateway_connections_total", `form="http+tls"`) -
		m.Sum("gateway_connections_total", `status="resumed"`)
}

// Fell returns the counters that are less than they were before.
func (m Metrics) Fell(before Metrics) (list []string) {
	for key, was := range before {
		name, _, _ := strings.Cut(key, "{")
		if now, ok := m[key]; strings.HasSuffix(name, "_total") && strings.HasPrefix(name, "gateway_") && (!ok || now < was) {
			list = append(list, fmt.Sprintf("%s: %v after %v", key, now, was))
		}
	}
	return list
}

// Sum adds up the values of a metric that have all the labels, each as name="value".
func (m Metrics) Sum(name string, labels ...string) (sum float64) {
next:
	for key, v := range m {
		base, rest, _ := strings.Cut(key, "{")
		if base != name {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(","+strings.TrimSuffix(rest, "}"), ","+l) {
				continue next
			}
		}
		sum += v
	}
	return sum
}
