// Package token opens and makes JOSE compact tokens: a subject with a time to
// live, encrypted or signed with a key of a JWK Set (RFC 7515 to 7519).
//
// A key's own type and use fix the one algorithm that it is good for; what a
// token says of itself only has to agree:
//
//	key                           token
//	oct of 32 bytes, use enc      JWE, alg dir, enc A256GCM
//	oct of 32 bytes up, use sig   JWS, alg HS256
//	OKP Ed25519, public           JWS, alg EdDSA
//	EC P-256, public              JWS, alg ES256
//
// Whatever can be refused without a key is refused before any cryptography:
// see inspect. go-jose reads the keys and makes tokens, but does not open them:
// it would parse the header, which inspect has parsed, a few times more. That
// costs several times what the cryptography does, and a bad token can choose
// how many. So there is one parser, and what it has checked is what is opened.
package token

import (
	"bytes"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Error is why a token did not open. It is for the log only: a client that
// learns the reason learns something about the keys.
type Error string

func (e Error) Error() string { return string(e) }

const (
	ErrMalformed   Error = "token_malformed"    // not a compact token, or not in its one spelling
	ErrExtension   Error = "token_extension"    // crit or b64 in the header
	ErrCompressed  Error = "token_compressed"   // zip in the header
	ErrEmbeddedKey Error = "token_embedded_key" // jwk, jku, x5c or x5u in the header
	ErrAlgorithm   Error = "token_algorithm"    // none, unknown, or not that of the key
	ErrKey         Error = "token_key"          // unknown kid; or no kid, and not exactly one key fits
	ErrForged      Error = "token_forged"       // the tag or the signature is wrong
	ErrClaims      Error = "token_claims"       // not a JSON object, or a claim of the wrong type
	ErrNoSubject   Error = "token_no_sub"
	ErrNoExpiry    Error = "token_no_exp"
	ErrExpired     Error = "token_expired"
	ErrExpiryFar   Error = "token_exp_far"  // more than ten years ahead: in milliseconds, perhaps
	ErrNotYet      Error = "token_not_yet"  // nbf is to come
	ErrAudience    Error = "token_audience" // aud is missing, or names others
)

// Start is how compact tokens begin: base64url for the {" of the header. A sealed
// line begins with "U2F".
const Start = "eyJ"

// Looks tells whether b begins as compact tokens do.
func Looks(b []byte) bool { return bytes.HasPrefix(b, []byte(Start)) }

// Keys opens and makes tokens with the keys of a file. It is safe for
// concurrent use.
type Keys struct {
	file     string
	audience string
	log      *slog.Logger

	set    atomic.Pointer[keySet]
	looked atomic.Int64 // the second, since 1970, in which the file was last looked at

	reloaded, failed atomic.Int64 // changes of the file

	mu   sync.Mutex // held while the file is read
	seen version
}

// Open returns the subject of a token that one of the keys has made and that
// is valid now, 60 seconds of leeway included. Every error is an Error. The
// subject may be any text, "" excepted.
//
// In the first call of a second Open looks whether the file has changed. It
// then takes the time of a stat, or of reading a small file.
func (k *Keys) Open(token []byte, now time.Time) (subject string, err error) {
	k.refresh(now)
	t, err := inspect(token)
	if err != nil {
		return "", err
	}
	key, err := k.set.Load().pick(&t.header)
	if err != nil {
		return "", err
	}
	claims, err := key.open(t)
	if err != nil {
		return "", err
	}
	return validate(claims, k.audience, now)
}

// The reasons why no token can be made.
var (
	ErrTTL      = errors.New("a token needs a time to live from a second to ten years")
	ErrNoSealer = errors.New("no key of the set can make tokens: that takes an oct key (-keygen makes one), not a public one, and one whose key_ops, if it has any, hold encrypt (use enc) or sign (use sig)")
)

// Seal returns a token for the subject that expires at now + ttl, in whole
// seconds, made with the first key of the file that can make one. Where an
// audience is set, the token is for it. What the subject means is the caller's
// to check. The error is ErrTTL or ErrNoSealer.
func (k *Keys) Seal(subject string, ttl time.Duration, now time.Time) (string, error) {
	if ttl < time.Second || now.Add(ttl).After(now.AddDate(maxYears, 0, 0)) {
		return "", ErrTTL
	}
	key := k.set.Load().sealer()
	if key == nil {
		return "", ErrNoSealer
	}
	claims := jwt.Claims{Subject: subject, Expiry: jwt.NewNumericDate(now.Add(ttl))}
	if k.audience != "" {
		claims.Audience = jwt.Audience{k.audience}
	}
	if key.kind == dirA256GCM {
		to := jose.Recipient{Algorithm: jose.DIRECT, Key: key.secret, KeyID: key.kid}
		enc, err := jose.NewEncrypter(jose.A256GCM, to, nil)
		if err != nil {
			return "", err
		}
		return jwt.Encrypted(enc).Claims(claims).Serialize()
	}
	opts := new(jose.SignerOptions)
	if key.kid != "" {
		opts.WithHeader("kid", key.kid)
	}
	sig, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: key.secret}, opts)
	if err != nil {
		return "", err
	}
	return jwt.Signed(sig).Claims(claims).Serialize()
}
