package docs_test

import (
	"bytes"
	"context"
	"errors"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gateway/internal/harness"
	"gateway/internal/token"
)

// The programs and commands of docs/issuing.md are run, and what they issue is
// brought to the gateway.

func TestIssuingFromEachLanguage(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts compilers and virtual machines")
	}
	const k, kid = "oKGio6SlpqeoqaqrrK2ur7CxsrO0tba3uLm6u7y9vr8", "login-1"
	keys := writeKeys(t, `{"keys":[{"kty":"oct","use":"enc","kid":"other","k":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"},`+
		`{"kty":"oct","use":"enc","kid":"`+kid+`","k":"`+k+`"}]}`)
	p := harness.Start(t, "-token-keys="+keys)
	d := readDocument(t, issuing[0])
	// Around the size of an AES block, and the longest there is.
	label := strings.Repeat("x", 61) + "."
	addresses := []string{harness.StartEcho(t), "[2001:db8::7]:65535", "http://game.test:80",
		"10.20.30.4:4000", "10.20.30.40:4000", "10.20.30.40:40000", "game-7.internal.example.com:400", "game-7.internal.example.com:4000",
		strings.Repeat(label, 4) + "games:1"}
	for _, s := range issuers {
		t.Run(s.name, func(t *testing.T) {
			command := s.command(t, t.TempDir(), d.blockWith(t, s.lang, s.with)+s.main)
			issued := runIssuer(t, append(command, append([]string{harness.Secret, k, kid}, addresses...)...)...)
			checkIssued(t, p, keys, issued, addresses, s.lines)
		})
	}
}

// runIssuer runs a program and returns what it has issued, by kind.
func runIssuer(t *testing.T, command ...string) map[string][]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*harness.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, stderr.String())
	}
	issued := make(map[string][]string)
	for line := range strings.Lines(string(out)) {
		kind, text, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		issued[kind] = append(issued[kind], strings.TrimSuffix(text, " <nil>")) // Go's errors
	}
	return issued
}

// checkIssued opens what was issued for the addresses, the first of which
// echoes.
func checkIssued(t *testing.T, p *harness.Process, keys string, issued map[string][]string, addresses []string, lines bool) {
	t.Helper()
	tokens, err := token.Load(keys, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	open := func(kind, text string) (string, error) {
		if kind == "token" {
			return tokens.Open([]byte(text), time.Now())
		}
		address, stderr, code := harness.Run(t, withSecret, "-open="+text)
		if code != 0 {
			return "", errors.New(stderr)
		}
		return strings.TrimSuffix(address, "\n"), nil
	}
	kinds := []string{"token"}
	if lines {
		kinds = append(kinds, "line")
	}
	for _, kind := range kinds {
		texts := issued[kind]
		if len(texts) != len(addresses) {
			t.Fatalf("issued %d of %s, want %d: %q", len(texts), kind, len(addresses), issued)
		}
		for i, text := range texts {
			if got, err := open(kind, text); err != nil || got != addresses[i] {
				t.Errorf("%s %s opens to %v, %v; want %s", kind, text, got, err, addresses[i])
			}
			if token.Looks([]byte(text)) != (kind == "token") {
				t.Errorf("%s looks like no %s", text, kind)
			}
		}
		if got := bring(t, p.Addr, texts[0]); got != "200" {
			t.Errorf("the gateway answers a %s with %s", kind, got)
		}
	}
	// Its end is that of the program's clock, in seconds.
	text := []byte(issued["token"][0])
	if _, err := tokens.Open(text, time.Now().Add(600*time.Second)); err != nil {
		t.Errorf("after ten minutes: %v", err)
	}
	if _, err := tokens.Open(text, time.Now().Add(661*time.Second)); err != token.ErrExpired {
		t.Errorf("after eleven minutes: %v, want %v", err, token.ErrExpired)
	}
	if len(issued["expired"]) != 1 {
		t.Fatalf("issued %q", issued["expired"])
	}
	if _, err := open("token", issued["expired"][0]); !errors.Is(err, token.ErrExpired) {
		t.Errorf("the expired token: %v", err)
	}
	if got := bring(t, p.Addr, issued["expired"][0]); got != "401" {
		t.Errorf("the gateway answers an expired token with %s", got)
	}
}

func TestIssuingSignedTokensWithNothingButPython(t *testing.T) {
	needShell(t, "openssl")
	d := readDocument(t, issuing[0])
	dir := t.TempDir()
	shell(t, dir, d.blockWith(t, "sh", `"use":"sig"`))
	keys := filepath.Join(dir, "signing.json")
	program := d.blockWith(t, "python", "def signed_token") + `
import sys
key = json.load(open(sys.argv[1]))["keys"][0]
print("token", signed_token(key["k"], key["kid"], sys.argv[2], 600))
print("expired", signed_token(key["k"], key["kid"], sys.argv[2], -120))
`
	backend := harness.StartEcho(t)
	issued := runIssuer(t, python(t, "hmac"), "-c", program, keys, backend)
	checkIssued(t, harness.Start(t, "-token-keys="+keys), keys, issued, []string{backend}, false)
}

func TestIssuingSignedTokensForAGatewayThatCannot(t *testing.T) {
	dir := t.TempDir()
	program := readDocument(t, issuing[0]).blockWith(t, "js", "ed25519") + `
const { issuer, gateway } = newKeys('login-1')
const stored = JSON.parse(JSON.stringify(issuer))
console.log('keys', JSON.stringify(gateway))
console.log('token', signedToken(stored, 'login-1', process.argv[2], 600))
console.log('expired', signedToken(stored, 'login-1', process.argv[2], -120))
`
	backend := harness.StartEcho(t)
	issued := runIssuer(t, append(nodeProgram(t, dir, program), backend)...)
	keys := writeKeys(t, issued["keys"][0])
	checkIssued(t, harness.Start(t, "-token-keys="+keys), keys, issued, []string{backend}, false)
	if _, stderr, code := harness.Run(t, nil, "-token-keys="+keys, "-ttl=10m", "-seal="+backend); code != 2 {
		t.Errorf("-seal with a public key: code %d, %s", code, stderr)
	}
}

func TestIssuingCommandsDoWhatThePageSays(t *testing.T) {
	needShell(t, "jq")
	d := readDocument(t, issuing[0])
	dir := t.TempDir()
	if err := os.Symlink(harness.Binary(t), filepath.Join(dir, "gateway")); err != nil {
		t.Fatal(err)
	}
	// Serving is the other tests' subject.
	var commands strings.Builder
	for line := range strings.Lines(d.blockWith(t, "sh", "-ttl=10m")) {
		if !strings.HasSuffix(line, "&\n") && !strings.Contains(line, "| nc ") {
			commands.WriteString(line)
		}
	}
	if out := shell(t, dir, commands.String()); out != "127.0.0.1:4000\n" {
		t.Errorf("printed %q", out)
	}
	old := readKeys(t, filepath.Join(dir, "keys.json"))
	shell(t, dir, d.blockWith(t, "sh", "jq -s"))
	both := readKeys(t, filepath.Join(dir, "keys.json"))
	if len(old) != 1 || len(both) != 2 || both[0] != old[0] || both[1] == old[0] {
		t.Errorf("the keys were %q and are %q", old, both)
	}
	if info, err := os.Stat(filepath.Join(dir, "keys.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key file: %v, %v", info.Mode(), err)
	}
	if _, err := token.Load(filepath.Join(dir, "keys.json"), "", slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
	sample := writeKeys(t, d.blockWith(t, "json", `"keys"`))
	if token := sealToken(t, "127.0.0.1:4000", "-ttl=10m", "-token-keys="+sample); len(token) < 155 || len(token) > 165 {
		t.Errorf("a token has %d characters, and the page says about 160", len(token))
	}
}

// readFile returns a file of the test's own.
func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// readKeys returns what tells the keys of a set apart.
func readKeys(t *testing.T, name string) (ks []string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`"k": *"([^"]+)"`).FindAllStringSubmatch(readFile(t, name), -1) {
		ks = append(ks, m[1])
	}
	return ks
}

func needShell(t *testing.T, tool string) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("no sh on windows")
	}
	runtimeFor(t, []string{"sh", "-c", "command -v " + tool})
}

// shell runs documented commands, in which ./gateway is the gateway.
func shell(t *testing.T, dir, commands string) string {
	t.Helper()
	cmd := exec.Command("sh", "-e", "-c", commands)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, stderr.String())
	}
	return string(out)
}

func TestIssuingPagesListEveryReason(t *testing.T) {
	file, err := parser.ParseFile(gotoken.NewFileSet(), filepath.Join(root, "internal", "token", "token.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Error" {
				word, _ := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
				want = append(want, word)
			}
		}
		return true
	})
	want = append(want, "bad_address") // of the address in it
	for _, name := range issuing {
		var got []string
		for _, row := range readDocument(t, name).tableWith(t, string(token.ErrForged)) {
			got = append(got, row[0])
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s lists the reasons\n%q\nwant\n%q", name, got, want)
		}
	}
}

// writeKeys writes a key set, and returns the file's name.
func writeKeys(t *testing.T, set string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(name, []byte(set), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// sealToken returns what -seal prints, which must be a token.
func sealToken(t *testing.T, addr string, args ...string) string {
	t.Helper()
	out, stderr, code := harness.Run(t, nil, append(args, "-seal="+addr)...)
	if code != 0 || stderr != "" || !regexp.MustCompile(`^eyJ[\w.-]+\n$`).MatchString(out) {
		t.Fatalf("-seal: code %d, %q, %s", code, out, stderr)
	}
	return strings.TrimSuffix(out, "\n")
}

// bring brings a text to the gateway as a line, talks to an echo if there is a
// tunnel, and returns the status.
func bring(t *testing.T, gateway, text string) string {
	t.Helper()
	c := harness.Connect(t, gateway)
	defer c.Close()
	harness.Send(t, c, text+"\n")
	status := make([]byte, 3)
	if _, err := io.ReadFull(c, status); err != nil {
		t.Fatalf("no status: %v", err)
	}
	if string(status) != "200" {
		harness.ExpectAll(t, c, "")
		return string(status)
	}
	harness.Echo(t, c, "hello")
	harness.Finish(t, c)
	return "200"
}
