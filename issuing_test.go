package main

import (
	"bytes"
	"context"
	"errors"
	"go/ast"
	"go/parser"
	gotoken "go/token"
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

	"gateway/internal/handshake"
	"gateway/internal/token"
)

// The programs and commands of docs/issuing.md are run, and what they issue is
// brought to the gateway.

var issuingPages = []string{"docs/issuing.md", "docs/issuing.zh-CN.md"}

// needRuntimes makes a language that is not installed a failure. It is read
// before TestMain takes the gateway's variables away.
var needRuntimes = os.Getenv("NEED_RUNTIMES") == "1"

// runtimeFor returns the first program that works: each choice is a command
// that ends with 0 where it does.
func runtimeFor(t *testing.T, choices ...[]string) string {
	t.Helper()
	var err error
	for _, c := range choices {
		var out []byte
		if out, err = exec.Command(c[0], c[1:]...).CombinedOutput(); err == nil {
			return c[0]
		}
		t.Logf("%q: %v %.200s", c, err, out)
	}
	if needRuntimes {
		t.Fatal("it is not installed (make test-issuing)")
	}
	t.Skip("it is not installed (make test-issuing)")
	return ""
}

func python(t *testing.T, modules string) string {
	t.Helper()
	return runtimeFor(t, []string{"python3", "-c", "import " + modules}, []string{"/usr/bin/python3", "-c", "import " + modules})
}

// An issuer is a documented program. main, added to it, takes a secret, a key's
// k and kid, and addresses. It prints "token" and a token of ten minutes for
// each address, where the program seals "line" and a sealed line, and at last
// "expired" and a token that was good until two minutes ago.
type issuer struct {
	name       string
	lang, with string // its code block
	lines      bool   // it seals too
	main       string
	command    func(t *testing.T, dir, program string) []string
}

var issuers = []issuer{
	{"Go", "go", "func Line", true, `
func main() {
	for _, address := range os.Args[4:] {
		fmt.Println("line", Line(os.Args[1], address))
		text, err := Token(os.Args[2], os.Args[3], address, 10*time.Minute)
		fmt.Println("token", text, err)
	}
	text, err := Token(os.Args[2], os.Args[3], os.Args[4], -2*time.Minute)
	fmt.Println("expired", text, err)
}
`, goProgram},
	{"Go with go-jose", "go", "go-jose", false, `
func main() {
	key, err := base64.RawURLEncoding.DecodeString(os.Args[2])
	if err != nil {
		panic(err)
	}
	for _, address := range os.Args[4:] {
		text, err := Token(key, os.Args[3], address, 10*time.Minute)
		fmt.Println("token", text, err)
	}
	text, err := Token(key, os.Args[3], os.Args[4], -2*time.Minute)
	fmt.Println("expired", text, err)
}
`, func(t *testing.T, dir, program string) []string {
		return goProgram(t, dir, "import (\n\"encoding/base64\"\n\"fmt\"\n)\n"+program)
	}},
	{"Node", "js", "aes-256-cbc", true, `
const [secret, k, kid, ...addresses] = process.argv.slice(2)
for (const address of addresses) {
  console.log('line', line(secret, address))
  console.log('token', token(k, kid, address, 600))
}
console.log('expired', token(k, kid, addresses[0], -120))
`, nodeProgram},
	{"Node with jose", "js", "from 'jose'", false, `
const [, k, kid, ...addresses] = process.argv.slice(2)
for (const address of addresses) console.log('token', await token(k, kid, address, 600))
console.log('expired', await token(k, kid, addresses[0], -120))
`, func(t *testing.T, dir, program string) []string {
		if _, err := os.Stat("/usr/share/nodejs/jose"); err != nil { // where Debian's node-jose is
			runtimeFor(t, []string{"node-jose"})
		}
		if err := os.Symlink("/usr/share/nodejs", filepath.Join(dir, "node_modules")); err != nil {
			t.Fatal(err)
		}
		return nodeProgram(t, dir, program)
	}},
	{"Python", "python", "AESGCM", true, `
import sys
_, secret, k, kid, *addresses = sys.argv
for address in addresses:
    print("line", line(secret, address))
    print("token", token(k, kid, address, 600))
print("expired", token(k, kid, addresses[0], -120))
`, func(t *testing.T, dir, program string) []string {
		return []string{python(t, "cryptography"), "-c", program}
	}},
	{"Python with jwcrypto", "python", "jwcrypto", false, `
import sys
_, secret, k, kid, *addresses = sys.argv
for address in addresses:
    print("token", token(k, kid, address, 600))
print("expired", token(k, kid, addresses[0], -120))
`, func(t *testing.T, dir, program string) []string {
		return []string{python(t, "jwcrypto"), "-c", program}
	}},
	{"Java", "java", "class Issuing", true, `
class Main {
    public static void main(String[] args) throws Exception {
        for (int i = 3; i < args.length; i++) {
            System.out.println("line " + Issuing.line(args[0], args[i]));
            System.out.println("token " + Issuing.token(args[1], args[2], args[i], 600));
        }
        System.out.println("expired " + Issuing.token(args[1], args[2], args[3], -120));
    }
}
`, func(t *testing.T, dir, program string) []string {
		javac := runtimeFor(t, []string{"javac", "-version"})
		build(t, dir, javac, "-encoding", "UTF-8", "-d", dir, writeProgram(t, dir, "Issuing.java", program))
		return []string{"java", "-XX:TieredStopAtLevel=1", "-cp", dir, "Main"}
	}},
	{"C#", "csharp", "class Issuing", true, `
static class Program
{
    static void Main(string[] args)
    {
        foreach (var address in args.Skip(3))
        {
            Console.WriteLine("line " + Issuing.Line(args[0], address));
            Console.WriteLine("token " + Issuing.Token(args[1], args[2], address, 600));
        }
        Console.WriteLine("expired " + Issuing.Token(args[1], args[2], args[3], -120));
    }
}
`, csharpProgram},
	{"PHP", "php", "function token", true, `
[, $secret, $k, $kid] = $argv;
foreach (array_slice($argv, 4) as $address) {
    echo 'line ', line($secret, $address), "\n";
    echo 'token ', token($k, $kid, $address, 600), "\n";
}
echo 'expired ', token($k, $kid, $argv[4], -120), "\n";
`, func(t *testing.T, dir, program string) []string {
		php := runtimeFor(t, []string{"php", "-r", "exit(extension_loaded('openssl') ? 0 : 1);"})
		return []string{php, "-d", "error_reporting=E_ALL", "-d", "display_errors=stdout", writeProgram(t, dir, "issuing.php", program)}
	}},
}

func goProgram(t *testing.T, dir, program string) []string {
	runtimeFor(t, []string{"go", "version"})
	return []string{buildProgram(t, "package main\n\nimport \"os\"\n"+program)}
}

func nodeProgram(t *testing.T, dir, program string) []string {
	return []string{runtimeFor(t, []string{"node", "--version"}), writeProgram(t, dir, "issuing.mjs", program)}
}

// csharpProgram takes .NET, or Mono with what it lacks. No failure asks for
// either, because few distributions have them.
func csharpProgram(t *testing.T, dir, program string) []string {
	source := writeProgram(t, dir, "issuing.cs", program)
	if out, err := exec.Command("dotnet", "--version").Output(); err == nil {
		major, _, _ := strings.Cut(string(out), ".")
		project := writeProgram(t, dir, "issuing.csproj", `<Project Sdk="Microsoft.NET.Sdk"><PropertyGroup>`+
			`<OutputType>Exe</OutputType><TargetFramework>net`+major+`.0</TargetFramework></PropertyGroup></Project>`)
		build(t, dir, "dotnet", "build", "--output", filepath.Join(dir, "out"), project)
		return []string{"dotnet", filepath.Join(dir, "out", "issuing.dll")}
	}
	if _, err := exec.LookPath("mcs"); err != nil {
		t.Skip("neither .NET nor Mono is installed (make test-issuing)")
	}
	binary := filepath.Join(dir, "issuing.exe")
	build(t, dir, "mcs", "-out:"+binary, source, filepath.Join("testdata", "AesGcm.cs"))
	return []string{"mono", binary}
}

func writeProgram(t *testing.T, dir, name, text string) string {
	t.Helper()
	name = filepath.Join(dir, name)
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func build(t *testing.T, dir string, command ...string) {
	t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", command, err, out)
	}
}

func TestIssuingFromEachLanguage(t *testing.T) {
	const k, kid = "oKGio6SlpqeoqaqrrK2ur7CxsrO0tba3uLm6u7y9vr8", "login-1"
	keys := writeKeys(t, `{"keys":[{"kty":"oct","use":"enc","kid":"other","k":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"},`+
		`{"kty":"oct","use":"enc","kid":"`+kid+`","k":"`+k+`"}]}`)
	p := startProcess(t, "-token-keys="+keys)
	d := readDocument(t, issuingPages[0])
	// Around the size of an AES block, and the longest there is.
	label := strings.Repeat("x", 61) + "."
	addresses := []string{startEcho(t), "[2001:db8::7]:65535", "http://game.test:80",
		"10.20.30.4:4000", "10.20.30.40:4000", "10.20.30.40:40000", "game-7.internal.example.com:400", "game-7.internal.example.com:4000",
		strings.Repeat(label, 4) + "games:1"}
	for _, s := range issuers {
		t.Run(s.name, func(t *testing.T) {
			command := s.command(t, t.TempDir(), d.blockWith(t, s.lang, s.with)+s.main)
			issued := runIssuer(t, append(command, append([]string{testSecret, k, kid}, addresses...)...)...)
			checkIssued(t, p, keys, issued, addresses, s.lines)
		})
	}
}

// runIssuer runs a program and returns what it has issued, by kind.
func runIssuer(t *testing.T, command ...string) map[string][]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
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
func checkIssued(t *testing.T, p *process, keys string, issued map[string][]string, addresses []string, lines bool) {
	t.Helper()
	tokens, err := token.Load(keys, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	f := rules{keys: newKeyring([][]byte{[]byte(testSecret)}, defaultConfig().KDFs), tokens: tokens}
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
			if got, err := f.open(t.Context(), handshake.Line, []byte(text)); err != nil || got.String() != addresses[i] {
				t.Errorf("%s %s opens to %v, %v; want %s", kind, text, got, err, addresses[i])
			}
			if token.Looks([]byte(text)) != (kind == "token") {
				t.Errorf("%s looks like no %s", text, kind)
			}
		}
		if got := bring(t, p.addr, texts[0]); got != "200" {
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
	if _, err := f.open(t.Context(), handshake.Line, []byte(issued["expired"][0])); !errors.Is(err, token.ErrExpired) {
		t.Errorf("the expired token: %v", err)
	}
	if got := bring(t, p.addr, issued["expired"][0]); got != "401" {
		t.Errorf("the gateway answers an expired token with %s", got)
	}
}

func TestIssuingSignedTokensWithNothingButPython(t *testing.T) {
	needShell(t, "openssl")
	d := readDocument(t, issuingPages[0])
	dir := t.TempDir()
	shell(t, dir, d.blockWith(t, "sh", `"use":"sig"`))
	keys := filepath.Join(dir, "keys.json")
	program := d.blockWith(t, "python", "def signed_token") + `
import sys
key = json.load(open(sys.argv[1]))["keys"][0]
print("token", signed_token(key["k"], key["kid"], sys.argv[2], 600))
print("expired", signed_token(key["k"], key["kid"], sys.argv[2], -120))
`
	backend := startEcho(t)
	issued := runIssuer(t, python(t, "hmac"), "-c", program, keys, backend)
	checkIssued(t, startProcess(t, "-token-keys="+keys), keys, issued, []string{backend}, false)
}

func TestIssuingSignedTokensForAGatewayThatCannot(t *testing.T) {
	dir := t.TempDir()
	program := readDocument(t, issuingPages[0]).blockWith(t, "js", "ed25519") + `
const { issuer, gateway } = newKeys('login-1')
const stored = JSON.parse(JSON.stringify(issuer))
console.log('keys', JSON.stringify(gateway))
console.log('token', signedToken(stored, 'login-1', process.argv[2], 600))
console.log('expired', signedToken(stored, 'login-1', process.argv[2], -120))
`
	backend := startEcho(t)
	issued := runIssuer(t, append(nodeProgram(t, dir, program), backend)...)
	keys := writeKeys(t, issued["keys"][0])
	checkIssued(t, startProcess(t, "-token-keys="+keys), keys, issued, []string{backend}, false)
	if _, stderr, code := runGateway(t, nil, "-token-keys="+keys, "-ttl=10m", "-seal="+backend); code != 2 {
		t.Errorf("-seal with a public key: code %d, %s", code, stderr)
	}
}

func TestIssuingCommandsDoWhatThePageSays(t *testing.T) {
	needShell(t, "jq")
	d := readDocument(t, issuingPages[0])
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "gateway")); err != nil {
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

// readKeys returns what tells the keys of a set apart.
func readKeys(t *testing.T, name string) (ks []string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`"k": *"([^"]+)"`).FindAllStringSubmatch(readText(t, name), -1) {
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
	cmd.Env = append(os.Environ(), beGateway+"=1", quickExit)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, stderr.String())
	}
	return string(out)
}

func TestIssuingPagesListEveryReason(t *testing.T) {
	file, err := parser.ParseFile(gotoken.NewFileSet(), filepath.Join("internal", "token", "token.go"), nil, 0)
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
	want = append(want, errBadAddress.reason)
	for _, name := range issuingPages {
		var got []string
		for _, row := range readDocument(t, name).tableWith(t, string(token.ErrForged)) {
			got = append(got, row[0])
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s lists the reasons\n%q\nwant\n%q", name, got, want)
		}
	}
}

func TestIssuingPagesAreTheSameInBothLanguages(t *testing.T) {
	compareStructure(t, readDocument(t, issuingPages[0]), readDocument(t, issuingPages[1]))
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for i, name := range issuingPages {
		d := readDocument(t, name)
		for _, m := range link.FindAllStringSubmatch(d.text, -1) {
			target, anchor, hasAnchor := strings.Cut(m[1], "#")
			to := d
			if target != "" {
				to = readDocument(t, filepath.Join("docs", filepath.FromSlash(target)))
			}
			if hasAnchor && !slices.ContainsFunc(to.headings, func(h heading) bool { return h.anchor() == anchor }) {
				t.Errorf("%s: no heading for the link %s", name, m[1])
			}
		}
		if other := filepath.Base(issuingPages[1-i]); !strings.Contains(d.text, "]("+other+")") {
			t.Errorf("%s does not link to %s", name, other)
		}
	}
}
