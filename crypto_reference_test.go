package main

import (
	"bytes"
	"crypto/aes"
	"crypto/md5"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// A reference, which opens sealed lines without a line of crypto.go, in other
// ways: the hash as a stream, CBC by hand, padding and base64 by comparing with
// what they should have been, the grammar of routes by regular expressions.

// referenceKey returns the key and the IV, 48 bytes.
func referenceKey(k kdf, secret string, salt []byte) []byte {
	var h hash.Hash
	switch k {
	case kdfMD5:
		h = md5.New()
	case kdfSHA256:
		h = sha256.New()
	default:
		key, err := pbkdf2.Key(sha256.New, secret, salt, 10000, 48)
		if err != nil {
			panic(err)
		}
		return key
	}
	var all []byte
	for last := ""; len(all) < 48; all = append(all, last...) {
		h.Reset()
		io.WriteString(h, last+secret+string(salt))
		last = string(h.Sum(nil))
	}
	return all[:48]
}

// referenceDecrypt undoes CBC; the padding stays.
func referenceDecrypt(keyIV, sealed []byte) []byte {
	block, err := aes.NewCipher(keyIV[:32])
	if err != nil {
		panic(err)
	}
	chain := append(bytes.Clone(keyIV[32:48]), sealed...)
	plain := make([]byte, len(sealed))
	for i := range plain {
		if i%16 == 0 {
			block.Decrypt(plain[i:], sealed[i:])
		}
		plain[i] ^= chain[i]
	}
	return plain
}

// referenceEncrypt makes a sealed line of any whole blocks of plaintext.
func referenceEncrypt(k kdf, secret string, salt, plain []byte) string {
	keyIV := referenceKey(k, secret, salt)
	block, err := aes.NewCipher(keyIV[:32])
	if err != nil {
		panic(err)
	}
	last, sealed := keyIV[32:], []byte(nil)
	for b := plain; len(b) > 0; b = b[16:] {
		out := make([]byte, 16)
		for i := range out {
			out[i] = b[i] ^ last[i]
		}
		block.Encrypt(out, out)
		last, sealed = out, append(sealed, out...)
	}
	return toLine(salt, sealed)
}

// toLine joins salt and ciphertext.
func toLine(parts ...[]byte) string {
	return base64.StdEncoding.EncodeToString(append([]byte("Salted__"), bytes.Join(parts, nil)...))
}

// pad adds PKCS#7 padding.
func pad(plain string) []byte {
	n := 16 - len(plain)%16
	return []byte(plain + strings.Repeat(string(rune(n)), n))
}

// referenceUnpad removes PKCS#7 padding.
func referenceUnpad(plain []byte) (string, bool) {
	last := plain[len(plain)-1]
	if last < 1 || last > 16 {
		return "", false
	}
	text, ok := bytes.CutSuffix(plain, bytes.Repeat([]byte{last}, int(last)))
	return string(text), ok
}

var (
	targetForm  = regexp.MustCompile(`^(?:(tcp|http|kcp)://)?(?:\[([0-9a-fA-F:.]+)\]|(` + nameForm + `)):([1-9][0-9]{0,4})(?:\*([1-9][0-9]{0,2}))?\z`)
	serviceForm = regexp.MustCompile(`^srv:(` + nameForm + `)\z`)
	numericLast = regexp.MustCompile(`(?:^|\.)(?:[0-9]+|0[xX][0-9a-fA-F]*)\z`)
)

const nameForm = `[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*`

// referenceIsTarget tells whether a text is an address, with or without a
// weight, and whether it is one of HTTP.
func referenceIsTarget(s string) (http, ok bool) {
	m := targetForm.FindStringSubmatch(s)
	if m == nil {
		return false, false
	}
	scheme, ipv6, host := m[1], m[2], m[3]
	port, _ := strconv.Atoi(m[4])
	weight, _ := strconv.Atoi(m[5]) // 0 if none is written
	if port > 65535 || weight > 256 {
		return false, false
	}
	if ipv6 != "" {
		ip, err := netip.ParseAddr(ipv6)
		return scheme == "http", err == nil && ip.Is6()
	}
	ip := net.ParseIP(host)
	return scheme == "http", len(host) <= 253 && (!numericLast.MatchString(host) || ip != nil && ip.String() == host)
}

// referenceIsRoute tells whether a text is in the grammar of package address.
func referenceIsRoute(s string) bool {
	if m := serviceForm.FindStringSubmatch(s); m != nil && len(m[1]) <= 253 && !numericLast.MatchString(m[1]) {
		return true
	}
	targets, http := strings.Split(s, ","), 0
	for _, target := range targets {
		isHTTP, ok := referenceIsTarget(target)
		if !ok {
			return false
		}
		if isHTTP {
			http++
		}
	}
	return len(targets) <= 16 && (http == 0 || http == len(targets))
}

// referenceOpen returns the route in a line, or "" and the reason.
func referenceOpen(line string, kdfs []kdf, secrets ...string) (string, *refusal) {
	raw, err := base64.StdEncoding.DecodeString(line)
	if err != nil || base64.StdEncoding.EncodeToString(raw) != line {
		return "", errBadBase64
	}
	magic, rest := string(raw[:min(8, len(raw))]), raw[min(16, len(raw)):]
	if magic != "Salted__" || len(rest) == 0 || len(rest)%16 != 0 {
		return "", errBadFormat
	}
	reason := errBadPadding
	for _, k := range kdfs {
		for _, secret := range secrets {
			text, ok := referenceUnpad(referenceDecrypt(referenceKey(k, secret, raw[8:16]), rest))
			if ok && referenceIsRoute(text) {
				return text, nil
			}
			if ok {
				reason = errBadAddress
			}
		}
	}
	return "", reason
}

func TestEveryDerivationAgreesWithTheReference(t *testing.T) {
	for _, k := range allKDFs {
		for _, secret := range awkwardSecrets {
			salt := []byte("saltsalt")
			ki := k.derive([]byte(secret), salt)
			if want := referenceKey(k, secret, salt); !bytes.Equal(ki[:], want) {
				t.Errorf("%s of %.20q: %x, want %x", k, secret, ki, want)
			}
		}
	}
}

func TestUnpadAgreesWithTheReference(t *testing.T) {
	check := func(plain []byte) {
		want, wantOK := referenceUnpad(plain)
		if !wantOK {
			want = string(plain)
		}
		if n, ok := unpad(plain); n != len(want) || ok != wantOK {
			t.Fatalf("unpad(% x) = %d, %v; want %d, %v", plain, n, ok, len(want), wantOK)
		}
	}
	// All ends of two bytes.
	plain := make([]byte, 32)
	for end := range 1 << 16 {
		plain[30], plain[31] = byte(end>>8), byte(end)
		check(plain)
		check(plain[16:])
	}
	// Every last byte that could be a padding or nearly is, in a tail that is
	// right but for one byte.
	for _, last := range []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 31, 32, 33, 0x7f, 0x80, 0x81, 0xf0, 0xff} {
		for i := range 31 {
			for b := range 256 {
				copy(plain, bytes.Repeat([]byte{last}, 32))
				plain[i] = byte(b)
				check(plain)
			}
		}
	}
}

// routesAndNearly are routes, each beside what is none by one byte or so.
var routesAndNearly = []string{
	"127.0.0.1:65*100", "127.0.0.1:65*256", "127.0.0.1:65*257", "127.0.0.1:65*0", "127.0.0.1:65*01", "127.0.0.1:65*", "*100",
	"a:1,b:2", "a:1*2,[::1]:2*3,127.0.0.1:3", "a:1,", ",a:1", "a:1,,b:2", "a:1*2*3", "a:1, b:2",
	"tcp://a:1", "kcp://[::1]:1*5", "http://a:1,http://b:2", "http://a:1,b:2", "a:1,http://b:2", "tcp://a:1,kcp://b:2",
	"https://a:1", "HTTP://a:1", "http://a:1/", "http://http://a:1", "://a:1",
	"srv:_game._tcp.example.com", "srv:80", "srv:80*3,srv:81", "srv:a", "srv:a.1", "srv:127.0.0.1", "srv:", "srv:a*2", "srv:a,b:1", "srv:a:1", "http://srv:a", "b:1,srv:a",
	"a:1" + strings.Repeat(",a:1", 15), "a:1" + strings.Repeat(",a:1", 16),
}

// FuzzOpenAgreesWithAnIndependentDecryption opens any line, and the line that
// holds any plaintext, with right and with any padding.
func FuzzOpenAgreesWithAnIndependentDecryption(f *testing.F) {
	f.Add(goldenLine, goldenAddr)
	f.Add(goldenLine+"\r", "h:065")
	f.Add(strings.TrimSuffix(goldenLine, "="), "127.0.0.1:65535\x01")
	f.Add("", "")
	f.Add("U2FsdGVkX18=", string(pad("[::1]:80")))
	f.Add(goldenLine+"=", strings.Repeat("a", 64)+":1")
	f.Add(goldenLine[:24], strings.Repeat("a.", 126)+"aa:1")
	for _, text := range routesAndNearly {
		f.Add(goldenLine, text)
	}
	for _, addr := range variedAddresses() {
		f.Add(keysOf([]kdf{kdfSHA256}, testSecret).seal(parseAddr(f, addr)), addr)
		f.Add(keysOf([]kdf{kdfMD5}, goldenSecret).seal(parseAddr(f, addr)), string(pad(addr)))
	}
	kdfs, secrets := []kdf{kdfMD5, kdfSHA256}, []string{goldenSecret, testSecret}
	keys := keysOf(kdfs, secrets...)
	f.Fuzz(func(t *testing.T, line, plain string) {
		whole := []byte(plain)[:len(plain)/16*16]
		for _, line := range []string{
			line,
			referenceEncrypt(kdfMD5, testSecret, []byte("fuzzfuzz"), pad(plain)),
			referenceEncrypt(kdfSHA256, goldenSecret, []byte("fuzzfuzz"), whole),
		} {
			want, wantErr := referenceOpen(line, kdfs, secrets...)
			addr, err := keys.open(t.Context(), []byte(line))
			switch {
			case wantErr != nil && (err != wantErr || addr.String() != ""):
				t.Errorf("open(%q) = %v, %v; want %v", line, addr, err, wantErr)
			case wantErr == nil && (err != nil || addr.String() != want):
				t.Errorf("open(%q) = %v, %v; want %s", line, addr, err, want)
			}
		}
	})
}

// OpenSSL opens what is sealed here, and the other way round.

// openssl runs `openssl enc` and returns what it writes.
func openssl(t testing.TB, input string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("openssl", append([]string{"enc", "-aes-256-cbc", "-a", "-A"}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("openssl %q: %w: %s", cmd.Args, err, stderr.String())
	}
	return string(out), nil
}

func needOpenSSL(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("CI needs the openssl binary: what opens there must open here")
	}
	t.Skip("no openssl binary: install it to compare with the original of the format")
}

// opensslDigest is how openssl names a derivation.
var opensslDigest = map[kdf][]string{
	kdfMD5:    {"-md", "md5"},
	kdfSHA256: {"-md", "sha256"},
	kdfPBKDF2: {"-pbkdf2", "-md", "sha256"},
}

func TestOpenSSLOpensWhatIsSealedHere(t *testing.T) {
	t.Parallel()
	needOpenSSL(t)
	for _, k := range allKDFs {
		for i, addr := range variedAddresses() {
			secret := awkwardSecrets[i%len(awkwardSecrets)]
			line := keysOf([]kdf{k}, secret).seal(parseAddr(t, addr))
			got, err := openssl(t, line, append(opensslDigest[k], "-d", "-k", secret)...)
			if got != addr || err != nil {
				t.Errorf("%s: openssl opens %q as %q, want %q (%v)", k, line, got, addr, err)
			}
		}
	}
}

func TestWhatOpenSSLSealsOpensHere(t *testing.T) {
	t.Parallel()
	needOpenSSL(t)
	for _, tt := range []struct {
		name string
		args []string
		kdfs []kdf
	}{
		{"its default digest", nil, []kdf{kdfMD5, kdfSHA256}},
		{"-md md5", opensslDigest[kdfMD5], []kdf{kdfMD5, kdfSHA256}},
		{"-md sha256", opensslDigest[kdfSHA256], []kdf{kdfMD5, kdfSHA256}},
		{"-pbkdf2", []string{"-pbkdf2"}, allKDFs},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for i, addr := range variedAddresses() {
				secret := awkwardSecrets[i%len(awkwardSecrets)]
				line, err := openssl(t, addr, append(tt.args, "-salt", "-k", secret)...)
				if err != nil {
					t.Fatal(err)
				}
				mustOpen(t, keysOf(tt.kdfs, secret), line, addr)
			}
		})
	}
}
