package docs_test

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	kcpgo "github.com/xtaci/kcp-go/v5"

	"gateway/internal/harness"
	"gateway/internal/kcp"
)

// What docs/kcp.md says is compared with what the gateway does.

func TestTheDocumentedKCPClientTalksThroughTheGateway(t *testing.T) {
	binary := buildClient(t, kcpPages[0], "func Connect")
	backend := startKCPGreeter(t, "welcome")
	gateway := startKCP(t)
	for _, test := range []struct{ line, want string }{
		{harness.Line(backend), "welcomehello"},
		{harness.Line(harness.ClosedPort(t)), "the gateway answered 502"},
		{"nonsense", "the gateway answered 401"},
	} {
		if got := harness.RunProgram(t, nil, binary, gateway, strings.TrimSuffix(test.line, "\n")); got != test.want {
			t.Errorf("%.10q…: the client printed %q, want %q", test.line, got, test.want)
		}
	}
}

func TestTheDocumentedKCPClientWithAKeyTalksThroughTheGateway(t *testing.T) {
	block := readDocument(t, kcpPages[0]).blockWith(t, "go", "pbkdf2")
	binary := harness.BuildProgram(t, `package main

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
	backend := harness.StartGreeter(t, "welcome")
	gateway := startKCP(t, "-kcp-crypt=aes", "-kcp-key=the passphrase")
	if got := harness.RunProgram(t, nil, binary, gateway, strings.TrimSuffix(harness.Line(backend), "\n")); got != "200welcomehello" {
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
		for _, s := range settings(t) {
			if !strings.HasPrefix(s.name, "kcp-") {
				continue
			}
			found := false
			for _, row := range rows {
				if strings.Contains("`"+row[0]+"`", "`-"+s.name+"`") {
					found = true
					want := strings.ReplaceAll(ranges[s.name], "`, `", "")
					if def := s.def; def != "" && row[1] != def || !strings.Contains(strings.NewReplacer("`, `", "", "`、`", "").Replace(row[2]), want) {
						t.Errorf("%s: -%s has %q and %q; want %q and %q", name, s.name, row[1], row[2], s.def, want)
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

// startKCP starts a gateway for KCP clients too, and returns their address.
func startKCP(t testing.TB, args ...string) string {
	t.Helper()
	p := harness.Start(t, append([]string{"-kcp=127.0.0.1:0"}, args...)...)
	for _, line := range p.Listeners(t, 2) {
		if line["protocol"] == "kcp" {
			return line["addr"].(string)
		}
	}
	t.Fatalf("it does not listen for KCP: %s", p.Log.Tail())
	return ""
}

// startKCPGreeter runs kcp-go's server on a free port, which speaks first and then
// sends back what it gets, and returns the address to be sealed.
func startKCPGreeter(t testing.TB, greeting string) string {
	t.Helper()
	ln, err := kcpgo.ListenWithOptions("127.0.0.1:0", nil, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			s, err := ln.AcceptKCP()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer s.Close()
				s.SetStreamMode(true) //lint:ignore SA1019 kcp-go's own clients call it
				s.SetDeadline(time.Now().Add(2 * harness.Patience))
				io.WriteString(s, greeting)
				io.Copy(s, struct{ io.Reader }{s})
			})
		}
	})
	t.Cleanup(func() {
		ln.Close() // which ends the reads of its sessions
		serving.Wait()
	})
	return "kcp://" + ln.Addr().String()
}
