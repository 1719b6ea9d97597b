package deploy_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gateway/internal/admin"
	"gateway/internal/harness"
)

// patched returns an object of the base as the autoscaling component leaves it: by the
// operations of RFC 6902 that its patches use.
func patched(t *testing.T, object, file string) manifest {
	t.Helper()
	m := manifests(t)[object]
	for _, op := range (manifest{parseYAML(t, readText(t, "kubernetes/autoscaling/"+file))}).list() {
		path := strings.TrimPrefix(op.at("path").String(), "/")
		parent, key := path[:strings.LastIndex(path, "/")], path[strings.LastIndex(path, "/")+1:]
		switch {
		case op.at("op").String() == "remove" && m.at(path).v != nil:
			delete(m.at(parent).v.(map[string]any), key)
		case op.at("op").String() == "add" && key != "-" && m.at(path).v == nil:
			m.at(parent).v.(map[string]any)[key] = op.at("value").v
		case op.at("op").String() == "add" && key == "-" && m.at(parent).list() != nil:
			above, name := parent[:strings.LastIndex(parent, "/")], parent[strings.LastIndex(parent, "/")+1:]
			m.at(above).v.(map[string]any)[name] = append(m.at(parent).v.([]any), op.at("value").v)
		default:
			t.Fatalf("%s: %v does nothing to %s", file, op, object)
		}
	}
	return m
}

func TestTheAutoscalerCountsWhatAGatewayTells(t *testing.T) {
	deployment := patched(t, "Deployment gateway", "deployment.yaml")
	container := deployment.at("spec/template/spec/containers/0")
	// What the kubelet puts in its place.
	if env := container.at("env").String(); env != "[map[name:POD_IP valueFrom:map[fieldRef:map[fieldPath:status.podIP]]]]" {
		t.Errorf("the environment is %s", env)
	}
	gateway := deployed(t, deployment)
	gateway.env = nil
	for i, arg := range gateway.args {
		gateway.args[i] = strings.Replace(arg, "$(POD_IP)", "127.0.0.1", 1)
	}
	gateway.check(t)
	if deployment.at("spec/replicas").v != nil {
		t.Error("each apply would undo what the autoscaler has done")
	}

	scaler := manifests(t)["HorizontalPodAutoscaler gateway"].at("spec")
	if got, want := scaler.at("scaleTargetRef").String(), "map[apiVersion:apps/v1 kind:Deployment name:gateway]"; got != want {
		t.Errorf("it scales %s", got)
	}
	pods := scaler.at("metrics/0/pods")
	metric := pods.at("metric/name").String()
	if scaler.at("metrics/0/type").String() != "Pods" || !slices.Contains(admin.Names(), metric) {
		t.Errorf("there is no metric %q of a pod", metric)
	}

	// What it is told, by the address that Prometheus finds.
	at, _ := gateway.value("admin")
	port := container.at("ports/1")
	if at != "[127.0.0.1]:"+port.at("containerPort").String() || port.at("name").String() != "admin" {
		t.Errorf("-admin is %s, the second port is %v", at, port)
	}
	for i, arg := range gateway.args {
		if arg == "-admin="+at {
			gateway.args[i] = "-admin=[127.0.0.1]:0"
		}
		if strings.HasPrefix(arg, "-allow=") {
			gateway.args[i] = "-allow=127.0.0.0/8"
		}
	}
	p, _ := gateway.start(t)
	url := p.Log.WaitLine(t, "admin is on", 1)["url"]
	backend := harness.StartEcho(t)
	for range 2 {
		harness.Echo(t, harness.OpenTunnel(t, p.Addr, backend), "hello")
	}
	resp, err := http.Get(fmt.Sprintf("%vmetrics", url))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(text), "\n"+metric+" 2\n") {
		t.Errorf("with two tunnels %s is not 2: %v, %s", metric, err, regexp.MustCompile("(?m)^"+metric+".*").FindAll(text, -1))
	}

	// Who asks for it, and who may.
	in := patched(t, "NetworkPolicy gateway", "policy.yaml").at("spec/ingress/1")
	if in.at("ports/0/port").String() != port.at("containerPort").String() || in.at("from/0/namespaceSelector/matchLabels").v == nil {
		t.Errorf("%v may ask", in)
	}
	scrape := manifest{parseYAML(t, readText(t, "kubernetes/autoscaling/prometheus.yaml"))}.at("scrape_configs/0")
	if got, want := scrape.at("relabel_configs/0/regex").String(), deployment.at("spec/template/metadata/labels/app").String()+";"+port.at("name").String(); got != want {
		t.Errorf("Prometheus looks for %s, which is %s", got, want)
	}
	rule := manifest{parseYAML(t, readText(t, "kubernetes/autoscaling/adapter.yaml"))}.at("rules/0")
	if got := rule.at("seriesQuery").String(); got != metric+`{namespace!="",pod!=""}` {
		t.Errorf("the adapter looks for %s", got)
	}
	for i, label := range []string{"namespace", "pod"} {
		if got := scrape.at(fmt.Sprintf("relabel_configs/%d/target_label", i+1)).String(); got != label || rule.at("resources/overrides/"+label+"/resource").String() != label {
			t.Errorf("%s: Prometheus calls it %q, the adapter is told %v", label, got, rule.at("resources"))
		}
	}

	// How much a tunnel may take, and how fast a gateway may go.
	tunnels, err := strconv.Atoi(strings.TrimSuffix(pods.at("target/averageValue").String(), "k"))
	gib, err2 := strconv.Atoi(strings.TrimSuffix(container.at("resources/limits/memory").String(), "Gi"))
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	if each := gib << 20 / (tunnels * 1000); each < 100 || each > 110 {
		t.Errorf("%d KiB for a tunnel", each)
	}
	down := scaler.at("behavior/scaleDown")
	if len(down.at("policies").list()) != 1 || down.at("policies/0/type").String() != "Pods" || down.at("policies/0/value").String() != "1" {
		t.Errorf("gateways go by %v", down)
	}
	if drain := gateway.drain(t); down.at("policies/0/periodSeconds").seconds(t) < drain || down.at("stabilizationWindowSeconds").seconds(t) < drain {
		t.Errorf("the next one goes while this one drains, for %v: %v", drain, down)
	}
}

func TestTheAutoscalersQueryGivesAPodsTunnels(t *testing.T) {
	promtool := harness.FindServer(t, "promtool", os.Getenv("NEED_PROMTOOL") != "", "test-alerts")
	dir := t.TempDir()
	judge := func(args ...string) {
		t.Helper()
		cmd := exec.Command(promtool, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
	write := func(name, text string) { harness.WriteFile(t, filepath.Join(dir, name), text) }

	// A Prometheus of Debian's knows of no Kubernetes.
	text := readText(t, "kubernetes/autoscaling/prometheus.yaml")
	const discovery = "kubernetes_sd_configs:\n      - role: pod\n"
	if !strings.Contains(text, discovery) {
		t.Fatalf("pods are found by something else:\n%s", text)
	}
	write("prometheus.yml", strings.Replace(text, discovery, "static_configs:\n      - targets: [\"127.0.0.1:9100\"]\n", 1))
	judge("check", "config", "prometheus.yml")

	// What the adapter asks for two pods by name.
	rule := manifest{parseYAML(t, readText(t, "kubernetes/autoscaling/adapter.yaml"))}.at("rules/0")
	series, _, _ := strings.Cut(rule.at("seriesQuery").String(), "{")
	query := strings.NewReplacer("<<.Series>>", series, "<<.LabelMatchers>>", `namespace="games",pod=~"gateway-a|gateway-b"`,
		"<<.GroupBy>>", "pod").Replace(rule.at("metricsQuery").String())
	write("test.yml", `tests:
  - interval: 30s
    input_series:
      - series: '`+series+`{namespace="games",pod="gateway-a",instance="10.0.0.1:9100"}'
        values: 9000
      - series: '`+series+`{namespace="games",pod="gateway-b",instance="10.0.0.2:9100"}'
        values: 11000
      - series: '`+series+`{namespace="others",pod="gateway-a",instance="10.0.0.3:9100"}'
        values: 5
    promql_expr_test:
      - expr: '`+query+`'
        eval_time: 10s
        exp_samples:
          - labels: '{pod="gateway-a"}'
            value: 9000
          - labels: '{pod="gateway-b"}'
            value: 11000
`)
	judge("test", "rules", "test.yml")
}
