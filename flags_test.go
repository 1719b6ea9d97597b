package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gateway/internal/flagvalue"
	"gateway/internal/limit"
	"gateway/internal/listen"
	"gateway/internal/policy"
)

type taken struct {
	text string
	want any
}

// settingTests has a row for each setting: its default, what it takes and what
// it refuses.
var settingTests = []struct {
	name    string
	get     func(*Config) any
	def     any
	takes   []taken
	refuses []string
}{
	{"secret", func(c *Config) any { return c.secret }, "",
		[]taken{{"x", "x"}, {"a=b", "a=b"}, {" # ", " # "}, {"密码", "密码"}}, nil},
	{"secret-file", func(c *Config) any { return c.secretFile }, "",
		nil, nil}, // see config_test.go
	{"kdf", func(c *Config) any { return joinKDFs(c.KDFs) }, "md5,sha256",
		[]taken{{"md5", "md5"}, {"sha256", "sha256"}, {"pbkdf2", "pbkdf2"}, {"sha256,md5", "sha256,md5"},
			{"pbkdf2,sha256,md5", "pbkdf2,sha256,md5"}},
		[]string{"", ",", "md4", "MD5", "md5,", ",md5", "md5,,sha256", "md5,md5", "sha256,md5,sha256", "md5 sha256"}},
	{"token-keys", func(c *Config) any { return c.TokenKeys }, "", nil, nil}, // see token_test.go
	{"token-audience", func(c *Config) any { return c.TokenAudience }, "", nil, nil},
	{"legacy", func(c *Config) any { return c.Legacy }, true, nil, []string{"", "2", "no"}},
	{"addr", func(c *Config) any { return c.addr }, "0.0.0.0:0",
		[]taken{{":0", ":0"}, {":65535", ":65535"}, {"127.0.0.1:8000", "127.0.0.1:8000"}, {"[::1]:8000", "[::1]:8000"},
			{"localhost:8000", "localhost:8000"}},
		[]string{"", "8000", ":", "127.0.0.1", "127.0.0.1:", "::1", "::1:8000", ":65536", ":-1", ":+1", ":http", ":1x",
			"http://127.0.0.1:80", "a:b:1"}},
	{"forward", func(c *Config) any { return listen.TargetText(c.forward) }, "",
		[]taken{{"127.0.0.1:80", "127.0.0.1:80"}, {"[::1]:80", "[::1]:80"}, {"db.internal:5432", "db.internal:5432"}, {"", ""}},
		[]string{"127.0.0.1", ":80", "127.1:80", "http", "a b:1", "127.0.0.1:0", "127.0.0.1:http"}},
	{"listen", func(c *Config) any { return listenText(c) }, "",
		[]taken{
			{":8000=sealed", "listen :8000"},
			{"127.0.0.1:8000=forward:10.0.0.1:80", "listen 127.0.0.1:8000 10.0.0.1:80"},
			{"[::1]:8000=forward:[::1]:80", "listen [::1]:8000 [::1]:80"},
			{":1=sealed :2=forward:a.b:3", "listen :1, listen :2 a.b:3"},
			{":1=sealed;max-conns=5;rate-per-ip=5/s,10;deny-clients=10.0.0.0/8,::1 :2=forward:a:1,b:2;max-conns-per-ip=1", "listen :1, listen :2 a:1,b:2"},
		},
		[]string{":8000", ":8000=", ":8000=open", "=sealed", "8000=sealed", ":8000=forward", ":8000=forward:", ":8000=forward:80",
			":8000=forward:127.1:80", ":8000=sealed:x", ":8000=SEALED", ":70000=sealed", ":1=sealed,:2=sealed", ":1=sealed;", ":1=sealed;max-conns", ":1=sealed;max-conns=-1", ":1=sealed;timeout=3s", ":1=sealed;max-conns=1;max-conns=2",
			":1=sealed;max-conns=1 :1=sealed;max-conns=2", ":1=sealed;allow-clients=x", ":1;max-conns=1=sealed", ":1=sealed :1=forward:a:1"}},
	{"health-path", func(c *Config) any { return c.HealthPath }, "", []taken{{"/healthz", "/healthz"}, {"/", "/"}, {"", ""}},
		[]string{"healthz", "/a b", "/a?b", "/a%20", "/ä", "http://a/"}},
	{"max-tunnels-per-backend", func(c *Config) any { return c.MaxTunnels }, 0, []taken{{"0", 0}, {"64", 64}}, []string{"", "-1", "x"}},
	{"drain-delay", func(c *Config) any { return c.DrainDelay }, time.Duration(0), []taken{{"0", time.Duration(0)}, {"15", 15 * time.Second}}, []string{"", "-1", "x"}},
	{"max-conns", func(c *Config) any { return c.MaxConns }, 0, []taken{{"0", 0}, {"100000", 100000}}, []string{"", "-1", "many", "16777217"}},
	{"max-conns-per-ip", func(c *Config) any { return c.ConnsPerIP }, 0, []taken{{"0", 0}, {"8", 8}}, []string{"", "-1", "many", "16777217"}},
	{"rate-per-ip", func(c *Config) any { return c.RatePerIP.String() }, "",
		[]taken{{"5/s", "5/s"}, {"5/s,20", "5/s,20"}, {"12/m", "12/m"}, {"100/h,1", "100/h,1"}, {"", ""}, {"0", ""}},
		[]string{"5", "5/", "/s", "0/s", "5/d", "5/s,", "5/s,0", "-5/s", "5/s 20", "1.5/s"}},
	{"allow-clients", func(c *Config) any { return fmt.Sprint(flagvalue.Sum(&c.AllowClients, limit.ParseSource, "")) }, "",
		[]taken{{"", ""}, {"10.0.0.0/8", "10.0.0.0/8"}, {"10.0.0.7,2001:db8::/32", "10.0.0.7/32,2001:db8::/32"}},
		[]string{",", "10.0.0.1/8", "10.0.0.0/8:80", "example.com", "@", "10.0.0.0/33", "fe80::1%eth0"}},
	{"deny-clients", func(c *Config) any { return fmt.Sprint(flagvalue.Sum(&c.DenyClients, limit.ParseSource, "")) }, "",
		[]taken{{"", ""}, {"10.0.0.0/8", "10.0.0.0/8"}}, []string{",", "10.0.0.1/8", "10.0.0.0/8:80", "@"}},
	{"ip-prefix6", func(c *Config) any { return c.Prefix6 }, 64, []taken{{"1", 1}, {"128", 128}}, []string{"", "0", "129", "-1"}},
	{"ban", func(c *Config) any { return c.Ban.String() }, "",
		[]taken{{"20/1m:10m", "20/1m:10m"}, {"3/60:600", "3/60:600"}, {"", ""}, {"0", ""}},
		[]string{"20", "20/1m", "20/1m:", "0/1m:1m", "1001/1m:1m", "20/0:1m", "20/1m:-1m", "20/1m:1y"}},
	{"reuse", func(c *Config) any { return c.Reuse }, false,
		[]taken{{"1", true}, {"0", false}, {"true", true}, {"false", false}},
		[]string{"", "2", "-1", "yes", "01"}},
	{"trusted-proxies", func(c *Config) any { return fmt.Sprint(flagvalue.Sum(&c.TrustedProxies, flagvalue.Network, "")) }, "",
		[]taken{{"", ""}, {"10.0.0.0/8", "10.0.0.0/8"}, {"10.0.0.7,::1", "10.0.0.7/32,::1/128"}, {"10.0.0.7, fd00::/8", "10.0.0.7/32,fd00::/8"}},
		[]string{"10.0.0.0/33", "10.0.0.1/8", "ten", "fe80::1%eth0", "fe80::%eth0/64", "10.0.0.0/8:80", "::ffff:10.0.0.0/104", "any"}},
	{"tls-cert", func(c *Config) any { return c.TLSCert }, "", nil, nil}, // see tls_test.go
	{"tls-key", func(c *Config) any { return c.TLSKey }, "", nil, nil},
	{"max-pending", func(c *Config) any { return c.MaxPending }, 0,
		[]taken{{"0", 0}, {"100", 100}}, []string{"", "-1", "many", "16777217"}},
	{"http-header-max", func(c *Config) any { return c.HTTPHeaderMax }, 8192,
		[]taken{{"128", 128}, {"65536", 65536}},
		[]string{"", "0", "127", "-1", "8k", "1048577"}},
	{"http-idle-timeout", func(c *Config) any { return c.HTTPIdleTimeout }, 4 * time.Second,
		[]taken{{"0", time.Duration(0)}, {"1500ms", 1500 * time.Millisecond}}, []string{"", "-1", "x"}},
	{"http-host", func(c *Config) any { return c.HTTPHost }, "keep",
		[]taken{{"backend", "backend"}, {"keep", "keep"}}, []string{"", "client"}},
	{"http-strip-prefix", func(c *Config) any { return c.HTTPStripPrefix }, "",
		[]taken{{"/api", "/api"}, {"/a%2Fb/c", "/a%2Fb/c"}, {"", ""}}, []string{"/", "api", "/api/", "/a?b", "/a b", "/%zz"}},
	{"http-set", func(c *Config) any { return fmt.Sprint(c.HTTPSet) }, "[]",
		[]taken{{"X-Region: eu", "[X-Region: eu]"}, {"response server:", "[response Server:]"}, {"request a: b\nresponse c: d", "[A: b response C: d]"}},
		[]string{"X-Region", ": eu", "Host: x", "Connection: close", "X_Cipher_Origin: x", "content-length: 1", "a b: c"}},
	{"ws-origins", func(c *Config) any { return fmt.Sprint(flagvalue.List(&c.WSOrigins, flagvalue.Origin, "")) }, "*",
		[]taken{{"*", "*"}, {"game.example,*.game.example", "game.example,*.game.example"},
			{"https://game.example", "https://game.example"}},
		[]string{"", ",", "[", "game.example,[a", "https://", "https://game.example/", "game.example/play", "ftp://game.example", "https://a/b"}},
	{"handshake-timeout", func(c *Config) any { return c.HandshakeTimeout }, 10 * time.Second,
		[]taken{{"3", 3 * time.Second}, {"250ms", 250 * time.Millisecond}},
		[]string{"", "0", "0s", "-1", "soon"}},
	{"handshake-max", func(c *Config) any { return c.HandshakeMax }, 1024,
		[]taken{{"44", 44}, {"4096", 4096}, {"1048576", 1 << 20}},
		[]string{"", "0", "-1", "1.5", "1k", "1e3", "0x400", "1_024", " 1024", "1048577", "99999999999999999999"}},
	{"retry", func(c *Config) any { return c.Retry }, 1,
		[]taken{{"1", 1}, {"3", 3}, {"1000", 1000}},
		[]string{"", "0", "-1", "1.5", "1001", "once", "99999999999999999999"}},
	{"timeout", func(c *Config) any { return c.Timeout }, 3 * time.Second,
		[]taken{{"3", 3 * time.Second}, {"1500ms", 1500 * time.Millisecond}},
		[]string{"", "0", "-1s", "3 seconds"}},
	{"balance", func(c *Config) any { return c.Balance.String() }, "first",
		[]taken{{"first", "first"}, {"roundrobin", "roundrobin"}, {"random", "random"}, {"leastconn", "leastconn"}, {"source", "source"}},
		[]string{"", "FIRST", "rr", "static-rr", "first,random"}},
	{"resolver", func(c *Config) any { return c.Resolver }, "",
		[]taken{{"", ""}, {"127.0.0.1:8600", "127.0.0.1:8600"}, {"[::1]:53", "[::1]:53"}},
		[]string{"127.0.0.1", "localhost", ":65536", "127.0.0.1:0", ":53"}},
	{"resolver-timeout", func(c *Config) any { return c.ResolverTimeout }, 2 * time.Second,
		[]taken{{"1", time.Second}, {"300ms", 300 * time.Millisecond}},
		[]string{"", "0", "-1s"}},
	{"allow-backends", func(c *Config) any { return flagvalue.Sum(&c.Allow, policy.ParseRule, "").String() }, "",
		[]taken{{"", ""}, {"10.0.0.0/8:80", "10.0.0.0/8:80"}}, []string{",", "10.0.0.1/8"}},
	{"deny-backends", func(c *Config) any { return flagvalue.Sum(&c.Deny, policy.ParseRule, "").String() }, "",
		[]taken{{"", ""}, {"10.0.0.0/8:80", "10.0.0.0/8:80"}}, []string{",", "10.0.0.1/8"}},
	{"allow", func(c *Config) any { return flagvalue.Sum(&c.Allow, policy.ParseRule, "").String() }, "",
		[]taken{{"", ""}, {"10.0.0.0/8", "10.0.0.0/8"}, {"10.0.0.0/8:4000-4999,fd00::/8", "10.0.0.0/8:4000-4999,fd00::/8"}},
		[]string{"10.0.0.0/33", "10.0.0.1/8", "10.0.0.0/8:0", "10.0.0.0/8:2-1", "ten", ",", "host:80", "10.0.0.0/8:http"}},
	{"deny", func(c *Config) any { return flagvalue.Sum(&c.Deny, policy.ParseRule, "").String() }, "",
		[]taken{{"", ""}, {"10.0.0.7/32:22", "10.0.0.7:22"}, {"::/0", "::/0"}},
		[]string{"10.0.0.0/33", "fe80::%1/64", "10.0.0.0/-1"}},
	{"send-proxy", func(c *Config) any { return c.SendProxy }, "off",
		[]taken{{"off", "off"}, {"v1", "v1"}, {"v2", "v2"}},
		[]string{"", "1", "V1", "v3", "on"}},
	{"buffer", func(c *Config) any { return c.Buffer }, 16384,
		[]taken{{"64", 64}, {"65536", 65536}, {"16777216", 16 << 20}},
		[]string{"", "0", "-1", "16k", "16777217"}},
	{"splice", func(c *Config) any { return c.Splice }, true,
		[]taken{{"1", true}, {"0", false}},
		[]string{"", "2", "no"}},
	{"io-uring", func(c *Config) any { return c.IOUring }, true,
		[]taken{{"1", true}, {"0", false}},
		[]string{"", "2", "no"}},
	{"loops", func(c *Config) any { return c.Loops }, 0,
		[]taken{{"-1", -1}, {"0", 0}, {"4", 4}, {"1024", 1024}},
		[]string{"", "-2", "1025", "all"}},
	{"idle-timeout", func(c *Config) any { return c.IdleTimeout }, time.Duration(0),
		[]taken{{"0", time.Duration(0)}, {"90", 90 * time.Second}, {"1h", time.Hour}},
		[]string{"", "-1", "never"}},
	{"half-close-timeout", func(c *Config) any { return c.HalfCloseTimeout }, time.Minute,
		[]taken{{"30", 30 * time.Second}, {"1500ms", 1500 * time.Millisecond}},
		[]string{"", "0", "-1s"}},
	{"keepalive", func(c *Config) any { return c.Keepalive }, 30 * time.Second,
		[]taken{{"0", time.Duration(0)}, {"15", 15 * time.Second}, {"2m", 2 * time.Minute}, {"9h", 9 * time.Hour}},
		[]string{"", "-1", "off", "32768", "9h1s"}},
	{"tcp-user-timeout", func(c *Config) any { return c.UserTimeout }, time.Duration(0),
		[]taken{{"0", time.Duration(0)}, {"20", 20 * time.Second}, {"596h", 596 * time.Hour}},
		[]string{"", "-1", "off", "597h"}},
	{"resume", func(c *Config) any { return c.Resume }, false,
		[]taken{{"1", true}, {"0", false}}, []string{"", "2", "no"}},
	{"log-file", func(c *Config) any { return c.LogFile }, "", nil, nil},
	{"log-tunnels", func(c *Config) any { return c.LogTunnels }, "end",
		[]taken{{"open", "open"}, {"end", "end"}}, []string{"", "all"}},
	{"log-refused-rate", func(c *Config) any { return c.LogRefusedRate }, 100,
		[]taken{{"0", 0}, {"1048576", 1 << 20}}, []string{"", "-1", "1/s"}},
	{"mptcp", func(c *Config) any { return c.MPTCP }, false,
		[]taken{{"1", true}, {"0", false}}, []string{"", "2", "yes"}},
	{"ask", func(c *Config) any { return c.Ask }, "",
		[]taken{{"http://127.0.0.1:9000/ask", "http://127.0.0.1:9000/ask"}, {"https://ask.internal", "https://ask.internal"}, {"unix:/run/ask.sock", "unix:/run/ask.sock"}, {"", ""}},
		[]string{"127.0.0.1:9000", "ftp://a/", "http://", "http://:80/", "unix:", "unix://", "http://user:word@a/", "http://a/#b", "ask"}},
	{"ask-timeout", func(c *Config) any { return c.AskTimeout }, time.Second, nil, []string{"", "0", "-1", "soon"}},
	{"ask-ca", func(c *Config) any { return c.AskCA }, "", nil, nil},
	{"ask-token-file", func(c *Config) any { return c.AskTokenFile }, "", nil, nil},
	{"ask-stale", func(c *Config) any { return c.AskStale }, time.Duration(0), nil, []string{"", "-1", "x"}},
	{"ask-tickets", func(c *Config) any { return c.AskTickets }, false, []taken{{"0", false}}, []string{"", "2"}},
	{"ask-headers", func(c *Config) any { return strings.Join(c.AskHeaders, ",") }, "", nil, []string{",", "A:", "ä"}},
	{"resume-plain", func(c *Config) any { return c.ResumePlain }, false,
		[]taken{{"0", false}}, []string{"", "2", "no"}},
	{"resume-hold", func(c *Config) any { return c.ResumeHold }, 30 * time.Second,
		[]taken{{"60", time.Minute}, {"1500ms", 1500 * time.Millisecond}}, []string{"", "0", "-1s"}},
	{"resume-buffer", func(c *Config) any { return c.ResumeBuffer }, 256 << 10,
		[]taken{{"65536", 65536}, {"1073741824", 1 << 30}}, []string{"", "0", "65535", "1073741825"}},
	{"resume-memory", func(c *Config) any { return c.ResumeMemory }, 256 << 20,
		[]taken{{"1048576", 1 << 20}}, []string{"", "0", "1048575", "1g"}},
	{"resume-max", func(c *Config) any { return c.ResumeMax }, 10_000,
		[]taken{{"1", 1}, {"16777216", 1 << 24}}, []string{"", "0", "-1", "16777217"}},
	{"resume-key-file", func(c *Config) any { return c.ResumeKeyFile }, "", nil, nil},
	{"resume-peer", func(c *Config) any { return c.ResumePeer }, "",
		[]taken{{"", ""}},
		[]string{"10.0.0.7", ":7000", "0.0.0.0:7000", "10.0.0.7:0", "localhost:7000", "[fe80::1%eth0]:7000", "[::]:7000", "10.0.0.7:07000"}},
	{"resume-peers", func(c *Config) any { return fmt.Sprint(flagvalue.Sum(&c.ResumePeers, flagvalue.Network, "")) }, "",
		[]taken{{"", ""}}, []string{"10.0.0.0/33", "10.0.0.1/8", "ten"}},
	{"kcp", func(c *Config) any { return c.KCP }, "",
		[]taken{{"", ""}, {":8000", ":8000"}, {"127.0.0.1:8000", "127.0.0.1:8000"}},
		[]string{"8000", "localhost", ":65536"}},
	{"kcp-mode", func(c *Config) any { return c.KCPMode }, "fast3",
		[]taken{{"normal", "normal"}, {"fast", "fast"}, {"fast2", "fast2"}, {"fast3", "fast3"}},
		[]string{"", "fast4", "FAST"}},
	{"kcp-sndwnd", func(c *Config) any { return c.KCPSendWindow }, 1024,
		[]taken{{"16", 16}, {"32768", 32768}},
		[]string{"", "0", "15", "32769"}},
	{"kcp-rcvwnd", func(c *Config) any { return c.KCPReceiveWindow }, 1024,
		[]taken{{"16", 16}, {"32768", 32768}},
		[]string{"", "0", "15", "32769"}},
	{"kcp-mtu", func(c *Config) any { return c.KCPMTU }, 1350,
		[]taken{{"256", 256}, {"1500", 1500}},
		[]string{"", "255", "1501"}},
	{"kcp-datashard", func(c *Config) any { return c.KCPDataShards }, 0, nil,
		[]string{"", "-1", "129"}},
	{"kcp-parityshard", func(c *Config) any { return c.KCPParityShards }, 0, nil,
		[]string{"", "-1", "129"}},
	{"kcp-crypt", func(c *Config) any { return c.KCPCrypt }, "none", nil,
		[]string{"", "xor", "AES"}},
	{"kcp-key", func(c *Config) any { return c.KCPKey }, "", nil, nil},
	{"kcp-max-sessions", func(c *Config) any { return c.KCPMaxSessions }, 10_000, []taken{{"1", 1}, {"50000", 50000}}, []string{"", "0", "-1", "1048577"}},
	{"kcp-idle-timeout", func(c *Config) any { return c.KCPIdleTimeout }, time.Minute,
		[]taken{{"30", 30 * time.Second}, {"1500ms", 1500 * time.Millisecond}},
		[]string{"", "0", "-1s"}},
	{"pidfile", func(c *Config) any { return c.PIDFile }, "gateway.pid",
		[]taken{{"", ""}, {"/run/gateway.pid", "/run/gateway.pid"}}, nil},
	{"drain", func(c *Config) any { return c.Drain }, 30 * time.Second,
		[]taken{{"0", time.Duration(0)}, {"5", 5 * time.Second}, {"1h", time.Hour}},
		[]string{"", "-1", "-1s", "forever"}},
	{"config", func(c *Config) any { return c.file }, "", nil, nil}, // see config_test.go
	{"upgrade-exec", func(c *Config) any { return c.UpgradeExec }, "",
		[]taken{{"", ""}, {"/usr/local/bin/gateway", "/usr/local/bin/gateway"}}, nil},
	{"upgrade-timeout", func(c *Config) any { return c.UpgradeTimeout }, 30 * time.Second,
		[]taken{{"5", 5 * time.Second}, {"500ms", 500 * time.Millisecond}}, []string{"", "0", "-1s", "soon"}},
	{"handover", func(c *Config) any { return c.Handover }, true,
		[]taken{{"1", true}, {"0", false}},
		[]string{"", "2", "no"}},
	{"hard-stop-after", func(c *Config) any { return c.HardStopAfter }, time.Duration(0),
		[]taken{{"0", time.Duration(0)}, {"2h", 2 * time.Hour}}, []string{"", "-1", "never"}},
	{"log-format", func(c *Config) any { return c.LogFormat }, "text",
		[]taken{{"text", "text"}, {"json", "json"}},
		[]string{"", "xml", "text,json"}},
	{"log-level", func(c *Config) any { return c.LogLevel }, slog.LevelInfo,
		[]taken{{"debug", slog.LevelDebug}, {"info", slog.LevelInfo}, {"warn", slog.LevelWarn}, {"error", slog.LevelError},
			{"DEBUG", slog.LevelDebug}},
		[]string{"", "all", "warning", "0", "info+1"}},
	{"pprof", func(c *Config) any { return c.Pprof }, "",
		[]taken{{"", ""}, {"127.0.0.1:6060", "127.0.0.1:6060"}, {":6060", ":6060"}},
		[]string{"6060", "localhost", "localhost:", ":65536"}},
	{"admin", func(c *Config) any { return c.Admin }, "",
		[]taken{{"", ""}, {"127.0.0.1:9100", "127.0.0.1:9100"}, {"unix:/run/gateway/admin.sock", "unix:/run/gateway/admin.sock"}},
		[]string{"9100", "localhost", "unix:", "unix:@admin", "unix:/" + strings.Repeat("a", 200), "/run/admin.sock"}},
	{"admin-token-file", func(c *Config) any { return c.AdminTokenFile }, "", nil, nil},
}

// listenText describes all that a configuration listens on.
func listenText(c *Config) string {
	var list []string
	for _, l := range c.Listen {
		text := l.Setting + " " + l.Addr
		if l.Forward != nil {
			text += " " + l.Forward.String()
		}
		list = append(list, text)
	}
	return strings.Join(list, ", ")
}

// configOf parses a command line that has to be right, with testSecret.
func configOf(t testing.TB, args ...string) *Config {
	t.Helper()
	cfg, err := loadConfig(append([]string{"-secret=" + testSecret}, args...))
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return cfg
}

// loadConfig parses a configuration and loads what it names.
func loadConfig(args []string) (*Config, error) {
	cfg, err := parseConfig(args)
	if err != nil || cfg.Action == actionVersion || cfg.Action == actionKeygen {
		return cfg, err
	}
	return cfg, cfg.load(slog.New(slog.DiscardHandler))
}

// refusedConfig parses what has to be refused and returns the error's text.
func refusedConfig(t testing.TB, args ...string) string {
	t.Helper()
	cfg, err := loadConfig(args)
	if err == nil {
		t.Errorf("%q was taken: %+v", args, cfg)
		return ""
	}
	return err.Error()
}

func TestEverySettingHasItsRowAndItsDefault(t *testing.T) {
	cfg, err := loadConfig([]string{"-version"}) // the one that needs no secret
	if err != nil {
		t.Fatal(err)
	}
	var have, want []string
	for _, s := range settings(defaultConfig()) {
		if s.Group != groupActions {
			want = append(want, s.Name)
		}
	}
	for _, tt := range settingTests {
		have = append(have, tt.name)
		if got := tt.get(cfg); got != tt.def {
			t.Errorf("-%s is %v by default, want %v", tt.name, got, tt.def)
		}
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("the table has %v, the gateway %v", have, want)
	}
}

func TestEachFlagTakesWhatIsRight(t *testing.T) {
	for _, tt := range settingTests {
		for _, v := range tt.takes {
			for _, args := range [][]string{
				{"-" + tt.name + "=" + v.text},
				{"--" + tt.name + "=" + v.text},
				{"-" + tt.name, v.text},
				{"-" + tt.name + "=" + v.text, "-" + tt.name + "=" + v.text},
			} {
				if got := tt.get(configOf(t, args...)); got != v.want {
					t.Errorf("%q: %v, want %v", args, got, v.want)
				}
			}
		}
	}
}

func TestEachFlagRefusesWhatIsWrongAndIsNamed(t *testing.T) {
	for _, tt := range settingTests {
		for _, text := range tt.refuses {
			msg := refusedConfig(t, "-secret="+testSecret, "-"+tt.name+"="+text)
			for _, want := range []string{"-" + tt.name + ":", `"` + text + `"`, ": want "} {
				if !strings.Contains(msg, want) {
					t.Errorf("-%s=%s: %q does not say %q", tt.name, text, msg, want)
				}
			}
		}
	}
}

func TestOneActionAtATime(t *testing.T) {
	for _, tt := range []struct {
		args   string
		action action
		arg    string
	}{
		{"", actionServe, ""},
		{"-check", actionCheck, ""},
		{"-check=1", actionCheck, ""},
		{"-check -check", actionCheck, ""},
		{"-version", actionVersion, ""},
		{"-seal=h:1", actionSeal, "h:1"},
		{"-seal h:1", actionSeal, "h:1"},
		{"-seal=", actionSeal, ""},
		{"-seal=h:1 -seal=h:2", actionSeal, "h:2"},
		{"-open=" + goldenLine, actionOpen, goldenLine},
		{"-check=false", actionServe, ""},
		{"-version=false -seal=h:1 -check=0", actionSeal, "h:1"},
	} {
		cfg := configOf(t, strings.Fields(tt.args)...)
		if cfg.Action != tt.action || tt.arg != "" && cfg.Arg != tt.arg {
			t.Errorf("%s: %q of %q, want %q of %q", tt.args, cfg.Action, cfg.Arg, tt.action, tt.arg)
		}
	}

	actions := []string{"-check", "-version", "-seal=h:1", "-open=x"}
	for _, a := range actions {
		for _, b := range actions {
			if a == b {
				continue
			}
			msg := refusedConfig(t, "-secret="+testSecret, a, b)
			for _, want := range []string{"one action at a time", strings.Split(a, "=")[0][1:], strings.Split(b, "=")[0][1:]} {
				if !strings.Contains(msg, want) {
					t.Errorf("%s %s: %q does not say %q", a, b, msg, want)
				}
			}
		}
	}
	for _, a := range []string{"-check=maybe", "-version=2"} {
		if msg := refusedConfig(t, "-secret="+testSecret, a); !strings.Contains(msg, "want no value") {
			t.Errorf("%s: %q", a, msg)
		}
	}
}

func TestHelpIsNoError(t *testing.T) {
	for _, args := range [][]string{{"-help"}, {"--help"}, {"-h"}, {"-retry=2", "-help"}} {
		if _, err := loadConfig(args); !errors.Is(err, flag.ErrHelp) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestAReloadTakesUpASettingOrNamesIt(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	base := []string{"-secret=" + testSecret}
	tried := 0
	for _, tt := range settingTests {
		for _, value := range tt.takes {
			cfg := configOf(t, base...)
			if err := cfg.load(log); err != nil {
				t.Fatal(err)
			}
			before := tt.get(cfg)
			if value.want == before || tt.name == "secret" {
				continue
			}
			next, changed, fixed, err := cfg.reload(append(base, "-"+tt.name+"="+value.text), log)
			if err != nil {
				continue // it takes others too
			}
			tried++
			want := before
			if _, ok := reloadable[tt.name]; ok {
				want = value.want
			} else if !slices.Contains(fixed, tt.name) {
				t.Errorf("-%s=%s is not named as what needs a restart: %q", tt.name, value.text, fixed)
			}
			if got := tt.get(next); got != want {
				t.Errorf("-%s=%s after a reload: %v, want %v", tt.name, value.text, got, want)
			}
			if !slices.Contains(changed, tt.name) {
				t.Errorf("-%s=%s is not among what has changed: %q", tt.name, value.text, changed)
			}
			if got := tt.get(cfg); got != before {
				t.Errorf("-%s=%s has changed the configuration in use", tt.name, value.text)
			}
		}
	}
	if tried < 50 {
		t.Errorf("only %d values were tried", tried)
	}
}

func TestTheDocumentsListWhatAReloadTakesUp(t *testing.T) {
	t.Parallel()
	for _, page := range []struct{ name, from, to string }{
		{"docs/upgrading.md", "These are taken up:", "addresses above all"},
		{"docs/upgrading.zh-CN.md", "下列设置会生效：", "其余的"},
	} {
		text, err := os.ReadFile(page.name)
		if err != nil {
			t.Fatal(err)
		}
		_, list, _ := strings.Cut(string(text), page.from)
		list, _, _ = strings.Cut(list, page.to)
		var names []string
		for _, m := range regexp.MustCompile("`-([a-z0-9-]+)`").FindAllStringSubmatch(list, -1) {
			names = append(names, m[1])
		}
		if want := slices.Sorted(maps.Keys(reloadable)); !slices.Equal(names, want) {
			t.Errorf("%s lists %q, want %q", page.name, names, want)
		}
	}
}
