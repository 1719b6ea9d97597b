package token

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

func TestWhatIsSealedOpensUntilItExpires(t *testing.T) {
	for name, jwks := range map[string]string{
		"enc":             set(encJWK("")),
		"enc with kid":    set(encJWK(`,"kid":"a"`)),
		"sig":             set(sigJWK("")),
		"sig with kid":    set(sigJWK(`,"kid":"a"`)),
		"first that can":  set(edJWK(""), esJWK(""), sigJWK(`,"kid":"a"`), encJWK("")),
		"behind unusable": set(encJWK(""), encJWK(""), sigJWK("")),
	} {
		t.Run(name, func(t *testing.T) {
			k := loadFor(t, "game", jwks)
			token, err := k.Seal("127.0.0.1:4000", 10*time.Minute, clock)
			if err != nil {
				t.Fatal(err)
			}
			if !Looks([]byte(token)) {
				t.Errorf("Looks(%s) = false", token)
			}
			opens(t, k, token, "127.0.0.1:4000")
			for after, want := range map[time.Duration]error{
				10*time.Minute + 59*time.Second: nil,
				10*time.Minute + 60*time.Second: ErrExpired,
			} {
				if _, err := k.Open([]byte(token), clock.Add(after)); err != want {
					t.Errorf("after %v: %v, want %v", after, err, want)
				}
			}
			refuses(t, loadFor(t, "other", jwks), token, ErrAudience)
		})
	}
}

func TestTheFirstKeyThatCanSeals(t *testing.T) {
	for want, jwks := range map[string]string{
		encHeader:                       set(edJWK(""), encJWK(`,"kid":"enc"`), sigJWK("")),
		sigHeader:                       set(edJWK(""), sigJWK(`,"kid":"sig"`), encJWK("")),
		`{"alg":"dir","enc":"A256GCM"}`: set(encJWK(""), sigJWK("")),
	} {
		token, err := load(t, jwks).Seal("a:1", time.Minute, clock)
		if err != nil {
			t.Fatal(err)
		}
		h, err := inspect([]byte(token))
		if err != nil {
			t.Fatal(err)
		}
		wanted, err := inspect([]byte(jwe(want, good, encSecret)))
		if strings.Contains(want, "HS256") {
			wanted, err = inspect([]byte(jws(want, good, withHMAC(sigSecret))))
		}
		if err != nil || h.header != wanted.header {
			t.Errorf("sealed with %+v, want %s", h, want)
		}
	}
}

func TestAKeySealsOnlyWhatItsOpsPermit(t *testing.T) {
	open, openSig := encJWK(`,"kid":"open","key_ops":["decrypt"]`), sigJWK(`,"kid":"openSig","key_ops":["verify"]`)
	if token, err := load(t, set(open, openSig)).Seal("a:1", time.Minute, clock); !errors.Is(err, ErrNoSealer) {
		t.Errorf("Seal = %q, %v; want %v", token, err, ErrNoSealer)
	}
	k := load(t, set(open, openSig, sigJWK(`,"kid":"both","key_ops":["verify","sign"]`)))
	token, err := k.Seal("a:1", time.Minute, clock)
	if err != nil {
		t.Fatal(err)
	}
	opens(t, k, token, "a:1")
	if want := b64([]byte(`{"alg":"HS256","kid":"both"}`)) + "."; !strings.HasPrefix(token, want) {
		t.Errorf("sealed %s, want %s...", token, want)
	}
}

func TestTheLongestTokenOpens(t *testing.T) {
	k := load(t, allKeys)
	token, err := k.Seal("a:1", clock.AddDate(10, 0, 0).Sub(clock), clock)
	if err != nil {
		t.Fatal(err)
	}
	opens(t, k, token, "a:1")
}

func TestPublicKeysSealNothing(t *testing.T) {
	if token, err := load(t, set(edJWK(""), esJWK(""))).Seal("a:1", time.Minute, clock); !errors.Is(err, ErrNoSealer) {
		t.Errorf("Seal = %q, %v; want %v", token, err, ErrNoSealer)
	}
}

func TestATokenThatWouldNotLiveIsNotSealed(t *testing.T) {
	k := load(t, allKeys)
	for _, ttl := range []time.Duration{0, -time.Minute, time.Second - 1, clock.AddDate(10, 0, 0).Sub(clock) + 1, math.MaxInt64} {
		if token, err := k.Seal("a:1", ttl, clock); !errors.Is(err, ErrTTL) {
			t.Errorf("Seal for %v = %q, %v; want %v", ttl, token, err, ErrTTL)
		}
	}
}
