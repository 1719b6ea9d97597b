package deploy_test

import (
	"archive/zip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPackagesOfAReleaseHaveTheSameBytesTwice(t *testing.T) {
	if os.Getenv("NEED_PACKAGES") == "" {
		t.Skip("builds a release twice: make test-packages")
	}
	dirs := []string{t.TempDir(), t.TempDir()}
	for _, dir := range dirs {
		output(t, "sh", "dist.sh", dir, "v1.2.3", "HEAD", "linux/arm64", "windows/amd64")
	}
	// SHA256SUMS names the others.
	first, second := readText(t, filepath.Join(dirs[0], "SHA256SUMS")), readText(t, filepath.Join(dirs[1], "SHA256SUMS"))
	if first != second || strings.Count(first, "\n") != 6 {
		t.Fatalf("the sums are\n%s\nand then\n%s", first, second)
	}
	output(t, "sh", "-c", `cd "$1" && sha256sum --strict -c SHA256SUMS`, "-", dirs[1])

	name := "gateway-v1.2.3-windows-amd64"
	z, err := zip.OpenReader(filepath.Join(dirs[0], name+".zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	var files []string
	for _, f := range z.File {
		files = append(files, f.Name)
	}
	for _, want := range []string{"gateway.exe", "LICENSES.txt", "README.md"} {
		if !slices.Contains(files, name+"/"+want) {
			t.Errorf("the zip has no %s: %q", want, files)
		}
	}

	var bill struct {
		BOMFormat, SpecVersion string
		Components             []struct{ Type, Name, Version, PURL string }
	}
	if err := json.Unmarshal([]byte(readText(t, filepath.Join(dirs[0], name+".cdx.json"))), &bill); err != nil {
		t.Fatal(err)
	}
	var linked []string
	for _, c := range bill.Components {
		if linked = append(linked, c.Name); c.Version == "" || c.PURL == "" {
			t.Errorf("%+v lacks something", c)
		}
	}
	if bill.BOMFormat != "CycloneDX" || !slices.Contains(linked, "std") || !slices.Contains(linked, "golang.org/x/sys") {
		t.Errorf("the bill is %+v", bill)
	}
	// What has its licence in the archive is in the bill.
	for _, f := range z.File {
		if f.Name != name+"/LICENSES.txt" {
			continue
		}
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		text := new(strings.Builder)
		if _, err := io.Copy(text, r); err != nil {
			t.Fatal(err)
		}
		for _, c := range bill.Components[1:] {
			if !strings.Contains(text.String(), "== "+c.Name+" "+c.Version+"\n") {
				t.Errorf("%s has no licence in the archive", c.Name)
			}
		}
		if n := strings.Count(text.String(), "\n== "); n != len(bill.Components)-1 {
			t.Errorf("%d licences of %d components", n, len(bill.Components)-1)
		}
	}
}
