package protocols

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gateway/internal/harness"
)

// Tokens as clients bring them to the gateway. What they are refused for one by
// one stands in internal/token; how the operator makes them in
// token_usage_test.go.

func TestATokenOpensInEveryForm(t *testing.T) {
	t.Parallel()
	keys := writeKeys(t, generateKeys(t))
	echoes, pages := harness.StartEcho(t), startPages(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, way, "-token-keys="+keys)
		for _, b := range bearers {
			t.Run(b.name, func(t *testing.T) {
				to := echoes
				if strings.HasPrefix(b.name, "HTTP") {
					to = pages
				}
				token := sealToken(t, to, "-ttl=10m", "-token-keys="+keys)
				if len(token) > 255 {
					t.Errorf("the token has %d bytes: too many for the binary form", len(token))
				}
				if got := b.bring(t, p.Addr, token); got != "200" {
					t.Errorf("a token got %s", got)
				}
				if got := b.bring(t, p.Addr, token[:len(token)-9]+"AAAAAAAAA"); got != "401" {
					t.Errorf("a forged token got %s, want 401", got)
				}
			})
		}
	})
}

func TestATokenMayComeInPieces(t *testing.T) {
	t.Parallel()
	m := newMint(1)
	keys, backend := writeKeys(t, m.set()), harness.StartEcho(t)
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, way, "-token-keys="+keys)
		c := harness.Connect(t, p.Addr)
		c.SetNoDelay(true)
		for _, b := range []byte(m.enc(claimsFor(backend, time.Minute)) + "\n") {
			harness.Send(t, c, string(b))
		}
		harness.Expect(t, c, "200")
		harness.Echo(t, c, "hello")

		early := harness.Connect(t, p.Addr)
		harness.Send(t, early, m.enc(claimsFor(backend, time.Minute))+"\nearly")
		harness.Expect(t, early, "200early")
	})
}

// Beside tokens sealed lines go on to open, and the other way round.
func TestTokensAndSealedLinesOpenSideBySide(t *testing.T) {
	t.Parallel()
	m := newMint(1)
	p := harness.Start(t, "-token-keys="+writeKeys(t, m.set()))
	backend := harness.StartEcho(t)
	for kid, seal := range m.kinds() {
		if got := bring(t, p.Addr, seal(claimsFor(backend, time.Minute))); got != "200" {
			t.Errorf("a token with the key %s got %s", kid, got)
		}
	}
	harness.OpenTunnel(t, p.Addr, backend)
	if token := m.enc(claimsFor(backend, time.Minute)); bring(t, harness.Start(t).Addr, token) != "401" {
		t.Error("a token opens without -token-keys")
	}
}

// badToken is a token that has to be refused, and why.
type badToken struct{ name, token, reason string }

// badTokens lead to backend but for one fault each.
func (m *mint) badTokens(t testing.TB, backend string) []badToken {
	t.Helper()
	good := claimsFor(backend, time.Minute)
	der, err := x509.MarshalPKIXPublicKey(m.es.Public())
	if err != nil {
		t.Fatal(err)
	}
	signed := func(header, claims string, key []byte) string { return m.jws(header, claims, hmacWith(key)) }
	at := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	list := []badToken{
		{"expired", m.enc(claimsFor(backend, -90*time.Second)), "token_expired"},
		{"without exp", m.enc(fmt.Sprintf(`{"sub":%q}`, backend)), "token_no_exp"},
		{"exp as text", m.enc(fmt.Sprintf(`{"sub":%q,"exp":"%d"}`, backend, at(time.Minute))), "token_claims"},
		{"exp of null", m.enc(fmt.Sprintf(`{"sub":%q,"exp":null}`, backend)), "token_claims"},
		{"not yet valid", m.enc(fmt.Sprintf(`{"sub":%q,"exp":%d,"nbf":%d}`, backend, at(time.Hour), at(90*time.Second))), "token_not_yet"},
		{"none", m.jws(`{"alg":"none"}`, good, nil), "token_algorithm"},
		{"none, named as a key", m.jws(`{"alg":"none","kid":"sig"}`, good, nil), "token_algorithm"},
		{"none, signed", signed(`{"alg":"none","kid":"sig"}`, good, m.sigKey), "token_algorithm"},
		{"HS256 keyed with the public key's bytes", signed(`{"alg":"HS256","kid":"ed"}`, good, m.edPublic()), "token_algorithm"},
		{"HS256 keyed with the public key in PEM", signed(`{"alg":"HS256","kid":"es"}`, good,
			pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), "token_algorithm"},
		{"HS256 keyed with the public key in DER", signed(`{"alg":"HS256"}`, good, der), "token_forged"},
		{"HS256 keyed with the encrypting key", signed(`{"alg":"HS256","kid":"enc"}`, good, m.encKey), "token_algorithm"},
		{"HS512", signed(`{"alg":"HS512","kid":"sig"}`, good, m.sigKey), "token_algorithm"},
		{"unknown kid", m.jwe(`{"alg":"dir","enc":"A256GCM","kid":"gone"}`, good, m.encKey), "token_key"},
		{"empty kid", m.jwe(`{"alg":"dir","enc":"A256GCM","kid":""}`, good, m.encKey), "token_key"},
		{"another's key", newMint(9).enc(good), "token_forged"},
		{"another's signature", newMint(9).ed(good), "token_forged"},
		{"zip", m.jwe(`{"alg":"dir","enc":"A256GCM","kid":"enc","zip":"DEF"}`, good, m.encKey), "token_compressed"},
		{"crit", m.jwe(`{"alg":"dir","enc":"A256GCM","kid":"enc","crit":["exp"]}`, good, m.encKey), "token_extension"},
		{"its own key", signed(`{"alg":"HS256","jwk":{"kty":"oct","k":"AA"}}`, good, m.sigKey), "token_embedded_key"},
		{"a dot more", m.enc(good) + ".", "token_malformed"},
		{"a part less", m.enc(good)[:strings.LastIndex(m.enc(good), ".")], "token_malformed"},
		{"padding", m.sig(good) + "=", "token_malformed"},
		{"a space in front", " " + m.enc(good), "bad_base64"},
		{"a space behind", m.enc(good) + " ", "token_malformed"},
		{"no claims", m.enc(""), "token_malformed"},
		{"a text", m.enc("claims"), "token_claims"},
		{"an array", m.enc("[]"), "token_claims"},
		{"no sub", m.enc(fmt.Sprintf(`{"exp":%d}`, at(time.Minute))), "token_no_sub"},
	}
	port := backend[strings.LastIndex(backend, ":"):]
	for _, sub := range []string{
		"127.1" + port, port, "0x7f.0.0.1" + port, " " + backend, backend + "\n", backend + "\x00", backend + "/",
		"[::1%lo]" + port, "127.0.0.1:+" + port[1:], "127.0.0.1:0" + port[1:], "127.0.0.1", "ftp://" + backend, "locälhost" + port,
	} {
		claims := fmt.Sprintf(`{"sub":%s,"exp":%d}`, strconv.QuoteToASCII(sub), at(time.Minute))
		claims = strings.ReplaceAll(claims, `\x00`, `\u0000`) // Go's escape is not JSON's
		list = append(list, badToken{fmt.Sprintf("sub of %+q", sub), m.enc(claims), "bad_address"})
	}
	return list
}

func TestABadTokenGets401AndNothingIsDialed(t *testing.T) {
	t.Parallel()
	m := newMint(1)
	keys := writeKeys(t, m.set())
	harness.BothWays(t, func(t *testing.T, way string) {
		backend, accepted := startCounting(t)
		p := harness.Start(t, way, "-token-keys="+keys, "-log-level=debug")
		list := m.badTokens(t, backend)
		clients := make(map[string]badToken)
		for _, b := range list {
			c := harness.Connect(t, p.Addr)
			harness.Send(t, c, b.token+"\n")
			harness.ExpectAll(t, c, "401")
			clients[c.LocalAddr().String()] = b
			c.Close()
		}
		p.Log.WaitLine(t, "refused", len(list))
		for _, line := range p.Log.Lines("refused") {
			b := clients[line["client"].(string)]
			if line["reason"] != b.reason || harness.Status(line) != "401" || line["backend"] != nil {
				t.Errorf("%s: logged %v; want the reason %s, and no backend", b.name, line, b.reason)
			}
		}
		// Whatever they had dialed would stand in the queue before this one.
		if got := bring(t, p.Addr, m.enc(claimsFor(backend, time.Minute))); got != "200" {
			t.Errorf("the good token got %s", got)
		}
		if n := accepted.Load(); n != 1 {
			t.Errorf("%d connections came to the backend, want the last one alone", n)
		}
	})
}

func TestATokenWithABitChangedGets401(t *testing.T) {
	t.Parallel()
	m := newMint(1)
	keys := writeKeys(t, m.set())
	harness.BothWays(t, func(t *testing.T, way string) {
		backend, accepted := startCounting(t)
		p := harness.Start(t, way, "-token-keys="+keys)
		for kid, seal := range m.kinds() {
			token := seal(claimsFor(backend, time.Minute))
			// One bit of each character, in turn; every bit is changed in internal/token.
			for i := range token {
				changed := []byte(token)
				changed[i] ^= 1 << (i % 8)
				if got := bring(t, p.Addr, string(changed)); got != "401" {
					t.Errorf("%s: with bit %d of character %d changed it got %s, want 401", kid, i%8, i, got)
				}
			}
			if got := bring(t, p.Addr, token); got != "200" {
				t.Errorf("%s: unchanged it got %s", kid, got)
			}
		}
		if n := accepted.Load(); n != int64(len(m.kinds())) {
			t.Errorf("%d connections came to the backend, want %d", n, len(m.kinds()))
		}
	})
}

func TestABadTokenIsRefusedInEveryForm(t *testing.T) {
	t.Parallel()
	m := newMint(1)
	p := harness.Start(t, "-token-keys="+writeKeys(t, m.set()))
	backend, accepted := startCounting(t)
	for _, b := range bearers {
		for name, token := range map[string]string{
			"expired": m.enc(claimsFor(backend, -90*time.Second)),
			"none":    m.jws(`{"alg":"none"}`, claimsFor(backend, time.Minute), nil),
			"sub":     m.enc(claimsFor("127.1:80", time.Minute)),
		} {
			if got := b.bring(t, p.Addr, token); got != "401" {
				t.Errorf("%s, %s: got %s, want 401", b.name, name, got)
			}
		}
	}
	if n := accepted.Load(); n != 0 {
		t.Errorf("%d connections came to the backend", n)
	}
}

func TestClocksMayDifferByAMinute(t *testing.T) {
	t.Parallel()
	m := newMint(1)
	p := harness.Start(t, "-token-keys="+writeKeys(t, m.set()))
	backend := harness.StartEcho(t)
	at := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	for _, claims := range []string{
		claimsFor(backend, -30*time.Second),
		fmt.Sprintf(`{"sub":%q,"exp":%d,"nbf":%d}`, backend, at(time.Hour), at(30*time.Second)),
	} {
		if got := bring(t, p.Addr, m.enc(claims)); got != "200" {
			t.Errorf("%s got %s", claims, got)
		}
	}
}

func TestTheAudienceMustBeNamed(t *testing.T) {
	t.Parallel()
	m := newMint(1)
	keys, backend := writeKeys(t, m.set()), harness.StartEcho(t)
	p := harness.Start(t, "-token-keys="+keys, "-token-audience=game")
	for audience, want := range map[string]string{
		`"game"`: "200", `["shop","game"]`: "200",
		`"shop"`: "401", `["shop"]`: "401", `[]`: "401", `"games"`: "401", `"Game"`: "401", `7`: "401", `null`: "401",
	} {
		claims := strings.Replace(claimsFor(backend, time.Minute), "{", `{"aud":`+audience+",", 1)
		if got := bring(t, p.Addr, m.sig(claims)); got != want {
			t.Errorf("aud of %s got %s, want %s", audience, got, want)
		}
	}
	if got := bring(t, p.Addr, m.sig(claimsFor(backend, time.Minute))); got != "401" {
		t.Errorf("without aud it got %s, want 401", got)
	}
	if got := bring(t, p.Addr, sealToken(t, backend, "-ttl=1m", "-token-keys="+keys, "-token-audience=game")); got != "200" {
		t.Errorf("the token of -seal got %s", got)
	}
	for line := range strings.Lines(p.Log.String()) {
		if strings.Contains(line, `"refused"`) && !strings.Contains(line, "token_audience") && !strings.Contains(line, "token_claims") {
			t.Errorf("logged %s", line)
		}
	}
}

func TestTheLogHoldsNothingOfAToken(t *testing.T) {
	t.Parallel()
	m := newMint(1)
	p := harness.Start(t, "-token-keys="+writeKeys(t, m.set()), "-token-audience=players", "-log-level=debug")
	backend := harness.ClosedPort(t)
	claims := func(aud string, ttl time.Duration) string {
		return strings.Replace(claimsFor(backend, ttl), "{", `{"jti":"claimed","aud":"`+aud+`",`, 1)
	}
	tokens := []string{
		m.sig(claims("players", time.Minute)), // good, but nobody listens there
		m.sig(claims("somebody", time.Minute)),
		m.ed(claims("players", -time.Hour)),
		m.jwe(`{"alg":"dir","enc":"A256GCM","kid":"unheard-of"}`, claims("players", time.Minute), m.encKey),
		m.enc(`{"jti":"claimed"`),
		m.jws(`{"alg":"none","kid":"unheard-of"}`, claims("players", time.Minute), nil),
	}
	for i, token := range tokens {
		want := "401"
		if i == 0 {
			want = "502"
		}
		for _, b := range bearers {
			if len(token) > b.max {
				continue
			}
			if got := b.bring(t, p.Addr, token); got != want {
				t.Errorf("token %d, %s: got %s, want %s", i, b.name, got, want)
			}
		}
	}
	harness.Eventually(t, "every refusal is logged", func() bool {
		n := len(tokens) * len(bearers)
		for _, token := range tokens {
			if len(token) > 255 {
				n--
			}
		}
		return len(p.Log.Lines("refused"))+len(p.Log.Lines("request")) == n
	})
	var log string
	for line := range strings.Lines(p.Log.String()) {
		if !strings.Contains(line, `"msg":"settings"`) { // -token-audience is one
			log += line
		}
	}
	for _, token := range tokens {
		for part := range strings.SplitSeq(token, ".") {
			if len(part) >= 8 && strings.Contains(log, part[:8]) {
				t.Errorf("the log holds %s…", part[:8])
			}
		}
	}
	for _, claim := range []string{"claimed", "players", "somebody", "unheard-of"} {
		if strings.Contains(log, claim) {
			t.Errorf("the log holds %q", claim)
		}
	}
}

func TestATokenMayHave2048Bytes(t *testing.T) {
	t.Parallel()
	m := newMint(1)
	keys := writeKeys(t, m.set())
	for _, tt := range []struct {
		flags []string
		most  int
	}{
		{[]string{"-token-keys=" + keys}, 2048},
		{[]string{"-token-keys=" + keys, "-handshake-max=500"}, 500},
		{[]string{"-token-keys=" + keys, "-handshake-max=1024"}, 1024}, // the other default, asked for
		{[]string{"-token-keys=" + keys, "-handshake-max=3000"}, 3000},
	} {
		harness.BothWays(t, func(t *testing.T, way string) {
			p := harness.Start(t, append(tt.flags, way)...)
			for _, b := range bearers {
				if b.max < tt.most {
					continue
				}
				backend := harness.StartEcho(t)
				if strings.HasPrefix(b.name, "HTTP") {
					backend = startPages(t)
				}
				if got := b.bring(t, p.Addr, m.ofSize(t, tt.most, backend)); got != "200" {
					t.Errorf("%s %s: a token of %d bytes got %s", tt.flags, b.name, tt.most, got)
				}
				if got := b.bring(t, p.Addr, m.ofSize(t, tt.most+1, backend)); got != "400" {
					t.Errorf("%s %s: a token of %d bytes got %s, want 400", tt.flags, b.name, tt.most+1, got)
				}
			}
			for _, line := range append(p.Log.Lines("refused"), p.Log.Lines("request")...) {
				if status := fmt.Sprint(line["status"]); status != "200" && line["reason"] != "too_long" {
					t.Errorf("%s: logged %v", tt.flags, line)
				}
			}
		})
	}
	if got := bring(t, harness.Start(t).Addr, strings.Repeat("A", 1025)); got != "400" {
		t.Errorf("without tokens a line of 1025 bytes got %s, want 400", got)
	}
}

func TestChangedKeysAreReadWithoutARestart(t *testing.T) {
	t.Parallel()
	old, fresh := newMint(1), newMint(2)
	keys, backend := writeKeys(t, old.set()), harness.StartEcho(t)
	both := []*harness.Process{harness.Start(t, "-loops=0", "-token-keys="+keys), harness.Start(t, "-loops=-1", "-token-keys="+keys)}
	// get returns what the mint's tokens get at both.
	get := func(m *mint) string {
		token := m.enc(claimsFor(backend, time.Minute))
		return bring(t, both[0].Addr, token) + " " + bring(t, both[1].Addr, token)
	}
	const open, shut = "200 200", "401 401"
	if get(old) != open || get(fresh) != shut {
		t.Fatal("the first keys are not those that open")
	}
	tunnel := harness.Connect(t, both[0].Addr)
	harness.Send(t, tunnel, old.enc(claimsFor(backend, time.Minute))+"\n")
	harness.Expect(t, tunnel, "200")

	replaceFile(t, keys, fresh.set())
	harness.Eventually(t, "the new keys open", func() bool { return get(fresh) == open })
	if get(old) != shut {
		t.Error("the old keys still open")
	}
	harness.Echo(t, tunnel, "hello") // it outlives the key that opened it

	replaceFile(t, keys, `{"keys":[]}`)
	for _, p := range both {
		p.Log.WaitLine(t, "token keys changed", 1)
		harness.Eventually(t, "the fault is logged", func() bool {
			return get(fresh) == open && len(p.Log.Lines("cannot read the changed token keys, the old ones stay")) == 1
		})
	}
}

func TestTokensOpenSideBySideWhileTheirKeysChange(t *testing.T) {
	harness.Long(t)
	t.Parallel()
	both, one := newMint(1), newMint(2)
	keys := writeKeys(t, both.set())
	harness.BothWays(t, func(t *testing.T, way string) {
		p := harness.Start(t, way, "-token-keys="+keys)
		backend := harness.StartEcho(t)
		var clients sync.WaitGroup
		for i := range 8 {
			clients.Go(func() {
				for j := range 25 {
					m, want := both, "200"
					if (i+j)%3 == 0 {
						m, want = newMint(9), "401"
					}
					for _, seal := range m.kinds() {
						if got := bring(t, p.Addr, seal(claimsFor(backend, time.Minute))); got != want {
							t.Errorf("got %s, want %s", got, want)
						}
					}
					if i == 0 { // the good keys stay, behind another one or alone
						set := both.set()
						if j%2 == 0 {
							set = strings.Replace(set, "]", ","+one.jwk("another")+"]", 1)
						}
						replaceFile(t, keys, set)
					}
				}
			})
		}
		clients.Wait()
	})
}

// startCounting is startEcho with a count of the connections.
func startCounting(t testing.TB) (addr string, accepted *atomic.Int64) {
	accepted = new(atomic.Int64)
	return harness.StartBackend(t, func(c *net.TCPConn) {
		accepted.Add(1)
		io.Copy(c, struct{ io.Reader }{c})
		c.CloseWrite()
	}), accepted
}

// generateKeys returns what -keygen prints.
func generateKeys(t testing.TB) string {
	t.Helper()
	set, stderr, code := harness.Run(t, nil, "-keygen")
	if code != 0 || stderr != "" {
		t.Fatalf("-keygen: code %d, %s", code, stderr)
	}
	return set
}

// sealToken returns what -seal prints, which must be a token.
func sealToken(t testing.TB, addr string, args ...string) string {
	t.Helper()
	out, stderr, code := harness.Run(t, nil, append(args, "-seal="+addr)...)
	if code != 0 || stderr != "" || !regexp.MustCompile(`^eyJ[\w.-]+\n$`).MatchString(out) {
		t.Fatalf("-seal: code %d, %q, %s", code, out, stderr)
	}
	return strings.TrimSuffix(out, "\n")
}

func writeKeys(t testing.TB, set string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(name, []byte(set), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// replaceFile changes a file as an operator should: at once. It may be called
// from any goroutine.
func replaceFile(t testing.TB, name, text string) {
	err := os.WriteFile(name+".new", []byte(text), 0o600)
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		t.Error(err)
	}
}
