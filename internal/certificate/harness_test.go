package certificate

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Certificates in files, and what is logged of them.

// pair is a certificate and its key in PEM form.
type pair struct{ cert, key []byte }

// start is when the clock of synctest starts.
var start = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// newPair makes a pair for a name. It is valid from start, for ever.
func newPair(t testing.TB, name string) pair {
	t.Helper()
	return newPairFor(t, name, start, time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC))
}

func newPairFor(t testing.TB, name string, from, until time.Time) pair {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signed(t, name, from, until, public, private)
}

func newECDSAPair(t testing.TB, name string) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signed(t, name, start, start.AddDate(1000, 0, 0), key.Public(), key)
}

func signed(t testing.TB, name string, from, until time.Time, public crypto.PublicKey, private crypto.Signer) pair {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		NotBefore:    from,
		NotAfter:     until,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pair{block("CERTIFICATE", cert), block("PRIVATE KEY", key)}
}

func block(typ string, b []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: b})
}

// files are the names of a pair in a directory.
type files struct {
	t         testing.TB
	cert, key string
}

func newFiles(t testing.TB) files {
	dir := t.TempDir()
	return files{t, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
}

func (f files) write(p pair) {
	f.t.Helper()
	write(f.t, f.cert, p.cert)
	write(f.t, f.key, p.key)
}

func write(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (f files) load(log *logBuffer) *Reloader {
	f.t.Helper()
	r, err := Load(f.cert, f.key, log.logger())
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// logBuffer collects what is logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// wants fails unless exactly so many lines of a level have been logged so far.
func (l *logBuffer) wants(t *testing.T, level string, n int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if got := strings.Count(l.buf.String(), "level="+level+" "); got != n {
		t.Errorf("%d lines of level %s in the log, want %d:\n%s", got, level, n, l.buf.String())
	}
}

// name returns whose certificate is in use.
func name(t *testing.T, r *Reloader) string {
	t.Helper()
	cert, err := r.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf.Subject.CommonName
}

func wantName(t *testing.T, r *Reloader, want string) {
	t.Helper()
	if got := name(t, r); got != want {
		t.Errorf("the certificate of %s is in use, want that of %s", got, want)
	}
}
