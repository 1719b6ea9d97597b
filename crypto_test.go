package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"gateway/internal/address"
	"gateway/internal/handshake"
	"gateway/internal/harness"
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

// The padding oracle: whoever has captured a line may try what it says.

// An oracle tells whether a forged line failed in another way than a line with
// bad padding does.
type oracle func(line string) bool

// intermediate asks an oracle for what AES makes of a block of ciphertext
// before CBC mixes in the block in front of it (Vaudenay 2002). salt is that of
// the captured line, so that the gateway uses the same key.
func (ask oracle) intermediate(salt, block []byte) (d []byte, ok bool) {
	d = make([]byte, 16)
	for pos := 15; pos >= 0; pos-- {
		forged := make([]byte, 16) // stands in front of the block
		for i := pos + 1; i < 16; i++ {
			forged[i] = d[i] ^ byte(16-pos)
		}
		found := false
		for guess := 0; guess < 256 && !found; guess++ {
			forged[pos] = byte(guess)
			found = ask(toLine(salt, forged, block))
			if found && pos == 15 { // not by luck a longer padding?
				forged[14] ^= 1
				found = ask(toLine(salt, forged, block))
				forged[14] ^= 1
			}
		}
		if !found {
			return nil, false
		}
		d[pos] = forged[pos] ^ byte(16-pos)
	}
	return d, true
}

// recoverText attacks a captured line and returns as much of its plaintext as
// can be had, padding included: all but the first 16 bytes, whose IV stays
// unknown.
func (ask oracle) recoverText(line string) string {
	raw, err := base64.StdEncoding.DecodeString(line)
	if err != nil {
		panic(err)
	}
	var plain []byte
	for at := 32; at < len(raw); at += 16 {
		if d, ok := ask.intermediate(raw[8:16], raw[at:at+16]); ok {
			plain = append(plain, xor(d, raw[at-16:at])...)
		}
	}
	return string(plain)
}

// forge makes a line that opens to 16 bytes of garbage and then the text, of at
// most 15 bytes, from what an attack learned about a block.
func forge(salt, block, intermediate []byte, text string) string {
	return toLine(salt, xor(intermediate, pad(text)), block)
}

func xor(a, b []byte) []byte {
	out := make([]byte, len(a))
	for i := range out {
		out[i] = a[i] ^ b[i]
	}
	return out
}

// capturedLines are what an attacker has seen, with addresses of three blocks
// and fixed salts, so that each run is the same.
func capturedLines() (addr string, byKDF map[kdf]string) {
	addr = "lobby-17.game.internal.example:40123"
	return addr, map[kdf]string{
		kdfMD5:    referenceEncrypt(kdfMD5, testSecret, []byte("captured"), pad(addr)),
		kdfSHA256: referenceEncrypt(kdfSHA256, testSecret, []byte("snatched"), pad(addr)),
	}
}

// The attack has to work where it can, or its failure proves nothing.
func TestAPaddingOracleGivesACapturedAddressAway(t *testing.T) {
	addr, captured := capturedLines()
	for kdf, line := range captured {
		queries := 0
		// Like the original: 401 for bad padding, and 502 when it could not
		// dial what came out.
		ask := oracle(func(line string) bool {
			queries++
			raw, _ := base64.StdEncoding.DecodeString(line)
			_, ok := referenceUnpad(referenceDecrypt(referenceKey(kdf, testSecret, raw[8:16]), raw[16:]))
			return ok
		})
		if got, want := ask.recoverText(line), string(pad(addr))[16:]; got != want {
			t.Errorf("%s: recovered %q, want %q", kdf, got, want)
		}
		raw, _ := base64.StdEncoding.DecodeString(line)
		d, ok := ask.intermediate(raw[8:16], raw[32:48])
		if !ok {
			t.Fatalf("%s: no intermediate", kdf)
		}
		forged, _ := base64.StdEncoding.DecodeString(forge(raw[8:16], raw[32:48], d, ".evil.test:80"))
		text, ok := referenceUnpad(referenceDecrypt(referenceKey(kdf, testSecret, raw[8:16]), forged[16:]))
		if !ok || len(text) != 16+13 || text[16:] != ".evil.test:80" {
			t.Errorf("%s: forged %q", kdf, text)
		}
		t.Logf("%s: %d queries", kdf, queries)
	}
}

func TestThePaddingOracleAttackLearnsNothingFromAGateway(t *testing.T) {
	t.Parallel()
	var dialed atomic.Int64
	backend := startBackend(t, func(*net.TCPConn) { dialed.Add(1) })
	g := startGateway(t, func(g *Gateway) {
		g.dialer.resolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
			t.Error("a name was looked up")
			return nil, errors.New("no lookups here")
		}}
	})
	queries := 0
	ask := oracle(func(line string) bool {
		queries++
		c := connect(t, g.addr)
		defer c.Close()
		send(t, c, line+"\n")
		answer, err := io.ReadAll(c)
		if string(answer) != "401" || err != nil {
			t.Errorf("%s was answered %q, %v", line, answer, err)
			return true
		}
		return false
	})

	_, captured := capturedLines()
	for kdf, line := range captured {
		if got := ask.recoverText(line); got != "" {
			t.Errorf("%s: recovered %q", kdf, got)
		}
		// Suppose the attacker knew a block all the same: what can be forged
		// begins with garbage and does not open either.
		raw, _ := base64.StdEncoding.DecodeString(line)
		key := referenceKey(kdf, testSecret, raw[8:16])
		d := xor(referenceDecrypt(key, raw[16:])[16:32], raw[16:32])
		for _, text := range []string{":80", "a:80", ".evil.test:80", backend[strings.Index(backend, "."):]} {
			ask(forge(raw[8:16], raw[32:48], d, text))
		}
	}

	// Among the queries were some with good padding, and only the log knows.
	g.log.waitLine(t, "refused", queries)
	reasons := map[any]int{}
	for _, line := range g.log.lines("refused") {
		reasons[line["reason"]]++
		if line["backend"] != nil || harness.Status(line) != "401" {
			t.Errorf("refused: %v", line)
		}
	}
	if reasons["bad_padding"] == 0 || reasons["bad_address"] < 10 || len(reasons) != 2 {
		t.Errorf("%d queries met %v: this attack attacked nothing", queries, reasons)
	}
	if n := dialed.Load(); n != 0 {
		t.Errorf("the backend was dialed %d times", n)
	}
	expectAll(t, openTunnel(t, g.addr, backend), "") // it could have been
	eventually(t, "the backend has a client", func() bool { return dialed.Load() == 1 })
}
