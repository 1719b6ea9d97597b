package deploy_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gateway/internal/address"
	"gateway/internal/harness"
)

// deployed returns how the gateway's container starts it, with a secret in place of
// the mounted one.
func deployed(t *testing.T, deployment manifest) (c command) {
	t.Helper()
	pod := deployment.at("spec/template/spec")
	mount := pod.at("containers/0/volumeMounts/0/mountPath").String()
	dir := credentials(t)
	for _, arg := range pod.at("containers/0/args").list() {
		c.args = append(c.args, strings.Replace(arg.String(), "="+mount+"/", "="+filepath.ToSlash(dir)+"/", 1))
	}
	for _, variable := range pod.at("containers/0/env").list() {
		c.env = append(c.env, variable.at("name").String()+"="+variable.at("value").String())
	}
	return c
}

func TestTheDeploymentStartsAGatewayThatCanRunThere(t *testing.T) {
	deployment := manifests(t)["Deployment gateway"]
	gateway := deployed(t, deployment)
	gateway.check(t)
	pod := deployment.at("spec/template/spec")
	addr, _ := gateway.value("addr")
	if port := ":" + pod.at("containers/0/ports/0/containerPort").String(); addr != port {
		t.Errorf("it listens on %s; the container's port is %s", addr, port)
	}
	if _, written := gateway.start(t); len(written) != 0 {
		t.Errorf("it writes %q, and nothing can be written", written)
	}
	if rules, _ := gateway.value("allow"); rules == "" {
		t.Error("no -allow: the cluster's own services can be reached")
	}
	pause := pod.at("containers/0/lifecycle/preStop/sleep/seconds").seconds(t)
	if grace := pod.at("terminationGracePeriodSeconds").seconds(t); grace <= pause+gateway.drain(t) {
		t.Errorf("it is killed after %v; preStop and -drain take %v and %v", grace, pause, gateway.drain(t))
	}
	if pod.at("volumes/0/name").String() != pod.at("containers/0/volumeMounts/0/name").String() {
		t.Error("what is mounted is no volume")
	}
	secret, _ := gateway.value("secret-file")
	if !strings.Contains(readText(t, kubernetesPages[0]), "create secret generic "+pod.at("volumes/0/secret/secretName").String()+" --from-file="+filepath.Base(secret)+"=") {
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
	allowed, _ := deployed(t, all["Deployment gateway"]).value("allow")
	for rule := range strings.SplitSeq(allowed, ",") {
		if port := games.at("spec/containers/0/ports/0/containerPort").String(); !strings.HasSuffix(rule, ":"+port) {
			t.Errorf("-allow opens %s; game servers have port %s", rule, port)
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
	python := harness.LookPath(t, "python3")
	container := manifests(t)["StatefulSet game"].at("spec/template/spec/containers/0")
	command := container.at("command").list()
	if len(command) != 3 || command[0].String() != "python3" {
		t.Fatalf("its command is %v", command)
	}
	free := harness.ClosedPort(t)
	_, port, _ := net.SplitHostPort(free)
	script := strings.Replace(command[2].String(), `("", `+container.at("ports/0/containerPort").String()+")", `("127.0.0.1", `+port+")", 1)
	if script == command[2].String() {
		t.Fatalf("it does not listen on the container's port:\n%s", script)
	}
	server := exec.Command(python, "-c", script)
	harness.Launch(t, server)
	harness.Eventually(t, "the game server listens", func() bool { return harness.IsListening(free) })
	c := harness.OpenTunnel(t, harness.Start(t).Addr, free)
	host, _ := os.Hostname()
	harness.Expect(t, c, host+"\n")
	harness.Send(t, c, "ping")
	harness.Expect(t, c, "ping")
	c.Close()
}
