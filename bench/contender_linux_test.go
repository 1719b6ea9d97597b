package main

import (
	"os"
	"strings"
	"testing"
)

var testSite = site{
	dir: "/somewhere", listen: "0.0.0.0:7000", targets: []string{"127.0.0.1:7000", "127.0.0.2:7000"},
	backends: []string{"127.0.1.1:8000", "127.0.1.2:8000"},
	threads:  3, files: 20_000,
}

func TestHAProxyIsConfiguredAsItIsJudged(t *testing.T) {
	plain, full := haproxyConfig(testSite, ""), haproxyConfig(testSite, spliced)
	for _, want := range []string{"mode tcp\n", "nbthread 3\n", "bind 0.0.0.0:7000\n", "server b1 127.0.1.2:8000\n", "maxconn 9400\n"} {
		if !strings.Contains(plain, want) || !strings.Contains(full, want) {
			t.Errorf("no %q in\n%s\nor\n%s", want, plain, full)
		}
	}
	for _, want := range []string{"tune.pipesize 1048576\n", "tune.bufsize 65536\n", "option splice-request\n", "option splice-response\n", "maxpipes 400\n"} {
		if strings.Contains(plain, want) || !strings.Contains(full, want) {
			t.Errorf("%q belongs in the second alone:\n%s\n%s", want, plain, full)
		}
	}
}

func TestNginxIsConfiguredAsItIsJudged(t *testing.T) {
	config := nginxConfig(testSite, "/modules/stream.so")
	for _, want := range []string{
		"load_module /modules/stream.so;", "worker_processes 3;", "proxy_half_close on;",
		"worker_connections 19900;", "server 127.0.1.2:8000;", "listen 0.0.0.0:7000;", "daemon off;",
	} {
		if !strings.Contains(config, want) {
			t.Errorf("no %q in\n%s", want, config)
		}
	}
	if strings.Contains(nginxConfig(testSite, ""), "load_module") {
		t.Error("it loads what is built in")
	}
}

func TestForwardingUsesEveryBackend(t *testing.T) {
	got := strings.Join(forwardFlags(testSite), " ")
	for i, addr := range testSite.targets {
		if want := "-listen=" + addr + "=forward:" + testSite.backends[i]; !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	if strings.Contains(got, "-addr") {
		t.Errorf("it listens elsewhere too: %s", got)
	}
}

func TestAVariantForwardsIfItsNameSaysSo(t *testing.T) {
	opt := &options{variants: []variant{{"old", "/bin/old", nil}, {"forward-old", "/bin/old", []string{"-loops=1"}}}}
	all, _ := contenders(opt)
	for _, c := range all {
		if handshakes := c.seal != nil; handshakes != (c.name == gatewayName || c.name == epollName || c.name == "old") {
			t.Errorf("%s has a handshake: %v", c.name, handshakes)
		}
		if c.name == "forward-old" {
			cmd, err := c.command(testSite)
			if err != nil || cmd.Args[len(cmd.Args)-1] != "-loops=1" {
				t.Errorf("%v, %v", cmd.Args, err)
			}
		}
	}
}

func TestVersionsAreFound(t *testing.T) {
	for text, want := range map[string]string{
		"HAProxy version 2.6.12-1+deb12u4 2025/01/01 - https://haproxy.org/\nStatus: stable": "2.6.12-1+deb12u4",
		"HA-Proxy version 1.8.4 2018/02/08":                                                  "1.8.4",
		"nginx version: nginx/1.22.1":                                                        "1.22.1",
		"gateway v1.2-3-gabc go1.26 linux/amd64 commit abc":                                  "v1.2-3-gabc",
	} {
		m := versionNumber.FindStringSubmatch(text)
		if m == nil || strings.TrimPrefix(m[1], "nginx/") != want {
			t.Errorf("%q: %q, want %s", text, m, want)
		}
	}
}

func TestStreamMayBeBuiltIn(t *testing.T) {
	for text, want := range map[string]bool{
		"--with-stream --with-x": true, "--with-stream": true, "--with-stream'": true,
		"--with-stream=dynamic": false, "--with-stream_ssl_module": false,
	} {
		if streamBuiltIn.MatchString(text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}

func TestASettingOfTheGatewayDoesNotReachIt(t *testing.T) {
	t.Setenv("GATEWAY_ADDR", "127.0.0.1:1")
	t.Setenv("GATEWAY_SECRET", "another")
	t.Setenv("CREDENTIALS_DIRECTORY", "/nowhere")
	env := strings.Join(gatewayEnvironment(), "\n")
	if strings.Contains(env, "GATEWAY_ADDR") || strings.Contains(env, "another") || strings.Contains(env, "/nowhere") ||
		!strings.Contains(env, "GATEWAY_SECRET="+secret) {
		t.Errorf("got:\n%s", env)
	}
}

func TestAProcessGroupIsReadFromProc(t *testing.T) {
	for stat, want := range map[string]int{
		"12 (nginx) S 1 77 77 0 -1": 77,
		"12 (a) b (c) S 1 78 77 0":  78,
		"12 (x":                     0,
		"":                          0,
	} {
		if got := groupIn(stat); got != want {
			t.Errorf("%q: %d, want %d", stat, got, want)
		}
	}
}

func TestTheStateOfAThreadIsReadFromProc(t *testing.T) {
	for stat, want := range map[string]byte{
		"12 (nginx) S 1 77": 'S',
		"12 (a) b (c) R 1":  'R',
		"12 (x) ":           0,
		"12 (x":             0,
		"":                  0,
	} {
		if got := stateIn(stat); got != want {
			t.Errorf("%q: %c, want %c", stat, got, want)
		}
	}
}

func TestMemoryIsReadFromProc(t *testing.T) {
	got, err := kilobytesIn("5500 rollup\nRss:                1234 kB\nPss: 1 kB\n", "Rss:")
	if err != nil || got != 1234<<10 {
		t.Errorf("%d, %v", got, err)
	}
	if _, err := kilobytesIn("nothing\n", "Rss:"); err == nil {
		t.Error("it was found in nothing")
	}
	if own, err := rssOf(os.Getpid()); err != nil || own < 1<<20 {
		t.Errorf("our own is %d, %v", own, err)
	}
}
