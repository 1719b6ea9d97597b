package protocols

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gateway/internal/harness"
)

// Clients that speak TLS: -tls-cert and -tls-key.

func TestWrongCertificatesEndTheStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	harness.WriteCertificate(t, file("cert.pem"), file("key.pem"), "one")
	harness.WriteCertificate(t, file("other.pem"), file("other-key.pem"), "other")
	harness.WriteFile(t, file("empty"), "")
	for _, tt := range []struct {
		name, cert, key string
		want            []string
	}{
		{"no key", "cert.pem", "", []string{"-tls-key", "-tls-cert"}},
		{"no certificate", "", "key.pem", []string{"-tls-key", "-tls-cert"}},
		{"no such certificate", "nowhere", "key.pem", []string{"-tls-cert", file("nowhere")}},
		{"no such key", "cert.pem", "nowhere", []string{"-tls-key", file("nowhere")}},
		{"a directory", ".", "key.pem", []string{"-tls-cert", dir}},
		{"an empty certificate", "empty", "key.pem", []string{"-tls-cert", file("empty")}},
		{"an empty key", "cert.pem", "empty", []string{"-tls-key", file("empty")}},
		{"another's key", "cert.pem", "other-key.pem", []string{"-tls-key", file("cert.pem"), file("other-key.pem")}},
		{"the two swapped", "key.pem", "cert.pem", []string{"-tls-cert", file("key.pem")}},
	} {
		for _, check := range []bool{false, true} {
			args := []string{"-secret=" + harness.Secret, "-addr=127.0.0.1:0", "-pidfile="}
			if tt.cert != "" {
				args = append(args, "-tls-cert="+file(tt.cert))
			}
			if tt.key != "" {
				args = append(args, "-tls-key="+file(tt.key))
			}
			if check {
				args = append(args, "-check")
			}
			stdout, stderr, code := harness.Run(t, nil, args...)
			if code != harness.ExitUsage || stdout != "" || strings.Count(stderr, "\n") != 1 {
				t.Errorf("%s: exit %d, %q, %q", tt.name, code, stdout, stderr)
			}
			for _, want := range tt.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("%s: %q does not name %s", tt.name, stderr, want)
				}
			}
		}
	}
	_, stderr, code := harness.Run(t, []string{"GATEWAY_TLS_CERT=" + file("nowhere"), "GATEWAY_TLS_KEY=" + file("key.pem")},
		"-secret="+harness.Secret, "-check")
	if code != harness.ExitUsage || !strings.Contains(stderr, "GATEWAY_TLS_CERT") {
		t.Errorf("exit %d, %q", code, stderr)
	}
	if _, stderr, code := harness.Run(t, nil, "-secret="+harness.Secret, "-check",
		"-tls-cert="+file("cert.pem"), "-tls-key="+file("key.pem")); code != harness.ExitOK {
		t.Errorf("the right ones: exit %d, %q", code, stderr)
	}
}

func TestCertificatesAreReadAgainWhenTheyChange(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	first := harness.WriteCertificate(t, certFile, keyFile, "first")
	p := harness.Start(t, "-tls-cert="+certFile, "-tls-key="+keyFile)
	backend := harness.StartEcho(t)

	old := harness.Handshake(t, harness.Connect(t, p.Addr), harness.Trust(first))
	harness.Send(t, old, harness.Line(backend))
	harness.Expect(t, old, "200")

	newCert, newKey := filepath.Join(dir, "new-cert.pem"), filepath.Join(dir, "new-key.pem")
	second := harness.WriteCertificate(t, newCert, newKey, "second")
	if err := os.Rename(newKey, keyFile); err != nil { // one file after the other
		t.Fatal(err)
	}
	both := harness.Trust(first, second)
	served := func() string {
		c := harness.Handshake(t, harness.Connect(t, p.Addr), both)
		defer c.Close()
		harness.Send(t, c, harness.Line(backend)+"hello")
		harness.Expect(t, c, "200hello")
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	harness.Eventually(t, "the log tells of half a change", func() bool {
		if name := served(); name != "first" {
			t.Errorf("with another's key, %q is served", name)
		}
		return len(p.Log.Lines("the changed certificate does not load, the old one stays")) > 0
	})
	if err := os.Rename(newCert, certFile); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the second certificate is served", func() bool { return served() == "second" })
	if n := len(p.Log.Lines("the changed certificate does not load, the old one stays")); n != 1 {
		t.Errorf("half a change was logged %d times", n)
	}
	p.Log.WaitLine(t, "the certificate was loaded again", 1)
	harness.Echo(t, old, "who is connected stays")
}

func TestOnlyHTTP11IsAgreedOn(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	for _, tt := range []struct {
		offer  []string
		agreed string
		fails  bool
	}{
		{nil, "", false},
		{[]string{"http/1.1"}, "http/1.1", false},
		{[]string{"h2", "http/1.1"}, "http/1.1", false},
		{[]string{"h2"}, "", true},
	} {
		config := trusting.Clone()
		config.NextProtos = tt.offer
		raw := harness.Connect(t, p.Addr)
		c := tls.Client(raw, config)
		err := c.Handshake()
		if got := c.ConnectionState().NegotiatedProtocol; got != tt.agreed || (err != nil) != tt.fails {
			t.Errorf("%q: agreed on %q, %v", tt.offer, got, err)
		}
		if tt.fails {
			wantTLSFailed(t, p, raw)
		}
	}
}

// wantTLSFailed sees that a client's handshake failed, and that the log says so.
func wantTLSFailed(t testing.TB, p *harness.Process, c net.Conn) {
	t.Helper()
	l := p.Log.WaitClient(t, "refused", c.LocalAddr().String())
	if harness.Status(l) != "" || l["reason"] != "tls_failed" || l["level"] != "INFO" {
		t.Errorf("logged as %v", l)
	}
}

func TestOldVersionsOfTLSAreRefused(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	for version, ok := range map[uint16]bool{
		tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true,
	} {
		config := trusting.Clone()
		config.MinVersion, config.MaxVersion = version, version
		raw := harness.Connect(t, p.Addr)
		err := tls.Client(raw, config).Handshake()
		if (err == nil) != ok {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if !ok {
			wantTLSFailed(t, p, raw)
		}
	}
}

func TestAFailedTLSHandshakeHasNoStatus(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, append(flags, "-handshake-timeout=2s")...)
	hello := clientHello(t, trusting)
	for _, tt := range []struct {
		name, request string
		finish        bool
	}{
		{"garbage", "\x16\x03\x01ga", false}, // a length that no record has

		{"a record that is no hello", "\x16\x03\x01\x00\x05hello", false},
		{"an empty record", "\x16\x03\x01\x00\x00", true},
		{"the end after three bytes", "\x16\x03\x01", true},
		{"the end within the hello", hello[:len(hello)/2], true},
		{"silence after three bytes", "\x16\x03\x01", false},
		{"silence within the hello", hello[:len(hello)-1], false},
		{"silence after the hello", hello, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, write := range deliveries {
				c := harness.Connect(t, p.Addr)
				write(t, c, tt.request)
				if tt.name == "garbage" {
					io.WriteString(c, "rbage, and more of it\n") // the gateway may have closed
				}
				if tt.finish {
					c.CloseWrite()
				}
				got, err := io.ReadAll(c)
				if err != nil && !harness.IsReset(err) {
					t.Fatalf("read %q, %v", got, err)
				}
				// What came is TLS: the server's hello, or an alert.
				if tt.request != hello && len(got) > 0 && (got[0] != 0x15 || len(got) != 7) {
					t.Errorf("read %q", got)
				}
				wantTLSFailed(t, p, c)
			}
		})
	}
}

// clientHello returns what a client begins with.
func clientHello(t testing.TB, config *tls.Config) string {
	client, server := net.Pipe()
	go func() {
		tls.Client(client, config).Handshake()
		client.Close()
	}()
	defer server.Close()
	b := make([]byte, 16<<10)
	n, err := server.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestATLSHandshakeMayDribble(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	backend := harness.StartEcho(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := trusting.Clone()
		config.MaxVersion = version
		c := harness.Handshake(t, dribbling{harness.Connect(t, p.Addr)}, config)
		harness.Send(t, c, harness.Line(backend)+"hello")
		harness.Expect(t, c, "200hello")
	}
}

func TestASessionIsResumed(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, flags...)
	config := trusting.Clone()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	var resumed []bool
	for range 2 {
		c := harness.Handshake(t, harness.Connect(t, p.Addr), config)
		harness.Send(t, c, "\n")
		harness.ExpectAll(t, c, "401")
		resumed = append(resumed, c.ConnectionState().DidResume)
	}
	if !slices.Equal(resumed, []bool{false, true}) {
		t.Errorf("resumed: %v", resumed)
	}
}

func TestThereIsNoTLSInsideTLS(t *testing.T) {
	t.Parallel()
	flags, trusting := harness.TLSFlags(t)
	p := harness.Start(t, append(flags, "-log-level=debug")...)
	c := harness.Handshake(t, harness.Connect(t, p.Addr), trusting)
	harness.Send(t, c, clientHello(t, trusting)+"\n")
	harness.HalfClose(t, c)
	if got, err := io.ReadAll(c); string(got) != "401" && string(got) != "400" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	c = harness.Handshake(t, harness.Connect(t, p.Addr), trusting)
	harness.HalfClose(t, c)
	harness.ExpectAll(t, c, "400")
	if l := p.Log.WaitClient(t, "no request", c.LocalAddr().String()); l["via"] != "tls" {
		t.Errorf("logged as %v", l)
	}
}
