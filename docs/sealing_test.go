package docs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// What docs/sealing.md says of sealed lines.

func TestTheDocumentedOpensslCommandSealsAnAddress(t *testing.T) {
	harness.NeedTool(t, "openssl")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(harness.Secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	command := readDocument(t, sealing[0]).blockWith(t, "sh", "openssl enc")
	for _, md := range []string{"-md sha256", "-md md5"} { // the command, and what the page calls old
		cmd := exec.Command("sh", "-c", strings.Replace(command, "-md sha256", md, 1))
		cmd.Dir = dir
		line, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, stderr, _ := harness.Run(t, withSecret, "-open="+string(line)); got != "10.0.0.7:4000\n" {
			t.Errorf("%q opens to %q, %s", line, got, stderr)
		}
	}
}

func TestTheDocumentedLineOpens(t *testing.T) {
	for _, name := range sealing {
		block := readDocument(t, name).blockWith(t, "text", "secret ")
		m := regexp.MustCompile(`^secret +(\S+)\nline +(\S+)\naddress +(\S+)\n$`).FindStringSubmatch(block)
		if m == nil {
			t.Fatalf("%s: %q", name, block)
		}
		if got, stderr, _ := harness.Run(t, nil, "-secret="+m[1], "-open="+m[2]); got != m[3]+"\n" {
			t.Errorf("%s: %s opens to %q, %s", name, m[2], got, stderr)
		}
		if !strings.Contains(readText(t, readmes[slices.Index(sealing, name)]), m[2]) {
			t.Errorf("the README shows another line than %s", name)
		}
	}
}

func TestDocumentedKeyDerivationsAreTriedByDefault(t *testing.T) {
	for _, name := range sealing {
		rows := readDocument(t, name).tableWith(t, "pbkdf2")
		yes := rows[0][2]
		var all []string
		for _, row := range rows {
			all = append(all, row[0])
			line := harness.Seal(row[0], harness.Secret, "10.0.0.7:4000")
			if _, stderr, code := harness.Run(t, withSecret, "-open="+line); (code == 0) != (row[2] == yes) {
				t.Errorf("%s says %q of %s: code %d, %s", name, row[2], row[0], code, stderr)
			}
			if _, stderr, code := harness.Run(t, withSecret, "-kdf="+row[0], "-open="+line); code != 0 {
				t.Errorf("with -kdf=%s: code %d, %s", row[0], code, stderr)
			}
		}
		if said := check(t, withSecret, "-kdf="+strings.Join(all, ",")); said != "" {
			t.Errorf("%s lists %q: %s", name, all, said)
		}
		if rows[2][2] == yes {
			t.Errorf("%s: pbkdf2 is tried by default", name)
		}
	}
}

// Every source counts, in the order of the table; the first secret seals.
func TestDocumentedSecretsAreTakenInTheirOrder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	for name, text := range map[string]string{file: "# comment\n\nof the file, the first\nof the file, the second\n",
		filepath.Join(dir, "secret"): "of systemd, the only one\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"GATEWAY_SECRET=of the environment", "CREDENTIALS_DIRECTORY=" + dir}
	sources := []string{"of the environment", "of the file, the first", "of the file, the second", "of systemd, the only one"}
	for _, secret := range sources {
		line := harness.Seal("sha256", secret, "10.0.0.7:4000")
		if got, stderr, _ := harness.Run(t, env, "-secret-file="+file, "-open="+line); got != "10.0.0.7:4000\n" {
			t.Errorf("a line of %q opens to %q, %s", secret, got, stderr)
		}
	}
	line, _, _ := harness.Run(t, env, "-secret-file="+file, "-seal=10.0.0.7:4000")
	if got, stderr, _ := harness.Run(t, []string{"GATEWAY_SECRET=" + sources[0]}, "-open="+line); got != "10.0.0.7:4000\n" {
		t.Errorf("what is sealed opens to %q by the first secret, %s", got, stderr)
	}
	// The flag is in place of its variable.
	line, _, _ = harness.Run(t, env, "-secret=of the flag only", "-seal=10.0.0.7:4000")
	if _, _, code := harness.Run(t, env, "-open="+line); code != 1 {
		t.Errorf("a line of -secret opens without it: code %d", code)
	}
}
