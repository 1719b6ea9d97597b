package harness

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// WriteCertificate writes a self-signed certificate for 127.0.0.1 and
// play.example.com, which clients of every kind take for its own authority, and its
// key. It returns the certificate.
func WriteCertificate(t testing.TB, certFile, keyFile, name string) *x509.Certificate {
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
		DNSNames:     []string{"play.example.com"},

		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	WriteFile(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	WriteFile(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TLSFiles returns the files for a gateway that serves TLS, and the
// configuration of a client that trusts it.
func TLSFiles(t testing.TB) (certFile, keyFile string, trusting *tls.Config) {
	t.Helper()
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	cert := WriteCertificate(t, certFile, keyFile, "gateway.test")
	return certFile, keyFile, Trust(cert)
}

// TLSFlags is TLSFiles as flags of the gateway.
func TLSFlags(t testing.TB) (flags []string, trusting *tls.Config) {
	t.Helper()
	certFile, keyFile, trusting := TLSFiles(t)
	return []string{"-tls-cert=" + certFile, "-tls-key=" + keyFile}, trusting
}

// Trust returns the configuration of a client that trusts these certificates.
func Trust(certs ...*x509.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	for _, cert := range certs {
		pool.AddCert(cert)
	}
	return &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
}

// Handshake has a client begin to speak TLS.
func Handshake(t testing.TB, c net.Conn, config *tls.Config) *tls.Conn {
	t.Helper()
	conn := tls.Client(c, config)
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	return conn
}

// ConnectWith is Connect, inside TLS if there is a configuration for it.
func ConnectWith(t testing.TB, addr string, config *tls.Config) net.Conn {
	t.Helper()
	c := Connect(t, addr)
	if config == nil {
		return c
	}
	return Handshake(t, c, config)
}

// WriteFile writes a file.
func WriteFile(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
