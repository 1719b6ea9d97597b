package main

import (
	"bytes"
	"encoding/base64"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"gateway/internal/address"
	"gateway/internal/handshake"
)

const (
	goldenSecret = "p0S8rX680*48"
	goldenLine   = "U2FsdGVkX19KIJ9OQJKT/yHGMrS+5SsBAAjetomptQ0="
	goldenAddr   = "127.0.0.1:62863"
)

var allKDFs = []kdf{kdfMD5, kdfSHA256, kdfPBKDF2}

// keysOf returns a keyring for the secrets.
func keysOf(kdfs []kdf, secrets ...string) *keyring {
	var list [][]byte
	for _, s := range secrets {
		list = append(list, []byte(s))
	}
	return newKeyring(list, kdfs)
}

func parseAddr(t testing.TB, s string) address.Address {
	t.Helper()
	addr, err := address.Parse(s)
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return addr
}

func parseRoute(t testing.TB, s string) address.Route {
	t.Helper()
	r, err := address.ParseRoute(s)
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return r
}

// mustOpen opens a line and compares the address in it.
func mustOpen(t testing.TB, k *keyring, line, want string) {
	t.Helper()
	addr, err := k.open(t.Context(), []byte(line))
	if err != nil || addr.String() != want {
		t.Errorf("open(%q) = %v, %v; want %s", line, addr, err, want)
	}
}

// mustNotOpen checks that a line does not open, and the reason.
func mustNotOpen(t testing.TB, k *keyring, line string, want *refusal) {
	t.Helper()
	addr, err := k.open(t.Context(), []byte(line))
	if err != want || addr.String() != "" {
		t.Errorf("open(%q) = %v, %v; want %v", line, addr, err, want)
	}
}

func TestTheGoldenLineOpens(t *testing.T) {
	mustOpen(t, keysOf([]kdf{kdfMD5, kdfSHA256}, goldenSecret), goldenLine, goldenAddr)
	mustOpen(t, keysOf([]kdf{kdfSHA256, kdfMD5}, goldenSecret), goldenLine, goldenAddr)
	mustOpen(t, keysOf([]kdf{kdfMD5}, goldenSecret), goldenLine, goldenAddr)
	mustNotOpen(t, keysOf([]kdf{kdfSHA256}, goldenSecret), goldenLine, errBadPadding)
	mustNotOpen(t, keysOf([]kdf{kdfMD5, kdfSHA256}, goldenSecret+" "), goldenLine, errBadPadding)
}

// variedAddresses has every form of the grammar, and texts on both sides of
// block boundaries.
func variedAddresses() []string {
	list := []string{goldenAddr, "a:1", "[2001:db8::7]:443", "Game-7.internal_net:4000"}
	for _, n := range []int{15, 16, 17, 31, 32, 33, 47, 48} {
		list = append(list, strings.Repeat("h", n-len(":80"))+":80")
	}
	name := strings.Repeat(strings.Repeat("n", 62)+".", 4) // 252 bytes, dot included
	return append(list, name+"x:65535")                    // 259 bytes, the longest
}

// awkwardSecrets would break a careless derivation: by length, or by being
// taken for text.
var awkwardSecrets = []string{"x", goldenSecret, "密码 with spaces", strings.Repeat("long", 100)}

// A sha256 line is tried with md5 first, and once in about 256 the garbage has
// a valid padding.
func TestNoneOf100000SHA256LinesGivesAWrongAddress(t *testing.T) {
	t.Parallel()
	total := 100_000
	if testing.Short() {
		total = 10_000
	}
	seals := keysOf([]kdf{kdfSHA256}, testSecret)
	opens := keysOf([]kdf{kdfMD5, kdfSHA256}, testSecret)
	var tempting atomic.Int64 // lines whose padding looks right to md5
	var workers sync.WaitGroup
	for w := range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for i := w; i < total; i += runtime.GOMAXPROCS(0) {
				ip := netip.AddrFrom4([4]byte{byte(1 + rand.N(255)), byte(rand.N(256)), byte(rand.N(256)), byte(rand.N(256))})
				want := address.Address{Host: ip.String(), Port: uint16(1 + rand.N(65535)), IP: ip}
				line := seals.seal(want)
				if got, err := opens.open(t.Context(), []byte(line)); got.String() != want.String() || err != nil {
					t.Errorf("%s opens as %v, %v; want %v", line, got, err, want)
					return
				}
				raw, _ := base64.StdEncoding.DecodeString(line)
				md5Key := kdfMD5.derive([]byte(testSecret), raw[8:16])
				if _, ok := referenceUnpad(referenceDecrypt(md5Key[:], raw[16:])); ok {
					tempting.Add(1)
				}
			}
		})
	}
	workers.Wait()
	if !t.Failed() && tempting.Load() == 0 {
		t.Errorf("none of %d lines was a temptation: this test tested nothing", total)
	}
}

func TestAllSecretsAndDerivationsOpenAndTheFirstSeals(t *testing.T) {
	secrets := []string{"the first secret", "the second", "the third"}
	all := keysOf(allKDFs, secrets...)
	for _, k := range allKDFs {
		for _, secret := range secrets {
			mustOpen(t, all, keysOf([]kdf{k}, secret).seal(parseAddr(t, goldenAddr)), goldenAddr)
		}
	}
	for _, k := range allKDFs {
		line := keysOf([]kdf{k, kdfMD5}, secrets...).seal(parseAddr(t, goldenAddr))
		if got, reason := referenceOpen(line, []kdf{k}, secrets[0]); got != goldenAddr {
			t.Errorf("the first of -kdf=%s,… and the first secret do not open %q: %q %v", k, line, got, reason)
		}
	}
	mustNotOpen(t, all, referenceEncrypt(kdfMD5, "a stranger's", []byte("saltsalt"), pad(goldenAddr)), errBadPadding)
}

func TestEverySealedLineHasAFreshSalt(t *testing.T) {
	k := keysOf([]kdf{kdfMD5}, testSecret)
	seen := map[string]bool{}
	for range 1000 {
		line := k.seal(parseAddr(t, goldenAddr))
		if len(line) != len(goldenLine) || !strings.HasPrefix(line, "U2FsdGVkX1") {
			t.Fatalf("not the form of the golden line: %q", line)
		}
		if salt := line[:20]; seen[salt] {
			t.Fatalf("salt used twice: %q", line)
		} else {
			seen[salt] = true
		}
	}
}

func TestALineThatDoesNotOpenHasItsReason(t *testing.T) {
	golden, err := base64.StdEncoding.DecodeString(goldenLine)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString
	flip := func(i int) string {
		b := bytes.Clone(golden)
		b[i] ^= 1
		return b64(b)
	}
	salt := []byte("\x00salt\r\n\xff")
	// raw seals plaintext as it is, its own padding included.
	raw := func(plain string) string { return referenceEncrypt(kdfSHA256, goldenSecret, salt, []byte(plain)) }
	seals := func(plain string) string { return raw(string(pad(plain))) }

	k := keysOf([]kdf{kdfMD5, kdfSHA256}, goldenSecret)
	mustOpen(t, k, seals("h:65"), "h:65") // so a refusal below is for what it says
	for _, tt := range []struct {
		name, line string
		reason     *refusal
	}{
		{"a carriage return inside", goldenLine[:20] + "\r" + goldenLine[20:], errBadBase64},
		{"a line feed inside", goldenLine[:20] + "\n" + goldenLine[20:], errBadBase64},
		{"a line feed first", "\n" + goldenLine, errBadBase64},
		{"a second carriage return at the end", goldenLine + "\r", errBadBase64},
		{"a line feed at the end", goldenLine + "\n", errBadBase64},
		{"only a carriage return", "\r", errBadBase64},
		{"a space first", " " + goldenLine, errBadBase64},
		{"a space at the end", goldenLine + " ", errBadBase64},
		{"a NUL at the end", goldenLine + "\x00", errBadBase64},
		{"the url-safe alphabet", strings.NewReplacer("+", "-", "/", "_").Replace(goldenLine), errBadBase64},
		{"no base64 padding", strings.TrimSuffix(goldenLine, "="), errBadBase64},
		{"too much base64 padding", goldenLine + "=", errBadBase64},
		{"unused bits that are set", strings.TrimSuffix(goldenLine, "0=") + "1=", errBadBase64},
		{"two lines in one", goldenLine + goldenLine, errBadBase64},
		{"cut by a byte", goldenLine[:len(goldenLine)-1], errBadBase64},
		{"not base64", "GET / HTTP/1.1", errBadBase64},
		{"the address itself", goldenAddr, errBadBase64},
		{"raw bytes", string(golden), errBadBase64},

		{"nothing", "", errBadFormat},
		{"a zero byte", "AA==", errBadFormat},
		{"the magic alone", b64(golden[:8]), errBadFormat},
		{"no ciphertext", b64(golden[:16]), errBadFormat},
		{"half a block", b64(golden[:24]), errBadFormat},
		{"all but a byte", b64(golden[:31]), errBadFormat},
		{"a byte too many", b64(append(bytes.Clone(golden), 0)), errBadFormat},
		{"no magic", b64(golden[8:]), errBadFormat},
		{"wrong magic", flip(0), errBadFormat},
		{"wrong end of the magic", flip(7), errBadFormat},
		{"whole blocks of zeros", b64(make([]byte, 48)), errBadFormat},

		{"another salt", flip(8), errBadPadding},
		{"another ciphertext", flip(16), errBadPadding},
		{"another end", flip(31), errBadPadding},
		{"an extra block", b64(append(bytes.Clone(golden), make([]byte, 16)...)), errBadPadding},
		{"another secret", referenceEncrypt(kdfMD5, "another", salt, pad(goldenAddr)), errBadPadding},
		{"pbkdf2, not listed", referenceEncrypt(kdfPBKDF2, goldenSecret, salt, pad(goldenAddr)), errBadPadding},
		{"an address without padding", raw("127.0.0.10:65535"), errBadPadding},
		{"padding of zeros", raw("127.0.0.1:6553\x00\x00"), errBadPadding},
		{"padding longer than a block", raw(strings.Repeat("\x11", 32)), errBadPadding},
		{"one byte of padding wrong", raw("127.0.0.1:80\x04\x03\x04\x04"), errBadPadding},

		{"no text", seals(""), errBadAddress},
		{"a leading zero in the port", seals("h:065"), errBadAddress},
		{"a sign in the port", seals("h:+1"), errBadAddress},
		{"port zero", seals("h:0"), errBadAddress},
		{"a port too large", seals("h:65536"), errBadAddress},
		{"a port by name", seals("h:http"), errBadAddress},
		{"no port", seals("127.0.0.1"), errBadAddress},
		{"no host", seals(":80"), errBadAddress},
		{"a short IPv4 address", seals("127.1:80"), errBadAddress},
		{"a number for a host", seals("2130706433:80"), errBadAddress},
		{"IPv6 without brackets", seals("::1:80"), errBadAddress},
		{"a zone", seals("[fe80::1%eth0]:80"), errBadAddress},
		{"a NUL in front", seals("\x00127.0.0.1:80"), errBadAddress},
		{"a NUL in the host", seals("127.0.0.1\x00:80"), errBadAddress},
		{"a NUL at the end", seals("127.0.0.1:80\x00"), errBadAddress},
		{"a line feed at the end", seals("127.0.0.1:80\n"), errBadAddress},
		{"a carriage return at the end", seals("127.0.0.1:80\r\n"), errBadAddress},
		{"a space in front", seals(" 127.0.0.1:80"), errBadAddress},
		{"two addresses without a comma", seals("127.0.0.1:80 127.0.0.1:81"), errBadAddress},
		{"garbage in front", seals("\x8f\x02\xee\x91\x0c\x7f\xd3\x1b\x8f\x02\xee\x91\x0c\x7f\xd3\x1b.evil.test:80"), errBadAddress},
		{"padded twice", seals(string(pad("127.0.0.1:80"))), errBadAddress},
		{"a host name too long", seals(strings.Repeat("a.", 127) + "a:1"), errBadAddress},
	} {
		t.Run(tt.name, func(t *testing.T) { mustNotOpen(t, k, tt.line, tt.reason) })
	}
}

func FuzzSealedAddressesOpen(f *testing.F) {
	for i, addr := range variedAddresses() {
		f.Add(addr, awkwardSecrets[i%len(awkwardSecrets)])
	}
	limit := defaultConfig().HandshakeMax
	f.Add(strings.Repeat("h", 63)+":1"+strings.Repeat(","+strings.Repeat("h", 63)+":1", 12), goldenSecret) // over it
	f.Fuzz(func(t *testing.T, text, secret string) {
		want, err := address.ParseRoute(text)
		if err != nil || secret == "" {
			t.Skip()
		}
		for _, k := range []kdf{kdfMD5, kdfSHA256} {
			sealed := keysOf([]kdf{k}, secret).seal(want)
			if len(sealed) > limit { // many targets with long names
				t.Skip()
			}
			line, rest, err := handshake.Line.Parse([]byte(sealed+"\nrest"), limit)
			if err != nil || string(rest) != "rest" {
				t.Fatalf("a sealed line is no request: %q, %v", sealed, err)
			}
			for _, keys := range []*keyring{
				keysOf([]kdf{kdfMD5, kdfSHA256}, secret),
				keysOf([]kdf{kdfSHA256, kdfMD5}, "another secret", secret),
			} {
				if got, err := keys.open(t.Context(), line); got.String() != want.String() || err != nil {
					t.Fatalf("%q opens as %v, %v; want %v", sealed, got, err, want)
				}
			}
			if got, _ := referenceOpen(sealed, []kdf{k}, secret); got != text {
				t.Fatalf("%q is %q, want %q", sealed, got, text)
			}
		}
	})
}
