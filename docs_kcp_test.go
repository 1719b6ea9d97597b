package main

import (
	"fmt"
	"io"
	"strings"
	"testing"

	kcpgo "github.com/xtaci/kcp-go/v5"

	"gateway/internal/kcp"
)

// What docs/kcp.md says is compared with what the gateway does.

func TestTheDocumentedKCPClientTalksThroughTheGateway(t *testing.T) {
	binary := buildClient(t, kcpPages[0])
	backend := startKCPBackend(t, kcpCode{}, func(s *kcpgo.UDPSession) { // the first to speak
		io.WriteString(s, "welcome")
		kcpEcho(s)
	})
	g := startKCP(t, nil)
	for _, test := range []struct{ line, want string }{
		{sealed(t, backend), "welcomehello"},
		{sealed(t, closedPort(t)), "the gateway answered 502"},
		{"nonsense", "the gateway answered 401"},
	} {
		if got := runClient(t, nil, binary, g.kcp, strings.TrimSuffix(test.line, "\n")); got != test.want {
			t.Errorf("%.10q…: the client printed %q, want %q", test.line, got, test.want)
		}
	}
}

func TestTheDocumentedKCPClientWithAKeyTalksThroughTheGateway(t *testing.T) {
	lookPath(t, "go")
	block := readDocument(t, kcpPages[0]).blockWith(t, "go", "pbkdf2")
	binary := buildProgram(t, `package main

import (
	"crypto/pbkdf2"
	"crypto/sha1"
	"fmt"
	"io"
	"os"

	"github.com/xtaci/kcp-go/v5"
)

func main() {
	gateway, line, passphrase := os.Args[1], os.Args[2], "the passphrase"
`+block+`
	if err != nil {
		fmt.Println(err)
		return
	}
	c.SetStreamMode(true)
	io.WriteString(c, line+"\nhello")
	b := make([]byte, len("200"+"welcome"+"hello"))
	io.ReadFull(c, b)
	fmt.Printf("%s\n", b)
}
`)
	backend := startGreeter(t, "welcome")
	g := startKCP(t, func(cfg *Config) { cfg.KCPCrypt, cfg.KCPKey = "aes", "the passphrase" })
	if got := runClient(t, nil, binary, g.kcp, strings.TrimSuffix(sealed(t, backend), "\n")); got != "200welcomehello" {
		t.Errorf("the client printed %q", got)
	}
}

func TestDocumentedKCPSettingsAreThose(t *testing.T) {
	ranges := map[string]string{
		"kcp-mode":   "`normal`, `fast`, `fast2`, `fast3`",
		"kcp-sndwnd": fmt.Sprintf("%d–%d", kcp.MinWindow, kcp.MaxWindow), "kcp-rcvwnd": fmt.Sprintf("%d–%d", kcp.MinWindow, kcp.MaxWindow),
		"kcp-mtu":       fmt.Sprintf("%d–%d", kcp.MinMTU, kcp.MaxMTU),
		"kcp-datashard": fmt.Sprintf("0–%d", kcp.MaxShards), "kcp-parityshard": fmt.Sprintf("0–%d", kcp.MaxShards),
		"kcp-crypt": "`none`, `aes`", "kcp-key": "", "kcp-idle-timeout": "0",
	}
	for _, name := range kcpPages {
		rows := readDocument(t, name).tableWith(t, "-kcp-mode")
		for _, s := range settings(defaultConfig()) {
			if s.group != groupKCP || s.name == "kcp" {
				continue
			}
			found := false
			for _, row := range rows {
				if strings.Contains("`"+row[0]+"`", "`-"+s.name+"`") {
					found = true
					want := strings.ReplaceAll(ranges[s.name], "`, `", "")
					if def := s.value.String(); def != "" && row[1] != def || !strings.Contains(strings.NewReplacer("`, `", "", "`、`", "").Replace(row[2]), want) {
						t.Errorf("%s: -%s has %q and %q; want %q and %q", name, s.name, row[1], row[2], def, want)
					}
				}
			}
			if !found {
				t.Errorf("%s says nothing of -%s", name, s.name)
			}
		}
	}
}

func TestDocumentedKCPFiguresAreThoseOfTheSource(t *testing.T) {
	for _, test := range []struct{ file, source, text string }{
		{"guard.go", "maxUnproven = 512\n", "512"},
		{"guard.go", "pressedFrom = maxUnproven / 4\n", "128"},
		{"guard.go", "maxRate = 2048\n", "2,048"},
		{"guard.go", "crowdedAfter = 3 * time.Second\n", "3"},
		{"guard.go", "yieldAfter = 5 * time.Second\n", "5"},
		{"conn.go", "unprovenWindow = 16\n", "16"},
		{"conn.go", "unprovenTime = 10 * time.Second\n", "10"},
		{"conn.go", "maxGuesses = 16\n", "16"},
		{"cookie.go", "cookieBits = 30\n", "30"},
		{"conn.go", "amplification = 3\n", "RFC 9000"},
		{"conn.go", "unprovenLinger = 2 * time.Second\n", "2"},
		{"conn.go", "writePortion = 16 << 10\n", "16 KB"},
		{"dial.go", "askEvery = 200 * time.Millisecond\n", "200"},
		{"kcp.go", "Linger = 5 * time.Second\n", "5"},
		{"kcp.go", "o.MaxSessions = 10_000\n", "10,000"},
	} {
		if !strings.Contains(readText(t, "internal/kcp/"+test.file), test.source) {
			t.Errorf("%s has no %q any more", test.file, test.source)
		}
		for _, name := range kcpPages {
			if !strings.Contains(readText(t, name), test.text) {
				t.Errorf("%s has no %q", name, test.text)
			}
		}
	}
}
