package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"gateway/internal/resume"
)

func TestEverySettingHasAnEnvironmentTwin(t *testing.T) {
	t.Setenv("GATEWAY_SECRET", testSecret)
	for _, tt := range settingTests {
		name := "GATEWAY_" + strings.ToUpper(strings.ReplaceAll(tt.name, "-", "_"))
		t.Run(name, func(t *testing.T) {
			for _, v := range tt.takes {
				t.Setenv(name, v.text)
				if cfg, err := loadConfig(nil); err != nil || tt.get(cfg) != v.want {
					t.Errorf("%q: %v", v.text, err)
				}
			}
			for _, text := range tt.refuses {
				t.Setenv(name, text)
				msg := refusedConfig(t)
				for _, want := range []string{name + ":", `"` + text + `"`, ": want "} {
					if !strings.Contains(msg, want) {
						t.Errorf("%q: %q does not say %q", text, msg, want)
					}
				}
			}
			if len(tt.takes) < 2 {
				return
			}
			one, other := tt.takes[0], tt.takes[1]
			t.Setenv(name, other.text)
			if cfg := configOf(t, "-"+tt.name+"="+one.text); tt.get(cfg) != one.want {
				t.Errorf("%s wins over the flag: %v", name, tt.get(cfg))
			}
			t.Setenv(name, one.text)
			if cfg := configOf(t, "-"+tt.name+"="+other.text); tt.get(cfg) != other.want {
				t.Errorf("%s wins over the flag: %v", name, tt.get(cfg))
			}
		})
	}
}

func TestActionsHaveNoEnvironmentTwin(t *testing.T) {
	for _, s := range settings(defaultConfig()) {
		if s.Group == groupActions {
			t.Setenv(reader(defaultConfig()).Variable(s.Name), "1")
		}
	}
	t.Setenv("GATEWAY_HELP", "1")
	if cfg := configOf(t); cfg.Action != actionServe || cfg.Arg != "" {
		t.Errorf("the environment asks for %q of %q", cfg.Action, cfg.Arg)
	}
}

func TestUnknownVariablesAreIgnored(t *testing.T) {
	// Kubernetes sets the first three for a service that is named gateway.
	for _, name := range []string{"GATEWAY_PORT", "GATEWAY_SERVICE_HOST", "GATEWAY_PORT_8000_TCP_ADDR",
		"GATEWAY", "GATEWAY_", "GATEWAY_RETRY_", "XGATEWAY_RETRY", "RETRY"} {
		t.Setenv(name, "tcp://10.0.0.1:8000")
	}
	if cfg := configOf(t); cfg.Retry != 1 || len(cfg.Listen) != 1 || cfg.Listen[0].Addr != "0.0.0.0:0" {
		t.Errorf("%+v", cfg)
	}
}

// tempFile writes a file of the test's own and returns its name.
func tempFile(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func checkSecrets(t testing.TB, cfg *Config, want ...string) {
	t.Helper()
	var got []string
	for _, s := range cfg.Secrets {
		got = append(got, string(s))
	}
	if !slices.Equal(got, want) {
		t.Errorf("secrets %q, want %q", got, want)
	}
}

func TestASecretFileHasASecretALine(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"one", "one\n", []string{"one"}},
		{"no final newline", "one", []string{"one"}},
		{"several, in their order", "one\ntwo\nthree\n", []string{"one", "two", "three"}},
		{"CRLF", "one\r\ntwo\r\n", []string{"one", "two"}},
		{"CRLF, cut", "one\r\ntwo\r", []string{"one", "two"}},
		{"blank lines", "\n\none\n \t\n\r\n\ntwo\n\n", []string{"one", "two"}},
		{"remarks", "# first\none\n#two\n# last", []string{"one"}},
		{"a remark inside is none", "one # really\n", []string{"one # really"}},
		{"spaces are kept", " one \n", []string{" one "}},
		{"duplicates", "one\ntwo\none\none\n", []string{"one", "two"}},
		{"bytes", "\xff\xfe\n密码\n", []string{"\xff\xfe", "密码"}},
		{"a long line", strings.Repeat("x", 1<<17) + "\ntwo", []string{strings.Repeat("x", 1<<17), "two"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := loadConfig([]string{"-secret-file=" + tempFile(t, "secret", tt.text)})
			if err != nil {
				t.Fatal(err)
			}
			checkSecrets(t, cfg, tt.want...)
		})
	}
}

func TestEverySourceOfSecretsCountsInItsOrder(t *testing.T) {
	file := tempFile(t, "keys", "of the file\nin both\n")
	credential := tempFile(t, "secret", "of systemd\nin both\n")
	for _, tt := range []struct {
		name                string
		flag, env           string
		inFile, inEnv, cred bool
		want                []string
		from                string
	}{
		{"the flag", "flag", "", false, false, false, []string{"flag"}, "-secret"},
		{"the environment", "", "env", false, false, false, []string{"env"}, ""},
		{"the flag wins", "flag", "env", false, false, false, []string{"flag"}, "-secret"},
		{"a file", "", "", true, false, false, []string{"of the file", "in both"}, "-secret-file"},
		{"a file that the environment names", "", "", false, true, false, []string{"of the file", "in both"}, ""},
		{"a credential", "", "", false, false, true, []string{"of systemd", "in both"}, "$CREDENTIALS_DIRECTORY/secret"},
		{"all", "flag", "env", true, false, true, []string{"flag", "of the file", "in both", "of systemd"},
			"-secret,-secret-file,$CREDENTIALS_DIRECTORY/secret"},
		{"one that is everywhere", "in both", "", true, false, true, []string{"in both", "of the file", "of systemd"},
			"-secret,-secret-file,$CREDENTIALS_DIRECTORY/secret"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var args []string
			if tt.flag != "" {
				args = append(args, "-secret="+tt.flag)
			}
			if tt.env != "" {
				t.Setenv("GATEWAY_SECRET", tt.env)
			}
			if tt.inFile {
				args = append(args, "-secret-file="+file)
			}
			if tt.inEnv {
				t.Setenv("GATEWAY_SECRET_FILE", file)
			}
			if tt.cred {
				t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(credential))
			}
			cfg, err := loadConfig(args)
			if err != nil {
				t.Fatal(err)
			}
			checkSecrets(t, cfg, tt.want...)
			if from := strings.Join(cfg.SecretSources, ","); tt.from != "" && from != tt.from {
				t.Errorf("from %s, want %s", from, tt.from)
			}
		})
	}
}

func TestASecretIsRequiredButForTheVersion(t *testing.T) {
	for _, args := range [][]string{nil, {"-check"}, {"-seal=h:1"}, {"-open=x"}, {"-secret="}, {"-secret-file="}} {
		msg := refusedConfig(t, args...)
		for _, source := range []string{"-secret-file", "GATEWAY_SECRET", "systemd"} {
			if !strings.Contains(msg, source) {
				t.Errorf("%q: %q does not name %s", args, msg, source)
			}
		}
	}
	if cfg, err := loadConfig([]string{"-version"}); err != nil || cfg.Action != actionVersion {
		t.Errorf("-version: %v", err)
	}
	// Units have credentials of other names too.
	t.Setenv("CREDENTIALS_DIRECTORY", t.TempDir())
	refusedConfig(t)
	configOf(t)
}

func TestAFileOfSecretsThatIsOfNoUseIsAnError(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "secret"), 0o700); err != nil {
		t.Fatal(err)
	}
	file := tempFile(t, "secret", "# none\r\n\r\n   \n#")
	for _, tt := range []struct{ name, path string }{
		{"missing", filepath.Join(dir, "missing")},
		{"a folder", dir},
		{"empty", tempFile(t, "empty", "")},
		{"only remarks and blank lines", file},
		{"below a file", filepath.Join(file, "secret")},
		{"UTF-16", tempFile(t, "utf16", "\xff\xfes\x00e\x00c\x00\n\x00")},
		{"far too large", tempFile(t, "large", strings.Repeat("x", 1<<20+1))},
		{"far too many", tempFile(t, "many", strings.Repeat("secret\n", 150000))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			msg := refusedConfig(t, "-secret="+testSecret, "-secret-file="+tt.path)
			if !strings.Contains(msg, "-secret-file") || !strings.Contains(msg, tt.path) {
				t.Errorf("%q does not name -secret-file and %s", msg, tt.path)
			}
			t.Setenv("GATEWAY_SECRET_FILE", tt.path)
			if msg := refusedConfig(t, "-secret="+testSecret); !strings.Contains(msg, tt.path) {
				t.Errorf("%q does not name %s", msg, tt.path)
			}
		})
	}
	for _, tt := range []struct{ name, dir string }{
		{"a credential that is a folder", dir},
		{"a credential without a secret", filepath.Dir(file)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("CREDENTIALS_DIRECTORY", tt.dir)
			msg := refusedConfig(t, "-secret="+testSecret)
			if !strings.Contains(msg, "$CREDENTIALS_DIRECTORY") || !strings.Contains(msg, filepath.Join(tt.dir, "secret")) {
				t.Errorf("%q does not name $CREDENTIALS_DIRECTORY and its file", msg)
			}
		})
	}
}

func TestAnArgumentWithoutAFlagIsNamedByItsPlaceOrAsAPlainWord(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"start"}, `"start"`},
		{[]string{"-check", "now"}, `"now"`},
		{[]string{"-secret=x", "Y"}, "argument 2 of 2"},
		{[]string{"-reuse", "1", "p0S8rX680*48", "-check"}, "argument 3 of 4"},
	} {
		if msg := refusedConfig(t, tt.args...); !strings.Contains(msg, tt.want) {
			t.Errorf("%q: %q does not say %q", tt.args, msg, tt.want)
		}
	}
}

func TestAMistypedFlagIsToldFromTheOneThatWasMeant(t *testing.T) {
	for arg, want := range map[string]string{
		"-adr=:1":   "there is no flag -adr: did you mean -addr?",
		"--secert":  "there is no flag -secert: did you mean -secret?",
		"-port=1":   "there is no flag -port",
		"-verson":   "there is no flag -verson: did you mean -version?",
		"-x=secret": "there is no flag -x",
	} {
		if msg := refusedConfig(t, arg); msg != want {
			t.Errorf("%s: %q, want %q", arg, msg, want)
		}
	}
}

func TestAnArgumentWithoutAFlagIsRefusedAndNotRepeated(t *testing.T) {
	for _, args := range [][]string{
		{testSecret},
		{"-check", testSecret},
		{"-secret=x", testSecret},
		{"-secret=", testSecret},
		{"--", testSecret},
		{"--", "-secret=" + testSecret},
		{"-reuse", "1", testSecret},
		{"-", testSecret},
		{testSecret, "-check"},
	} {
		if msg := refusedConfig(t, args...); !strings.Contains(msg, "-name=value") || strings.Contains(msg, testSecret) {
			t.Errorf("%q: %q", args, msg)
		}
	}
}

func TestNoErrorHoldsASecret(t *testing.T) {
	const secret = "hush-hush"
	file := tempFile(t, "keys", secret+"\n")
	empty := tempFile(t, "empty", "")
	for _, args := range [][]string{
		{"-secret=" + secret, "-retry=0"},
		{"-retry=0", "-secret=" + secret},
		{"-secret", secret, "-retry=0"},
		{"-secret=" + secret, "-retry"},
		{"-secret=" + secret, "-secret-file=" + empty},
		{"-secret=" + secret, "-unknown"},
		{"-secret=" + secret, "=", "-"},
		{"-secret-file=" + file, "-secret-file=" + empty},
		{"-secret-file=" + file, "-timeout=x"},
		{"-secret=" + secret, "-check", "-seal=h:1"},
		{"-secret=" + secret, "gateway"},
		{"-secrets=" + secret}, // mistyped
		{"-Secret=" + secret},
		{"-secret-=" + secret},
		{"-secret =" + secret},
		{"-secret:" + "=" + secret},
	} {
		if msg := refusedConfig(t, args...); strings.Contains(msg, secret) {
			t.Errorf("%q: %q holds the secret", args, msg)
		}
	}
	t.Setenv("GATEWAY_SECRET", secret)
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(tempFile(t, "secret", secret)))
	for _, args := range [][]string{{"-retry=0"}, {"-secret-file=" + empty}, {"-unknown"}, {"x"}} {
		if msg := refusedConfig(t, args...); strings.Contains(msg, secret) {
			t.Errorf("%q: %q holds the secret of the environment", args, msg)
		}
	}
	for _, w := range configOf(t, "-secret=short").warnings() {
		if strings.Contains(w, secret) || strings.Contains(w, `"short"`) {
			t.Errorf("warning %q", w)
		}
	}
}

func TestAMisspeltVariableIsWarnedAbout(t *testing.T) {
	for name, warned := range map[string]bool{
		"GATEWAY_ALOW":                  true,
		"GATEWAY_":                      true,
		"GATEWAY_SEAL":                  true, // an action, and no setting
		"GATEWAY_ALLOW":                 false,
		"GATEWAY_PORT":                  false, // of Kubernetes
		"GATEWAY_PORT_8000_TCP_ADDR":    false,
		"GATEWAY_SERVICE_HOST":          false,
		"GATEWAY_WEB_SERVICE_PORT_HTTP": false,
		"MY_GATEWAY_ALOW":               false,
	} {
		got := reader(defaultConfig()).Unknown([]string{"HOME=/", name + "=10.0.0.0/8", "GATEWAY_SECRET=x"})
		if (len(got) == 1) != warned || warned && (got[0] != name) {
			t.Errorf("%s: warned by %q, want %v", name, got, warned)
		}
	}
}

func TestWhatIsUnwiseIsWarnedAbout(t *testing.T) {
	long := strings.Repeat("x", shortSecret)
	file := tempFile(t, "keys", long+"y\nshort\n"+long[1:]+"\n")
	for _, tt := range []struct {
		args []string
		want []string // what each warning begins with
	}{
		{[]string{"-secret=" + long}, nil},
		{[]string{"-secret=" + long[1:]}, []string{"secret 1 of 1 is short"}},
		{[]string{"-secret=" + long, "-secret-file=" + file}, []string{"secret 3 of 4 is short", "secret 4 of 4 is short"}},
		{[]string{"-secret=" + long, "-pprof=127.0.0.1:6060"}, nil},
		{[]string{"-secret=" + long, "-pprof=[::1]:6060"}, nil},
		{[]string{"-secret=" + long, "-pprof=localhost:6060"}, nil},
		{[]string{"-secret=" + long, "-pprof=10.0.0.7:6060"}, nil},
		{[]string{"-secret=" + long, "-pprof=:6060"}, []string{"-pprof "}},
		{[]string{"-secret=" + long, "-pprof=0.0.0.0:6060"}, []string{"-pprof "}},
		{[]string{"-secret=" + long, "-pprof=[::]:6060"}, []string{"-pprof "}},
		{[]string{"-secret=" + long, "-pprof=192.0.2.1:6060"}, []string{"-pprof "}},
		{[]string{"-secret=" + long, "-pprof=game.example:6060"}, []string{"-pprof "}},
		{[]string{"-secret=x", "-pprof=:6060"}, []string{"secret 1 of 1 is short", "-pprof "}},
	} {
		cfg, err := loadConfig(tt.args)
		if err != nil {
			t.Fatal(err)
		}
		got := cfg.warnings()
		if !slices.EqualFunc(got, tt.want, strings.HasPrefix) {
			t.Errorf("%q: warnings %q, want %q", tt.args, got, tt.want)
		}
	}
}

func TestHelpHasEachFlagOnceWithItsDefaultAndFitsTheScreen(t *testing.T) {
	var out bytes.Buffer
	printHelp(&out)
	want := map[string]string{
		"secret": "", "secret-file": "", "kdf": "md5,sha256",
		"addr": "0.0.0.0:0", "forward": "", "listen": "", "reuse": "0", "mptcp": "0",
		"health-path": "", "max-tunnels-per-backend": "0", "drain-delay": "0",
		"max-conns": "0", "max-conns-per-ip": "0", "rate-per-ip": "", "allow-clients": "", "deny-clients": "", "ip-prefix6": "64", "ban": "",
		"trusted-proxies": "", "tls-cert": "", "tls-key": "", "http-header-max": "8192", "ws-origins": "*", "http-host": "keep", "http-set": "", "http-strip-prefix": "",
		"handshake-timeout": "10s", "handshake-max": "1024", "max-pending": "0",
		"retry": "1", "timeout": "3s", "balance": "first", "resolver": "", "resolver-timeout": "2s", "allow-backends": "", "deny-backends": "", "allow": "", "deny": "", "http-idle-timeout": "4s", "send-proxy": "off", "buffer": "16384",
		"splice": "1", "io-uring": "1", "loops": "0", "idle-timeout": "0", "half-close-timeout": "60s",
		"keepalive": "30s", "tcp-user-timeout": "0",
		"kcp": "", "kcp-mode": "fast3", "kcp-sndwnd": "1024", "kcp-rcvwnd": "1024", "kcp-mtu": "1350", "kcp-datashard": "0",
		"kcp-parityshard": "0", "kcp-crypt": "none", "kcp-key": "", "kcp-idle-timeout": "60s", "kcp-max-sessions": "10000",
		"resume": "0", "resume-plain": "0", "resume-hold": "30s", "resume-buffer": "262144", "resume-memory": "268435456",
		"resume-max": "10000", "resume-key-file": "", "resume-peer": "", "resume-peers": "",
		"config": "", "pidfile": "gateway.pid", "drain": "30s", "upgrade-exec": "", "upgrade-timeout": "30s", "handover": "1", "hard-stop-after": "0", "log-format": "text", "log-level": "info", "log-file": "", "log-tunnels": "end", "log-refused-rate": "100", "pprof": "", "admin": "", "admin-token-file": "",
		"ask": "", "ask-timeout": "1s", "ask-ca": "", "ask-token-file": "", "ask-stale": "0", "ask-tickets": "0", "ask-headers": "",
		"token-keys": "", "token-audience": "", "legacy": "1",
		"seal": "", "ttl": "0", "keygen": "", "open": "", "check": "", "version": "", "status": "", "watch": "0", "tunnels": "", "cut": "", "probe": "",
	}
	for _, s := range settings(defaultConfig()) {
		if _, ok := want[s.Name]; !ok {
			t.Errorf("a new flag: add -%s to this test", s.Name)
		}
	}
	seen := map[string]int{}
	for line := range strings.Lines(out.String()) {
		line = strings.TrimSuffix(line, "\n")
		if n := utf8.RuneCountInString(line); n > 85 || strings.TrimRight(line, " ") != line || strings.Contains(line, "\t") {
			t.Errorf("%d columns, or blanks where none should be: %q", n, line)
		}
		head, ok := strings.CutPrefix(line, "  -")
		if !ok {
			continue
		}
		name := head[:strings.IndexAny(head+" ", "= ")]
		seen[name]++
		def, ok := want[name]
		if !ok {
			t.Errorf("no such flag: %q", line)
		}
		if _, shown, _ := strings.Cut(head, "  (default "); shown != "" && shown != def+")" || shown == "" && def != "" {
			t.Errorf("%q does not show the default %q", line, def)
		}
	}
	for name := range want {
		if seen[name] != 1 {
			t.Errorf("-%s is listed %d times", name, seen[name])
		}
	}
}

func TestNoErrorOfSyntaxHoldsASecret(t *testing.T) {
	for _, arg := range []string{"---secret=hush-hush", "-=hush-hush", "--=hush-hush"} {
		if msg := refusedConfig(t, arg); strings.Contains(msg, "hush") {
			t.Errorf("%s: %q", arg, msg)
		}
	}
}

func TestMPTCPHasNoUserTimeout(t *testing.T) {
	if got, want := refusedConfig(t, "-secret="+testSecret, "-mptcp=1", "-tcp-user-timeout=20s"), "-mptcp and -tcp-user-timeout do not go together"; !strings.HasPrefix(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestTheSettingsOfResumableTunnelsGoTogether(t *testing.T) {
	cfg := configOf(t, "-resume=1", "-resume-plain=1", "-resume-peer=10.0.0.7:7000", "-resume-peers=10.0.0.0/24")
	if last := cfg.Listen[len(cfg.Listen)-1]; !last.Peer || last.Addr != "10.0.0.7:7000" || cfg.tickets == nil {
		t.Errorf("listens on %+v", last)
	}
	file := tempFile(t, "keys", "one\ntwo\n")
	sealed := configOf(t, "-resume=1", "-resume-key-file="+file).tickets.Seal(resume.Ticket{})
	for secrets, want := range map[string]bool{"one": true, "two": false} {
		if _, ok := configOf(t, "-resume=1", "-secret="+secrets).tickets.Open(sealed); ok != want {
			t.Errorf("a ticket of the first of two secrets opens with %s: %v", secrets, ok)
		}
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-resume-plain=1"}, "-resume-plain is for resumable tunnels"},
		{[]string{"-resume-peers=10.0.0.0/8"}, "-resume-peers is for resumable tunnels"},
		{[]string{"-resume=1", "-resume-peer=10.0.0.7:7000"}, "-resume-peer needs -resume-peers"},
		{[]string{"-resume=1", "-resume-key-file=" + file + ".none"}, "-resume-key-file: "},
	} {
		if got := refusedConfig(t, append(tt.args, "-secret="+testSecret)...); !strings.HasPrefix(got, tt.want) {
			t.Errorf("%q: %q, want %q", tt.args, got, tt.want)
		}
	}
	_, err := loadConfig([]string{"-resume=1", "-forward=10.0.0.1:80"})
	if err == nil || !strings.Contains(err.Error(), "-resume-key-file") {
		t.Errorf("without any secret: %v", err)
	}
}
