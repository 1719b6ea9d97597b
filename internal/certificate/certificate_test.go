package certificate

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestAChangeIsSeenAfterASecondButNotBefore(t *testing.T) {
	f := newFiles(t)
	a, b := newPair(t, "a"), newPair(t, "b")
	f.write(a)
	synctest.Test(t, func(t *testing.T) {
		var log logBuffer
		r := f.load(&log)
		wantName(t, r, "a")
		f.write(b)
		time.Sleep(interval - time.Nanosecond)
		wantName(t, r, "a")
		time.Sleep(time.Nanosecond)
		wantName(t, r, "b")
		f.write(a)
		time.Sleep(interval - time.Nanosecond)
		wantName(t, r, "b")
		time.Sleep(time.Nanosecond)
		wantName(t, r, "a")
		log.wants(t, "INFO", 2)
		log.wants(t, "WARN", 0)
	})
}

func TestAChangeOfSameSizeAndTimeIsSeen(t *testing.T) {
	f := newFiles(t)
	f.write(newPair(t, "a"))
	then := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	touch := func() {
		for _, file := range []string{f.cert, f.key} {
			if err := os.Chtimes(file, then, then); err != nil {
				t.Fatal(err)
			}
		}
	}
	touch()
	b := newPair(t, "b")
	synctest.Test(t, func(t *testing.T) {
		r := f.load(new(logBuffer))
		f.write(b)
		touch()
		time.Sleep(interval)
		wantName(t, r, "b")
	})
}

func TestFilesThatStayTheSameAreLoadedOnce(t *testing.T) {
	f := newFiles(t)
	a := newPair(t, "a")
	f.write(a)
	synctest.Test(t, func(t *testing.T) {
		var log logBuffer
		r := f.load(&log)
		before, _ := r.GetCertificate(nil)
		for range 3 {
			time.Sleep(interval)
			f.write(a) // newer files
			if after, _ := r.GetCertificate(nil); after != before {
				t.Error("the same certificate was loaded again")
			}
		}
		log.wants(t, "INFO", 0)
		log.wants(t, "WARN", 0)
	})
}

func TestAChangeThatDoesNotLoadIsLoggedOnceAndTriedAgain(t *testing.T) {
	f := newFiles(t)
	a, b, c := newPair(t, "a"), newPair(t, "b"), newPair(t, "c")
	f.write(a)
	synctest.Test(t, func(t *testing.T) {
		var log logBuffer
		r := f.load(&log)
		warnings := 0
		for _, step := range []struct {
			name string
			do   func()
		}{
			{"the key does not match", func() { write(t, f.cert, b.cert) }},
			{"another key does not match", func() { write(t, f.key, c.key) }},
			{"the certificate is half written", func() { write(t, f.cert, b.cert[:len(b.cert)/2]) }},
			{"the key is empty", func() { f.write(pair{b.cert, nil}) }},
			{"the key is missing", func() { os.Remove(f.key) }},
			{"the certificate is missing", func() { os.Remove(f.cert) }},
			{"only the key is there", func() { write(t, f.key, b.key); os.Mkdir(f.cert, 0o700) }},
		} {
			step.do()
			warnings++
			for range 5 {
				time.Sleep(interval)
				wantName(t, r, "a")
				log.wants(t, "WARN", warnings)
			}
			if t.Failed() {
				t.Fatal(step.name)
			}
		}
		log.wants(t, "INFO", 0)

		os.Remove(f.cert)
		f.write(b)
		time.Sleep(interval)
		wantName(t, r, "b")
		log.wants(t, "INFO", 1)
		log.wants(t, "WARN", warnings)
	})
}

func TestAChangeThatIsTakenBackIsNoChange(t *testing.T) {
	f := newFiles(t)
	a := newPair(t, "a")
	f.write(a)
	synctest.Test(t, func(t *testing.T) {
		var log logBuffer
		r := f.load(&log)
		write(t, f.key, []byte("oops"))
		time.Sleep(interval)
		wantName(t, r, "a")
		log.wants(t, "WARN", 1)
		f.write(a)
		time.Sleep(interval)
		wantName(t, r, "a")
		log.wants(t, "INFO", 1) // the trouble is over
	})
}

func TestARenameIsSeen(t *testing.T) {
	f := newFiles(t)
	f.write(newPair(t, "a"))
	next := newFiles(t)
	next.write(newPair(t, "b"))
	synctest.Test(t, func(t *testing.T) {
		r := f.load(new(logBuffer))
		rename(t, next.cert, f.cert)
		time.Sleep(interval)
		wantName(t, r, "a") // between the two
		rename(t, next.key, f.key)
		time.Sleep(interval)
		wantName(t, r, "b")
	})
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, link string) {
	t.Helper()
	if err := os.Symlink(target, link); err != nil {
		if runtime.GOOS == "windows" {
			t.Skip(err) // a privilege there
		}
		t.Fatal(err)
	}
}

// archive makes directories a and b in dir, each with a pair of its own.
func archive(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		files{t, filepath.Join(dir, name, "cert.pem"), filepath.Join(dir, name, "key.pem")}.write(newPair(t, name))
	}
}

// TestASwitchOfDirectoriesIsSeen does as Kubernetes: the files are links
// through ..data, a link to the directory in force.
func TestASwitchOfDirectoriesIsSeen(t *testing.T) {
	f := newFiles(t)
	dir := filepath.Dir(f.cert)
	archive(t, dir)
	symlink(t, "a", filepath.Join(dir, "..data"))
	symlink(t, filepath.Join("..data", "cert.pem"), f.cert)
	symlink(t, filepath.Join("..data", "key.pem"), f.key)
	synctest.Test(t, func(t *testing.T) {
		r := f.load(new(logBuffer))
		wantName(t, r, "a")
		symlink(t, "b", filepath.Join(dir, "..data_tmp"))
		rename(t, filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data"))
		time.Sleep(interval)
		wantName(t, r, "b")
	})
}

// TestASwitchOfLinksIsSeen does as certbot: live/ has links into archive/,
// which are replaced one after the other.
func TestASwitchOfLinksIsSeen(t *testing.T) {
	f := newFiles(t)
	dir := filepath.Dir(f.cert)
	archive(t, dir)
	symlink(t, filepath.Join("a", "cert.pem"), f.cert)
	symlink(t, filepath.Join("a", "key.pem"), f.key)
	synctest.Test(t, func(t *testing.T) {
		r := f.load(new(logBuffer))
		os.Remove(f.cert)
		time.Sleep(interval)
		wantName(t, r, "a")
		symlink(t, filepath.Join("b", "cert.pem"), f.cert)
		os.Remove(f.key)
		symlink(t, filepath.Join("b", "key.pem"), f.key)
		time.Sleep(interval)
		wantName(t, r, "b")
	})
}

func TestLoadNamesTheFileAtFault(t *testing.T) {
	a, b, ec := newPair(t, "a"), newPair(t, "b"), newECDSAPair(t, "ec")
	oldEncrypted := pem.EncodeToMemory(&pem.Block{
		Type:    "EC PRIVATE KEY",
		Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"},
		Bytes:   []byte("x"),
	})
	for _, tt := range []struct {
		name      string
		cert, key []byte // nil: missing
		file      string
		want      string
	}{
		{"no certificate", nil, a.key, "cert.pem", "cannot read the certificate"},
		{"no key", a.cert, nil, "key.pem", "cannot read the private key"},
		{"an empty certificate", []byte{}, a.key, "cert.pem", "no certificate in PEM form"},
		{"an empty key", a.cert, []byte{}, "key.pem", "no private key in PEM form"},
		{"no PEM", []byte("\x30\x82"), a.key, "cert.pem", "no certificate in PEM form"},
		{"a key that is no PEM", a.cert, []byte("\x30\x82"), "key.pem", "no private key in PEM form"},
		{"swapped", a.key, a.cert, "cert.pem", "swapped"},
		{"a certificate twice", a.cert, a.cert, "key.pem", "no private key in PEM form"},
		{"a request", block("CERTIFICATE REQUEST", []byte("x")), a.key, "cert.pem", "no certificate in PEM form"},
		{"garbage in PEM", block("CERTIFICATE", []byte("x")), a.key, "cert.pem", "the first certificate"},
		{"a key of garbage", a.cert, block("PRIVATE KEY", []byte("x")), "key.pem", "failed to parse private key"},
		{"an encrypted key", a.cert, block("ENCRYPTED PRIVATE KEY", []byte("x")), "key.pem", "is encrypted"},
		{"an encrypted key of old", a.cert, oldEncrypted, "key.pem", "is encrypted"},
		{"another's key", a.cert, b.key, "key.pem", "does not match"},
		{"another kind of key", a.cert, ec.key, "key.pem", "does not match"},
		{"the chain upside down", append(bytes.Clone(b.cert), a.cert...), a.key, "cert.pem", "the server's own"},
	} {
		f := newFiles(t)
		if tt.cert != nil {
			write(t, f.cert, tt.cert)
		}
		if tt.key != nil {
			write(t, f.key, tt.key)
		}
		_, err := Load(f.cert, f.key, new(logBuffer).logger())
		if err == nil || !strings.Contains(err.Error(), tt.file) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v; want %s and %q in it", tt.name, err, tt.file, tt.want)
		}
	}
}

func TestLoadTakesEveryFormOfAPair(t *testing.T) {
	a, b := newPair(t, "a"), newPair(t, "b")
	ec := newECDSAPair(t, "a")
	der, _ := pem.Decode(ec.key)
	ecKey, err := x509.ParsePKCS8PrivateKey(der.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ecKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	both := append(bytes.Clone(a.key), a.cert...)
	for _, tt := range []struct {
		name      string
		cert, key []byte
		chain     int
	}{
		{"PKCS 8", a.cert, a.key, 1},
		{"SEC 1", ec.cert, block("EC PRIVATE KEY", sec1), 1},
		{"parameters before the key", ec.cert, append(block("EC PARAMETERS", []byte("x")), ec.key...), 1},
		{"a chain", append(bytes.Clone(a.cert), b.cert...), a.key, 2},
		{"text around", append([]byte("subject=a\n"), a.cert...), a.key, 1},
		{"both in one", both, both, 1},
	} {
		f := newFiles(t)
		f.write(pair{tt.cert, tt.key})
		var log logBuffer
		r := f.load(&log)
		cert, err := r.GetCertificate(&tls.ClientHelloInfo{})
		if err != nil || len(cert.Certificate) != tt.chain || name(t, r) != "a" {
			t.Errorf("%s: %d certificates of %s, %v; want %d", tt.name, len(cert.Certificate), name(t, r), err, tt.chain)
		}
		log.wants(t, "WARN", 0)
	}
}

func TestTheDatesAreKnownWhateverTheRuntimeIsToldToLeaveOut(t *testing.T) {
	t.Setenv("GODEBUG", "x509keypairleaf=0")
	f := newFiles(t)
	f.write(newPair(t, "a"))
	wantName(t, f.load(new(logBuffer)), "a")
}

func TestACertificateOutOfDateIsServedWithAWarning(t *testing.T) {
	day := start.AddDate(0, 0, 1)
	good := newPair(t, "good")
	for name, tt := range map[string]struct {
		from, until time.Time
		bad, fine   time.Time
	}{
		"expired":       {start, day, day.Add(time.Nanosecond), day},
		"not yet valid": {day, day.AddDate(1, 0, 0), day.Add(-time.Nanosecond), day},
	} {
		f := newFiles(t)
		pair := newPairFor(t, name, tt.from, tt.until)
		f.write(pair)
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(time.Until(tt.fine))
			var log logBuffer
			f.load(&log)
			log.wants(t, "WARN", 0)
		})
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(time.Until(tt.bad.Add(-2 * interval)))
			f.write(good)
			var log logBuffer
			r := f.load(&log)
			f.write(pair)
			time.Sleep(2 * interval)
			wantName(t, r, name)
			log.wants(t, "WARN", 1)
			f.load(&log)
			log.wants(t, "WARN", 2)
		})
	}
}

func TestHandshakesDuringChangesAlwaysGetAWholePair(t *testing.T) {
	f := newFiles(t)
	pairs := []pair{newPair(t, "a"), newPair(t, "b")}
	f.write(pairs[0])
	synctest.Test(t, func(t *testing.T) {
		r := f.load(new(logBuffer))
		var all sync.WaitGroup
		seen := make([]map[string]bool, 8)
		for i := range seen {
			seen[i] = make(map[string]bool)
			all.Go(func() {
				for range 60 {
					cert, err := r.GetCertificate(nil)
					if err != nil || !cert.PrivateKey.(ed25519.PrivateKey).Public().(ed25519.PublicKey).Equal(cert.Leaf.PublicKey) {
						t.Errorf("a certificate without its key, or %v", err)
						return
					}
					seen[i][cert.Leaf.Subject.CommonName] = true
					time.Sleep(interval / 4)
				}
			})
		}
		for i := range 5 {
			next := pairs[(i+1)%2]
			write(t, f.cert, next.cert)
			time.Sleep(interval)
			write(t, f.key, next.key)
			// Looks and writes come at the same instants, in any order. This
			// pair is whole at one of them where nothing is written.
			time.Sleep(2 * interval)
		}
		all.Wait()
		for i := range seen {
			if len(seen[i]) != 2 {
				t.Errorf("handshaker %d has seen %v, want both", i, seen[i])
			}
		}
	})
}

func TestAHandshakeDoesNotWaitForOneThatReads(t *testing.T) {
	f := newFiles(t)
	f.write(newPair(t, "a"))
	b := newPair(t, "b")
	synctest.Test(t, func(t *testing.T) {
		r := f.load(new(logBuffer))
		f.write(b)
		time.Sleep(interval)
		r.reading.Lock()
		wantName(t, r, "a")
		r.reading.Unlock()
		wantName(t, r, "b")
	})
}

func BenchmarkGetCertificate(b *testing.B) {
	f := newFiles(b)
	f.write(newPair(b, "a"))
	r := f.load(new(logBuffer))
	b.Run("between looks", func(b *testing.B) {
		for b.Loop() {
			r.GetCertificate(nil)
		}
	})
	b.Run("look", func(b *testing.B) {
		for b.Loop() {
			r.looked.Store(-int64(interval))
			r.GetCertificate(nil)
		}
	})
}
