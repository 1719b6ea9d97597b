// Package docs_test compares what the documents say with what a built gateway does,
// so that they cannot drift apart unnoticed.
package docs_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"gateway/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// root is where documents and sources are named from.
const root = ".."

// Each page in English, and the same in Chinese.
var (
	readmes    = []string{"README.md", "README.zh-CN.md"}
	flagPages  = []string{"docs/flags.md", "docs/flags.zh-CN.md"}
	operating  = []string{"docs/operating.md", "docs/operating.zh-CN.md"}
	upgrading  = []string{"docs/upgrading.md", "docs/upgrading.zh-CN.md"}
	sealing    = []string{"docs/sealing.md", "docs/sealing.zh-CN.md"}
	issuing    = []string{"docs/issuing.md", "docs/issuing.zh-CN.md"}
	backends   = []string{"docs/backends.md", "docs/backends.zh-CN.md"}
	protocols  = []string{"docs/protocols.md", "docs/protocols.zh-CN.md"}
	roaming    = []string{"docs/roaming.md", "docs/roaming.zh-CN.md"}
	kcpPages   = []string{"docs/kcp.md", "docs/kcp.zh-CN.md"}
	migrating  = []string{"docs/migrating.md", "docs/migrating.zh-CN.md"}
	kubernetes = []string{"deploy/kubernetes/README.md", "deploy/kubernetes/README.zh-CN.md"}
	consul     = []string{"deploy/consul/README.md", "deploy/consul/README.zh-CN.md"}
	asking     = []string{"docs/asking.md", "docs/asking.zh-CN.md"}
	askPages   = []string{"deploy/ask/README.md", "deploy/ask/README.zh-CN.md"}
	webPages   = []string{"clients/web/README.md", "clients/web/README.zh-CN.md"}
	kitPages   = []string{"clients/README.md", "clients/README.zh-CN.md"}
)

// translated are the pages in both languages.
var translated = append([][]string{readmes, flagPages, operating, upgrading, sealing, issuing, backends, protocols, kcpPages, roaming, migrating, asking,
	kubernetes, consul, askPages, webPages, kitPages}, kitReadmes("cpp", "csharp", "gdscript", "go", "java", "lua", "python", "typescript")...)

// kitReadmes are the pages of client kits.
func kitReadmes(kits ...string) (pages [][]string) {
	for _, kit := range kits {
		pages = append(pages, []string{"clients/" + kit + "/README.md", "clients/" + kit + "/README.zh-CN.md"})
	}
	return pages
}

// documents are all of them.
var documents = append(slices.Concat(translated...), "CHANGELOG.md", "bench/README.md")

// readText returns a file of the repository, named from its root.
func readText(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")))
}
