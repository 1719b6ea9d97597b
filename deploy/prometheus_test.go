package deploy_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gateway/internal/admin"
	"gateway/internal/harness"
)

// Alerts and the dashboard are about metrics that there are.

// metricNames finds everything in a text that looks like a metric of the gateway.
var metricNames = regexp.MustCompile(`\bgateway_[a-z_]+\b`)

// checkMetrics checks that all metrics in a text exist, by their names and by those of
// a histogram's parts, and returns those.
func checkMetrics(t *testing.T, where, text string) (found []string) {
	t.Helper()
	known := admin.Names()
	for _, name := range metricNames.FindAllString(text, -1) {
		base := name
		for _, part := range []string{"_bucket", "_sum", "_count"} {
			if cut, ok := strings.CutSuffix(name, part); ok && slices.Contains(known, cut) {
				base = cut
			}
		}
		if !slices.Contains(known, base) {
			t.Errorf("%s: there is no metric %s", where, name)
		}
		found = append(found, base)
	}
	return found
}

func TestAlertsAndTheDashboardAreAboutMetricsThatThereAre(t *testing.T) {
	t.Parallel()
	alerts := checkMetrics(t, "alerts.yml", readText(t, "prometheus/alerts.yml"))
	checkMetrics(t, "alerts.test.yml", readText(t, "prometheus/alerts.test.yml"))
	text := readText(t, "grafana.json")
	shown := checkMetrics(t, "grafana.json", text)
	if len(alerts) < 10 || len(shown) < 30 {
		t.Errorf("%d metrics in the alerts, %d in the dashboard", len(alerts), len(shown))
	}
	// What nobody looks at need not be counted.
	for _, name := range admin.Names() {
		if !slices.Contains(shown, name) && !slices.Contains(alerts, name) && !notShown[name] {
			t.Errorf("%s is in no alert and in no panel", name)
		}
	}

	var board struct {
		Title  string
		Panels []struct {
			ID      int
			Title   string
			Type    string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(text), &board); err != nil {
		t.Fatal(err)
	}
	seen := make(map[int]bool)
	for i, p := range board.Panels {
		if p.Title == "" || seen[p.ID] || p.Type != "row" && len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %d: %+v", i, p)
		}
		seen[p.ID] = true
		for _, q := range board.Panels[:i] {
			a, b := p.GridPos, q.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%q lies over %q", p.Title, q.Title)
			}
		}
	}
}

// notShown are the metrics that are there for queries of one's own.
var notShown = map[string]bool{
	"gateway_build_info": true, "gateway_loop_connections": true, "gateway_pipes_limit": true,
	"gateway_connections_limit": true, "gateway_tunnels_opened_total": true, "gateway_draining": true,
	"gateway_start_time_seconds": true,
}

func TestEveryAlertSaysWhatToDoAndIsTested(t *testing.T) {
	t.Parallel()
	alerts, tests := readText(t, "prometheus/alerts.yml"), readText(t, "prometheus/alerts.test.yml")
	names := regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllStringSubmatch(alerts, -1)
	if len(names) < 10 {
		t.Fatalf("%d alerts", len(names))
	}
	for i, m := range names {
		_, rest, _ := strings.Cut(alerts, "- alert: "+m[1]+"\n")
		if i+1 < len(names) {
			rest, _, _ = strings.Cut(rest, "- alert: "+names[i+1][1]+"\n")
		}
		for _, want := range []string{"expr:", "severity:", "summary:", "description:"} {
			if !strings.Contains(rest, want) {
				t.Errorf("%s has no %s", m[1], want)
			}
		}
		// Once where it must not be, and once where it must.
		if strings.Count(tests, "alertname: "+m[1]+"}") != 1 || strings.Count(tests, "alertname: "+m[1]+"\n") != 1 {
			t.Errorf("%s is not tested both ways", m[1])
		}
	}
}

func TestAlertsAreRaisedWhenTheyShould(t *testing.T) {
	t.Parallel()
	promtool := harness.FindServer(t, "promtool", os.Getenv("NEED_PROMTOOL") != "", "test-alerts")
	for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts.test.yml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = "prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}
