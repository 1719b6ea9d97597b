package main

import (
	"bytes"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

func TestWhatWhoLooksCostsIsMeasured(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the gateway")
	}
	var out, progress bytes.Buffer
	if code := run([]string{"-namespace=false", "-only=" + gatewayName, "-watched", "-rounds=2", "-time=50ms", "-idle=1500"}, &out, &progress); code != 0 {
		t.Fatalf("code %d\n%s\n%s", code, &out, &progress)
	}
	if n := strings.Count(out.String(), " 1500 tunnels rest while others talk"); n != 2 {
		t.Errorf("%d tables of as many tunnels:\n%s", n, &out)
	}
	row := regexp.MustCompile(`(?m)^\| gateway \| (8|1000) \| .* \| [1-9]\d* \|( [\d.]+ ms \|){4} [\d.]+ \| (\d+) \| (?:≤ )?[\d.]+ ms \|$`)
	rows := row.FindAllStringSubmatch(out.String(), -1)
	if len(rows) != 2*len(looks)*len(watchedTunnels) {
		t.Fatalf("%d rows:\n%s", len(rows), &out)
	}
	answered := 0 // a busy machine may leave some without an answer in so short a time
	for i, r := range rows {
		switch {
		case r[3] == "0":
		case i%len(looks) == 0:
			t.Errorf("somebody looks: %s", r[0])
		default:
			answered++
		}
	}
	if answered < len(looks)-1 {
		t.Errorf("next to nobody gets an answer:\n%s", &out)
	}
	for _, bad := range [][]string{{"-watched", "-upgrades=1"}, {"-watched=maybe"}} {
		if code := run(bad, &out, &progress); code != exitUsage {
			t.Errorf("%q: code %d", bad, code)
		}
	}
}

func TestAListThatLacksATunnelIsNoMeasurement(t *testing.T) {
	w := &watched{tunnels: 3}
	pages := map[string]string{
		"/api/tunnels?limit=2":           `{"tunnels":[{"id":"a-1","state":"open"},{"id":"a-2"}],"next":"a-2"}`,
		"/api/tunnels?after=a-2&limit=2": `{"tunnels":[{"id":"a-3"}]}`,
		"/api/tunnels?limit=9":           `{"tunnels":[{"id":"a-1"},{"id":"a-2"}]}`,
	}
	w.admin.Transport = fromPages(pages)
	if err := w.list(t.Context(), 2); err != nil {
		t.Error(err)
	}
	if err := w.list(t.Context(), 9); err == nil || !strings.Contains(err.Error(), "2 tunnels are listed, want 3") {
		t.Errorf("%v", err)
	}
	if err := w.list(t.Context(), 5); err == nil {
		t.Error("404 is taken for a list")
	}
	if w.answers != 3 {
		t.Errorf("%d answers", w.answers)
	}
}

// fromPages answers requests by their path and query.
type fromPages map[string]string

func (a fromPages) RoundTrip(r *http.Request) (*http.Response, error) {
	text, ok := a[r.URL.RequestURI()]
	resp := &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Body: io.NopCloser(strings.NewReader(text))}
	if !ok {
		resp.StatusCode, resp.Status = http.StatusNotFound, "404 Not Found"
	}
	return resp, nil
}
