package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Clients that speak TLS: -tls-cert and -tls-key.

// writeCertificate writes a self-signed certificate for 127.0.0.1 and its key,
// and returns it.
func writeCertificate(t testing.TB, certFile, keyFile, name string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	writeFile(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// tlsFiles returns the files for a gateway that serves TLS, and the
// configuration of a client that trusts it.
func tlsFiles(t testing.TB) (certFile, keyFile string, trusting *tls.Config) {
	t.Helper()
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	cert := writeCertificate(t, certFile, keyFile, "gateway.test")
	return certFile, keyFile, trust(cert)
}

// tlsFlags is tlsFiles with flags.
func tlsFlags(t testing.TB) (flags []string, trusting *tls.Config) {
	t.Helper()
	certFile, keyFile, trusting := tlsFiles(t)
	return []string{"-tls-cert=" + certFile, "-tls-key=" + keyFile}, trusting
}

// trust returns the configuration of a client that trusts these certificates.
func trust(certs ...*x509.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	for _, cert := range certs {
		pool.AddCert(cert)
	}
	return &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
}

// handshake has a client begin to speak TLS.
func tlsHandshake(t testing.TB, c net.Conn, config *tls.Config) *tls.Conn {
	t.Helper()
	conn := tls.Client(c, config)
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestWrongCertificatesEndTheStart(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	writeCertificate(t, file("cert.pem"), file("key.pem"), "one")
	writeCertificate(t, file("other.pem"), file("other-key.pem"), "other")
	writeFile(t, file("empty"), "")
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
			args := []string{"-secret=" + testSecret, "-addr=127.0.0.1:0", "-pidfile="}
			if tt.cert != "" {
				args = append(args, "-tls-cert="+file(tt.cert))
			}
			if tt.key != "" {
				args = append(args, "-tls-key="+file(tt.key))
			}
			if check {
				args = append(args, "-check")
			}
			stdout, stderr, code := runGateway(t, nil, args...)
			if code != exitUsage || stdout != "" || strings.Count(stderr, "\n") != 1 {
				t.Errorf("%s: exit %d, %q, %q", tt.name, code, stdout, stderr)
			}
			for _, want := range tt.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("%s: %q does not name %s", tt.name, stderr, want)
				}
			}
		}
	}
	_, stderr, code := runGateway(t, []string{"GATEWAY_TLS_CERT=" + file("nowhere"), "GATEWAY_TLS_KEY=" + file("key.pem")},
		"-secret="+testSecret, "-check")
	if code != exitUsage || !strings.Contains(stderr, "GATEWAY_TLS_CERT") {
		t.Errorf("exit %d, %q", code, stderr)
	}
	if _, stderr, code := runGateway(t, nil, "-secret="+testSecret, "-check",
		"-tls-cert="+file("cert.pem"), "-tls-key="+file("key.pem")); code != exitOK {
		t.Errorf("the right ones: exit %d, %q", code, stderr)
	}
}

func TestCertificatesAreReadAgainWhenTheyChange(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	first := writeCertificate(t, certFile, keyFile, "first")
	p := startProcess(t, "-tls-cert="+certFile, "-tls-key="+keyFile)
	backend := startEcho(t)

	old := tlsHandshake(t, connect(t, p.addr), trust(first))
	send(t, old, sealed(t, backend))
	expect(t, old, "200")

	newCert, newKey := filepath.Join(dir, "new-cert.pem"), filepath.Join(dir, "new-key.pem")
	second := writeCertificate(t, newCert, newKey, "second")
	if err := os.Rename(newKey, keyFile); err != nil { // one file after the other
		t.Fatal(err)
	}
	both := trust(first, second)
	served := func() string {
		c := tlsHandshake(t, connect(t, p.addr), both)
		defer c.Close()
		send(t, c, sealed(t, backend)+"hello")
		expect(t, c, "200hello")
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	eventually(t, "the log tells of half a change", func() bool {
		if name := served(); name != "first" {
			t.Errorf("with another's key, %q is served", name)
		}
		return len(p.log.lines("the changed certificate does not load, the old one stays")) > 0
	})
	if err := os.Rename(newCert, certFile); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second certificate is served", func() bool { return served() == "second" })
	if n := len(p.log.lines("the changed certificate does not load, the old one stays")); n != 1 {
		t.Errorf("half a change was logged %d times", n)
	}
	p.log.waitLine(t, "the certificate was loaded again", 1)
	echo(t, old, "who is connected stays")
}

func TestOnlyHTTP11IsAgreedOn(t *testing.T) {
	flags, trusting := tlsFlags(t)
	p := startProcess(t, flags...)
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
		raw := connect(t, p.addr)
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
func wantTLSFailed(t testing.TB, p *process, c net.Conn) {
	t.Helper()
	l := logOf(t, &p.log, "refused", c.LocalAddr().String())
	if l["status"] != "" || l["reason"] != "tls_failed" || l["level"] != "INFO" {
		t.Errorf("logged as %v", l)
	}
}

func TestOldVersionsOfTLSAreRefused(t *testing.T) {
	flags, trusting := tlsFlags(t)
	p := startProcess(t, flags...)
	for version, ok := range map[uint16]bool{
		tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true,
	} {
		config := trusting.Clone()
		config.MinVersion, config.MaxVersion = version, version
		raw := connect(t, p.addr)
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
	flags, trusting := tlsFlags(t)
	p := startProcess(t, append(flags, "-handshake-timeout=300ms")...)
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
				c := connect(t, p.addr)
				write(t, c, tt.request)
				if tt.name == "garbage" {
					io.WriteString(c, "rbage, and more of it\n") // the gateway may have closed
				}
				if tt.finish {
					c.CloseWrite()
				}
				got, err := io.ReadAll(c)
				if err != nil && !isReset(err) {
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
	flags, trusting := tlsFlags(t)
	p := startProcess(t, flags...)
	backend := startEcho(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := trusting.Clone()
		config.MaxVersion = version
		c := tlsHandshake(t, dribbling{connect(t, p.addr)}, config)
		send(t, c, sealed(t, backend)+"hello")
		expect(t, c, "200hello")
	}
}

func TestASessionIsResumed(t *testing.T) {
	flags, trusting := tlsFlags(t)
	p := startProcess(t, flags...)
	config := trusting.Clone()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	var resumed []bool
	for range 2 {
		c := tlsHandshake(t, connect(t, p.addr), config)
		send(t, c, "\n")
		expectAll(t, c, "401")
		resumed = append(resumed, c.ConnectionState().DidResume)
	}
	if !slices.Equal(resumed, []bool{false, true}) {
		t.Errorf("resumed: %v", resumed)
	}
}

func TestThereIsNoTLSInsideTLS(t *testing.T) {
	flags, trusting := tlsFlags(t)
	p := startProcess(t, append(flags, "-log-level=debug")...)
	c := tlsHandshake(t, connect(t, p.addr), trusting)
	send(t, c, clientHello(t, trusting)+"\n")
	halfClose(t, c)
	if got, err := io.ReadAll(c); string(got) != "401" && string(got) != "400" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	c = tlsHandshake(t, connect(t, p.addr), trusting)
	halfClose(t, c)
	expectAll(t, c, "400")
	if l := logOf(t, &p.log, "no request", c.LocalAddr().String()); l["via"] != "tls" {
		t.Errorf("logged as %v", l)
	}
}
