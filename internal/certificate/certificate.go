// Package certificate keeps a server's TLS certificate up to date with its
// files, so that a renewal needs no restart.
package certificate

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gateway/internal/smallfile"
)

// maxFile bounds each of the files, in bytes: some hundred certificates.
const maxFile = 1 << 20

// interval is the least time between two looks at the files.
const interval = time.Second

// Reloader holds a certificate and its key, and reads their files again when
// they change. It needs no closing: it looks at the files during handshakes,
// at most once a second, and has neither goroutine nor timer. Its methods are
// safe for concurrent use.
type Reloader struct {
	certFile, keyFile string
	log               *slog.Logger

	current atomic.Pointer[tls.Certificate]
	start   time.Time
	looked  atomic.Int64 // when the files were last read, in ns since start

	reloads [2]atomic.Int64 // changes that did not load, and that did

	reading sync.Mutex // held while the files are read
	seen    state
}

// state tells what the files held when they were read, without keeping it.
//
// Contents are compared, not times and sizes: keys of a kind have the same
// size, copying may preserve times, and a file system's clock may stand still
// between two writes. Whether a file was rewritten, renamed or lies behind a
// switched symbolic link makes no difference. To read two small files costs
// some 15 µs.
type state struct {
	cert, key [sha256.Size]byte
	err       string // why they could not be read
}

// Load reads a certificate with its chain, and its private key, both in PEM
// form, and returns a Reloader of the two. The error names the file at fault
// and what is wrong with it.
//
// log gets a line for each change of the files, whether it loads or not, and a
// warning if the certificate is out of date: that is no error, because clients
// may not care, and to refuse would not serve those that do.
func Load(certFile, keyFile string, log *slog.Logger) (*Reloader, error) {
	r := &Reloader{certFile: certFile, keyFile: keyFile, log: log, start: time.Now()}
	pair, seen, err := r.read()
	if err != nil {
		return nil, err
	}
	r.use(pair, seen)
	return r, nil
}

// GetCertificate is for tls.Config. It never fails and does not use the hello.
// A change of the files is seen by the first call that comes a second or more
// after the last look; that call reads the files, and others that come
// meanwhile get the certificate as it was.
//
// A change that does not load is logged once and leaves the certificate as it
// was: a renewal that writes one file after the other passes through such a
// state.
func (r *Reloader) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if r.due() && r.reading.TryLock() {
		defer r.reading.Unlock()
		if r.due() { // still, or somebody has looked just now
			r.reload()
			r.looked.Store(int64(time.Since(r.start)))
		}
	}
	return r.current.Load(), nil
}

// NotAfter returns when the certificate expires.
func (r *Reloader) NotAfter() time.Time { return r.current.Load().Leaf.NotAfter }

// Reloads returns how many changes of the files have loaded, and how many have not.
func (r *Reloader) Reloads() (ok, failed int64) {
	return r.reloads[1].Load(), r.reloads[0].Load()
}

// File returns the name of the certificate's file.
func (r *Reloader) File() string { return r.certFile }

func (r *Reloader) due() bool {
	return time.Since(r.start)-time.Duration(r.looked.Load()) >= interval
}

func (r *Reloader) reload() {
	pair, seen, err := r.read()
	switch {
	case seen == r.seen:
	case err != nil:
		r.seen = seen
		r.reloads[0].Add(1)
		r.log.Warn("the changed certificate does not load, the old one stays", "err", err)
	default:
		r.use(pair, seen)
		r.reloads[1].Add(1)
		r.log.Info("the certificate was loaded again", "file", r.certFile, "not_after", pair.Leaf.NotAfter)
	}
}

// use puts a pair to use.
func (r *Reloader) use(pair *tls.Certificate, seen state) {
	r.seen = seen
	r.current.Store(pair)
	switch now := time.Now(); {
	case now.After(pair.Leaf.NotAfter):
		r.log.Warn("the certificate has expired", "file", r.certFile, "not_after", pair.Leaf.NotAfter)
	case now.Before(pair.Leaf.NotBefore):
		r.log.Warn("the certificate is not valid yet", "file", r.certFile, "not_before", pair.Leaf.NotBefore)
	}
}

// read reads the files, and parses them unless they are those already seen.
func (r *Reloader) read() (*tls.Certificate, state, error) {
	cert, err := smallfile.Read(r.certFile, maxFile)
	if err != nil {
		return nil, state{err: err.Error()}, fmt.Errorf("cannot read the certificate: %w", err)
	}
	key, err := smallfile.Read(r.keyFile, maxFile)
	if err != nil {
		return nil, state{err: err.Error()}, fmt.Errorf("cannot read the private key: %w", err)
	}
	seen := state{cert: sha256.Sum256(cert), key: sha256.Sum256(key)}
	if seen == r.seen {
		return nil, seen, nil
	}
	pair, err := r.parse(cert, key)
	return pair, seen, err
}

// parse names what goes wrong most often, and leaves the rest to crypto/tls.
func (r *Reloader) parse(cert, key []byte) (*tls.Certificate, error) {
	first := find(cert, isCertificate)
	if first == nil {
		if find(cert, isPrivateKey) != nil {
			return nil, fmt.Errorf("%s has a private key but no certificate; are the two files swapped?", r.certFile)
		}
		return nil, fmt.Errorf("%s has no certificate in PEM form (-----BEGIN CERTIFICATE-----)", r.certFile)
	}
	secret := find(key, isPrivateKey)
	if secret == nil {
		return nil, fmt.Errorf("%s has no private key in PEM form (-----BEGIN PRIVATE KEY-----)", r.keyFile)
	}
	if strings.HasPrefix(secret.Type, "ENCRYPTED") || secret.Headers["DEK-Info"] != "" {
		return nil, fmt.Errorf("the private key in %s is encrypted; store it without a passphrase (openssl pkey)", r.keyFile)
	}
	leaf, err := x509.ParseCertificate(first.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the first certificate in %s: %w", r.certFile, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("the private key in %s cannot be used with the first certificate in %s, which has to be the server's own: %w",
			r.keyFile, r.certFile, err)
	}
	pair.Leaf = leaf // GODEBUG=x509keypairleaf=0 leaves it out
	return &pair, nil
}

// find returns the first block of PEM data whose type is wanted, or nil.
func find(data []byte, wanted func(typ string) bool) *pem.Block {
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil || wanted(b.Type) {
			return b
		}
	}
}

func isCertificate(typ string) bool { return typ == "CERTIFICATE" }

// isPrivateKey also takes the older forms, such as "EC PRIVATE KEY".
func isPrivateKey(typ string) bool { return strings.HasSuffix(typ, "PRIVATE KEY") }
