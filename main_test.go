package main

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"gateway/internal/address"
)

// What an operator sees of the process: exit codes, errors, what is printed.

func TestWrongUseEndsWithItsCodeAndOneLine(t *testing.T) {
	t.Parallel()
	const withSecret = "-secret=" + testSecret
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	inUse := "address already in use"
	if runtime.GOOS == "windows" {
		inUse = "-addr: "
	}
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("# nothing but a remark\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	otherLine := newKeyring([][]byte{[]byte("the secret of somebody else")}, []kdf{kdfMD5}).
		seal(address.Address{Host: "backend", Port: 1})

	for _, tt := range []struct {
		name string
		env  []string
		args []string
		code int
		says string
	}{
		{"no secret", nil, nil, 2, "-secret-file"},
		{"unknown flag", nil, []string{withSecret, "-sercet=x"}, 2, "-sercet"},
		{"flag without its value", nil, []string{withSecret, "-addr"}, 2, "-addr"},
		{"secret behind a space", nil, []string{"-check", testSecret}, 2, "-name=value"},
		{"missing -secret-file", nil, []string{withSecret, "-secret-file=" + missing}, 2, missing},
		{"newline in a file's name", nil, []string{"-secret-file=" + missing + "\n2"}, 2, missing + " 2"},
		{"folder as -secret-file", nil, []string{withSecret, "-secret-file=" + dir}, 2, dir},
		{"-secret-file without a secret", nil, []string{withSecret, "-secret-file=" + empty}, 2, empty},
		{"-retry=0", nil, []string{withSecret, "-retry=0"}, 2, "-retry"},
		{"GATEWAY_RETRY=0", []string{"GATEWAY_RETRY=0"}, []string{withSecret}, 2, "GATEWAY_RETRY"},
		{"no port in -addr", nil, []string{withSecret, "-addr=127.0.0.1"}, 2, "-addr"},
		{"no number in -addr", nil, []string{withSecret, "-addr=127.0.0.1:http"}, 2, "-addr"},
		{"wrong -log-level", []string{"GATEWAY_SECRET=" + testSecret}, []string{"-log-level=all"}, 2, "-log-level"},
		{"-check of something wrong", nil, []string{withSecret, "-check", "-timeout=soon"}, 2, "-timeout"},
		{"-seal of no address", nil, []string{withSecret, "-seal=127.1:80"}, 2, "-seal"},
		{"-seal without a secret", nil, []string{"-seal=127.0.0.1:80"}, 2, "-secret-file"},
		{"two actions", nil, []string{withSecret, "-seal=127.0.0.1:80", "-open=x"}, 2, "one action"},
		{"-open of garbage", nil, []string{withSecret, "-open=unrecognized"}, 1, "-open"},
		{"-open of another's line", nil, []string{withSecret, "-open=" + otherLine}, 1, "-open"},
		{"-open of no address", nil, []string{withSecret, "-open=" + sealedText("unrecognized words:1")}, 1, "-open"},
		{"taken port", nil, []string{withSecret, "-pidfile=", "-log-level=error", "-addr=" + taken.Addr().String()}, 1, inUse},
		{"-pidfile in no folder", nil, []string{withSecret, "-addr=127.0.0.1:0", "-log-level=error",
			"-pidfile=" + filepath.Join(missing, "gateway.pid")}, 1, "-pidfile"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stdout, stderr, code := runGateway(t, tt.env, tt.args...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if stdout != "" {
				t.Errorf("standard output: %q", stdout)
			}
			if !strings.HasPrefix(stderr, "gateway: ") || strings.Index(stderr, "\n") != len(stderr)-1 {
				t.Errorf("not one line: %q", stderr)
			}
			if !strings.Contains(stderr, tt.says) {
				t.Errorf("%q does not say %q", stderr, tt.says)
			}
			for _, s := range []string{testSecret, "unrecognized", otherLine} {
				if strings.Contains(stderr, s) {
					t.Errorf("%q repeats %q", stderr, s)
				}
			}
		})
	}
}

func TestActionsPrintToStandardOutputAndEndWithZero(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("# sealing\n"+testSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fromEnv := []string{"GATEWAY_SECRET=" + testSecret}
	for _, tt := range []struct {
		name string
		env  []string
		args []string
		says string
	}{
		{"-version", nil, []string{"-version"}, runtime.Version()},
		{"-version with a secret", fromEnv, []string{"-version"}, "commit"},
		{"-check", nil, []string{"-check", "-secret-file=" + file}, "valid"},
		{"-check of the environment", fromEnv, []string{"-check"}, "valid"},
		{"-help", nil, []string{"-help"}, "-handshake-timeout=TIME  (default 10s)"},
		{"-help with a secret", fromEnv, []string{"-secret=" + testSecret, "-h"}, "-secret=PASSPHRASE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stdout, stderr, code := runGateway(t, tt.env, tt.args...)
			if code != 0 || stderr != "" {
				t.Errorf("exit code %d, standard error %q", code, stderr)
			}
			if !strings.Contains(stdout, tt.says) {
				t.Errorf("%q does not say %q", stdout, tt.says)
			}
			if strings.Contains(stdout, testSecret) {
				t.Errorf("%q holds the secret", stdout)
			}
		})
	}
}

// full is a disk without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestAnActionWhoseOutcomeNobodyGetsHasFailed(t *testing.T) {
	line := newKeyring([][]byte{[]byte(testSecret)}, []kdf{kdfMD5}).seal(address.Address{Host: "backend", Port: 1})
	for _, action := range []string{"-keygen", "-seal=127.0.0.1:80", "-open=" + line, "-check", "-version"} {
		var stderr strings.Builder
		code := run([]string{action, "-secret=" + testSecret, "-pidfile=", "-addr=127.0.0.1:0"}, full{}, &stderr)
		if want := "gateway: " + syscall.ENOSPC.Error() + "\n"; code != exitFailure || !strings.HasSuffix(stderr.String(), want) {
			t.Errorf("%s: %d and %q, want %d and %q", action, code, stderr.String(), exitFailure, want)
		}
	}
}

func TestHelpListsEveryFlag(t *testing.T) {
	t.Parallel()
	stdout, _, _ := runGateway(t, nil, "-help")
	for _, s := range settings(defaultConfig()) {
		if !strings.Contains(stdout, "\n  -"+s.Name) {
			t.Errorf("-help does not list -%s", s.Name)
		}
	}
}

func TestOpenReversesSeal(t *testing.T) {
	t.Parallel()
	for _, kdf := range []string{"md5", "sha256", "pbkdf2"} {
		for _, addr := range []string{"127.0.0.1:62863", "[::1]:1", "game-7.internal:4000"} {
			line, stderr, code := runGateway(t, []string{"GATEWAY_KDF=" + kdf}, "-secret="+testSecret, "-seal="+addr)
			if code != 0 || stderr != "" || !strings.HasPrefix(line, "U2FsdGVkX1") || strings.Index(line, "\n") != len(line)-1 {
				t.Fatalf("-kdf=%s -seal=%s: exit code %d, %q, %q", kdf, addr, code, line, stderr)
			}
			got, stderr, code := runGateway(t, []string{"GATEWAY_SECRET=" + testSecret}, "-kdf="+kdf, "-open="+line)
			if code != 0 || stderr != "" || got != addr+"\n" {
				t.Errorf("-kdf=%s -open: exit code %d, %q, %q; want %s", kdf, code, got, stderr, addr)
			}
		}
	}
}

func TestAPortIsSharedOnlyIfBothSharersAgree(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("no SO_REUSEPORT on windows")
	}
	for _, tt := range []struct {
		first, second string
		code          int
	}{
		{"0", "0", 1},
		{"0", "1", 1},
		{"1", "0", 1},
		{"1", "1", 0},
	} {
		t.Run(tt.first+" and "+tt.second, func(t *testing.T) {
			first := startProcess(t, "-reuse="+tt.first)
			second := launch(t, gatewayCommand(t, nil, "-secret="+testSecret, "-log-format=json", "-pidfile=",
				"-addr="+first.addr, "-reuse="+tt.second))
			if tt.code == 0 {
				if last := second.log.waitLine(t, "listening", 1); last["addr"] != first.addr {
					t.Errorf("logged: %v", last)
				}
				second.signal(t, syscall.SIGTERM)
			}
			if code := second.wait(t); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if tt.code == 1 && !strings.Contains(second.log.String(), "address already in use") {
				t.Errorf("says: %s", second.log.String())
			}
			finish(t, openTunnel(t, first.addr, startEcho(t)))
		})
	}
}
