package docs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// How the programs of docs/issuing.md are built and run.

// needRuntimes makes a language that is not installed a failure.
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
	return []string{harness.BuildProgram(t, "package main\n\nimport \"os\"\n"+program)}
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
