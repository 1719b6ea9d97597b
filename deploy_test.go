package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gateway/internal/address"
)

// What stands in deploy/ is compared with what the program does and with
// itself. Whether Kubernetes and Consul take it is for make test-manifests.

// Each page in English, and the same in Chinese.
var (
	kubernetesPages = []string{"deploy/kubernetes/README.md", "deploy/kubernetes/README.zh-CN.md"}
	consulPages     = []string{"deploy/consul/README.md", "deploy/consul/README.zh-CN.md"}
)

var manifestFiles = []string{"deploy/kubernetes/gateway.yaml", "deploy/kubernetes/game.yaml"}

// manifest is an object of Kubernetes, or a part of one.
type manifest struct{ v any }

// at returns what a path of keys, and of indexes, leads to; nil for nothing.
func (m manifest) at(path string) manifest {
	v := m.v
	for key := range strings.SplitSeq(path, "/") {
		switch of := v.(type) {
		case map[string]any:
			v = of[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(of) {
				return manifest{}
			}
			v = of[i]
		default:
			return manifest{}
		}
	}
	return manifest{v}
}

func (m manifest) String() string {
	if m.v == nil {
		return ""
	}
	return fmt.Sprint(m.v)
}

func (m manifest) list() []manifest {
	items, _ := m.v.([]any)
	var list []manifest
	for _, item := range items {
		list = append(list, manifest{item})
	}
	return list
}

func (m manifest) seconds(t *testing.T) time.Duration {
	t.Helper()
	n, err := strconv.Atoi(m.String())
	if err != nil {
		t.Fatalf("%v are not seconds", m)
	}
	return time.Duration(n) * time.Second
}

// manifests returns the objects in deploy/kubernetes by kind and name.
func manifests(t *testing.T) map[string]manifest {
	t.Helper()
	all := make(map[string]manifest)
	for _, name := range manifestFiles {
		for text := range strings.SplitSeq(readText(t, name), "\n---\n") {
			m := manifest{parseYAML(t, text)}
			all[m.at("kind").String()+" "+m.at("metadata/name").String()] = m
		}
	}
	return all
}

// parseYAML reads the little of YAML that the manifests use: blocks of mappings
// and lists, plain scalars, and literal text.
func parseYAML(t *testing.T, text string) any {
	t.Helper()
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		if trimmed := strings.TrimSpace(line); trimmed != "" && !strings.HasPrefix(trimmed, "#") {
			lines = append(lines, line)
		}
	}
	indent := func(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }
	var block func(least int) any
	// value reads what stands behind a key or a dash whose own column is given.
	value := func(rest string, column int) any {
		switch {
		case rest == "|":
			var b strings.Builder
			for margin := -1; len(lines) > 0 && indent(lines[0]) > column; lines = lines[1:] {
				if margin < 0 {
					margin = indent(lines[0])
				}
				b.WriteString(lines[0][margin:] + "\n")
			}
			return b.String()
		case rest != "":
			if strings.ContainsAny(rest[:1], `"'{[&*!>%@`) && rest[0] != '[' || strings.Contains(rest, " #") {
				t.Fatalf("%q is beyond this parser", rest)
			}
			return rest
		}
		return block(column)
	}
	block = func(least int) any {
		if len(lines) == 0 {
			return nil
		}
		column := indent(lines[0])
		isItem := func(line string) bool { return strings.HasPrefix(line[column:], "- ") }
		// A list may stand in the column of its key.
		if column < least || column == least && least > 0 && !isItem(lines[0]) {
			return nil
		}
		if isItem(lines[0]) {
			var list []any
			for len(lines) > 0 && indent(lines[0]) == column && isItem(lines[0]) {
				rest := lines[0][column+2:]
				if key, _, ok := strings.Cut(rest, ":"); ok && !strings.ContainsAny(key, "-= ") {
					lines[0] = strings.Repeat(" ", column+2) + rest // a mapping
					list = append(list, block(column+1))
					continue
				}
				lines = lines[1:]
				list = append(list, value(rest, column))
			}
			return list
		}
		m := make(map[string]any)
		for len(lines) > 0 && indent(lines[0]) == column && !isItem(lines[0]) {
			key, rest, ok := strings.Cut(lines[0][column:], ":")
			if _, twice := m[key]; !ok || twice {
				t.Fatalf("%q is no key, or a second one", lines[0])
			}
			lines = lines[1:]
			m[key] = value(strings.TrimSpace(rest), column)
		}
		return m
	}
	v := block(0)
	if len(lines) > 0 {
		t.Fatalf("%q is beyond this parser", lines[0])
	}
	return v
}

// deployedConfig reads the flags of the gateway's container as the gateway does.
func deployedConfig(t *testing.T, deployment manifest) *Config {
	t.Helper()
	pod := deployment.at("spec/template/spec")
	mount := pod.at("containers/0/volumeMounts/0/mountPath").String()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var args []string
	for _, arg := range pod.at("containers/0/args").list() {
		args = append(args, strings.Replace(arg.String(), "="+mount+"/", "="+filepath.ToSlash(dir)+"/", 1))
	}
	for _, variable := range pod.at("containers/0/env").list() {
		t.Setenv(variable.at("name").String(), variable.at("value").String())
	}
	cfg, err := loadConfig(args)
	if err != nil {
		t.Fatalf("gateway %s: %v", strings.Join(args, " "), err)
	}
	for _, w := range cfg.warnings() {
		t.Errorf("gateway %s: %s", strings.Join(args, " "), w)
	}
	return cfg
}

func TestTheDeploymentStartsAGatewayThatCanRunThere(t *testing.T) {
	deployment := manifests(t)["Deployment gateway"]
	cfg := deployedConfig(t, deployment)
	pod := deployment.at("spec/template/spec")
	if port := ":" + pod.at("containers/0/ports/0/containerPort").String(); cfg.Listen[0].addr != port {
		t.Errorf("it listens on %s; the container's port is %s", cfg.Listen[0].addr, port)
	}
	if cfg.PIDFile != "" {
		t.Errorf("-pidfile is %q, and nothing can be written", cfg.PIDFile)
	}
	if len(cfg.Allow) == 0 {
		t.Error("no -allow: the cluster's own services can be reached")
	}
	pause := pod.at("containers/0/lifecycle/preStop/sleep/seconds").seconds(t)
	if grace := pod.at("terminationGracePeriodSeconds").seconds(t); grace <= pause+cfg.Drain {
		t.Errorf("it is killed after %v; preStop and -drain take %v and %v", grace, pause, cfg.Drain)
	}
	if pod.at("volumes/0/name").String() != pod.at("containers/0/volumeMounts/0/name").String() {
		t.Error("what is mounted is no volume")
	}
	if !strings.Contains(readText(t, kubernetesPages[0]), "create secret generic "+pod.at("volumes/0/secret/secretName").String()+" --from-file="+filepath.Base(cfg.secretFile)+"=") {
		t.Errorf("%s does not make the secret that is mounted", kubernetesPages[0])
	}
}

func TestPodsMayDoNothingThatTheyNeedNot(t *testing.T) {
	all := manifests(t)
	for _, name := range []string{"Deployment gateway", "StatefulSet game"} {
		pod := all[name].at("spec/template/spec")
		for path, want := range map[string]string{
			"automountServiceAccountToken":        "false",
			"enableServiceLinks":                  "false",
			"hostNetwork":                         "",
			"hostPID":                             "",
			"initContainers":                      "",
			"containers/1":                        "",
			"securityContext/runAsNonRoot":        "true",
			"securityContext/runAsUser":           "65532",
			"securityContext/runAsGroup":          "65532",
			"securityContext/seccompProfile/type": "RuntimeDefault",
			"containers/0/securityContext/allowPrivilegeEscalation": "false",
			"containers/0/securityContext/readOnlyRootFilesystem":   "true",
			"containers/0/securityContext/privileged":               "",
			"containers/0/securityContext/capabilities":             "map[drop:[ALL]]",
		} {
			if got := pod.at(path).String(); got != want {
				t.Errorf("%s: %s is %q, want %q", name, path, got, want)
			}
		}
		for _, path := range []string{"requests/cpu", "requests/memory", "limits/memory"} {
			if pod.at("containers/0/resources/"+path).v == nil {
				t.Errorf("%s: no %s", name, path)
			}
		}
	}
}

func TestManifestsMeanTheSamePodsAndPorts(t *testing.T) {
	all := manifests(t)
	for _, name := range []string{"Deployment gateway", "StatefulSet game"} {
		_, app, _ := strings.Cut(name, " ")
		template := all[name].at("spec/template")
		want := "map[app:" + app + "]"
		for _, m := range []manifest{
			template.at("metadata/labels"),
			all[name].at("spec/selector/matchLabels"),
			all["Service "+app].at("spec/selector"),
			all["NetworkPolicy "+app].at("spec/podSelector/matchLabels"),
		} {
			if m.String() != want {
				t.Errorf("%s: some object is about %q", name, m)
			}
		}
		port := template.at("spec/containers/0/ports/0")
		service := all["Service "+app].at("spec/ports/0")
		if service.at("targetPort").String() != port.at("name").String() ||
			service.at("port").String() != port.at("containerPort").String() {
			t.Errorf("the service %s has the port %v, its pods have %v", app, service, port)
		}
		if got := all["NetworkPolicy "+app].at("spec/ingress/0/ports/0/port").String(); got != port.at("containerPort").String() {
			t.Errorf("the policy lets clients of %s come to port %s", app, got)
		}
		for _, probe := range []string{"readinessProbe", "livenessProbe"} {
			p := template.at("spec/containers/0/" + probe)
			if p.v != nil && p.at("tcpSocket/port").String() != port.at("name").String() {
				t.Errorf("%s: %s asks port %v", name, probe, p)
			}
		}
	}
	gateways, games := all["Deployment gateway"].at("spec/template"), all["StatefulSet game"].at("spec/template")
	if got := all["PodDisruptionBudget gateway"].at("spec/selector/matchLabels").String(); got != gateways.at("metadata/labels").String() {
		t.Errorf("the budget is about %s", got)
	}
	for _, spread := range gateways.at("spec/topologySpreadConstraints").list() {
		if got := spread.at("labelSelector/matchLabels").String(); got != gateways.at("metadata/labels").String() {
			t.Errorf("what is spread is %s", got)
		}
	}
	out := all["NetworkPolicy gateway"].at("spec/egress/0")
	if out.at("to/0/podSelector/matchLabels").String() != games.at("metadata/labels").String() ||
		out.at("ports/0/port").String() != games.at("spec/containers/0/ports/0/containerPort").String() {
		t.Errorf("gateways may go to %v", out)
	}
	in := all["NetworkPolicy game"].at("spec/ingress/0/from/0/podSelector/matchLabels")
	if in.String() != gateways.at("metadata/labels").String() {
		t.Errorf("game servers may be reached from %v", in)
	}
	for _, rule := range deployedConfig(t, all["Deployment gateway"]).Allow {
		if port := games.at("spec/containers/0/ports/0/containerPort").String(); !strings.HasSuffix(rule.String(), ":"+port) {
			t.Errorf("-allow opens %v; game servers have port %s", rule, port)
		}
	}
	if lb := all["Service gateway"].at("spec"); lb.at("type").String() != "LoadBalancer" || lb.at("externalTrafficPolicy").String() != "Local" {
		t.Errorf("clients' addresses are lost by %v", lb)
	}
	headless := all["Service game"].at("spec/clusterIP").String()
	if headless != "None" || all["StatefulSet game"].at("spec/serviceName").String() != "game" {
		t.Errorf("game servers have no names of their own: clusterIP is %q", headless)
	}
}

func TestSealedNamesInTheDeploymentPagesAreThoseOfTheManifests(t *testing.T) {
	all := manifests(t)
	port := all["Service game"].at("spec/ports/0")
	zone := all["StatefulSet game"].at("spec/serviceName").String() + ".default.svc.cluster.local"
	service := fmt.Sprintf("_%v._%s.%s", port.at("name"), strings.ToLower(port.at("protocol").String()), zone)
	pod := regexp.MustCompile(`^game-\d\.` + regexp.QuoteMeta(zone) + "$")
	sealed := regexp.MustCompile(`-seal=(\S+)|forward:(\S+)`)
	for _, name := range slices.Concat(kubernetesPages, consulPages) {
		n := 0
		for _, m := range sealed.FindAllStringSubmatch(readText(t, name), -1) {
			text := strings.Trim(m[1]+m[2], "`，。；")
			route, err := address.ParseRoute(text)
			if err != nil {
				t.Errorf("%s: %s: %v", name, text, err)
				continue
			}
			n++
			if !slices.Contains(kubernetesPages, name) {
				continue
			}
			if route.Service() != "" && route.Service() != service {
				t.Errorf("%s: %s; the manifests make %s", name, text, service)
			}
			for i := range route.Len() {
				a := route.Target(i).Addr
				if !pod.MatchString(a.Host) || fmt.Sprint(a.Port) != port.at("port").String() {
					t.Errorf("%s: %v is none of the game servers", name, a)
				}
			}
		}
		if n == 0 {
			t.Errorf("%s seals nothing", name)
		}
	}
}

func TestTheExampleGameServerPlays(t *testing.T) {
	python := lookPath(t, "python3")
	container := manifests(t)["StatefulSet game"].at("spec/template/spec/containers/0")
	command := container.at("command").list()
	if len(command) != 3 || command[0].String() != "python3" {
		t.Fatalf("its command is %v", command)
	}
	free := closedPort(t)
	_, port, _ := net.SplitHostPort(free)
	script := strings.Replace(command[2].String(), `("", `+container.at("ports/0/containerPort").String()+")", `("127.0.0.1", `+port+")", 1)
	if script == command[2].String() {
		t.Fatalf("it does not listen on the container's port:\n%s", script)
	}
	server := exec.Command(python, "-c", script)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer server.Wait()
	defer server.Process.Kill()
	eventually(t, "the game server listens", func() bool {
		c, err := net.Dial("tcp", free)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	g := startGateway(t, nil)
	c := openTunnel(t, g.addr, free)
	host, _ := os.Hostname()
	expect(t, c, host+"\n")
	send(t, c, "ping")
	expect(t, c, "ping")
	c.Close()
}

func TestTheDockerfileBuildsFromWhatItCopies(t *testing.T) {
	lookPath(t, "go")
	text := strings.ReplaceAll(readText(t, "deploy/Dockerfile"), "\\\n", " ")
	ignored := readText(t, "deploy/Dockerfile.dockerignore")
	dir := t.TempDir()
	for _, m := range regexp.MustCompile(`(?m)^COPY ([^-].*) (\S+)$`).FindAllStringSubmatch(text, -1) {
		for pattern := range strings.FieldsSeq(m[1]) {
			if !strings.Contains(ignored, "\n!"+pattern+"\n") {
				t.Errorf("Dockerfile.dockerignore hides %s", pattern)
			}
			names, err := filepath.Glob(pattern)
			if err != nil || len(names) == 0 {
				t.Fatalf("COPY %s: nothing there, %v", pattern, err)
			}
			for _, name := range names {
				info, err := os.Stat(name)
				if err == nil && info.IsDir() {
					err = os.CopyFS(filepath.Join(dir, m[2]), os.DirFS(name))
				} else if err == nil {
					var b []byte
					if b, err = os.ReadFile(name); err == nil {
						err = os.WriteFile(filepath.Join(dir, m[2], name), b, 0o644)
					}
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "out.exe"), ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	_, goVersion, _ := strings.Cut(readText(t, "go.mod"), "\ngo ")
	goVersion = regexp.MustCompile(`^\d+\.\d+`).FindString(goVersion)
	user := manifests(t)["Deployment gateway"].at("spec/template/spec/securityContext/runAsUser").String()
	for _, want := range []string{
		"FROM golang:" + goVersion + " AS build\n", "CGO_ENABLED=0 go build -trimpath ",
		"-X main.version=$VERSION -X main.commit=$COMMIT", "\nFROM scratch\n",
		"\nUSER " + user + ":" + user + "\n", `ENTRYPOINT ["/gateway"]`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the Dockerfile has no %q", want)
		}
	}

	// What it runs without the manifests.
	for _, m := range regexp.MustCompile(`(?m)^ENV (GATEWAY_\w+)=(.*)$`).FindAllStringSubmatch(text, -1) {
		t.Setenv(m[1], m[2])
	}
	t.Setenv("GATEWAY_SECRET", testSecret)
	var args []string
	if m := regexp.MustCompile(`(?m)^CMD (.*)$`).FindStringSubmatch(text); m == nil || json.Unmarshal([]byte(m[1]), &args) != nil {
		t.Fatal("no CMD")
	}
	if cfg, err := loadConfig(args); err != nil {
		t.Error(err)
	} else if cfg.PIDFile != "" || cfg.Listen[0].addr != ":"+regexp.MustCompile(`(?m)^EXPOSE (\d+)$`).FindStringSubmatch(text)[1] {
		t.Errorf("it listens on %v, with the pid file %q", cfg.Listen, cfg.PIDFile)
	}
}
